"""deepep-sweep as users start it."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from bench.records import Stage
from launcher import aggregate
from launcher.config.plan import NOT_A_MEASUREMENT
from launcher.store.run_folder import RunFolder
from tests.builders import ROOT, Command, Sweep
from tests.commands.runs import SMALL, records_of


class Refusal(NamedTuple):
    """A refused command and its outputs folder."""

    process: subprocess.CompletedProcess[str]
    outputs: Path


def runs(outputs: Path) -> list[Path]:
    """The run folders in a folder, without Hydra's own."""
    return [path for path in outputs.glob("*") if not path.name.startswith(".")] if outputs.exists() else []


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


def test_a_sweep_on_cpus_first_states_that_it_does_not_measure_deepep(sweep: Sweep) -> None:
    assert "not a measurement of DeepEP" in NOT_A_MEASUREMENT
    assert sweep.process.stderr.splitlines()[0] == NOT_A_MEASUREMENT
    lines = (sweep.folder / "OPTIMAL_CONFIGS.md").read_text().splitlines()
    assert lines[0] == f"**{NOT_A_MEASUREMENT}**"
    assert lines[2] == "# Optimal configuration of all-to-all at EP=4"
    notes = [line.split("**")[1] for line in lines[lines.index("## Which pick to use") :] if line.startswith("* **")]
    assert "fastest" in notes
    assert not [note for note in notes if "overlapped" in note]  # this backend overlaps nothing
    assert "* **knee**: the fewest num_slices within 5 % of the fastest." in lines


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


def test_every_planned_point_has_at_most_one_repetition_a_round_and_the_default_two(sweep: Sweep) -> None:
    plan = RunFolder.open(sweep.folder).plan()
    records = [record for record in records_of(sweep.folder) if record.stage is Stage.SWEEP]
    assert {record.point_id for record in records} == {planned.id for planned in plan.every_point}
    repetitions = Counter((record.round, record.point_id) for record in records)
    anchors = {planned.id for planned in plan.anchors}
    assert {count for (_, point), count in repetitions.items() if point in anchors} == {2}
    assert {count for (_, point), count in repetitions.items() if point not in anchors} == {1}
    assert {point for number, point in repetitions if number == 0} == {planned.id for planned in plan.every_point}


def test_help_names_every_group_its_choices_and_the_exit_statuses(run_module: Command) -> None:
    process = run_module("launcher.sweep", "--help")
    assert (process.returncode, process.stderr) == (0, "")
    for group in (path for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name[0] not in "_."):
        choices = sorted(file.stem for file in group.rglob("*.yaml"))
        assert re.search(rf"^\s*{group.name}(/\w+)?:?\s+\S", process.stdout, re.MULTILINE), group.name
        assert all(choice in process.stdout for choice in choices), group.name
    for status in (0, 1, 2, 3):
        assert re.search(rf"^  {status}  +\w", process.stdout, re.MULTILINE), status


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
    assert lines[0] == "all-to-all on cpu, EP=4, small (128 x 512, 16 experts, top-4, bf16, uniform)"
    assert lines[1] == "points: 10 (8 cells, 2 of the default, 0 of the baseline), 2 cells refused"
    assert [re.sub(r"\d+ s$", "N s", line) for line in lines[2:5]] == [
        "shard 0: 3 cells, about N s",
        "shard 1: 3 cells, about N s",
        "shard 2: 2 cells, about N s",
    ]
    assert lines[5:] == ["all-to-all: 8 cells, 2 refused", "  default library: num_slices 1, num_in_flight 1"] + [
        f"  refused: {op} num_slices 1, num_in_flight 2: grid.num_in_flight must lie in 1..1 (num_slices=1), got 2"
        for op in ("dispatch", "combine")
    ]
    assert runs(tmp_path / "outputs") == []


def test_a_sweep_for_another_machine_can_be_planned_on_this_one(run_module: Command, tmp_path: Path) -> None:
    process = run_module(
        "launcher.sweep", "-m", "dry_run=true", "hardware=h200", "backend=deepep", f"outputs={tmp_path}/outputs"
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("DeepEP V1 on h200, EP=4, deepseek_v3 ")


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
    "search.candidates=[24,8,256]": "search.candidates must list configs",
    "backend=[]": "backend must name a library or list several, got []",
    "backend=[alltoall,alltoal]": "backend must be one of ",
    "search.finalists_per_group=3": "search.finalists_per_group is no longer a key (",
}


@pytest.fixture(scope="module")
def refusals(run_module: Command, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Refusal]:
    """The finished process of each bad command line, run two at a time."""

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
        f"error: run={tmp_path} exists and is not a run folder\nhint: name a run folder, or a path that is free\n"
    )


def test_run_refuses_the_folder_of_another_plan(run_module: Command, sweep: Sweep, tmp_path: Path) -> None:
    process = run_module("launcher.sweep", "-m", "seed=2", f"run={sweep.folder}", f"outputs={tmp_path}")
    assert process.returncode == 2
    assert process.stderr == (
        f"error: {sweep.folder} was planned with another configuration\n"
        f"hint: python -m launcher.resume {sweep.folder} completes it, without keys that change the plan\n"
    )


def test_two_shards_have_two_folders_and_share_only_the_default(two_shards: Sweep) -> None:
    folder = two_shards.folder
    assert sorted(path.name for path in (folder / "shards").iterdir()) == ["0000", "0001"]
    plan = RunFolder.open(folder).plan()
    anchors = {planned.id for planned in plan.anchors}
    for shard in (0, 1):
        measured = {line.point_id for line in records_of(folder) if line.shard == shard}
        assert measured == anchors | {planned.id for planned in plan.shard(shard)}


def test_a_failed_point_is_a_result_and_makes_the_status_3_only_with_strict(two_shards: Sweep) -> None:
    assert two_shards.process.returncode == 3, two_shards.process.stderr
    assert "failed: incorrect: rank 1: 2 of " in two_shards.process.stderr
    plain = msgspec.json.decode((two_shards.folder / "RESULTS_EP2.json").read_bytes())
    assert plain["points"] == {"planned": 10, "measured": 9, "failed": 1, "missing": 0}
    assert [(one["kind"], one["phase"], one["rank"]) for one in plain["failures"]] == [("incorrect", "check", 1)]
    assert aggregate.main([str(two_shards.folder)]) == 0
    assert aggregate.main([str(two_shards.folder), "strict=true"]) == 3


def test_a_run_of_one_shard_leaves_the_others_missing(run_module: Command, tmp_path: Path) -> None:
    process = run_module(
        "launcher.sweep", *SMALL, "shard.count=8", "shard.index=3", "workload.dtype=fp8", f"outputs={tmp_path}"
    )
    assert process.returncode == 3, process.stderr
    folder = Path(process.stdout.strip()).parent
    assert [path.name for path in (folder / "shards").iterdir()] == ["0003"]
    plain = msgspec.json.decode((folder / "RESULTS_EP2.json").read_bytes())
    assert plain["points"] == {"planned": 10, "measured": 3, "failed": 0, "missing": 7}
    (library,) = plain["libraries"]
    assert library["optimal"] == library["defaults"]["library"]
