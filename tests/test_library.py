"""The library: exact or said, the better of two only when it is surely better, and whole whoever publishes beside."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from builders import ROOT, Command, Sweep
from hypothesis import example, given
from hypothesis import strategies as st

from launcher import answer, library, publish
from launcher.answer import Answer, Operation, Pair
from launcher.errors import UserError
from launcher.library import BadFile, Entry, Key, NotTuned, load_tuned_config

RESULTS = ROOT / "outputs" / "published" / "h200x2-ep2-bf16" / "RESULTS_EP2.json"
PUBLISHED = ROOT / "outputs" / "published" / "library"
SCHEMA = msgspec.json.decode((ROOT / "docs" / "library.schema.json").read_bytes())
ANSWER = answer.read(RESULTS)
DEEP_EP = "tokenspeed-deepep 1.2.1.post20251110"
ASKED: dict[str, Any] = {
    "gpu": "NVIDIA H200",
    "ep": 2,
    "hidden": 7168,
    "num_experts": 256,
    "num_topk": 8,
    "num_tokens": 4096,
    "dtype": "bf16",
    "deep_ep": DEEP_EP,
}
replace = msgspec.structs.replace


def taking(low: float, high: float, *, found: Answer = ANSWER) -> Answer:
    """The answer with a fastest pair whose round trip has this interval."""
    half = Operation(8, 128, (low + high) / 4, (low / 2, high / 2), "final")
    return replace(found, picks={"fastest": Pair(64, half, half, (low + high) / 2)})


def with_tokens(num_tokens: int, *, deep_ep: str = DEEP_EP) -> Answer:
    """The answer for another number of tokens, or another deep_ep."""
    environment = replace(ANSWER.environment, versions={"deep_ep": deep_ep})
    return replace(ANSWER, environment=environment, workload=replace(ANSWER.workload, num_tokens=num_tokens))


def on_file(folder: Path) -> Entry:
    (entry,) = library.read_all(folder).values()
    return entry


# ---- load


def test_the_exact_key_is_found_and_said(tmp_path: Path) -> None:
    publish.publish(ANSWER, tmp_path)
    found = load_tuned_config(tmp_path, **ASKED)
    assert found.match == "exact"
    assert list(found.dispatch.values()) == [128, 8, 128, 6, 128]
    assert list(found.combine.values()) == [128, 14, 256, 6, 128]
    assert found.entry.key == Key(**ASKED)
    assert found.file.parent == tmp_path


def test_each_pick_of_a_run_can_be_loaded(tmp_path: Path) -> None:
    publish.publish(ANSWER, tmp_path)
    for name, pair in ANSWER.picks.items():
        found = load_tuned_config(tmp_path, **ASKED, pick=name)
        assert {"dispatch": found.dispatch, "combine": found.combine} == pair.configs
    with pytest.raises(NotTuned):
        load_tuned_config(tmp_path, **ASKED, pick="slowest")


@given(st.sets(st.integers(1, 20_000), min_size=1, max_size=6), st.integers(1, 20_000))
@example({4096, 1024}, 3000)
def test_the_nearest_tokens_by_ratio_are_found_and_said(
    tmp_path_factory: pytest.TempPathFactory, filed: set[int], asked: int
) -> None:
    folder = tmp_path_factory.mktemp("library")
    for num_tokens in filed:
        publish.publish(with_tokens(num_tokens), folder)
    found = load_tuned_config(folder, **ASKED | {"num_tokens": asked})
    tokens = found.entry.key.num_tokens
    assert abs(math.log(asked / tokens)) == min(abs(math.log(asked / one)) for one in filed)
    assert found.match == ("exact" if asked == tokens else f"nearest tokens: asked {asked}, found {tokens}")


@pytest.mark.parametrize(
    "other",
    [
        {"gpu": "NVIDIA H100 80GB HBM3"},
        {"ep": 4},
        {"hidden": 7169},
        {"num_experts": 128},
        {"num_topk": 6},
        {"dtype": "fp8"},
    ],
)
def test_nothing_but_tokens_and_the_version_is_ever_waived(other: dict[str, Any], tmp_path: Path) -> None:
    publish.publish(ANSWER, tmp_path)
    with pytest.raises(NotTuned, match="the library has NVIDIA H200, EP=2, hidden 7168, 256 experts, top-8, 4096 tok"):
        load_tuned_config(tmp_path, **ASKED | other)


def test_an_empty_or_absent_library_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotTuned, match=r"the library has nothing$"):
        load_tuned_config(tmp_path / "none", **ASKED)


def test_the_same_deep_ep_goes_before_nearer_tokens_and_another_is_said(tmp_path: Path) -> None:
    publish.publish(with_tokens(4096, deep_ep="deep_ep 1.1"), tmp_path)
    publish.publish(with_tokens(1024), tmp_path)
    assert load_tuned_config(tmp_path, **ASKED).match == "nearest tokens: asked 4096, found 1024"
    other = load_tuned_config(tmp_path, **ASKED | {"deep_ep": "deep_ep 1.3"})
    assert other.match == "deep_ep: asked deep_ep 1.3, found deep_ep 1.1"
    unasked = load_tuned_config(tmp_path, **ASKED | {"deep_ep": None, "num_tokens": 1000})
    assert unasked.match == f"nearest tokens: asked 1000, found 1024; deep_ep: asked for no version, found {DEEP_EP}"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "cannot be read"),
        (b'{"schema": "deepep-sweep/library/2"}', "has schema 'deepep-sweep/library/2', this program reads"),
        (b'{"schema": "deepep-sweep/library/1"}', "missing required field `key`"),
    ],
)
def test_a_file_that_is_no_entry_is_an_error_that_names_it(content: bytes, why: str, tmp_path: Path) -> None:
    publish.publish(ANSWER, tmp_path)
    (tmp_path / "other.json").write_bytes(content)
    with pytest.raises(BadFile, match=r"other\.json") as caught:
        load_tuned_config(tmp_path, **ASKED)
    assert why in str(caught.value)


def test_loading_imports_nothing_heavy() -> None:
    code = (
        "import sys, launcher.library\n"
        "heavy = {'torch', 'deep_ep', 'hydra', 'omegaconf', 'numpy', 'scipy', 'yaml', 'rich', 'bench'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


# ---- publish


@pytest.mark.parametrize("folder", ["h200x2-ep2-bf16", "h200x2-ep2-fp8"])
def test_a_published_run_makes_a_file_of_the_documented_schema(folder: str, tmp_path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    found = answer.read(RESULTS.parents[1] / folder / "RESULTS_EP2.json")
    file, done = publish.publish(found, tmp_path)
    assert done == "filed"
    jsonschema.Draft202012Validator(SCHEMA).validate(msgspec.json.decode(file.read_bytes()))


def test_stdout_is_the_path_of_the_file_and_stderr_what_was_done(run_module: Command, tmp_path: Path) -> None:
    first, second = (run_module("launcher.publish", str(RESULTS), "--library", str(tmp_path / "a" / "b")) for _ in "12")
    assert (first.returncode, first.stderr) == (0, "filed\n")
    assert Path(first.stdout.strip()).parent == tmp_path / "a" / "b"
    assert second.stdout == first.stdout
    assert second.returncode == 0
    assert second.stderr == (
        "kept what is on file: 412.4 us (411.2 to 413.6), and this run's 412.4 us (411.2 to 413.6) "
        "cannot be told from it\n"
    )


def test_a_dry_run_is_not_published(run_module: Command, sweep: Sweep, tmp_path: Path) -> None:
    process = run_module("launcher.publish", str(sweep.folder), "--library", str(tmp_path / "library"))
    assert (process.returncode, process.stdout) == (2, "")
    assert "is a dry run" in process.stderr
    assert not (tmp_path / "library").exists()


def spoilt() -> list[Any]:
    pair = ANSWER.picks["fastest"]
    sweep_only = replace(pair, combine=replace(pair.combine, stage="sweep"))
    return [
        (replace(ANSWER, points=answer.Points(1335, 3)), "3 of 1335 points are missing"),
        (replace(ANSWER, search=answer.Search(5, 2)), "2 of 5 groups of the final are there"),
        (replace(ANSWER, picks={"fastest": sweep_only}), "it was not measured again in a final"),
    ]


@pytest.mark.parametrize(("found", "why"), spoilt())
def test_a_run_that_is_not_whole_is_not_published(found: Answer, why: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^only whole runs are published: {why}$"):
        publish.publish(found, tmp_path)
    assert list(tmp_path.iterdir()) == []


intervals = st.tuples(st.integers(1, 60), st.integers(0, 20)).map(lambda one: (float(one[0]), float(sum(one))))


@given(intervals, intervals)
@example((10.0, 20.0), (20.0, 30.0))
def test_what_is_on_file_gives_way_only_to_what_is_surely_faster(
    tmp_path_factory: pytest.TempPathFactory, first: tuple[float, float], second: tuple[float, float]
) -> None:
    folder = tmp_path_factory.mktemp("library")
    publish.publish(taking(*first), folder)
    _, done = publish.publish(taking(*second), folder)
    stays = second[1] >= first[0]
    assert on_file(folder).best.ci95_us == (first if stays else second)
    assert done.startswith("kept what is on file" if stays else "filed: faster than")


@given(intervals, intervals)
def test_two_results_that_can_be_told_apart_leave_the_same_in_either_order(
    tmp_path_factory: pytest.TempPathFactory, first: tuple[float, float], second: tuple[float, float]
) -> None:
    left = []
    for order in ((first, second), (second, first)):
        folder = tmp_path_factory.mktemp("library")
        for one in order:
            publish.publish(taking(*one), folder)
        left.append(on_file(folder).best.ci95_us)
    overlap = first[0] <= second[1] and second[0] <= first[1]
    assert left == ([first, second] if overlap else [min(first, second)] * 2)


def test_unlike_routings_are_not_compared(tmp_path: Path) -> None:
    publish.publish(ANSWER, tmp_path)
    zipf = replace(ANSWER, workload=replace(ANSWER.workload, routing="zipf"))
    with pytest.raises(UserError, match="this key is on file for routing uniform, this run has zipf"):
        publish.publish(zipf, tmp_path)
    assert on_file(tmp_path).routing == "uniform"


@given(st.text(max_size=300), st.text(max_size=300))
@example("../../etc/passwd", "..")
@example("", "\x00/\n")
def test_any_gpu_has_a_file_of_its_own_inside_the_folder(gpu: str, deep_ep: str) -> None:
    key = Key(**ASKED | {"gpu": gpu, "deep_ep": deep_ep})
    assert Path(key.file_name).name == key.file_name
    assert len(key.file_name.encode()) < 255
    assert key.file_name.endswith(".json")
    assert not key.file_name.startswith(".")
    assert key.file_name != replace(key, gpu=gpu + "x").file_name


def test_a_library_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "library").touch()
    with pytest.raises(UserError, match=r"cannot write to .*: File exists"):
        publish.publish(ANSWER, tmp_path / "library")


def test_publishers_at_once_leave_the_fastest_and_readers_never_see_half(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = ['tests']\n"
        "from pathlib import Path\n"
        "from test_library import publish, taking\n"
        "for number in range(int(sys.argv[1]), 200, 4):\n"
        "    low = 1000.0 - 2 * (number * 37 % 200)\n"
        "    publish.publish(taking(low, low + 1), Path(sys.argv[2]))\n"
    )
    arguments = [sys.executable, "-c", code]
    writers = [subprocess.Popen([*arguments, str(one), str(tmp_path)], cwd=ROOT) for one in range(4)]
    seen = []
    while any(writer.poll() is None for writer in writers):
        if library.read_all(tmp_path):
            seen.append(on_file(tmp_path).best.ci95_us[0])
    assert [writer.returncode for writer in writers] == [0] * 4
    assert on_file(tmp_path).best.ci95_us == (602.0, 603.0)
    assert seen == sorted(seen, reverse=True)
    assert [file.suffix for file in tmp_path.iterdir() if file.name != ".lock"] == [".json"]


def test_the_published_library_holds_the_published_runs() -> None:
    assert {entry.key.dtype for entry in library.read_all(PUBLISHED).values()} == {"bf16", "fp8"}
    for file, entry in library.read_all(PUBLISHED).items():
        assert file.name == entry.key.file_name
        found = answer.read(RESULTS.parents[1] / f"h200x2-ep2-{entry.key.dtype}" / "RESULTS_EP2.json")
        assert entry == publish.entry(found)
