"""Unusual sites: no accounting, a sweep inside a job, another launcher of the same name, or no Slurm."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm import sweeps
from tests.slurm.slurmlab import SlurmLab


def test_without_accounting_a_killed_shard_is_still_failed_and_the_rest_reported(bare_lab: SlurmLab, tmp_path: Path):
    process = sweeps.begin(bare_lab, tmp_path, "shard.count=2")
    folder = sweeps.only_folder(tmp_path)
    sweeps.kill(sweeps.main_process(bare_lab, sweeps.job_of(folder, 0)), signal.SIGKILL)
    done = sweeps.end(process)
    assert done.status == 3, done.stderr
    assert f"shard 0: FAILED (job {sweeps.job_of(folder, 0)})" in done.stderr
    assert sorted(sweeps.wait_jobs(bare_lab, folder).values()) == ["COMPLETED", "COMPLETED", "FAILED"]
    assert sweeps.points(folder)["measured"] >= 2
    assert "the times of the attempts" in (folder / "accounting.json").read_text()
    assert sweeps.stray_ranks(bare_lab) == []


def test_a_sweep_inside_a_job_submits_jobs_of_the_size_it_needs(lab: SlurmLab, tmp_path: Path):
    outer = [sys.executable, "-m", "launcher.sweep", *sweeps.sweep_arguments(tmp_path)]
    options = ("--ntasks=3", "--cpus-per-task=5", "--mem=9G", "--time=7", "--job-name=outer", f"--chdir={sweeps.ROOT}")
    output = tmp_path / "outer.out"
    lab.command("sbatch", *options, "--gpus-per-node=1", f"--output={output}", f"--wrap={shlex.join(outer)}")
    folder = sweeps.only_folder(tmp_path)
    assert set(sweeps.wait_jobs(lab, folder).values()) == {"COMPLETED"}
    sweeps.wait_until(lambda: not lab.alive())
    shown = lab.command("scontrol", "show", "job", sweeps.job_of(folder, 0))
    assert "NumNodes=1 NumCPUs=2 NumTasks=1 CPUs/Task=2" in shown
    assert "mem=4000M" in shown
    assert "TresPerNode=gres:gpu:4" in shown
    assert output.read_text().splitlines()[-1] == f"{folder}/OPTIMAL_CONFIGS.md"
    assert sweeps.is_complete(folder)


DRY = ("-m", "hydra/launcher=submitit_slurm", "hardware=h200", "backend=deepep", "dry_run=true")


def test_a_dry_run_prints_the_script_and_submits_nothing(lab: SlurmLab, tmp_path: Path):
    before = lab.jobs()
    done = sweeps.run(lab, "launcher.sweep", *DRY, f"outputs={tmp_path}/outputs")
    assert done.status == 0, done.stderr
    assert {"#SBATCH --nodes=1", "#SBATCH --gpus-per-node=4", "#SBATCH --cpus-per-task=64"} <= set(
        done.stdout.splitlines()
    )
    assert lab.jobs() == before
    assert not list(tmp_path.glob("outputs/*/run.json"))


def test_a_dry_run_needs_no_slurm(lab: SlurmLab, tmp_path: Path):
    done = sweeps.run(lab, "launcher.sweep", *DRY, f"outputs={tmp_path}/outputs", PATH=str(tmp_path))
    assert done.status == 0, done.stderr
    assert "#SBATCH --gpus-per-node=4" in done.stdout


def test_without_sbatch_a_sweep_is_refused_in_one_line(lab: SlurmLab, tmp_path: Path):
    done = sweeps.sweep(lab, tmp_path / "outputs", PATH=str(tmp_path))
    assert done.status == 2
    assert _said(done.stderr) == [
        "error: hydra/launcher=submitit_slurm needs sbatch on PATH, and there is none",
        "hint: run on a login node, or use hydra/launcher=submitit_local or the basic launcher",
    ]


def test_an_unknown_partition_is_refused_with_slurm_s_message_and_no_job_is_queued(lab: SlurmLab, tmp_path: Path):
    before = lab.jobs()
    done = sweeps.sweep(lab, tmp_path, "hydra.launcher.partition=nowhere")
    assert done.status == 2
    assert done.stdout == ""
    error, hint = _said(done.stderr)
    assert error.startswith("error: Slurm refused the jobs: ")
    assert "invalid partition specified: nowhere" in error
    assert hint == "hint: name one that sinfo lists: hydra.launcher.partition=NAME"
    assert lab.jobs() == before


def sbatch_that(folder: Path, *, refuses: str = "", then: str = "") -> str:
    """A PATH with an sbatch that refuses scripts with this line and runs a command after each submission."""
    sbatch = folder / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(
        f"""#!/bin/sh
for script; do :; done
test -z '{refuses}' || {{ grep -q '{refuses}' "$script" && set -- --partition=nowhere "$@"; }}
{shutil.which("sbatch")} "$@"
status=$?
{then}
exit $status
"""
    )
    sbatch.chmod(0o755)
    return f"{sbatch.parent}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("overrides", "refused", "accepted"),
    [
        pytest.param(("shard.count=2",), "job-name=.*-aggregate", 2, id="an aggregate"),
        pytest.param(("ep=2,4",), "job-name=deepep-ep4", 2, id="the second of two sweeps"),
    ],
)
def test_a_refused_submission_cancels_the_jobs_accepted_before_it(
    lab: SlurmLab, tmp_path: Path, overrides: tuple[str, ...], refused: str, accepted: int
):
    before = lab.jobs().keys()
    overrides += sweeps.slow_points(1.0)  # so that none of them is over before the refusal
    done = sweeps.sweep(lab, tmp_path / "outputs", *overrides, PATH=sbatch_that(tmp_path, refuses=refused))
    assert done.status == 2
    assert "invalid partition specified: nowhere" in done.stderr
    taken = {job: state for job, state in lab.jobs().items() if job not in before}
    assert len(taken) == accepted
    sweeps.wait_until(lambda: not lab.alive())
    assert {lab.jobs()[job] for job in taken} == {"CANCELLED"}


def test_an_interrupt_while_sbatch_runs_leaves_no_job_behind(lab: SlurmLab, tmp_path: Path):
    path = sbatch_that(tmp_path, then=f"touch {tmp_path}/submitted; sleep 2")
    process = sweeps.begin(lab, tmp_path / "outputs", PATH=path, session=True)
    sweeps.wait_until((tmp_path / "submitted").is_file)
    os.killpg(process.pid, signal.SIGINT)
    done = sweeps.end(process)
    assert done.status == 130
    assert done.stderr.splitlines()[-1] == "interrupted; all submitted jobs are cancelled"
    (noted,) = (tmp_path / "outputs").glob("*/jobs.json")
    (array,) = {one["array_id"] for one in sweeps.submissions(noted.parent)}
    sweeps.wait_until(lambda: not lab.alive())
    assert lab.jobs()[array] == "CANCELLED"


def test_slurm_s_environment_variables_apply_only_where_the_config_leaves_an_option_out(lab: SlurmLab, tmp_path: Path):
    profile = {
        "SBATCH_TIMELIMIT": "5",
        "SBATCH_NO_REQUEUE": "1",
        "SBATCH_GPUS_PER_NODE": "1",
        "SRUN_CPUS_PER_TASK": "8",
    }
    more = {"SBATCH_PARTITION": "low", "SQUEUE_STATES": "PENDING", "SCANCEL_INTERACTIVE": "1"}
    done = sweeps.sweep(lab, tmp_path, "hydra.launcher.partition=main", **profile, **more)
    assert done.status == 0, done.stderr
    shown = lab.command("scontrol", "show", "job", sweeps.job_of(done.folder, 0))
    for words in ("Partition=main", "TresPerNode=gres:gpu:4", "Requeue=1", "JobState=COMPLETED"):
        assert words in shown
    assert "TimeLimit=00:05:00" not in shown
    unsaid = sweeps.run(lab, "launcher.sweep", *DRY, **more)
    assert "#SBATCH --partition=low" in unsaid.stdout


def test_a_signal_that_would_come_before_the_job_is_refused(lab: SlurmLab, tmp_path: Path):
    before = lab.jobs()
    done = sweeps.sweep(lab, tmp_path, "hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=60")
    assert done.status == 2
    assert _said(done.stderr) == [
        "error: hydra.launcher.signal_delay_s must be below the time limit, 60 s, got 60",
        "hint: Slurm may signal a minute early too; leave the shard some minutes before the signal",
    ]
    assert lab.jobs() == before


def test_more_shards_than_an_array_may_have_become_several_arrays(lab: SlurmLab, tmp_path: Path):
    lab.command("scontrol", "update", "partitionname=low", "state=down")
    try:
        cells = "grid.num_slices=[" + ",".join(map(str, range(1, 702))) + "]"
        folder = sweeps.begin_detached(lab, tmp_path, "shard.count=1200", cells, "hydra.launcher.partition=low")
        arrays = sweeps.submissions(folder)
        assert [len(array["shards"]) for array in arrays] == [1001, 199]
        assert [shard for array in arrays for shard in array["shards"]] == list(range(1200))
        tasks = [job for job, state in lab.jobs().items() if state == "PENDING" and "_" in job]
        assert len(tasks) == 1200
        lab.command("scancel", *(array["array_id"] for array in arrays))
    finally:
        lab.command("scontrol", "update", "partitionname=low", "state=up")


def test_the_local_launcher_reports_all_results_and_names_a_failed_shard(lab: SlurmLab, tmp_path: Path):
    process = sweeps.begin(lab, tmp_path, "hydra/launcher=submitit_local", "shard.count=2", f"run={tmp_path}/run")
    sweeps.wait_until((tmp_path / "run" / "shards" / "0000").is_dir)
    unusable = tmp_path / "run" / "shards" / "0001"
    unusable.mkdir()
    (unusable / "logs").touch()
    done = sweeps.end(process)
    assert done.status == 3
    assert done.stdout == f"{tmp_path}/run/OPTIMAL_CONFIGS.md\n"
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("shard 1 failed; its log: ")]
    assert "FileExistsError" in Path(message.partition("its log: ")[2]).read_text()
    assert sweeps.points(tmp_path / "run")["measured"] >= 2
    assert sweeps.stray_ranks(lab) == []


def test_ours_is_found_where_another_launcher_has_the_same_name(lab: SlurmLab, tmp_path: Path):
    install = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site"))
    done = subprocess.run(
        [*install, "hydra-submitit-launcher==1.2.0"], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        pytest.skip(f"pip cannot install hydra-submitit-launcher: {done.stderr.splitlines()[-1:]}")
    assert (tmp_path / "site" / "hydra_plugins" / "hydra_submitit_launcher").is_dir()
    shown = sweeps.run(lab, "launcher.sweep", *DRY, f"outputs={tmp_path}/outputs", PYTHONPATH=str(tmp_path / "site"))
    assert shown.status == 0, shown.stderr
    assert "#SBATCH --gpus-per-node=4" in shown.stdout


def _said(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith(("error:", "hint:", "Traceback"))]
