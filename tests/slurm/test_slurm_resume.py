"""A run that is left alone, looked at, refused a second time while it lives, damaged, and completed."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import sweeps
from slurmlab import SlurmLab


def test_detached_a_run_is_shown_reported_and_resumed_for_what_is_missing_only(lab: SlurmLab, tmp_path: Path):
    done = sweeps.sweep(lab, tmp_path, "hydra.launcher.detach=true", "shard.count=2")
    folder = Path(done.stdout.strip())
    assert done.status == 0, done.stderr
    for command in ("launcher.status", "launcher.aggregate", "launcher.resume"):
        assert f"python -m {command} {folder}" in done.stderr
    assert f"scancel {sweeps.submissions(folder)[0]['array_id']}" in done.stderr

    _is_refused_while_its_jobs_live(lab, folder)
    assert set(sweeps.ended(lab, folder).values()) == {"COMPLETED"}
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
    again = sweeps.run(lab, "launcher.resume", str(folder))
    assert again.status == 2
    error, hint = [line for line in again.stderr.splitlines() if "dry run" not in line]
    array = sweeps.submissions(folder)[0]["array_id"]
    assert error.startswith(f"error: {folder} is being measured by ")
    assert array in error
    assert hint.startswith("hint: ")
    assert array in hint
    shown = json.loads(sweeps.run(lab, "launcher.status", str(folder), "--json").stdout)
    assert shown["jobs_alive"] > 0
    assert [row["shard"] for row in shown["rows"]] == [0, 1]
    assert {row["state"] for row in shown["rows"]} <= {"PENDING", "RUNNING", "COMPLETED"}


def _tear_last_record(file: Path) -> None:
    """What a crash of the machine leaves: the last cell's line is cut short, and what followed it is lost."""
    lines = file.read_bytes().splitlines(keepends=True)
    last = max(number for number, line in enumerate(lines) if b'"record"' in line and b'"role":"anchor"' not in line)
    file.write_bytes(b"".join(lines[:last]) + lines[last][: len(lines[last]) // 2])


def test_interrupted_and_detached_the_jobs_go_on(lab: SlurmLab, tmp_path: Path):
    process = sweeps.begin(lab, tmp_path, "hydra.launcher.on_interrupt=detach")
    folder = sweeps.only_folder(tmp_path)
    sweeps.wait_state(lab, sweeps.job_of(folder, 0), "RUNNING")
    process.send_signal(signal.SIGINT)
    done = sweeps.end(process)
    assert done.status == 0
    assert done.stdout == f"{folder}\n"
    assert sweeps.job_of(folder, 0) in lab.alive()


def test_interrupted_and_cancelled_the_jobs_end_and_what_was_measured_is_reported(lab: SlurmLab, tmp_path: Path):
    slow = sweeps.slowly(0.4)
    process = sweeps.begin(lab, tmp_path, "hydra.launcher.on_interrupt=cancel", "grid.num_slices=[1,2,4,8]", *slow)
    folder = sweeps.only_folder(tmp_path)
    sweeps.wait_points(folder, 0)
    process.send_signal(signal.SIGINT)
    done = sweeps.end(process)
    assert done.status == 3, done.stderr
    assert done.stdout == f"{folder}/OPTIMAL_CONFIGS.md\n"
    assert set(sweeps.ended(lab, folder).values()) == {"CANCELLED"}
    assert sweeps.points(folder)["measured"] >= 2
    assert sweeps.points(folder)["missing"] >= 1
    assert sweeps.stray_ranks(lab) == []
