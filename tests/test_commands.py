"""The README's commands, as a user types them on a machine without GPUs."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from builders import ROOT, Command, Sweep

from bench.records import Record, Role, Stage
from launcher import aggregate
from launcher.config import plan
from launcher.config.plan import FINAL
from launcher.store.run_folder import Attempt, RunFolder

NOT_A_MEASUREMENT = plan.NOT_A_MEASUREMENT
SMALL = (
    "-m",
    "ep=2",
    "workload=small",
    "measure=quick",
    "grid=smoke",
    "hardware=cpu",
    "workload.num_tokens=32",
    "search.rounds=1",
    "search.final_groups=0",
)


class Refusal(NamedTuple):
    """A bad command, and where its run folder would have been."""

    process: subprocess.CompletedProcess[str]
    outputs: Path


def runs(outputs: Path) -> list[Path]:
    """The run folders below, whatever Hydra keeps beside them."""
    return [path for path in outputs.glob("*") if not path.name.startswith(".")] if outputs.exists() else []


def records_of(folder: Path) -> list[Record]:
    lines, damaged = RunFolder.open(folder).lines()
    assert damaged == []
    return [line for line in lines if isinstance(line, Record)]


def test_stdout_of_a_sweep_is_exactly_the_path_of_its_report(sweep: Sweep) -> None:
    assert sweep.process.stdout == f"{sweep.folder}/OPTIMAL_CONFIGS.md\n"
    assert (sweep.folder / "OPTIMAL_CONFIGS.md").is_file()
    assert runs(sweep.outputs) == [sweep.folder]
    assert sorted(path.name for path in sweep.folder.iterdir() if not path.name.startswith(".")) == [
        "OPTIMAL_CONFIGS.md",
        "RESULTS_EP4.json",
        "SUMMARY.md",
        "heatmap_combine.svg",
        "heatmap_dispatch.svg",
        "pareto.svg",
        "plan.json",
        "report.html",
        "run.json",
        "shards",
    ]


def test_a_sweep_on_cpus_says_first_of_all_that_it_is_no_measurement_of_deepep(sweep: Sweep) -> None:
    assert "not a measurement of DeepEP" in NOT_A_MEASUREMENT
    assert sweep.process.stderr.splitlines()[0] == NOT_A_MEASUREMENT
    lines = (sweep.folder / "OPTIMAL_CONFIGS.md").read_text().splitlines()
    assert lines[0] == f"**{NOT_A_MEASUREMENT}**"
    assert lines[2] == "# Optimal configuration of the alltoall backend at EP=4"


def test_a_sweep_shows_its_progress_and_no_traceback(sweep: Sweep) -> None:
    assert "Traceback" not in sweep.process.stderr
    for stage in (r"shard 0, round \d of 2", "final, group 2 of 2"):
        assert re.search(rf"^{stage}: (\d+)/\1 points, 0 failed, about 0 s left$", sweep.process.stderr, re.MULTILINE)


def test_a_report_names_the_command_and_revision_that_made_it(sweep: Sweep) -> None:
    text = (sweep.folder / "OPTIMAL_CONFIGS.md").read_text()
    command = shlex.join(RunFolder.open(sweep.folder).manifest().command)
    assert f"outputs={sweep.outputs}" in command
    assert f"* Command: `{command}`" in text
    revision = RunFolder.open(sweep.folder).manifest().revision
    assert revision.commit is None or re.search(rf"revision {revision.commit}\b", text)


def test_every_planned_point_is_visited_at_most_once_a_round_and_the_default_twice(sweep: Sweep) -> None:
    plan = RunFolder.open(sweep.folder).plan()
    records = [record for record in records_of(sweep.folder) if record.stage is Stage.SWEEP]
    assert {record.point_id for record in records} == {planned.id for planned in plan.every_point}
    visits = Counter((record.round, record.point_id) for record in records)
    anchors = {planned.id for planned in plan.anchors}
    assert {count for (_, point), count in visits.items() if point in anchors} == {2}
    assert {count for (_, point), count in visits.items() if point not in anchors} == {1}
    assert {point for number, point in visits if number == 0} == {planned.id for planned in plan.every_point}


def test_help_names_every_group_its_choices_and_the_exit_statuses(run_module: Command) -> None:
    process = run_module("launcher.sweep", "--help")
    assert (process.returncode, process.stderr) == (0, "")
    for group in (path for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name[0] not in "_."):
        choices = sorted(file.stem for file in group.rglob("*.yaml"))
        assert re.search(rf"^\s*{group.name}(/\w+)?:?\s+\S", process.stdout, re.MULTILINE), group.name
        assert all(choice in process.stdout for choice in choices), group.name
    for status in (0, 1, 2, 3):
        assert re.search(rf"^  {status}  +\w", process.stdout, re.MULTILINE), status


def test_help_of_aggregate_names_its_flags_and_exit_statuses(run_module: Command) -> None:
    process = run_module("launcher.aggregate", "--help")
    assert (process.returncode, process.stderr) == (0, "")
    assert "strict=true" in process.stdout
    assert "allow_mixed=true" in process.stdout
    for status in (0, 1, 2, 3):
        assert re.search(rf"^  {status}  \w", process.stdout.partition("Exit status")[2], re.MULTILINE), status


def test_cfg_job_prints_the_configuration_and_runs_nothing(run_module: Command, tmp_path: Path) -> None:
    process = run_module("launcher.sweep", "--cfg", "job", "ep=2", f"outputs={tmp_path}/outputs")
    assert process.returncode == 0, process.stderr
    assert "ep:\n  size: 2\n" in process.stdout
    assert "workload:\n  name: small\n" in process.stdout
    assert runs(tmp_path / "outputs") == []


def test_a_dry_run_prints_points_shards_and_refusals_and_makes_no_run_folder(
    run_module: Command, tmp_path: Path
) -> None:
    process = run_module("launcher.sweep", "-m", "dry_run=true", "shard.count=3", f"outputs={tmp_path}/outputs")
    assert process.returncode == 0, process.stderr
    assert process.stderr.splitlines()[0] == NOT_A_MEASUREMENT
    lines = process.stdout.splitlines()
    assert lines[0] == "alltoall on cpu, EP=4, small (128 x 512, 16 experts, top-4, bf16, uniform)"
    assert lines[1] == "points: 10 (8 cells of the grid, 2 of the default, 0 of the baseline), 2 cells refused"
    assert [re.sub(r"\d+ s$", "N s", line) for line in lines[2:5]] == [
        "shard 0: 3 cells, about N s",
        "shard 1: 3 cells, about N s",
        "shard 2: 2 cells, about N s",
    ]
    assert lines[5:] == [
        f"refused: {op} num_slices 1, num_in_flight 2: grid.num_in_flight must lie in 1..1 (num_slices=1), got 2"
        for op in ("dispatch", "combine")
    ]
    assert runs(tmp_path / "outputs") == []


def test_what_another_machine_would_measure_can_be_planned_here(run_module: Command, tmp_path: Path) -> None:
    process = run_module(
        "launcher.sweep", "-m", "dry_run=true", "hardware=h200", "backend=deepep", f"outputs={tmp_path}/outputs"
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("deepep on h200, EP=4, deepseek_v3 ")


REFUSED = {
    "ep=2 backend=deepep": "backend=deepep needs GPUs, this machine has none",
    "workload.num_experts=6": "workload.num_experts must be divisible by ep.size=4, got 6",
    "grid.num_slices=[]": "grid.num_slices must list at least one value for dispatch",
    "backend=deepeq": "deepeq",
    "shard.index=1": "shard.index must lie in 0..0 (shard.count), got 1",
    "grid.num_slice=[1]": "num_slice",
    "worklod.hidden=8": "worklod",
    "measure.iterations=many": "iterations",
    "grid.num_slices=[a]": "the configuration is not of the right form",
    "workload.dtype=fp4": "workload.dtype must be one of bf16, fp8, got fp4",
    "workload.routing=missing.npy": "workload.routing must be uniform, zipf, grouped or a readable trace",
    "workload.seed=-1": "workload.seed must be at least 0, got -1",
    "+workload.dtyp=fp8": "+workload.dtyp=fp8 adds a key that nothing reads",
    "measure.deadline_s=nan": "measure.deadline_s must be a number, got nan",
    "search.candidates=[24,8,256]": "24",
}


@pytest.fixture(scope="module")
def refusals(run_module: Command, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Refusal]:
    """What each bad command line gave, two at a time."""

    def refused(words: str) -> Refusal:
        outputs = tmp_path_factory.mktemp("refused") / "outputs"
        return Refusal(run_module("launcher.sweep", "-m", *words.split(), f"outputs={outputs}"), outputs)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(REFUSED, pool.map(refused, REFUSED), strict=True))


@pytest.mark.parametrize("words", REFUSED)
def test_a_bad_command_line_is_refused_in_one_error_line(refusals: dict[str, Refusal], words: str) -> None:
    process, outputs = refusals[words]
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, process.stderr
    assert REFUSED[words] in errors[0]
    assert "Traceback" not in process.stderr
    assert (process.returncode, process.stdout) == (2, "")
    assert runs(outputs) == []


@pytest.mark.parametrize(("module", "status"), [("launcher.sweep", 2), ("launcher.validate", 64)])
@pytest.mark.parametrize("place", ["FOLDER/file/outputs", "/proc/nope"])
def test_outputs_that_cannot_be_a_folder_are_refused_in_one_error_line(
    module: str, status: int, place: str, run_module: Command, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    process = run_module(module, "-m", f"outputs={place.replace('FOLDER', str(tmp_path))}")
    assert "Traceback" not in process.stderr
    assert process.stderr.startswith("error: cannot make a folder in outputs: ")
    assert process.returncode == status


def test_run_refuses_a_folder_with_something_else_in_it(run_module: Command, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    process = run_module("launcher.sweep", "-m", f"run={tmp_path}", f"outputs={tmp_path}/outputs")
    assert process.returncode == 2
    assert process.stderr == (
        f"error: run={tmp_path} exists and is no run folder\nhint: name a run folder, or a path that is free\n"
    )


def test_run_refuses_the_folder_of_another_plan(run_module: Command, sweep: Sweep, tmp_path: Path) -> None:
    process = run_module("launcher.sweep", "-m", "seed=2", f"run={sweep.folder}", f"outputs={tmp_path}")
    assert process.returncode == 2
    assert process.stderr == (
        f"error: {sweep.folder} was planned with another configuration\n"
        f"hint: repeat its own command, which run.json names, with run={sweep.folder}\n"
    )


@pytest.mark.parametrize(
    "words", ["FOLDER", "FOLDER/missing", "--frobnicate", "FOLDER strict=maybe", "FOLDER FOLDER", "FOLDER strict"]
)
def test_aggregate_refuses_what_is_no_run_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    assert aggregate.main(words.replace("FOLDER", str(tmp_path)).split()) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"error: .+\nhint: .+\n", said.err)


def test_a_published_run_whose_records_are_packed_keeps_its_report(run_module: Command, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    shutil.copytree(ROOT / "outputs" / "published" / "h200x2-ep2-bf16", folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for module in ("launcher.aggregate", "launcher.status"):
        process = run_module(module, str(folder))
        assert (process.returncode, process.stdout) == (2, "")
        assert process.stderr == (
            f"error: the records of {folder} are packed: shards/0000/records.jsonl.gz\n"
            f"hint: gunzip --keep {folder}/shards/*/records.jsonl.gz\n"
        )
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_status_of_a_run_without_slurm_is_that_of_its_attempts(run_module: Command, sweep: Sweep) -> None:
    process = run_module("launcher.status", str(sweep.folder), "--json")
    found = json.loads(process.stdout)
    assert {row["state"] for row in found["rows"]} == {"DONE"}
    assert (found["final"], found["aggregate"]) == ("COMPLETE", "DONE")


def test_a_try_that_was_refused_beside_another_leaves_a_complete_run_complete(
    run_module: Command, sweep: Sweep, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(sweep.folder, folder)
    run = RunFolder.open(folder)
    for index in (0, FINAL):
        run.begin_attempt(index, Attempt(None, "here", 0.0, 1.0, "failed"))
    process = run_module("launcher.aggregate", str(folder))
    assert process.returncode == 0, process.stderr
    assert "before its search was over" not in (folder / "OPTIMAL_CONFIGS.md").read_text()


def test_an_interrupted_sweep_says_so_in_a_line_and_names_its_folder(no_gpus: dict[str, str], tmp_path: Path) -> None:
    line = [sys.executable, "-m", "launcher.sweep", "-m", f"outputs={tmp_path}"]
    process = subprocess.Popen(line, cwd=ROOT, env=no_gpus, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    said = []
    for words in process.stderr:
        said.append(words)
        if words.startswith("shard 0: starting"):
            process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    (folder,) = [RunFolder.open(path.parent).path for path in tmp_path.glob("*/run.json")]
    assert f"run folder: {folder}\n" in said
    assert said[-1] == (
        "interrupted; all measurements so far are kept. Complete the run: "
        f"python -m launcher.resume {shlex.quote(str(folder))}\n"
    )
    assert "Traceback" not in "".join(said)


def test_aggregate_without_a_folder_prints_its_usage_as_an_error(run_module: Command) -> None:
    process = run_module("launcher.aggregate")
    assert (process.returncode, process.stdout) == (2, "")
    assert "python -m launcher.aggregate RUN" in process.stderr


def test_aggregate_again_changes_nothing(run_module: Command, sweep: Sweep, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(sweep.folder, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(before) >= 8
    process = run_module("launcher.aggregate", str(folder))
    assert (process.returncode, process.stdout) == (0, f"{folder}/OPTIMAL_CONFIGS.md\n"), process.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_complete_run_is_not_measured_again(run_module: Command, sweep: Sweep, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(sweep.folder, folder)
    before = [file.read_bytes() for file in sorted(folder.glob("shards/*/records.jsonl"))]
    process = run_module("launcher.sweep", "-m", f"outputs={sweep.outputs}", f"run={folder}")
    assert (process.returncode, process.stdout) == (0, f"{folder}/OPTIMAL_CONFIGS.md\n"), process.stderr
    assert [file.read_bytes() for file in sorted(folder.glob("shards/*/records.jsonl"))] == before


FAULT = "faults=['wrong_token@1:dispatch/bf16/num_slices=4,num_in_flight=2']"


@pytest.fixture(scope="module")
def two_shards(run_module: Command, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A sweep of two shards in which one point fails."""
    outputs = tmp_path_factory.mktemp("two") / "outputs"
    process = run_module("launcher.sweep", *SMALL, "shard.count=2", "strict=true", FAULT, f"outputs={outputs}")
    return Sweep(process, outputs, Path(process.stdout.strip()).parent)


def test_two_shards_have_two_folders_and_share_the_default_alone(two_shards: Sweep) -> None:
    folder = two_shards.folder
    assert sorted(path.name for path in (folder / "shards").iterdir()) == ["0000", "0001"]
    plan = RunFolder.open(folder).plan()
    anchors = {planned.id for planned in plan.anchors}
    for shard in (0, 1):
        found = {line.point_id for line in records_of(folder) if line.shard == shard}
        assert found == anchors | {planned.id for planned in plan.shard(shard)}


def test_a_failed_point_is_a_result_and_makes_the_status_3_only_with_strict(two_shards: Sweep) -> None:
    assert two_shards.process.returncode == 3, two_shards.process.stderr
    assert "failed: incorrect: rank 1: 2 of " in two_shards.process.stderr
    plain = msgspec.json.decode((two_shards.folder / "RESULTS_EP2.json").read_bytes())
    assert plain["points"] == {"planned": 10, "measured": 9, "failed": 1, "missing": 0}
    assert [(one["kind"], one["phase"], one["rank"]) for one in plain["failures"]] == [("incorrect", "check", 1)]
    assert aggregate.main([str(two_shards.folder)]) == 0
    assert aggregate.main([str(two_shards.folder), "strict=true"]) == 3


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
    found, damaged = RunFolder.open(folder).lines()
    assert len(damaged) == 1
    cells = [line.point_id for line in found if isinstance(line, Record) and line.role is not Role.ANCHOR]
    assert sorted(cells) == sorted(planned.id for planned in RunFolder.open(folder).plan().cells)
    plain = msgspec.json.decode((folder / "RESULTS_EP2.json").read_bytes())
    assert plain["points"] == {"planned": 10, "measured": 9, "failed": 1, "missing": 0}


def test_one_shard_alone_leaves_the_others_missing(run_module: Command, tmp_path: Path) -> None:
    process = run_module(
        "launcher.sweep", *SMALL, "shard.count=8", "shard.index=3", "workload.dtype=fp8", f"outputs={tmp_path}"
    )
    assert process.returncode == 3, process.stderr
    folder = Path(process.stdout.strip()).parent
    assert [path.name for path in (folder / "shards").iterdir()] == ["0003"]
    plain = msgspec.json.decode((folder / "RESULTS_EP2.json").read_bytes())
    assert plain["points"] == {"planned": 10, "measured": 3, "failed": 0, "missing": 7}
    assert plain["optimal"] == plain["default"]


def test_no_file_of_the_project_names_a_machine_it_was_written_on() -> None:
    for folder, suffix in itertools.product(("bench", "launcher", "conf"), (".py", ".yaml")):
        for file in (ROOT / folder).rglob(f"*{suffix}"):
            assert not re.search(r"/(home|work|Users)/", file.read_text()), file


def test_a_spent_budget_ends_the_search_with_the_best_answer_so_far(run_module: Command, tmp_path: Path) -> None:
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
    assert results["optimal"]["round_trip_us"] > 0
    assert results["verdict"]["ci95"][0] <= results["verdict"]["ratio"] <= results["verdict"]["ci95"][1]
    said = (folder / "OPTIMAL_CONFIGS.md").read_text()
    assert "search.budget_s; resume with a larger one) before its search was over.** This is the best answer so" in said

    resumed = run_module("launcher.resume", str(folder), "search.budget_s=32")
    assert resumed.returncode in (0, 3), resumed.stderr
    assert "search.budget_s: 20 s before, 32 s from now on" in resumed.stderr
    more = records_of(folder)
    for stage in (Stage.SWEEP, Stage.FINAL):
        first, both = ([one for one in these if one.stage is stage] for these in (measured, more))
        assert both[: len(first)] == first
    assert len(more) > len(measured)
