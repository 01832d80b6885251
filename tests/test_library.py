"""The library: exact or said, the better of two only when it is surely better, and whole whoever publishes beside."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bench.records import Stage
from launcher import library
from launcher.deploy import publishing, tuned
from launcher.deploy.tuned import TunedResults
from launcher.errors import UserError
from launcher.library import Entry, Key, NotTunedError, load_tuned_config
from launcher.store.results_file import SavedOverlap, SavedPair
from tests.builders import ROOT, Command, Sweep

RESULTS = ROOT / "outputs" / "published" / "h200x2-ep2-bf16" / "RESULTS_EP2.json"
PUBLISHED = ROOT / "outputs" / "published" / "library"
SCHEMA = msgspec.json.decode((ROOT / "docs" / "library.schema.json").read_bytes())
ANSWER = tuned.read(RESULTS)
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


def knobs(num_sms: int) -> dict[str, int]:
    return {"num_sms": num_sms, "nvl_chunk": 8, "nvl_buffer": 128}


def trip(low: float, high: float, *, num_sms: int = 64) -> SavedPair:
    """A pair whose round trip has this interval."""
    half = replace(
        ANSWER.picks["fastest"].dispatch,
        knobs=knobs(num_sms),
        median_us=(low + high) / 4,
        ci95_us=(low / 2, high / 2),
    )
    return SavedPair({"num_sms": num_sms}, half, half, (low + high) / 2)


def changed(*, results: dict[str, Any] | None = None, **library: Any) -> TunedResults:
    """The answer with other members in its library, or in the whole document."""
    return ANSWER._replace(
        library=replace(ANSWER.library, **library), results=replace(ANSWER.results, **(results or {}))
    )


def taking(low: float, high: float, **others: SavedPair) -> TunedResults:
    """The answer with a fastest pair whose round trip has this interval, and other picks."""
    return changed(picks={"fastest": trip(low, high), **others})


def overlapping(fastest: tuple[float, float], ends: tuple[float, float], *, num_sms: int = 32) -> TunedResults:
    """The answer whose overlapped pick takes 900 us isolated, and this long overlapped with GEMMs."""
    overlap = SavedOverlap(
        shared_knobs={"num_sms": num_sms},
        dispatch=knobs(num_sms),
        combine=knobs(num_sms),
        makespan_us=sum(ends) / 2,
        ci95_us=ends,
        compute_us=4000.0,
        compute_isolated_us=3900.0,
        gemm_slowdown=1.03,
        gemm_slowdown_ci95=None,
        serial_us=4800.0,
        compute_to_communication=4.3,
    )
    picks = {"fastest": trip(*fastest), "overlapped": trip(900, 900, num_sms=num_sms)}
    return changed(picks=picks, overlapped=[overlap])


def with_tokens(num_tokens: int, *, deep_ep: str = DEEP_EP) -> TunedResults:
    """The answer for another number of tokens, or another deep_ep."""
    return changed(results={"workload": replace(ANSWER.workload, num_tokens=num_tokens)}, version=deep_ep)


def routed(routing: str) -> TunedResults:
    """The answer for another routing."""
    return changed(results={"workload": replace(ANSWER.workload, routing=routing)})


def numbers(entry: Entry) -> Entry:
    """The entry without its texts for people."""
    picks = {name: replace(pick, provenance={}) for name, pick in entry.picks.items()}
    return replace(entry, picks=picks, provenance={})


def on_file(folder: Path) -> Entry:
    entries, bad = library.read_all(folder)
    assert bad == []
    (entry,) = entries.values()
    return entry


def best(folder: Path) -> tuple[float, float]:
    return on_file(folder).picks["fastest"].ci95_us


# ---- load


def test_the_exact_key_is_found_and_said(tmp_path: Path) -> None:
    publishing.publish(ANSWER, tmp_path)
    found = load_tuned_config(tmp_path, **ASKED)
    assert found.match == "exact"
    assert list(found.dispatch.values()) == [128, 8, 128, 6, 128]
    assert list(found.combine.values()) == [128, 14, 256, 6, 128]
    assert found.entry.key == Key(**ASKED)
    assert found.file.parent == tmp_path


def test_each_pick_of_a_run_can_be_loaded(tmp_path: Path) -> None:
    publishing.publish(ANSWER, tmp_path)
    for name, pair in ANSWER.picks.items():
        found = load_tuned_config(tmp_path, **ASKED, pick=name)
        assert {"dispatch": found.dispatch, "combine": found.combine} == tuned.configs(pair)
    with pytest.raises(NotTunedError):
        load_tuned_config(tmp_path, **ASKED, pick="slowest")


@given(st.sets(st.integers(1, 20_000), min_size=1, max_size=6), st.integers(1, 20_000))
@example({4096, 1024}, 3000)
def test_the_nearest_tokens_by_ratio_are_found_and_said(
    tmp_path_factory: pytest.TempPathFactory, filed: set[int], asked: int
) -> None:
    folder = tmp_path_factory.mktemp("library")
    for num_tokens in filed:
        publishing.publish(with_tokens(num_tokens), folder)
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
    publishing.publish(ANSWER, tmp_path)
    with pytest.raises(
        NotTunedError, match=f"; {tmp_path} has NVIDIA H200, EP=2, hidden 7168, 256 experts, top-8, 4096 tok"
    ):
        load_tuned_config(tmp_path, **ASKED | other)


def test_an_empty_or_absent_library_is_said(tmp_path: Path) -> None:
    asked = "no tuned config for NVIDIA H200, EP=2, hidden 7168, 256 experts, top-8, 4096 tokens, bf16 (fastest)"
    for folder, said in (
        (tmp_path, f"; {tmp_path} has nothing"),
        (tmp_path / "no", f": there is no folder {tmp_path}/no"),
    ):
        with pytest.raises(NotTunedError) as caught:
            load_tuned_config(folder, **ASKED)
        assert str(caught.value) == asked + said


def test_the_same_deep_ep_goes_before_nearer_tokens_and_another_is_said(tmp_path: Path) -> None:
    publishing.publish(with_tokens(4096, deep_ep="deep_ep 1.1"), tmp_path)
    publishing.publish(with_tokens(1024), tmp_path)
    assert load_tuned_config(tmp_path, **ASKED).match == "nearest tokens: asked 4096, found 1024"
    other = load_tuned_config(tmp_path, **ASKED | {"deep_ep": "deep_ep 1.3"})
    assert other.match == "deep_ep: asked deep_ep 1.3, found deep_ep 1.1"
    unasked = load_tuned_config(tmp_path, **ASKED | {"deep_ep": None, "num_tokens": 1000})
    assert unasked.match == "nearest tokens: asked 1000, found 1024"


@pytest.mark.parametrize("deep_ep", [None, DEEP_EP, "1.2.1.post20251110"])
def test_no_version_and_the_version_alone_are_exact_like_the_distribution_with_it(
    deep_ep: str | None, tmp_path: Path
) -> None:
    publishing.publish(ANSWER, tmp_path)
    assert load_tuned_config(tmp_path, **ASKED | {"deep_ep": deep_ep}).match == "exact"
    for other in ("1.2.1", "tokenspeed-deepep"):
        found = load_tuned_config(tmp_path, **ASKED | {"deep_ep": other})
        assert found.match == f"deep_ep: asked {other}, found {DEEP_EP}"


def installed(folder: Path, *lines: str) -> str:
    """What a process prints in whose path a distribution with a deep_ep is installed."""
    metadata = folder / "tokenspeed_deepep-1.2.1.post20251110.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tokenspeed-deepep\nVersion: 1.2.1.post20251110\n")
    (metadata / "top_level.txt").write_text("deep_ep\n")
    (metadata / "RECORD").write_text("deep_ep/__init__.py,,\n")
    (folder / "torch.py").write_text(
        "import types\ncuda = types.SimpleNamespace(get_device_name=lambda: 'NVIDIA H200')\n"
    )
    path = os.pathsep.join(map(str, [folder, ROOT / "tests" / "stand_ins"]))
    process = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout


def test_the_installed_deep_ep_is_given_as_a_sweep_writes_it(tmp_path: Path) -> None:
    assert library.installed_deep_ep() is None
    asks = ("from launcher.library import installed_deep_ep", "print(installed_deep_ep())")
    assert installed(tmp_path, *asks) == f"{DEEP_EP}\n"


def test_the_documented_example_finds_the_published_config_and_says_exact(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "APPLY.md").read_text()
    (example,) = [part for part in re.findall("```python\n(.*?)```", text, re.DOTALL) if "load_tuned_config" in part]
    code = example.replace("/shared/deepep-library", str(PUBLISHED))
    configs = installed(tmp_path, code, "print(dispatch == deep_ep.Config(128, 4, 1024, 6, 128), combine)")
    assert configs.splitlines()[0] == "exact"
    assert configs.splitlines()[1].startswith("True ")


def test_another_routing_is_taken_rather_than_none_and_said(tmp_path: Path) -> None:
    publishing.publish(routed("zipf"), tmp_path)
    assert load_tuned_config(tmp_path, **ASKED).match == "routing: asked uniform, found zipf"
    assert load_tuned_config(tmp_path, **ASKED, routing="zipf").match == "exact"
    publishing.publish(with_tokens(1024), tmp_path)
    assert load_tuned_config(tmp_path, **ASKED).match == "nearest tokens: asked 4096, found 1024"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "cannot be read"),
        (b'{"schema": "deepep-sweep/library/2"}', "has schema 'deepep-sweep/library/2', this program reads"),
        (b'{"schema": "deepep-sweep/library/1"}', "missing required field `key`"),
    ],
)
def test_a_file_that_is_no_entry_is_left_out_and_named_also_where_nothing_else_fits(
    content: bytes, why: str, tmp_path: Path
) -> None:
    publishing.publish(ANSWER, tmp_path)
    (tmp_path / "other.json").write_bytes(content)
    with pytest.warns(RuntimeWarning, match=r"other\.json .*; it is left out$") as warned:
        assert load_tuned_config(tmp_path, **ASKED).match == "exact"
    assert why in str(warned[0].message)
    with pytest.warns(RuntimeWarning), pytest.raises(NotTunedError) as caught:
        load_tuned_config(tmp_path, **ASKED | {"ep": 8})
    assert f"; left out: {tmp_path}/other.json " in str(caught.value)
    assert why in str(caught.value)


def test_loading_imports_nothing_heavy() -> None:
    code = (
        "import sys, launcher.library\n"
        "heavy = {'torch', 'deep_ep', 'hydra', 'omegaconf', 'numpy', 'scipy', 'yaml', 'rich', 'bench'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


# ---- publish


@pytest.mark.parametrize("folder", ["h200x2-ep2-bf16", "h200x2-ep2-fp8", "h200x4-ep4-qwen3_30b_a3b-fp8"])
def test_a_published_run_makes_a_file_of_the_documented_schema(folder: str, tmp_path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    (results,) = (RESULTS.parents[1] / folder).glob("RESULTS_EP*.json")
    found = tuned.read(results)
    file, done = publishing.publish(found, tmp_path)
    assert done == dict.fromkeys(found.picks, "filed")
    jsonschema.Draft202012Validator(SCHEMA).validate(msgspec.json.decode(file.read_bytes()))


def test_stdout_is_the_path_of_the_file_and_stderr_what_was_done(run_module: Command, tmp_path: Path) -> None:
    first, second = (run_module("launcher.publish", str(RESULTS), "--library", str(tmp_path / "a" / "b")) for _ in "12")
    assert (first.returncode, first.stderr) == (
        0,
        "fastest: filed\noverlapped: filed\ndefault_sms: filed\nknee: filed\n",
    )
    assert Path(first.stdout.strip()).parent == tmp_path / "a" / "b"
    assert second.stdout == first.stdout
    assert second.returncode == 0
    assert second.stderr == (
        "fastest: kept the 412.4 us (411.2 to 413.6) on file: this run's 412.4 us (411.2 to 413.6) "
        "is indistinguishable from it\n"
        "overlapped: kept the 4681.1 us (4502.9 to 4866.4) on file: this run's 4681.1 us (4502.9 to 4866.4) "
        "is indistinguishable from it\n"
        "default_sms: kept the 899.4 us (896.4 to 902.3) on file: this run's 899.4 us (896.4 to 902.3) "
        "is indistinguishable from it\n"
        "knee: kept with fastest\n"
    )


def test_a_dry_run_is_not_published(run_module: Command, sweep: Sweep, tmp_path: Path) -> None:
    process = run_module("launcher.publish", str(sweep.folder), "--library", str(tmp_path / "library"))
    assert (process.returncode, process.stdout) == (2, "")
    assert "is a dry run" in process.stderr
    assert not (tmp_path / "library").exists()


def incomplete() -> list[Any]:
    pair, results = ANSWER.picks["fastest"], ANSWER.results
    sweep_only = replace(pair, combine=replace(pair.combine, stage=Stage.SWEEP))
    points = replace(results.points, planned=1335, missing=3)
    search = replace(results.search, final_groups=5, final_groups_measured=2)
    return [
        (changed(results={"points": points}), "3 of 1335 points are missing"),
        (changed(results={"search": search}), "2 of 5 groups of the final are there"),
        (changed(picks={"fastest": sweep_only}), "it was not measured again in a final"),
    ]


@pytest.mark.parametrize(("found", "why"), incomplete())
def test_a_run_that_is_not_whole_is_not_published(found: TunedResults, why: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^only whole runs are published: {why}$"):
        publishing.publish(found, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("objective", ["dispatch", "combine", {"dispatch": 2, "combine": 1}, {"combine": 1.0}])
def test_a_run_with_another_objective_is_not_published(objective: Any, tmp_path: Path) -> None:
    found = changed(results={"search": replace(ANSWER.results.search, objective=objective)})
    with pytest.raises(UserError, match=r"^only runs that minimise the round trip are published; this one's search\."):
        publishing.publish(found, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("objective", ["round_trip", "training", {"dispatch": 2, "combine": 2.0}])
def test_a_run_that_counts_both_operations_alike_is_published(objective: Any, tmp_path: Path) -> None:
    publishing.publish(changed(results={"search": replace(ANSWER.results.search, objective=objective)}), tmp_path)
    assert on_file(tmp_path).picks["fastest"].round_trip_us == pytest.approx(412.4, abs=0.1)


intervals = st.tuples(st.integers(1, 60), st.integers(0, 20)).map(lambda one: (float(one[0]), float(sum(one))))


@given(intervals, intervals)
@example((10.0, 20.0), (20.0, 30.0))
def test_what_is_on_file_gives_way_only_to_what_is_surely_faster(
    tmp_path_factory: pytest.TempPathFactory, first: tuple[float, float], second: tuple[float, float]
) -> None:
    folder = tmp_path_factory.mktemp("library")
    publishing.publish(taking(*first), folder)
    _, done = publishing.publish(taking(*second), folder)
    stays = second[1] >= first[0]
    assert best(folder) == (first if stays else second)
    assert done["fastest"].startswith("kept the " if stays else "filed: ")


def test_a_better_run_without_a_pick_leaves_that_of_the_run_before(tmp_path: Path) -> None:
    publishing.publish(overlapping((400, 410), (5000, 5100)), tmp_path)
    _, done = publishing.publish(taking(300, 310), tmp_path)
    assert done == {
        "fastest": "filed: 305.0 us (300.0 to 310.0) is faster than the 405.0 us (400.0 to 410.0) on file",
        "overlapped": "kept: this run has none",
    }
    assert load_tuned_config(tmp_path, **ASKED).entry.picks["fastest"].round_trip_us == 305.0
    kept = load_tuned_config(tmp_path, **ASKED, pick="overlapped")
    assert kept.dispatch["num_sms"] == 32
    picks = on_file(tmp_path).picks
    assert {name: one.provenance["pick"] for name, one in picks.items()} == {name: name for name in picks}


ON_FILE = "5050.0 us (5000.0 to 5100.0)"


@pytest.mark.parametrize(
    ("second", "num_sms", "said"),
    [
        ((4800, 4900), 48, f"filed: 4850.0 us (4800.0 to 4900.0) is faster than the {ON_FILE} on file"),
        ((5200, 5300), 32, f"kept the {ON_FILE} on file: this run's 5250.0 us (5200.0 to 5300.0) is slower"),
        (
            (4800, 5050),
            32,
            f"kept the {ON_FILE} on file: this run's 4925.0 us (4800.0 to 5050.0) is indistinguishable from it",
        ),
    ],
)
def test_overlapped_is_judged_by_the_time_beside_gemms_whatever_becomes_of_fastest(
    second: tuple[float, float], num_sms: int, said: str, tmp_path: Path
) -> None:
    publishing.publish(overlapping((400, 410), (5000, 5100)), tmp_path)
    _, done = publishing.publish(overlapping((500, 510), second, num_sms=48), tmp_path)
    assert done["overlapped"] == said
    assert done["fastest"].startswith("kept ")
    assert on_file(tmp_path).picks["overlapped"].dispatch["num_sms"] == num_sms
    assert best(tmp_path) == (400.0, 410.0)


def test_an_overlapped_pick_without_a_time_beside_gemms_gives_way_to_one_with(tmp_path: Path) -> None:
    timed = overlapping((400, 410), (1, 2))
    untimed = timed._replace(library=replace(timed.library, overlapped=[]))
    publishing.publish(untimed, tmp_path)
    _, done = publishing.publish(untimed, tmp_path)
    assert done["overlapped"] == "kept: this run has no overlapped time"
    _, done = publishing.publish(overlapping((400, 410), (5000, 5100), num_sms=48), tmp_path)
    assert done["overlapped"] == "filed: it has an overlapped time"
    assert on_file(tmp_path).picks["overlapped"].overlapped_ci95_us == (5000.0, 5100.0)


def test_knee_goes_with_fastest_of_which_it_is_a_part(tmp_path: Path) -> None:
    publishing.publish(taking(400, 410, knee=trip(420, 421, num_sms=24)), tmp_path)
    publishing.publish(taking(405, 412, knee=trip(411, 411, num_sms=28)), tmp_path)
    assert on_file(tmp_path).picks["knee"].dispatch["num_sms"] == 24
    _, done = publishing.publish(taking(300, 310, knee=trip(315, 316, num_sms=32)), tmp_path)
    assert done["knee"] == "filed with fastest"
    assert on_file(tmp_path).picks["knee"].dispatch["num_sms"] == 32


@given(intervals, intervals)
def test_two_results_that_can_be_told_apart_leave_the_same_in_either_order(
    tmp_path_factory: pytest.TempPathFactory, first: tuple[float, float], second: tuple[float, float]
) -> None:
    left = []
    for order in ((first, second), (second, first)):
        folder = tmp_path_factory.mktemp("library")
        for one in order:
            publishing.publish(taking(*one), folder)
        left.append(best(folder))
    overlap = first[0] <= second[1] and second[0] <= first[1]
    assert left == ([first, second] if overlap else [min(first, second)] * 2)


def test_each_routing_has_a_file_of_its_own(tmp_path: Path) -> None:
    files = []
    for routing in ("uniform", "zipf", "grouped", "traces/a b.npy", "TRACES/a/b.npy"):
        file, done = publishing.publish(routed(routing), tmp_path)
        assert done["fastest"] == "filed"
        files.append(file.name)
        assert load_tuned_config(tmp_path, **ASKED, routing=routing).match == "exact"
    assert len(set(files)) == 5
    assert files[0] == Key(**ASKED).file_name() == Key(**ASKED).file_name("uniform")
    assert "-tokens4096-zipf-" in files[1]


@given(st.text(max_size=300), st.text(max_size=300))
@example("../../etc/passwd", "..")
@example("", "\x00/\n")
def test_any_gpu_has_a_file_of_its_own_inside_the_folder(gpu: str, deep_ep: str) -> None:
    key = Key(**ASKED | {"gpu": gpu, "deep_ep": deep_ep})
    for name in (key.file_name(), key.file_name(gpu)):
        assert Path(name).name == name
        assert len(name.encode()) < 255
        assert name.endswith(".json")
        assert not name.startswith(".")
    assert key.file_name() != replace(key, gpu=gpu + "x").file_name()


def test_a_library_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "library").touch()
    with pytest.raises(UserError, match=r"cannot write to .*: File exists"):
        publishing.publish(ANSWER, tmp_path / "library")


def test_publishers_at_once_leave_the_fastest_and_readers_never_see_half(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = ['tests']\n"
        "from pathlib import Path\n"
        "from test_library import publishing, taking\n"
        "for number in range(int(sys.argv[1]), 200, 4):\n"
        "    low = 1000.0 - 2 * (number * 37 % 200)\n"
        "    publishing.publish(taking(low, low + 1), Path(sys.argv[2]))\n"
    )
    arguments = [sys.executable, "-c", code]
    writers = [subprocess.Popen([*arguments, str(one), str(tmp_path)], cwd=ROOT) for one in range(4)]
    seen = []
    while any(writer.poll() is None for writer in writers):
        if library.read_all(tmp_path)[0]:
            seen.append(best(tmp_path)[0])
    assert [writer.returncode for writer in writers] == [0] * 4
    assert best(tmp_path) == (602.0, 603.0)
    assert seen == sorted(seen, reverse=True)
    assert [file.suffix for file in tmp_path.iterdir() if file.name != ".lock"] == [".json"]


def test_the_published_library_holds_the_published_runs() -> None:
    runs = {
        ("NVIDIA H200", 2, 7168): "h200x2-ep2-{}-again",
        ("NVIDIA H100 80GB HBM3", 2, 7168): "h100x2-ep2-{}",
        ("NVIDIA H200", 4, 7168): "h200x4-ep4-deepseek_v3-{}",
        ("NVIDIA H200", 4, 2048): "h200x4-ep4-qwen3_30b_a3b-{}",
    }
    entries, bad = library.read_all(PUBLISHED)
    assert bad == []
    keys = [one.key for one in entries.values()]
    known = {(*run, dtype) for run in runs for dtype in ("bf16", "fp8")}
    assert {(one.gpu, one.ep, one.hidden, one.dtype) for one in keys} == known
    for file, entry in entries.items():
        assert file.name == entry.key.file_name(entry.routing)
        name = runs[entry.key.gpu, entry.key.ep, entry.key.hidden].format(entry.key.dtype)
        run = RESULTS.parents[1] / name
        assert numbers(entry) == numbers(publishing.entry(tuned.read(run / f"RESULTS_EP{entry.key.ep}.json")))
