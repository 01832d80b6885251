"""The Python interface: it returns values, prints nothing, and raises one kind of error."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hydra
import msgspec
import pytest
from hydra.core.global_hydra import GlobalHydra

from launcher import api
from launcher.deploy.tuned import PICKS
from launcher.jobs import prepare
from tests.builders import ROOT

PUBLISHED = ROOT / "outputs" / "published" / "h200x4-ep4-deepseek_v3-bf16"
TINY = [
    "hardware=cpu",
    "ep=2",
    "workload=small",
    "grid=smoke",
    "measure=quick",
    "search.rounds=1",
    "search.final_groups=0",
]


def python(script: str, *arguments: str, environment: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """The finished process of a user's program."""
    line = [sys.executable, "-c", script, *arguments]
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def user(no_gpus: dict[str, str]) -> dict[str, str]:
    """The environment of a user's program in another folder."""
    return no_gpus | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def run(no_gpus: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[api.Run]:
    """A sweep in this process, in a folder whose name Hydra could misread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield api.sweep(*TINY, outputs=tmp_path_factory.mktemp("api") / "it's [1,2]")


def test_importing_it_imports_no_slow_module(user: dict[str, str], tmp_path: Path) -> None:
    script = "import sys; from launcher import api; print(*sys.modules)"
    imported = set(python(script, environment=user, cwd=tmp_path).stdout.split())
    assert "launcher.library" in imported
    assert imported.isdisjoint({"torch", "numpy", "scipy", "hydra", "omegaconf", "matplotlib", "rich", "submitit"})


@pytest.mark.parametrize("overrides", [["hardware=h200", "ep=4"], ["hardware=h100", "grid.num_sms=[7,24]"], TINY])
def test_a_plan_equals_the_plan_of_the_command(
    overrides: list[str], user: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = api.plan(*overrides)
    assert list(tmp_path.iterdir()) == []
    line = [sys.executable, "-m", "launcher.sweep", "dry_run=true", *overrides]
    shown = subprocess.run(line, cwd=tmp_path, env=user, capture_output=True, text=True, check=True).stdout
    assert prepare.describe(plan) + "\n" == shown


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["hardware=h200", "workload.num_experts=6"], "workload.num_experts must be divisible by ep.size=4, got 6"),
        (["hardware=h300"], "hardware must be one of a100, a800, "),
        (["hardware=h200", "ep=2,4"], "ep='2','4' has several values, one is possible here"),
        (["worklod.hidden=3"], "Could not override 'worklod.hidden'"),
        (["+workload.hiden=3"], "+workload.hiden=3 adds a key that nothing reads"),
        (["hardware"], "Error parsing override 'hardware'"),
        (["hydra/launcher=submitit_slurm"], "hydra/launcher=submitit_slurm is for the command line"),
        (["-m"], "-m is for the command line"),
    ],
)
def test_a_sweep_that_cannot_be_planned_is_an_error_and_leaves_no_folder(
    overrides: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(api.Error, match=f"^{re.escape(message)}"):
        api.plan(*overrides)
    with pytest.raises(api.Error):
        api.sweep(*overrides)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_that_would_measure_nothing_is_refused() -> None:
    with pytest.raises(api.Error, match=r"^dry_run=true measures nothing$"):
        api.sweep("hardware=h200", "dry_run=true")


def test_it_works_in_a_program_that_uses_hydra_itself(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("number: 1\n")
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        assert api.plan("hardware=h200", "ep=2").spec.ep.size == 2
        assert GlobalHydra.instance().hydra is outer
        assert hydra.compose("mine").number == 1


def test_a_sweep_prints_nothing_and_returns_its_run(
    run: api.Run, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    before = {file: file.read_bytes() for file in run.folder.glob("shards/*/records.jsonl")}
    second = api.sweep(*TINY, f"run='{run.folder}'".replace("it's", "it\\'s"))
    assert capfd.readouterr() == ("", "")
    assert second == run == api.load(str(run.folder))
    assert {file: file.read_bytes() for file in run.folder.glob("shards/*/records.jsonl")} == before != {}
    assert run.report.read_text().startswith("**This is a dry run")


@pytest.mark.slow
def test_a_budget_that_changes_is_not_printed_either(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    run = api.sweep(*TINY, "search.budget_s=100", outputs=tmp_path)
    api.sweep(*TINY, "search.budget_s=200", f"run={run.folder}")
    assert capfd.readouterr() == ("", "")


def test_the_status_of_a_run_follows_from_its_files(run: api.Run) -> None:
    status = run.status()
    assert [row.state for row in status.rows] == ["DONE"]
    assert status.done == status.planned == 10


def test_its_run_is_resumed_by_the_command(run: api.Run, user: dict[str, str], tmp_path: Path) -> None:
    line = [sys.executable, "-m", "launcher.resume", str(run.folder)]
    process = subprocess.run(line, cwd=tmp_path, env=user, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout) == (0, f"{run.report}\n"), process.stderr


def test_the_results_of_a_run_equal_those_in_its_file(run: api.Run) -> None:
    (file,) = run.folder.glob("RESULTS_EP2.json")
    assert msgspec.json.encode(run.results) == msgspec.json.encode(msgspec.json.decode(file.read_bytes()))


def test_a_dry_run_has_no_configs_to_deploy(run: api.Run) -> None:
    with pytest.raises(api.Error, match=r"is a dry run: it measured no DeepEP$"):
        run.configs()


@pytest.mark.parametrize("pick", PICKS)
def test_the_configs_of_a_pick_are_arguments_of_deep_ep(pick: str) -> None:
    run = api.load(PUBLISHED)
    library = run.results.library("deepep")
    for op, operation in library.picks[pick].operations.items():
        knobs = {
            "num_sms": operation.knobs["num_sms"],
            "num_max_nvl_chunked_send_tokens": operation.knobs["nvl_chunk"],
            "num_max_nvl_chunked_recv_tokens": operation.knobs["nvl_buffer"],
        }
        assert run.configs(pick)[op] == run.configs(pick)[op] | knobs


def test_a_pick_that_a_run_does_not_have_is_an_error() -> None:
    with pytest.raises(api.Error, match=r"^pick must be one of fastest, .*, got best$"):
        api.load(PUBLISHED).configs("best")


@pytest.mark.parametrize("path", [ROOT, ROOT / "nowhere", ROOT / "README.md"])
def test_a_folder_that_is_not_a_run_folder_is_not_loaded(path: Path) -> None:
    with pytest.raises(api.Error, match=re.escape(str(path))):
        api.load(path)


def test_runs_are_compared_by_folder_file_or_value(run: api.Run) -> None:
    (file,) = run.folder.glob("RESULTS_EP2.json")
    for a, b in ((run, run), (run.folder, str(file)), (file, run)):
        comparison = api.compare(a, b)
        assert (comparison.worse, comparison.missing) == ([], [])
        assert [point.ratio for point in comparison.points] == [1.0] * 10
    with pytest.raises(api.Error, match=r"^tolerance must be at least 0 and below 1, got 2$"):
        api.compare(run, run, tolerance=2)
    with pytest.raises(api.Error, match=r"differ|different|not compared"):
        api.compare(run, PUBLISHED)


def test_ranks_that_do_not_start_are_an_error_that_names_the_run_folder(user: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("raise ImportError('no torch today')\n")
    environment = user | {"PYTHONPATH": f"{ROOT}:{tmp_path / 'broken'}"}
    script = """if True:
        import sys
        from launcher import api
        try:
            api.sweep(*sys.argv[1:])
        except api.Error as error:
            print(error, error.hint, sep="\\n")
    """
    process = python(script, *TINY, environment=environment, cwd=tmp_path)
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.startswith("shard 0: the ranks did not start: ")
    folder = process.stdout.splitlines()[-1].removeprefix("the run folder is ")
    assert (tmp_path / folder / "run.json").is_file()


def test_the_examples_of_the_document_run_and_print_nothing(user: dict[str, str], tmp_path: Path) -> None:
    examples = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "API.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(examples) >= 7
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "published").symlink_to(ROOT / "outputs" / "published")  # the examples need a checkout
    process = python("\n".join(examples), environment=user, cwd=tmp_path)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs"]
