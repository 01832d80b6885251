"""Tries at a shard, and how each ended."""

from __future__ import annotations

import sys

import pytest

from launcher.store.attempts import begin_attempt, read_shard_attempts
from launcher.store.run_folder import RunFolder


def test_a_try_that_is_ended_is_stamped_before_anything_is_cleared_away(folder: RunFolder):
    """Slurm kills what a SIGTERM did not end soon, and ending the ranks may take longer."""
    with begin_attempt(folder, 0) as attempt:
        attempt.terminate()
        (found,) = read_shard_attempts(folder, 0)
    assert found.outcome == "terminated"
    assert found.ended is not None
    (after,) = read_shard_attempts(folder, 0)
    assert after.outcome == "terminated"


@pytest.mark.parametrize(("said", "outcome"), [("failed", "terminated"), ("complete", "complete")])
def test_what_a_signal_ends_was_terminated_unless_it_had_come_to_its_end(said: str, outcome: str, folder: RunFolder):
    def ended() -> None:
        with begin_attempt(folder, 0) as attempt:
            attempt.outcome = said
            sys.exit(143)

    with pytest.raises(SystemExit):
        ended()
    assert [one.outcome for one in read_shard_attempts(folder, 0)] == [outcome]


# ---- how it is waited for
