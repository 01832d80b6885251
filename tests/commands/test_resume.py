"""Interrupted sweeps, resumed."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from bench.records import Record, Role, Stage
from launcher import aggregate
from launcher.store.records_file import read_lines
from launcher.store.run_folder import RunFolder
from tests.builders import ROOT, Command, Sweep
from tests.commands.runs import FAULT, SMALL, records_of


def test_an_interrupted_sweep_prints_one_line_and_names_its_folder(no_gpus: dict[str, str], tmp_path: Path) -> None:
    line = [sys.executable, "-m", "launcher.sweep", "-m", f"outputs={tmp_path}"]
    process = subprocess.Popen(line, cwd=ROOT, env=no_gpus, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    messages = []
    for message in process.stderr:
        messages.append(message)
        if message.startswith("shard 0: starting"):
            process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    (folder,) = [RunFolder.open(path.parent).path for path in tmp_path.glob("*/run.json")]
    assert f"run folder: {folder}\n" in messages
    assert messages[-1] == (
        "interrupted; all measurements so far are kept. Complete the run: "
        f"python -m launcher.resume {shlex.quote(str(folder))}\n"
    )
    assert "Traceback" not in "".join(messages)


def test_a_complete_run_is_not_measured_again(run_module: Command, sweep: Sweep, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(sweep.folder, folder)
    before = [file.read_bytes() for file in sorted(folder.glob("shards/*/records.jsonl"))]
    process = run_module("launcher.sweep", "-m", f"outputs={sweep.outputs}", f"run={folder}")
    assert (process.returncode, process.stdout) == (0, f"{folder}/OPTIMAL_CONFIGS.md\n"), process.stderr
    assert [file.read_bytes() for file in sorted(folder.glob("shards/*/records.jsonl"))] == before


def test_a_resume_makes_no_folder_where_it_is_called(no_gpus: dict[str, str], sweep: Sweep, tmp_path: Path) -> None:
    folder, cwd = tmp_path / "runs" / "copy", tmp_path / "elsewhere"
    shutil.copytree(sweep.folder, folder)
    cwd.mkdir()
    line = [sys.executable, "-m", "launcher.resume", str(folder)]
    environment = no_gpus | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(line, check=False, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert (process.returncode, process.stdout) == (0, f"{folder}/OPTIMAL_CONFIGS.md\n"), process.stderr
    assert list(cwd.iterdir()) == []


def test_a_run_that_was_cut_in_half_is_reported_as_such_and_completed(
    run_module: Command, two_shards: Sweep, tmp_path: Path
) -> None:
    folder = tmp_path / "halved"
    shutil.copytree(two_shards.folder, folder)
    file = folder / "shards" / "0001" / "records.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    kept = lines[: len(lines) // 2]
    torn = lines[len(kept)]
    file.write_bytes(b"".join(kept) + torn[: -len(torn) // 10])

    assert aggregate.main([str(folder)]) == 3
    plain = msgspec.json.decode((folder / "RESULTS_EP2.json").read_bytes())
    assert plain["points"]["missing"] == len(plain["missing"]) == 4
    text = (folder / "OPTIMAL_CONFIGS.md").read_text()
    assert "**Missing:** `alltoall/" in text
    assert f"`shards/0001/records.jsonl` line {len(kept) + 1} cannot be read**" in text

    first = (folder / "shards" / "0000" / "records.jsonl").read_bytes()
    process = run_module(
        "launcher.sweep", *SMALL, "shard.count=2", FAULT, f"outputs={two_shards.outputs}", f"run={folder}"
    )
    assert (process.returncode, process.stdout) == (0, f"{folder}/OPTIMAL_CONFIGS.md\n"), process.stderr
    assert (folder / "shards" / "0000" / "records.jsonl").read_bytes() == first
    assert file.read_bytes().startswith(b"".join(kept))
    records, damaged = read_lines(RunFolder.open(folder))
    assert len(damaged) == 1
    cells = [line.point_id for line in records if isinstance(line, Record) and line.role is not Role.ANCHOR]
    assert sorted(cells) == sorted(planned.id for planned in RunFolder.open(folder).plan().cells)
    plain = msgspec.json.decode((folder / "RESULTS_EP2.json").read_bytes())
    assert plain["points"] == {"planned": 10, "measured": 9, "failed": 1, "missing": 0}


def test_a_spent_budget_ends_the_search_with_the_best_result_so_far(run_module: Command, tmp_path: Path) -> None:
    process = run_module(
        "launcher.sweep",
        *SMALL,
        "search.final_groups=5",
        "search.iterations=20",
        "search.budget_s=20",
        "grid.num_slices=[1,2,3,4,5,6,7,8]",
        "grid.num_in_flight=[1,2,3,4,5,6,7,8]",
        "faults=['slow@0:alltoall']",
        f"outputs={tmp_path}",
    )
    assert process.returncode == 3, process.stderr
    folder = Path(process.stdout.strip()).parent
    measured = records_of(folder)
    for stage, share in ((Stage.SWEEP, 0.6), (Stage.FINAL, 0.4)):
        starts = [record.started for record in measured if record.stage is stage]
        assert starts
        assert max(starts) - min(starts) <= share * 20
    results = msgspec.json.decode((folder / "RESULTS_EP2.json").read_bytes())
    assert results["points"]["missing"] > 0
    (library,) = results["libraries"]
    assert library["optimal"]["round_trip_us"] > 0
    assert library["verdict"]["ci95"][0] <= library["verdict"]["ratio"] <= library["verdict"]["ci95"][1]
    report = (folder / "OPTIMAL_CONFIGS.md").read_text()
    ending = "spent search.budget_s before its search was complete; resume with a larger one"
    assert f"{ending}.** These are the best configs so far" in report

    resumed = run_module("launcher.resume", str(folder), "search.budget_s=32")
    assert resumed.returncode in (0, 3), resumed.stderr
    assert "search.budget_s: 20 s before, 32 s from now on" in resumed.stderr
    more = records_of(folder)
    for stage in (Stage.SWEEP, Stage.FINAL):
        first, both = ([one for one in these if one.stage is stage] for these in (measured, more))
        assert both[: len(first)] == first
    assert len(more) > len(measured)
