"""Runs the project's commands on a SlurmLab and reads their run folders."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from bench import forkserver
from tests.slurm.processes import processes
from tests.slurm.slurmlab import SlurmLab

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120
"""Far longer than any step takes; a test that waits this long has failed."""

T = TypeVar("T")

SMALL = ("hardware=cpu", "backend=alltoall", "workload=small", "grid=smoke", "grid.num_in_flight=[1]", "measure=quick")
ONE_PASS = ("search.rounds=1", "search.iterations=5", "search.final_groups=0")
SLURM = ("hydra/launcher=submitit_slurm", "hydra.launcher.gpus_per_node=4")


class Done(NamedTuple):
    """A finished command."""

    status: int
    stdout: str
    stderr: str

    @property
    def folder(self) -> Path:
        """The run folder, from the printed path of the report."""
        return Path(self.stdout.strip()).parent


def slow_points(point_s: float) -> tuple[str, ...]:
    """Overrides that make a repetition of a point last ``point_s``, mostly asleep."""
    count = round(point_s / 0.005)  # the fault SLOW waits 5 ms
    return ("faults=['slow@0:alltoall']", f"measure.iterations={count}", f"search.iterations={count}")


def wait_until(condition: Callable[[], T | None], *, seconds: float = PATIENCE_S) -> T:
    """The first true value of ``condition``."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)
    return value


def start(
    lab: SlurmLab, module: str, *arguments: str, session: bool = False, terminal: int | None = None, **environment: str
) -> subprocess.Popen[str]:
    """``python -m MODULE`` on the login node; in a new session or with a terminal for stdin and stderr on request."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=lab.environ(CUDA_VISIBLE_DEVICES="", **environment),
        stdin=subprocess.DEVNULL if terminal is None else terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if terminal is None else terminal,
        text=True,
        start_new_session=session,
    )


def end(process: subprocess.Popen[str]) -> Done:
    """Waits for a command and returns its output."""
    try:
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    return Done(process.returncode, stdout, stderr)


def run(lab: SlurmLab, module: str, *arguments: str, **environment: str) -> Done:
    """A command, started and finished."""
    return end(start(lab, module, *arguments, session=False, terminal=None, **environment))


def sweep_arguments(outputs: Path, *overrides: str) -> list[str]:
    """A small sweep under Slurm, a few seconds of two ranks for each shard."""
    keys = {override.partition("=")[0] for override in overrides}
    base = [one for one in ("ep=2", *SMALL, *ONE_PASS, *SLURM) if one.partition("=")[0] not in keys]
    return ["-m", *base, "outputs=" + quote(outputs), *overrides]


def quote(value: Path | str) -> str:
    """A value quoted for Hydra's command line."""
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


def sweep(lab: SlurmLab, outputs: Path, *overrides: str, **environment: str) -> Done:
    """A finished sweep."""
    return run(lab, "launcher.sweep", *sweep_arguments(outputs, *overrides), **environment)


def begin(
    lab: SlurmLab,
    outputs: Path,
    *overrides: str,
    session: bool = False,
    terminal: int | None = None,
    **environment: str,
) -> subprocess.Popen[str]:
    """A started sweep."""
    arguments = sweep_arguments(outputs, *overrides)
    return start(lab, "launcher.sweep", *arguments, session=session, terminal=terminal, **environment)


def begin_detached(lab: SlurmLab, outputs: Path, *overrides: str) -> Path:
    """The run folder of a detached sweep."""
    done = sweep(lab, outputs, "hydra.launcher.detach=true", *overrides)
    assert done.status == 0, done.stderr
    return Path(done.stdout.strip())


def only_folder(outputs: Path) -> Path:
    """The run folder in ``outputs`` once its jobs are submitted."""
    return wait_until(lambda: next((f.parent for f in outputs.glob("*/jobs.json") if _last(f) == "aggregate"), None))


def _last(jobs_file: Path) -> str:
    return str(json.loads(jobs_file.read_bytes())["submissions"][-1]["kind"])


def submissions(folder: Path, kind: str = "shards") -> list[dict[str, Any]]:
    """The submissions of one kind of job from jobs.json, oldest first."""
    written = json.loads((folder / "jobs.json").read_bytes())["submissions"]
    return [submission for submission in written if submission["kind"] == kind]


def job_of(folder: Path, shard: int) -> str:
    """The id in squeue of the last job that measured a shard."""
    latest = next(one for one in reversed(submissions(folder)) if shard in one["shards"])
    array: str = latest["array_id"]
    return f"{array}_{latest['shards'].index(shard)}" if len(latest["shards"]) > 1 else array


def wait_jobs(lab: SlurmLab, folder: Path, *, seconds: float = PATIENCE_S) -> dict[str, str]:
    """The state of every job of a run, after all have ended."""
    arrays = {one["array_id"] for kind in ("shards", "final", "aggregate") for one in submissions(folder, kind)}
    wait_until(lambda: not [job for job in lab.alive() if job.split("_")[0] in arrays], seconds=seconds)
    return {job: state for job, state in lab.jobs().items() if job.split("_")[0] in arrays}


def wait_state(lab: SlurmLab, job: str, state: str) -> None:
    """Waits until a job has this state."""
    wait_until(lambda: lab.jobs().get(job) == state)


def lines(folder: Path, kind: str = "record") -> list[dict[str, Any]]:
    """Every complete line of a kind, in order of shard."""
    decoded = []
    for file in sorted((folder / "shards").glob("*/records.jsonl")):
        for text in file.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # torn, or being written
                decoded.append(json.loads(text))
    return [line for line in decoded if line["type"] == kind]


def wait_points(folder: Path, shard: int, *, least: int = 2) -> None:
    """Waits until a shard has at least this many records."""
    wait_until(lambda: sum(line.get("shard", 0) == shard for line in lines(folder)) >= least)


def repeated_points(folder: Path) -> list[tuple[object, ...]]:
    """Points other than anchors that were measured more than once in a round of a stage."""
    counts = Counter(
        (line["point_id"], line.get("stage", "sweep"), line.get("round", 0), line.get("shard", 0))
        for line in lines(folder)
        if line.get("role", "grid") == "grid"
    )
    return [key for key, count in counts.items() if count > 1]


def points(folder: Path) -> dict[str, int]:
    """The counts of points in the report, after checking that they add up."""
    (results,) = folder.glob("RESULTS_EP*.json")
    counts: dict[str, int] = json.loads(results.read_bytes())["points"]
    assert counts["planned"] == counts["measured"] + counts["failed"] + counts["missing"]
    return counts


def is_complete(folder: Path) -> bool:
    """Whether every planned point was measured exactly once in each round."""
    counts = points(folder)
    return counts["measured"] == counts["planned"] and not repeated_points(folder)


def outcomes(folder: Path, shard: int) -> list[str | None]:
    """The outcome of every attempt at a shard; None if it left none."""
    files = sorted((folder / "shards" / f"{shard:04d}").glob("attempt-*.json"))
    return [json.loads(file.read_bytes()).get("outcome") for file in files]


def log_of(folder: Path, shard: int) -> str:
    """The logs of the job of a shard, over all its attempts."""
    return "".join(file.read_text() for file in (folder / "slurm").glob(f"{job_of(folder, shard)}_*.out"))


def stray_ranks(lab: SlurmLab) -> list[int]:
    """Rank processes of this cluster or of its commands that still run after some seconds."""
    deadline = time.monotonic() + 10
    while (pids := _ranks(lab)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return pids


def _ranks(lab: SlurmLab) -> list[int]:
    return [
        entry.pid
        for entry in processes()
        if entry.environment.get("SLURM_CONF") == str(lab.conf) and forkserver.__name__ in command_line(entry.pid)
    ]


def command_line(pid: int) -> list[str]:
    """The arguments of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def main_process(lab: SlurmLab, job: str) -> int:
    """The process that runs a shard on its node."""
    array, _, task = job.partition("_")

    def look() -> int | None:
        for pid in lab.job_processes():
            if "submitit.core._submit" not in command_line(pid) or "srun" in command_line(pid)[0]:
                continue
            environment = environment_of(pid)
            job_id = environment.get("SLURM_ARRAY_JOB_ID", environment.get("SLURM_JOB_ID"))
            if job_id == array and environment.get("SLURM_ARRAY_TASK_ID", "") == task:
                return pid
        return None

    return wait_until(look)


def halt(lab: SlurmLab, folder: Path, shard: int) -> int:
    """Suspends a shard's process after its first points, on a machine of any speed, and returns its id.

    Its ranks wait for it. SIGCONT resumes it; Slurm sends one before a SIGTERM.
    """
    wait_points(folder, shard)
    pid = main_process(lab, job_of(folder, shard))
    kill(pid, signal.SIGSTOP)
    return pid


def environment_of(pid: int) -> dict[str, str]:
    """The initial environment of a process."""
    return next((one.environment for one in processes() if one.pid == pid), {})


def kill(pid: int, sig: signal.Signals) -> None:
    """Sends a signal to a process."""
    os.kill(pid, sig)
