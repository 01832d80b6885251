"""Short finals that are appended to a run, interrupted and resumed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from bench.records import Host, Op, Record, Role, Stage
from launcher.config.plan import FINAL, REPEAT_GROUPS, repeat_index
from launcher.store.records_file import read_lines, read_shard, read_shard_records
from launcher.store.run_folder import RunFolder
from launcher.tuner.final import MOST_AGAIN
from tests.builders import ROOT, Command
from tests.commands.runs import SMALL

_ARGUMENTS = (*SMALL, "backend=alltoall", "search.final_groups=2", "repeat=2")


def _records_files(folder: Path) -> dict[str, bytes]:
    return {file.parent.name: file.read_bytes() for file in folder.glob("shards/*/records.jsonl")}


def _sweep_until_killed_in_the_second_repeat(outputs: Path, environment: dict[str, str]) -> Path:
    """The folder of a sweep whose process was killed while its second repeat was measured."""
    line = [sys.executable, "-m", "launcher.sweep", *_ARGUMENTS, f"outputs={outputs}"]
    process = subprocess.Popen(line, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for message in process.stderr:
        if message.startswith("repeat 2: starting"):
            break
    (folder,) = [RunFolder.open(file.parent) for file in outputs.glob("*/run.json")]
    deadline = time.monotonic() + 60
    while len(read_shard_records(folder, repeat_index(2))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    with contextlib.closing(process.stderr):
        process.wait(timeout=60)
    return folder.path


@pytest.fixture(scope="module")
def killed(no_gpus: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _sweep_until_killed_in_the_second_repeat(tmp_path_factory.mktemp("killed") / "outputs", no_gpus)


@pytest.fixture(scope="module")
def resumed(killed: Path, run_module: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resumed") / "run"
    shutil.copytree(killed, folder)
    process = run_module("launcher.resume", str(folder))
    assert process.returncode == 0, process.stderr
    return folder


def test_a_run_that_was_killed_in_a_repeat_is_reported_as_incomplete(
    killed: Path, run_module: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(killed, folder)
    process = run_module("launcher.aggregate", str(folder))
    assert process.returncode == 3
    assert "1 of 2 repeats of the final are incomplete" in process.stderr
    status = json.loads(run_module("launcher.status", str(folder), "--json").stdout)
    assert (status["repeats"], status["repeats_done"], status["final"]) == (2, 1, "DONE")


def test_a_killed_repeat_is_completed_and_no_line_is_lost(killed: Path, resumed: Path) -> None:
    before, after = _records_files(killed), _records_files(resumed)
    assert after.keys() == before.keys() == {"0000", "final", "repeat-1", "repeat-2"}
    unchanged = {name: content for name, content in after.items() if name != "repeat-2"}
    assert unchanged == {name: before[name] for name in unchanged}
    torn = before["repeat-2"]
    assert after["repeat-2"].startswith(torn[: torn.rfind(b"\n") + 1])
    assert len(after["repeat-2"]) > len(torn)


def test_each_repeat_measures_the_same_isolated_operations_in_fresh_groups_with_anchors(resumed: Path) -> None:
    folder = RunFolder.open(resumed)
    plan, lines = folder.plan(), read_shard(folder, repeat_index(1))
    records = [line for line in lines if isinstance(line, Record)]
    assert {line.shard for line in records} == {repeat_index(1)}
    assert {line.stage for line in records} == {Stage.REPEAT}
    assert {line.point.op for line in records} <= {Op.DISPATCH, Op.DISPATCH_FULL, Op.COMBINE}
    assert len([line for line in lines if isinstance(line, Host)]) == REPEAT_GROUPS
    assert {(line.round, line.group) for line in records} == {(number, number) for number in range(REPEAT_GROUPS)}
    roles = Counter((line.round, line.role, line.point.op) for line in records if line.role is not Role.AGAIN)
    for number in range(REPEAT_GROUPS):
        for anchor in plan.anchors:
            assert roles[number, Role.ANCHOR, anchor.point.op] == 3
            assert 1 <= roles[number, Role.CONTROL, anchor.point.op] <= 1 + MOST_AGAIN
    of_two = [
        {line.point.label for line in read_shard_records(folder, repeat_index(number)) if line.role is not Role.ANCHOR}
        for number in (1, 2)
    ]
    final = {line.point.label for line in read_shard_records(folder, FINAL)}
    assert of_two[0] == of_two[1]
    assert of_two[0] <= final


def test_the_final_keeps_its_groups_and_its_times(resumed: Path, run_module: Command, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(resumed, alone)
    for number in (1, 2):
        shutil.rmtree(alone / "shards" / f"repeat-{number}")
    folder = RunFolder.open(alone)
    folder.write_plan(msgspec.structs.replace(folder.plan(), repeats=0))
    assert run_module("launcher.aggregate", str(alone)).returncode == 0
    with_repeats, without = (json.loads((path / "RESULTS_EP2.json").read_bytes()) for path in (resumed, alone))
    assert with_repeats["search"]["final_groups_measured"] == without["search"]["final_groups_measured"] == 2
    for member in ("measurements", "measured_again", "points", "rank_ratio"):
        assert with_repeats[member] == without[member]


def test_more_repeats_can_be_appended(resumed: Path, run_module: Command, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(resumed, folder)
    before = _records_files(folder)
    process = run_module("launcher.resume", str(folder), "repeat=1", "hydra/launcher=submitit_local")
    assert process.returncode == 0, process.stderr
    assert "repeats of the final: 2 before, 3 from now on" in process.stderr
    after = _records_files(folder)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"repeat-3"}
    lines, damaged = read_lines(RunFolder.open(folder))
    assert (damaged, len({line.shard for line in lines if isinstance(line, Record)})) == ([], 5)


def test_a_repeat_in_another_environment_is_refused_and_leaves_the_run_as_it_was(
    resumed: Path, run_module: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(resumed, folder)
    final = folder / "shards" / "final" / "records.jsonl"
    final.write_bytes(final.read_bytes().replace(b'"driver":null', b'"driver":"535.1"'))
    before, planned = _records_files(folder), RunFolder.open(folder).plan().repeats
    process = run_module("launcher.resume", str(folder), "repeat=3")
    assert process.returncode == 2
    error, hint = process.stderr.splitlines()[-2:]
    assert error == f"error: {folder} was measured in another environment than this: driver: 535.1 | None"
    assert hint.startswith("hint: repeats need the same kind of GPU, driver and versions")
    assert {name: content for name, content in _records_files(folder).items() if content} == before
    assert RunFolder.open(folder).plan().repeats == planned == 2
