"""How a run is begun, resumed and shown, as far as no Slurm is needed for it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import nodes
import pytest
from builders import ENVIRONMENT, ROOT, Command, Sweep, complete, spec
from hydra import compose, initialize_config_module
from hydra.errors import HydraException

from bench.records import Record
from launcher.config import arguments, job_options, plan, schema
from launcher.config.plan import Plan
from launcher.config.schema import Options
from launcher.errors import FAILURE, OK, UserError
from launcher.jobs import job, run_status, sbatch, slurm, waiting
from launcher.report import writer
from launcher.store.attempts import Attempt, add_attempt, begin_attempt, read_shard_attempts
from launcher.store.records_file import open_appender
from launcher.store.revision import snapshot_code
from launcher.store.run_folder import RunFolder
from launcher.store.submissions import Submission, add_submission
from launcher.validation.run import node_jobs
from launcher.validation.run.folder import Order

DRY = ("-m", "hydra/launcher=submitit_slurm", "hardware=h200", "backend=deepep", "dry_run=true")


@pytest.fixture
def folder(made: Plan, tmp_path: Path) -> RunFolder:
    return RunFolder.create(made, outputs=tmp_path, path=None, command=["deepep-sweep", "-m"])


def options(**changes: Any) -> Options:
    given = {"run": None, "outputs": "outputs", "dry_run": False, "strict": False, "allow_mixed": False}
    given["allow_other_code"] = False
    return msgspec.convert(given | {"shard_index": None} | changes, Options)


# ---- what is submitted


def scripts(run_module: Command, *arguments: str) -> dict[str, list[str]]:
    """Title -> lines of each script of a dry run; titles with the same script are joined."""
    done = run_module("launcher.sweep", *DRY, *arguments)
    assert done.returncode == 0, done.stderr
    found = re.split(r"^# ---- (.*(?:\n# ---- .*)*)\n", done.stdout, flags=re.MULTILINE)[1:]
    return {
        title.replace("\n# ---- ", ", "): text.splitlines() for title, text in zip(found[::2], found[1::2], strict=True)
    }


def test_a_dry_run_shows_every_job_and_what_it_waits_for(run_module: Command):
    found = scripts(run_module, "ep=4", "shard.count=3")
    assert list(found) == ["shards 0 to 2", "final", "aggregate"]
    assert "#SBATCH --array=0-2%3" in found["shards 0 to 2"]
    assert "#SBATCH --dependency=afterany:JOB1" in found["final"]
    assert "#SBATCH --dependency=afterany:JOB1:JOB2" in found["aggregate"]
    (minutes,) = [line for line in found["final"] if line.startswith("#SBATCH --time=")]
    assert int(minutes.partition("=")[2]) > 10
    assert not [line for line in found["aggregate"] if "gpus" in line]


def test_every_field_of_the_launcher_is_an_option_of_the_shards_and_the_aggregate_gets_those_of_the_site(
    run_module: Command,
):
    of_the_site = {"partition": "gpu", "account": "moe", "qos": "high", "reservation": "new", "timeout_min": "77"}
    of_the_node = {"constraint": "nvl", "nodelist": "gpu7", "exclude": "gpu8", "mem": "0"}
    given = {**of_the_site, **of_the_node, "exclusive": "true", "requeue": "false", "array_parallelism": "2"}
    more = ("hydra.launcher.srun_args=['--mpi=none']", "hydra.launcher.python=python3.12", "shard.count=3")
    found = scripts(run_module, *(f"hydra.launcher.{key}='{value}'" for key, value in given.items()), *more)
    shards, aggregate = found["shards 0 to 2"], found["aggregate"]
    options_ = {key.replace("timeout_min", "time"): value for key, value in (of_the_site | of_the_node).items()}
    assert {f"#SBATCH --{key}={value}" for key, value in options_.items()} <= set(shards)
    assert {"#SBATCH --exclusive", "#SBATCH --no-requeue", "#SBATCH --array=0-2%2"} <= set(shards)
    assert [line for line in shards if line.startswith("srun ") and " --mpi=none python3.12 -u -m submitit" in line]
    site = {f"#SBATCH --{key}={value}" for key, value in of_the_site.items() if key != "timeout_min"}
    assert site <= set(aggregate)
    assert not [line for line in aggregate if re.search(r"constraint|nodelist|exclu|mem=", line)]


def test_a_shard_by_its_index_is_one_job_without_a_final(run_module: Command):
    found = scripts(run_module, "shard.count=4", "shard.index=2")
    assert list(found) == ["shard 2", "aggregate"]
    assert not [line for line in found["shard 2"] if "array" in line]


def test_arrays_of_a_thousand_shards_are_shown_once(run_module: Command):
    found = scripts(run_module, "shard.count=2500", "grid=full", "hydra.launcher.nodelist=gpu1")
    assert next(iter(found)) == "shards 0 to 999, shards 1000 to 1999"
    assert "#SBATCH --array=0-499%64" in found["shards 2000 to 2499"]


def test_our_setup_comes_after_the_sites_and_our_code_before_its_path(run_module: Command):
    lines = scripts(run_module, "hydra.launcher.setup=['export PYTHONPATH=/site']")["final"]
    ours = next(number for number, line in enumerate(lines) if re.fullmatch(r"export PYTHONPATH=\S+/code\S+", line))
    assert lines.index("export PYTHONPATH=/site") < ours


def test_a_container_gets_its_own_python_and_the_run_folder(run_module: Command):
    image = ("hydra.launcher.container_image=moe.sqsh", "hydra.launcher.container_mounts='/data:/data'")
    (command,) = [line for line in scripts(run_module, *image)["final"] if line.startswith("srun ")]
    run = Path.cwd() / "RUN"
    assert f"--container-image=moe.sqsh --container-mounts={run}:{run},/data:/data python3 -u -m submitit" in command


def test_a_job_that_would_run_other_code_than_was_submitted_fails(monkeypatch: pytest.MonkeyPatch, folder: RunFolder):
    monkeypatch.setenv(sbatch.CODE_VARIABLE, str(folder.code))
    with pytest.raises(RuntimeError, match=f"{folder.code} was submitted; is PYTHONPATH changed"):
        job.run_shard(str(folder.path), 0)


OUT_OF_TIME = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})  # before libraries begin threads
from launcher.jobs import job
os.kill(os.getpid(), signal.SIGUSR2)  # as Slurm does ahead of the time limit, here before the first point
job.run_shard(sys.argv[1], 0, True)
"""


def test_only_the_second_time_limit_in_a_row_without_a_point_is_a_failure(tmp_path: Path):
    small = ("hardware=cpu", "backend=alltoall", "workload=small", "grid=smoke", "measure=quick")
    folder = RunFolder.create(plan.make(spec(*small)), outputs=tmp_path, path=None, command=["deepep-sweep", "-m"])

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


@pytest.mark.parametrize("refusals", [0, 1])
def test_a_batch_script_asks_again_where_the_controller_does_not_answer(
    folder: RunFolder, tmp_path: Path, refusals: int
):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        f"""#!/bin/sh\necho "$@" >> '{tmp_path}/asked'\ntest $(wc -l < '{tmp_path}/asked') -gt {refusals}\n"""
    )
    scontrol.chmod(0o755)
    environment = {"SLURM_JOB_ID": "7", "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def ended(status: int) -> int:
        script = "\n".join([*sbatch.code_setup(folder.code), f"(exit {status})"])
        return subprocess.run(["bash", "-c", script], env=environment, check=False).returncode

    assert ended(1) == 1
    assert not (tmp_path / "asked").exists()
    assert ended(sbatch.REQUEUE) == sbatch.REQUEUE
    assert (tmp_path / "asked").read_text() == "requeue 7\n" * (refusals + 1)


def test_on_a_login_node_hardware_has_to_be_named_and_the_names_are_listed(run_module: Command):
    done = run_module("launcher.sweep", "-m", "hydra/launcher=submitit_slurm", "dry_run=true")
    assert done.returncode == 2
    error, hint = done.stderr.splitlines()
    assert error == "error: hardware=auto reads the GPUs of this machine, and it has none"
    assert all(name in hint for name in ("h200", "h100", "b200", "a100", "cpu"))


# ---- how it is resumed


def test_one_of_several_sweeps_is_resumed_by_a_command_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["sweep", "-m", "ep='2','4'", "hydra/launcher=submitit_slurm"])
    given = arguments.command_line(["ep='4'"], ["hydra.mode=MULTIRUN", "hydra/launcher=submitit_slurm"])
    assert given == ["deepep-sweep", "-m", "hydra/launcher=submitit_slurm", "ep='4'"]
    monkeypatch.setattr(sys, "argv", ["sweep", "-m", "ep='4'"])
    assert arguments.command_line(["ep='4'"], ["hydra.mode=MULTIRUN"]) == ["deepep-sweep", "-m", "ep='4'"]


def test_a_run_is_not_continued_by_another_version_of_the_program(sweep: Sweep, run_module: Command, tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("plan.json", "shards"):
        (run / name).symlink_to(sweep.folder / name)
    manifest = json.loads((sweep.folder / "run.json").read_bytes())
    manifest["revision"] = {"commit": None, "dirty": None, "code": "another"}
    (run / "run.json").write_text(json.dumps(manifest))
    done = run_module("launcher.sweep", "-m", f"run={run}")
    assert done.returncode == 2
    assert f"error: {run} was begun by other code of this program (another) than this, " in done.stderr
    note = "note: allow_mixed=true also resumes with other code; allow_other_code=true is the option for that\n"
    for option, noted in (("allow_other_code", False), ("allow_mixed", True)):
        done = run_module("launcher.sweep", "-m", f"run={run}", f"{option}=true")
        assert done.returncode == 0, done.stderr
        assert (note in done.stderr) is noted


REMOVED = "hydra.launcher.poll_s is no longer an option (it backs off from 2 to 8 s)"


@pytest.mark.parametrize(
    "argument", ["hydra.launcher.poll_s=0.5", "++hydra.launcher.poll_s=1", "~hydra.launcher.poll_s"]
)
def test_a_key_of_an_earlier_version_is_refused_by_name(argument: str):
    with pytest.raises(UserError) as caught:
        arguments.complete_arguments(["ep=2", argument])
    assert str(caught.value) == REMOVED


def test_a_key_of_an_earlier_version_is_refused_by_name_in_a_file_of_the_site_too(tmp_path: Path):
    file = tmp_path / "hydra" / "launcher" / "mysite.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("defaults: [submitit_slurm]\npoll_s: 0.5\n")
    schema.register()
    job_options.register()
    site = [f"hydra.searchpath=['file://{tmp_path}']", "hydra/launcher=mysite"]
    with initialize_config_module("conf", version_base="1.3"), pytest.raises(HydraException) as caught:
        compose("sweep", overrides=site, return_hydra_config=True)
    assert arguments.one_line_message(caught.value) == f"In 'hydra/launcher/mysite': {REMOVED}"


def test_the_command_of_an_earlier_version_is_resumed_without_its_removed_keys(capsys: pytest.CaptureFixture[str]):
    assert arguments.drop_removed(["-m", "ep=2", "hydra.launcher.poll_s=5"]) == ["-m", "ep=2"]
    assert capsys.readouterr().err == f"dropped hydra.launcher.poll_s=5: {REMOVED}\n"


def test_the_order_of_an_earlier_version_gives_a_job():
    spec_ = nodes.spec()
    order = Order(1, 0.0, [], spec_, ["gpu1"], lanes={"gpu1": 0}, deadline=time.time())
    order = msgspec.structs.replace(order, settings={"poll_s": 0.5, "partition": "low"})
    assert "#SBATCH --partition=low" in node_jobs.script(order, "gpu1")


def test_local_jobs_run_this_program_where_the_user_has_packages_of_the_same_names(
    no_gpus: dict[str, str], tmp_path: Path
):
    for name in ("bench", "conf", "launcher"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('a package of the user')\n")
    command = f"import sys; sys.path[0] = {str(ROOT)!r}; from launcher.sweep import main; main()"
    small = ("ep=2", "hardware=cpu", "backend=alltoall", "workload=small", "grid=smoke", "measure=quick")
    launcher = ("hydra/launcher=submitit_local", "search.rounds=1", "search.final_groups=0")
    process = subprocess.run(
        [sys.executable, "-c", command, "-m", *small, *launcher],
        cwd=tmp_path,
        env=no_gpus,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert (tmp_path / process.stdout.strip()).is_file()


def test_the_copy_of_the_code_that_a_run_began_with_is_kept(folder: RunFolder):
    snapshot_code(folder.code)
    (folder.code / "bench" / "records.py").write_text("older")
    snapshot_code(folder.code)
    assert (folder.code / "bench" / "records.py").read_text() == "older"
    assert (folder.code / "conf" / "sweep.yaml").is_file()


def test_a_file_system_without_locks_is_called_that(monkeypatch: pytest.MonkeyPatch, folder: RunFolder):
    def refused(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refused)
    with (
        pytest.raises(UserError, match="cannot be locked: Function not implemented") as caught,
        open_appender(folder, 0),
    ):
        pass
    assert "mounted with flock" in caught.value.hint


# ---- what is said of it


def measured_twice(folder: RunFolder, made: Plan) -> RunFolder:
    """Two shards whose nodes differ in their driver."""
    for shard, driver in enumerate(("580.65", "570.1")):
        environment = msgspec.structs.replace(ENVIRONMENT, driver=driver)
        records = [line for line in complete(made, shard=shard, environment=environment.id) if isinstance(line, Record)]
        with open_appender(folder, shard) as appender:
            for line in (environment, *records):
                appender.add(line)
    return folder


def test_unlike_environments_are_a_failure_and_no_usage_error(
    made: Plan, folder: RunFolder, capsys: pytest.CaptureFixture[str]
):
    measured_twice(folder, made)
    assert writer.report(folder, options()) == FAILURE
    assert "error: the records were measured in unlike environments" in capsys.readouterr().err
    assert writer.report(folder, options(allow_mixed=True), draw=False) == OK


def test_the_aggregate_job_is_told_that_mixed_environments_are_allowed(made: Plan, folder: RunFolder):
    job.run_aggregate(str(measured_twice(folder, made).path), allow_mixed=True)
    assert len(list(folder.path.glob("RESULTS_EP*.json"))) == 2


@pytest.mark.parametrize(
    ("accounts", "expected"),
    [
        ("7|COMPLETED|10|billing=4,cpu=4,gres/gpu=4,node=1\n8|FAILED|5|gres/gpu=2\n", 50.0),
        ("7|COMPLETED|10|cpu=4,gres/gpu:h200=4,node=1\n", 40.0),
        ("7|COMPLETED|10|gres/gpu=4,gres/gpu:h200=4\n", 40.0),
        ("7|COMPLETED|10|billing=4,cpu=4,mem=1G,node=1\n", None),
        ("7|PENDING||\n8|COMPLETED|10|gres/gpu=1\n", 10.0),
    ],
)
def test_gpu_seconds_are_only_told_where_accounting_tracks_gpus(accounts: str, expected: float | None):
    assert slurm.sum_gpu_seconds(accounts) == expected


@pytest.mark.parametrize(
    ("outcome", "state"),
    [("failed", "FAILED"), ("terminated", "TERMINATED"), ("stopped", "STOPPED"), (None, "UNKNOWN")],
)
def test_what_slurm_has_forgotten_the_attempt_itself_may_tell(
    outcome: str | None, state: str, made: Plan, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", "")
    add_submission(folder, Submission("shards", "7", [0], 0.0))
    for number in range(11):  # the tenth goes before the second in the order of names
        add_attempt(folder, 0, Attempt("7", "gpu1", float(number), number + 1.0, outcome if number == 10 else "other"))
    now = run_status.run_status(folder, made)
    assert (now.rows[0].state, now.slurm_silent, now.is_over) == (state, True, False)


def test_the_time_left_counts_no_pause_between_attempts_and_nothing_that_has_no_points_left(
    made: Plan, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    now = time.time()
    add_attempt(folder, 0, Attempt("7", "gpu1", now - 90_000, now - 89_990, "terminated"))
    add_attempt(folder, 0, Attempt("7", "gpu1", now - 10))
    lines = complete(made)
    with open_appender(folder, 0) as appender:
        for line in lines[: len(lines) // 2]:
            appender.add(line)
    add_submission(folder, Submission("shards", "7", [0], now))
    for name, says in (("sbatch", ""), ("squeue", "7|RUNNING|gpu1|None")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{says}'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = run_status.run_status(folder, made)
    assert found.time_left_s is not None
    left = found.planned - found.done
    assert found.time_left_s == pytest.approx(20 / found.done * left, rel=0.2)


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


class Look(NamedTuple):
    """What is seen at one look."""

    states: str
    is_over: bool = False
    is_known: bool = True
    line: str = "a line"


def test_pauses_double_while_no_job_changes_its_state(monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    looks = iter([*map(Look, "PPPPPRR"), Look("C", is_over=True)])
    assert waiting.wait(lambda: next(looks), str).states == "C"
    assert pauses == [2, 4, 8, 8, 8, 2, 4]


def test_a_job_that_slurm_does_not_know_is_over_after_five_more_looks(monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    unknown = Look("U", is_over=True, is_known=False)
    looks = iter([Look("P"), *[unknown] * 4, Look("R"), *[unknown] * 6])
    assert waiting.wait(lambda: next(looks), str) == unknown
    assert list(looks) == []
    assert set(pauses) == {2}
