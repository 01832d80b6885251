"""The status of a run with detached jobs."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from launcher.config.plan import FINAL, Plan
from launcher.jobs import run_status
from launcher.store.attempts import Attempt, add_attempt
from launcher.store.records_file import open_appender
from launcher.store.run_folder import RunFolder
from launcher.store.submissions import Submission, add_submission
from tests.builders import complete, deepep_plan


@pytest.mark.parametrize(
    ("outcome", "state"),
    [("failed", "FAILED"), ("terminated", "TERMINATED"), ("stopped", "STOPPED"), (None, "UNKNOWN")],
)
def test_a_job_that_slurm_has_forgotten_has_the_state_of_its_attempt(
    outcome: str | None, state: str, plan: Plan, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", "")
    add_submission(folder, Submission("shards", "7", [0], 0.0))
    for number in range(11):  # the tenth goes before the second in the order of names
        add_attempt(folder, 0, Attempt("7", "gpu1", float(number), number + 1.0, outcome if number == 10 else "other"))
    now = run_status.run_status(folder, plan)
    assert (now.rows[0].state, now.slurm_silent, now.is_over) == (state, True, False)


def test_the_time_left_excludes_pauses_between_attempts_and_finished_shards(
    plan: Plan, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    now = time.time()
    add_attempt(folder, 0, Attempt("7", "gpu1", now - 90_000, now - 89_990, "terminated"))
    add_attempt(folder, 0, Attempt("7", "gpu1", now - 10))
    lines = complete(plan)
    with open_appender(folder, 0) as appender:
        for line in lines[: len(lines) // 2]:
            appender.add(line)
    add_submission(folder, Submission("shards", "7", [0], now))
    for name, says in (("sbatch", ""), ("squeue", "7|RUNNING|gpu1|None")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{says}'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    status = run_status.run_status(folder, plan)
    assert status.time_left_s is not None
    left = status.planned - status.done
    assert status.time_left_s == pytest.approx(20 / status.done * left, rel=0.2)


def test_the_final_without_slurm_is_done_only_after_points_were_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("PATH", "")
    search = deepep_plan().spec.search
    for num_groups, expected in ((0, ["NOT PLANNED"] * 2), (2, ["NOT STARTED", "DONE"])):
        plan = deepep_plan(search=msgspec.structs.replace(search, final_groups=num_groups))
        folder = RunFolder.create(plan, outputs=tmp_path, path=tmp_path / f"{num_groups}", command=["deepep-sweep"])
        add_attempt(folder, FINAL, Attempt(None, "node1", 1.0, 2.0, "complete"))  # of a spent budget: without finalists
        states = [run_status.run_status(folder, plan).final]
        with open_appender(folder, 0) as appender:
            for line in complete(plan):
                appender.add(line)
        assert [*states, run_status.run_status(folder, plan).final] == expected
