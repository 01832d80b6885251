"""Attempts at a shard and their outcomes."""

from __future__ import annotations

import sys

import pytest

from launcher.store.attempts import begin_attempt, read_shard_attempts
from launcher.store.run_folder import RunFolder


def test_a_terminated_attempt_is_recorded_before_the_clean_up(folder: RunFolder):
    """Slurm kills a process soon after SIGTERM, and ending the ranks may take longer."""
    with begin_attempt(folder, 0) as attempt:
        attempt.terminate()
        (stamped,) = read_shard_attempts(folder, 0)
    assert stamped.outcome == "terminated"
    assert stamped.ended is not None
    (after,) = read_shard_attempts(folder, 0)
    assert after.outcome == "terminated"


@pytest.mark.parametrize(("stated", "outcome"), [("failed", "terminated"), ("complete", "complete")])
def test_an_attempt_ended_by_a_signal_was_terminated_unless_it_was_complete(
    stated: str, outcome: str, folder: RunFolder
):
    def ended() -> None:
        with begin_attempt(folder, 0) as attempt:
            attempt.outcome = stated
            sys.exit(143)

    with pytest.raises(SystemExit):
        ended()
    assert [one.outcome for one in read_shard_attempts(folder, 0)] == [outcome]
