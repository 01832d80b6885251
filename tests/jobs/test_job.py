"""The body of a job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.config import planning
from launcher.config.plan import Plan
from launcher.errors import FAILURE
from launcher.jobs import job, sbatch
from launcher.store.attempts import read_shard_attempts
from launcher.store.run_folder import RunFolder
from tests.builders import ROOT, measured_twice, spec


def test_a_job_that_would_run_other_code_than_was_submitted_fails(monkeypatch: pytest.MonkeyPatch, folder: RunFolder):
    monkeypatch.setenv(sbatch.CODE_VARIABLE, str(folder.code))
    with pytest.raises(RuntimeError, match=f"{folder.code} was submitted; is PYTHONPATH changed"):
        job.run_shard(str(folder.path), 0)


OUT_OF_TIME = f"""
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGUSR2}})  # before libraries begin threads
import {job.__name__} as job
os.kill(os.getpid(), signal.SIGUSR2)  # as Slurm does ahead of the time limit, here before the first point
job.{job.run_shard.__name__}(sys.argv[1], 0, True)
"""


@pytest.mark.slow  # runs a shard in a process of its own
def test_only_the_second_time_limit_in_a_row_without_a_point_is_a_failure(tmp_path: Path):
    small = ("hardware=cpu", "backend=alltoall", "workload=small", "grid=smoke", "measure=quick")
    folder = RunFolder.create(planning.make(spec(*small)), outputs=tmp_path, path=None, command=["deepep-sweep", "-m"])

    def tried() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", OUT_OF_TIME, str(folder.path)]
        return subprocess.run(
            command, cwd=ROOT, env={**os.environ, "SLURM_JOB_ID": "7"}, capture_output=True, text=True, check=False
        )

    assert tried().returncode == sbatch.REQUEUE
    second = tried()
    assert second.returncode == FAILURE
    assert "two time limits in a row without a point: raise hydra.launcher.timeout_min" in second.stderr
    assert [one.outcome for one in read_shard_attempts(folder, 0)] == ["stopped", "stopped"]


def test_the_aggregate_job_allows_mixed_environments_where_the_command_does(plan: Plan, folder: RunFolder):
    job.run_aggregate(str(measured_twice(folder, plan).path), allow_mixed=True)
    assert len(list(folder.path.glob("RESULTS_EP*.json"))) == 2
