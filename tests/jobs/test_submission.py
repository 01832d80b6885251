"""Submitted scripts, as a dry run prints them."""

from __future__ import annotations

import re
from pathlib import Path

from tests.builders import Command

DRY = ("-m", "hydra/launcher=submitit_slurm", "hardware=h200", "backend=deepep", "dry_run=true")


def scripts(run_module: Command, *arguments: str) -> dict[str, list[str]]:
    """Title -> lines of each script of a dry run; titles with the same script are joined."""
    done = run_module("launcher.sweep", *DRY, *arguments)
    assert done.returncode == 0, done.stderr
    parts = re.split(r"^# ---- (.*(?:\n# ---- .*)*)\n", done.stdout, flags=re.MULTILINE)[1:]
    return {
        title.replace("\n# ---- ", ", "): text.splitlines() for title, text in zip(parts[::2], parts[1::2], strict=True)
    }


def test_a_dry_run_shows_every_job_with_its_dependencies(run_module: Command):
    jobs = scripts(run_module, "ep=4", "shard.count=3")
    assert list(jobs) == ["shards 0 to 2", "final", "aggregate"]
    assert "#SBATCH --array=0-2%3" in jobs["shards 0 to 2"]
    assert "#SBATCH --dependency=afterany:JOB1" in jobs["final"]
    assert "#SBATCH --dependency=afterany:JOB1:JOB2" in jobs["aggregate"]
    (minutes,) = [line for line in jobs["final"] if line.startswith("#SBATCH --time=")]
    assert int(minutes.partition("=")[2]) > 10
    assert not [line for line in jobs["aggregate"] if "gpus" in line]


def test_every_field_of_the_launcher_is_an_option_of_the_shards_and_the_aggregate_gets_those_of_the_site(
    run_module: Command,
):
    of_the_site = {"partition": "gpu", "account": "moe", "qos": "high", "reservation": "new", "timeout_min": "77"}
    of_the_node = {"constraint": "nvl", "nodelist": "gpu7", "exclude": "gpu8", "mem": "0"}
    fields = {**of_the_site, **of_the_node, "exclusive": "true", "requeue": "false", "array_parallelism": "2"}
    more = ("hydra.launcher.srun_args=['--mpi=none']", "hydra.launcher.python=python3.12", "shard.count=3")
    jobs = scripts(run_module, *(f"hydra.launcher.{key}='{value}'" for key, value in fields.items()), *more)
    shards, aggregate = jobs["shards 0 to 2"], jobs["aggregate"]
    options_ = {key.replace("timeout_min", "time"): value for key, value in (of_the_site | of_the_node).items()}
    assert {f"#SBATCH --{key}={value}" for key, value in options_.items()} <= set(shards)
    assert {"#SBATCH --exclusive", "#SBATCH --no-requeue", "#SBATCH --array=0-2%2"} <= set(shards)
    assert [line for line in shards if line.startswith("srun ") and " --mpi=none python3.12 -u -m submitit" in line]
    site = {f"#SBATCH --{key}={value}" for key, value in of_the_site.items() if key != "timeout_min"}
    assert site <= set(aggregate)
    assert not [line for line in aggregate if re.search(r"constraint|nodelist|exclu|mem=", line)]


def test_a_shard_by_its_index_is_one_job_without_a_final(run_module: Command):
    jobs = scripts(run_module, "shard.count=4", "shard.index=2")
    assert list(jobs) == ["shard 2", "aggregate"]
    assert not [line for line in jobs["shard 2"] if "array" in line]


def test_arrays_of_a_thousand_shards_are_shown_once(run_module: Command):
    jobs = scripts(run_module, "shard.count=2500", "grid=full", "hydra.launcher.nodelist=gpu1")
    assert next(iter(jobs)) == "shards 0 to 999, shards 1000 to 1999"
    assert "#SBATCH --array=0-499%64" in jobs["shards 2000 to 2499"]


def test_our_setup_comes_after_the_sites_and_our_code_before_its_path(run_module: Command):
    lines = scripts(run_module, "hydra.launcher.setup=['export PYTHONPATH=/site']")["final"]
    ours = next(number for number, line in enumerate(lines) if re.fullmatch(r"export PYTHONPATH=\S+/code\S+", line))
    assert lines.index("export PYTHONPATH=/site") < ours


def test_a_container_uses_its_python_and_mounts_the_run_folder(run_module: Command):
    image = ("hydra.launcher.container_image=moe.sqsh", "hydra.launcher.container_mounts='/data:/data'")
    (command,) = [line for line in scripts(run_module, *image)["final"] if line.startswith("srun ")]
    run = Path.cwd() / "RUN"
    assert f"--container-image=moe.sqsh --container-mounts={run}:{run},/data:/data python3 -u -m submitit" in command


def test_on_a_login_node_hardware_has_to_be_named_and_the_names_are_listed(run_module: Command):
    done = run_module("launcher.sweep", "-m", "hydra/launcher=submitit_slurm", "dry_run=true")
    assert done.returncode == 2
    error, hint = done.stderr.splitlines()
    assert error == "error: hardware=auto reads the GPUs of this machine, and it has none"
    assert all(name in hint for name in ("h200", "h100", "b200", "a100", "cpu"))
