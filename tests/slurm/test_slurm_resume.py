"""Detached and interrupted runs: their status, the refusal of a second command, and their completion."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import threading
from pathlib import Path

from tests.slurm import sweeps
from tests.slurm.slurmlab import SlurmLab


def test_a_detached_run_is_shown_and_reported_and_only_its_missing_points_are_resumed(lab: SlurmLab, tmp_path: Path):
    done = sweeps.sweep(lab, tmp_path, "hydra.launcher.detach=true", "shard.count=2", *sweeps.slow_points(0.3))
    folder = Path(done.stdout.strip())
    assert done.status == 0, done.stderr
    for command in ("launcher.status", "launcher.aggregate", "launcher.resume"):
        assert f"python -m {command} {folder}" in done.stderr
    assert f"scancel {sweeps.submissions(folder)[0]['array_id']}" in done.stderr

    halted = [sweeps.halt(lab, folder, shard) for shard in range(2)]
    _is_refused_while_its_jobs_live(lab, folder)
    for pid in halted:
        sweeps.kill(pid, signal.SIGCONT)
    assert set(sweeps.wait_jobs(lab, folder).values()) == {"COMPLETED"}
    assert (folder / "OPTIMAL_CONFIGS.md").is_file()
    assert sweeps.is_complete(folder)

    kept = (folder / "shards" / "0000" / "records.jsonl").read_bytes()
    _tear_last_record(folder / "shards" / "0001" / "records.jsonl")
    resumed = sweeps.run(lab, "launcher.resume", str(folder), "hydra.launcher.detach=false")
    assert resumed.status == 0, resumed.stderr
    assert resumed.stdout == f"{folder}/OPTIMAL_CONFIGS.md\n"
    assert sweeps.submissions(folder)[-1]["shards"] == [1]
    assert (folder / "shards" / "0000" / "records.jsonl").read_bytes() == kept
    assert sweeps.is_complete(folder)
    assert sweeps.stray_ranks(lab) == []


def _is_refused_while_its_jobs_live(lab: SlurmLab, folder: Path) -> None:
    second = sweeps.run(lab, "launcher.resume", str(folder))
    assert second.status == 2
    error, hint = [line for line in second.stderr.splitlines() if "dry run" not in line]
    array = sweeps.submissions(folder)[0]["array_id"]
    assert error.startswith(f"error: {folder} is being measured by ")
    assert array in error
    assert hint.startswith("hint: ")
    assert array in hint
    shown = json.loads(sweeps.run(lab, "launcher.status", str(folder), "--json").stdout)
    assert shown["jobs_alive"] > 0
    assert [row["shard"] for row in shown["rows"]] == [0, 1]
    assert {row["state"] for row in shown["rows"]} == {"RUNNING"}

    with (folder / "submit.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        busy = sweeps.run(lab, "launcher.resume", str(folder))
    assert busy.status == 2
    assert f"error: the jobs of {folder} are being submitted by another process\nhint: wait for it" in busy.stderr


def _tear_last_record(file: Path) -> None:
    """Damages records like a crash of the machine: truncates the last cell's line and drops all lines after it."""
    lines = file.read_bytes().splitlines(keepends=True)
    last = max(number for number, line in enumerate(lines) if b'"record"' in line and b'"role":"anchor"' not in line)
    file.write_bytes(b"".join(lines[:last]) + lines[last][: len(lines[last]) // 2])


def test_while_the_controller_does_not_answer_no_job_counts_as_over_and_none_is_submitted(
    lab: SlurmLab, tmp_path: Path
):
    """Every shard is done by then; only the jobs show that the final has not run."""
    process = sweeps.begin(lab, tmp_path, "search.final_groups=2")
    folder = sweeps.only_folder(tmp_path)
    final = sweeps.main_process(lab, sweeps.submissions(folder, "final")[0]["array_id"])
    sweeps.kill(final, signal.SIGSTOP)  # slurmd would try for a minute to report the end of a job
    with lab.without_controller():
        shown = json.loads(sweeps.run(lab, "launcher.status", str(folder), "--json").stdout)
        second = sweeps.run(lab, "launcher.resume", str(folder))
        assert process.poll() is None
    sweeps.kill(final, signal.SIGCONT)
    assert shown["slurm_silent"]
    assert second.status == 2
    assert "error: Slurm does not answer\nhint: is the controller up? scontrol ping\n" in second.stderr
    done = sweeps.end(process)
    assert done.status == 0, done.stderr
    assert "; Slurm does not answer" in done.stderr
    second = sweeps.run(lab, "launcher.resume", str(folder))
    assert second.status == 0, second.stderr
    kinds = [one["kind"] for one in json.loads((folder / "jobs.json").read_bytes())["submissions"]]
    assert kinds == ["shards", "final", "aggregate", "aggregate"]  # nothing was left to measure
    (results,) = folder.glob("RESULTS_EP*.json")
    assert json.loads(results.read_bytes())["libraries"][0]["verdict"] != "inconclusive"
    assert sweeps.is_complete(folder)


def test_the_jobs_of_an_interrupted_detached_sweep_continue(lab: SlurmLab, tmp_path: Path):
    process = sweeps.begin(lab, tmp_path, "hydra.launcher.on_interrupt=detach", *sweeps.slow_points(0.4))
    folder = sweeps.only_folder(tmp_path)
    halted = sweeps.halt(lab, folder, 0)
    process.send_signal(signal.SIGINT)
    done = sweeps.end(process)
    assert done.status == 0
    assert done.stdout == f"{folder}\n"
    assert sweeps.job_of(folder, 0) in lab.alive()
    sweeps.kill(halted, signal.SIGCONT)
    assert set(sweeps.wait_jobs(lab, folder).values()) == {"COMPLETED"}


def test_on_a_terminal_the_shards_are_a_table_and_an_interrupt_asks_once(lab: SlurmLab, tmp_path: Path):
    keyboard, terminal = pty.openpty()
    shown = bytearray()
    process = sweeps.begin(lab, tmp_path, *sweeps.slow_points(0.4), terminal=terminal, COLUMNS="200", TERM="xterm")
    os.close(terminal)
    folder = sweeps.only_folder(tmp_path)
    reader = threading.Thread(target=_read, args=(keyboard, shown))
    reader.start()
    sweeps.halt(lab, folder, 0)
    sweeps.wait_until(lambda: b"RUNNING" in shown)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    question = "".join(
        process.stdout.read(1) for _ in range(len("\n[d]etach and let the jobs go on, or [c]ancel them? "))
    )
    assert question == "\n[d]etach and let the jobs go on, or [c]ancel them? "
    os.write(keyboard, b"c\n")
    done = sweeps.end(process)
    reader.join()
    os.close(keyboard)
    assert done.status == 3
    assert done.stdout == f"{folder}/OPTIMAL_CONFIGS.md\n"
    assert set(sweeps.wait_jobs(lab, folder).values()) == {"CANCELLED"}
    for words in ("shard", "state", "points", "aggregate", "cancelled; all records so far are kept"):
        assert words.encode() in shown


def _read(terminal: int, into: bytearray) -> None:
    with contextlib.suppress(OSError):  # the other side is closed
        while read := os.read(terminal, 4096):
            into += read


def test_cancelling_an_interrupted_sweep_ends_its_jobs_and_reports_its_measurements(lab: SlurmLab, tmp_path: Path):
    slow = sweeps.slow_points(0.4)
    process = sweeps.begin(lab, tmp_path, "hydra.launcher.on_interrupt=cancel", "grid.num_slices=[1,2,4,8]", *slow)
    folder = sweeps.only_folder(tmp_path)
    sweeps.halt(lab, folder, 0)
    process.send_signal(signal.SIGINT)
    done = sweeps.end(process)
    assert done.status == 3, done.stderr
    assert done.stdout == f"{folder}/OPTIMAL_CONFIGS.md\n"
    assert set(sweeps.wait_jobs(lab, folder).values()) == {"CANCELLED"}
    assert sweeps.points(folder)["measured"] >= 2
    assert sweeps.points(folder)["missing"] >= 1
    assert sweeps.stray_ranks(lab) == []
