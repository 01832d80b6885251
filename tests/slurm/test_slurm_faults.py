"""Failures of ranks and of shards: each is reported by its cause, and the other points are measured."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import NamedTuple

import pytest

from launcher.jobs import job
from tests.slurm import sweeps
from tests.slurm.slurmlab import SlurmLab
from tests.slurm.sweeps import ROOT, Done

RAISES, KILLED, CRASHED, CANCELLED, FINE = range(5)


class Run(NamedTuple):
    """A sweep in which some shards were lost."""

    done: Done
    folder: Path
    states: dict[str, str]

    def state(self, shard: int) -> str:
        return self.states[sweeps.job_of(self.folder, shard)]


def test_a_rank_that_segfaults_or_hangs_is_a_failed_record_and_the_job_completes(lab: SlurmLab, tmp_path: Path):
    faults = "faults=['hang@1:dispatch/bf16/num_slices=2','segfault@0:dispatch/bf16/num_slices=4']"
    done = sweeps.sweep(lab, tmp_path, faults, "measure.deadline_s=2")
    assert done.status == 0, done.stderr
    states = sweeps.wait_jobs(lab, done.folder)
    assert set(states.values()) == {"COMPLETED"}
    failed = [line for line in sweeps.lines(done.folder) if line["outcome"]["kind"] == "failed"]
    kinds = {line["outcome"]["failure"]: line["point"]["knobs"]["num_slices"] for line in failed}
    assert kinds == {"hang": 2, "crash": 4}
    assert sweeps.points(done.folder)["failed"] == 2
    assert sweeps.points(done.folder)["missing"] == 0
    assert sweeps.stray_ranks(lab) == []


def test_a_shard_that_dies_is_noticed_within_30_s(lab: SlurmLab, tmp_path: Path):
    process = sweeps.begin(lab, tmp_path, *sweeps.slow_points(2.0))
    folder = sweeps.only_folder(tmp_path)
    sweeps.kill(sweeps.halt(lab, folder, 0), signal.SIGKILL)
    process.wait(timeout=30)
    done = sweeps.end(process)
    assert done.status == 3
    assert f"shard 0: FAILED (job {sweeps.job_of(folder, 0)})" in done.stderr


@pytest.fixture(scope="module")
def run(module_lab: SlurmLab, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Five shards at once: one cannot use its folder, two lose their main process, one is cancelled, one is fine."""
    outputs = tmp_path_factory.mktemp("faults")
    folder = outputs / "run"
    unusable = folder / "shards" / f"{RAISES:04d}"
    block = f"test $SLURM_ARRAY_TASK_ID != {RAISES} || {{ mkdir {unusable}; touch {unusable}/logs; }}"
    process = sweeps.begin(
        module_lab,
        outputs,
        "shard.count=5",
        "hydra.launcher.gpus_per_node=1",
        f"run={folder}",
        f"hydra.launcher.setup=['{block}']",
    )
    assert sweeps.only_folder(outputs) == folder
    for shard, sig in ((CANCELLED, signal.SIGSTOP), (KILLED, signal.SIGKILL), (CRASHED, signal.SIGSEGV)):
        sweeps.kill(sweeps.main_process(module_lab, sweeps.job_of(folder, shard)), sig)
    module_lab.command("scancel", sweeps.job_of(folder, CANCELLED))
    done = sweeps.end(process)
    return Run(done, folder, sweeps.wait_jobs(module_lab, folder))


def test_a_shard_that_raises_is_failed_in_slurm_with_its_traceback_in_its_log(run: Run):
    assert run.state(RAISES) == "FAILED"
    log = sweeps.log_of(run.folder, RAISES)
    assert "FileExistsError" in log
    assert f'File "{run.folder}/code/{Path(job.__file__).relative_to(ROOT)}"' in log


def test_a_shard_whose_main_process_is_killed_is_failed(run: Run):
    assert run.state(KILLED) == run.state(CRASHED) == "FAILED"


def test_a_shard_that_is_cancelled_is_cancelled(run: Run):
    assert run.state(CANCELLED) == "CANCELLED"


def test_the_others_are_measured_and_reported(run: Run):
    assert run.state(FINE) == "COMPLETED"
    points = sweeps.points(run.folder)
    assert points["measured"] >= 2
    assert points["missing"] >= 1
    assert (run.folder / "OPTIMAL_CONFIGS.md").is_file()


def test_the_command_names_every_lost_shard_and_reports_missing_points(run: Run):
    assert run.done.status == 3
    assert run.done.stdout == f"{run.folder}/OPTIMAL_CONFIGS.md\n"
    for shard in (RAISES, KILLED, CRASHED, CANCELLED):
        assert f"shard {shard}: {run.state(shard)} (job {sweeps.job_of(run.folder, shard)})" in run.done.stderr
    assert f"shard {FINE}:" not in run.done.stderr


def test_status_shows_the_same(run: Run, cluster: SlurmLab):
    shown = json.loads(sweeps.run(cluster, "launcher.status", str(run.folder), "--json").stdout)
    assert [row["state"] for row in shown["rows"]] == ["FAILED", "FAILED", "FAILED", "CANCELLED", "COMPLETED"]


def test_no_rank_is_left(run: Run, cluster: SlurmLab):
    assert sweeps.stray_ranks(cluster) == []
