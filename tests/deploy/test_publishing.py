"""Publishing to a library of tuned configs, and which pick replaces which."""

from __future__ import annotations

import subprocess
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
from launcher.library import Entry, Key, load_tuned_config
from launcher.store.results_file import SavedPair
from launcher.store.saved_passes import SavedOverlap
from tests.builders import ROOT, Command, Sweep, calling
from tests.deploy.tuned_results import LIBRARY, LOOKUP, TUNED, changed, replace, routed
from tests.published import FORMAT_1, PUBLISHED, Unpack

SCHEMA = msgspec.json.decode((ROOT / "docs" / "library.schema.json").read_bytes())


def knobs(num_sms: int) -> dict[str, int]:
    return {"num_sms": num_sms, "nvl_chunk": 8, "nvl_buffer": 128}


def trip(low: float, high: float, *, num_sms: int = 64) -> SavedPair:
    """A pair whose round trip has this interval."""
    half = replace(
        TUNED.picks["fastest"].dispatch,
        knobs=knobs(num_sms),
        median_us=(low + high) / 4,
        ci95_us=(low / 2, high / 2),
    )
    return SavedPair({"num_sms": num_sms}, half, half, (low + high) / 2)


def taking(low: float, high: float, **others: SavedPair) -> TunedResults:
    """Tuned results whose fastest pair has this interval of the round trip, with other picks."""
    return changed(picks={"fastest": trip(low, high), **others})


def overlapping(fastest: tuple[float, float], ends: tuple[float, float], *, num_sms: int = 32) -> TunedResults:
    """Tuned results whose overlapped pick takes 900 us isolated and ``ends`` overlapped with GEMMs."""
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


def numbers(entry: Entry) -> Entry:
    """The entry without its provenance."""
    picks = {name: replace(pick, provenance={}) for name, pick in entry.picks.items()}
    return replace(entry, picks=picks, provenance={})


def on_file(folder: Path) -> Entry:
    entries, bad = library.read_all(folder)
    assert bad == []
    (entry,) = entries.values()
    return entry


def best(folder: Path) -> tuple[float, float]:
    return on_file(folder).picks["fastest"].ci95_us


@pytest.mark.parametrize("folder", ["h200x2-ep2-bf16", "h200x2-ep2-fp8", "h200x4-ep4-qwen3_30b_a3b-fp8"])
def test_a_published_run_makes_a_file_of_the_documented_schema(folder: str, tmp_path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    (results,) = (PUBLISHED / folder).glob("RESULTS_EP*.json")
    tuned_results = tuned.read(results)
    file, done = publishing.publish(tuned_results, tmp_path)
    assert done == dict.fromkeys(tuned_results.picks, "filed")
    jsonschema.Draft202012Validator(SCHEMA).validate(msgspec.json.decode(file.read_bytes()))


def test_stdout_is_the_path_of_the_file_and_stderr_a_line_for_each_pick(run_module: Command, tmp_path: Path) -> None:
    first, second = (
        run_module("launcher.publish", str(FORMAT_1), "--library", str(tmp_path / "a" / "b")) for _ in "12"
    )
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
    pair, results = TUNED.picks["fastest"], TUNED.results
    sweep_only = replace(pair, combine=replace(pair.combine, stage=Stage.SWEEP))
    points = replace(results.points, planned=1335, missing=3)
    search = replace(results.search, final_groups=5, final_groups_measured=2)
    return [
        (changed(results={"points": points}), "3 of 1335 points are missing"),
        (changed(results={"search": search}), "2 of 5 groups of the final are there"),
        (changed(picks={"fastest": sweep_only}), "it was not measured again in a final"),
    ]


@pytest.mark.parametrize(("tuned_results", "why"), incomplete())
def test_an_incomplete_run_is_not_published(tuned_results: TunedResults, why: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^only complete runs are published: {why}$"):
        publishing.publish(tuned_results, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("objective", ["dispatch", "combine", {"dispatch": 2, "combine": 1}, {"combine": 1.0}])
def test_a_run_with_another_objective_is_not_published(objective: Any, tmp_path: Path) -> None:
    tuned_results = changed(results={"search": replace(TUNED.results.search, objective=objective)})
    with pytest.raises(UserError, match=r"^only runs that minimise the round trip are published; this one's search\."):
        publishing.publish(tuned_results, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("objective", ["round_trip", "training", {"dispatch": 2, "combine": 2.0}])
def test_a_run_that_counts_both_operations_alike_is_published(objective: Any, tmp_path: Path) -> None:
    publishing.publish(changed(results={"search": replace(TUNED.results.search, objective=objective)}), tmp_path)
    assert on_file(tmp_path).picks["fastest"].round_trip_us == pytest.approx(412.4, abs=0.1)


intervals = st.tuples(st.integers(1, 60), st.integers(0, 20)).map(lambda one: (float(one[0]), float(sum(one))))


@given(intervals, intervals)
@example((10.0, 20.0), (20.0, 30.0))
def test_a_pick_on_file_is_replaced_only_by_one_that_is_faster_beyond_its_interval(
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
    assert load_tuned_config(tmp_path, **LOOKUP).entry.picks["fastest"].round_trip_us == 305.0
    kept = load_tuned_config(tmp_path, **LOOKUP, pick="overlapped")
    assert kept.dispatch["num_sms"] == 32
    picks = on_file(tmp_path).picks
    assert {name: one.provenance["pick"] for name, one in picks.items()} == {name: name for name in picks}


ON_FILE = "5050.0 us (5000.0 to 5100.0)"


@pytest.mark.parametrize(
    ("second", "num_sms", "message"),
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
def test_overlapped_is_judged_by_its_overlapped_time_whether_or_not_fastest_is_replaced(
    second: tuple[float, float], num_sms: int, message: str, tmp_path: Path
) -> None:
    publishing.publish(overlapping((400, 410), (5000, 5100)), tmp_path)
    _, done = publishing.publish(overlapping((500, 510), second, num_sms=48), tmp_path)
    assert done["overlapped"] == message
    assert done["fastest"].startswith("kept ")
    assert on_file(tmp_path).picks["overlapped"].dispatch["num_sms"] == num_sms
    assert best(tmp_path) == (400.0, 410.0)


def test_an_overlapped_pick_without_an_overlapped_time_is_replaced_by_one_that_has_it(tmp_path: Path) -> None:
    timed = overlapping((400, 410), (1, 2))
    untimed = timed._replace(library=replace(timed.library, overlapped=[]))
    publishing.publish(untimed, tmp_path)
    _, done = publishing.publish(untimed, tmp_path)
    assert done["overlapped"] == "kept: this run has no overlapped time"
    _, done = publishing.publish(overlapping((400, 410), (5000, 5100), num_sms=48), tmp_path)
    assert done["overlapped"] == "filed: it has an overlapped time"
    assert on_file(tmp_path).picks["overlapped"].overlapped_ci95_us == (5000.0, 5100.0)


def test_knee_is_filed_and_kept_together_with_fastest(tmp_path: Path) -> None:
    publishing.publish(taking(400, 410, knee=trip(420, 421, num_sms=24)), tmp_path)
    publishing.publish(taking(405, 412, knee=trip(411, 411, num_sms=28)), tmp_path)
    assert on_file(tmp_path).picks["knee"].dispatch["num_sms"] == 24
    _, done = publishing.publish(taking(300, 310, knee=trip(315, 316, num_sms=32)), tmp_path)
    assert done["knee"] == "filed with fastest"
    assert on_file(tmp_path).picks["knee"].dispatch["num_sms"] == 32


@given(intervals, intervals)
def test_two_distinguished_results_leave_the_same_pick_in_either_order(
    tmp_path_factory: pytest.TempPathFactory, first: tuple[float, float], second: tuple[float, float]
) -> None:
    left = []
    for order in ((first, second), (second, first)):
        folder = tmp_path_factory.mktemp("library")
        for ends in order:
            publishing.publish(taking(*ends), folder)
        left.append(best(folder))
    overlap = first[0] <= second[1] and second[0] <= first[1]
    assert left == ([first, second] if overlap else [min(first, second)] * 2)


def test_each_routing_has_a_separate_file(tmp_path: Path) -> None:
    files = []
    for routing in ("uniform", "zipf", "grouped", "traces/a b.npy", "TRACES/a/b.npy"):
        file, done = publishing.publish(routed(routing), tmp_path)
        assert done["fastest"] == "filed"
        files.append(file.name)
        assert load_tuned_config(tmp_path, **LOOKUP, routing=routing).match == "exact"
    assert len(set(files)) == 5
    assert files[0] == Key(**LOOKUP).file_name() == Key(**LOOKUP).file_name("uniform")
    assert "-tokens4096-zipf-" in files[1]


@given(st.text(max_size=300), st.text(max_size=300))
@example("../../etc/passwd", "..")
@example("", "\x00/\n")
def test_any_gpu_has_a_separate_file_inside_the_folder(gpu: str, deep_ep: str) -> None:
    key = Key(**LOOKUP | {"gpu": gpu, "deep_ep": deep_ep})
    for name in (key.file_name(), key.file_name(gpu)):
        assert Path(name).name == name
        assert len(name.encode()) < 255
        assert name.endswith(".json")
        assert not name.startswith(".")
    assert key.file_name() != replace(key, gpu=gpu + "x").file_name()


def test_a_library_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "library").touch()
    with pytest.raises(UserError, match=r"cannot write to .*: File exists"):
        publishing.publish(TUNED, tmp_path / "library")


def publish_some(first: str, folder: str) -> None:
    """Publishes a quarter of 200 tuned results with different times."""
    for number in range(int(first), 200, 4):
        low = 1000.0 - 2 * (number * 37 % 200)
        publishing.publish(taking(low, low + 1), Path(folder))


@pytest.mark.slow  # starts four processes
def test_concurrent_publishers_leave_the_fastest_pick_and_readers_never_see_a_partial_file(tmp_path: Path) -> None:
    writers = [subprocess.Popen(calling(publish_some, one, tmp_path), cwd=ROOT) for one in range(4)]
    low_ends = []
    while any(writer.poll() is None for writer in writers):
        if library.read_all(tmp_path)[0]:
            low_ends.append(best(tmp_path)[0])
    assert [writer.returncode for writer in writers] == [0] * 4
    assert best(tmp_path) == (602.0, 603.0)
    assert low_ends == sorted(low_ends, reverse=True)
    assert [file.suffix for file in tmp_path.iterdir() if file.name != ".lock"] == [".json"]


def test_the_published_library_holds_the_published_runs(published: Unpack) -> None:
    runs = {
        ("NVIDIA H200", 2, 7168): "h200x2-ep2-{}-again",
        ("NVIDIA H100 80GB HBM3", 2, 7168): "h100x2-ep2-{}",
        ("NVIDIA H200", 4, 7168): "h200x4-ep4-deepseek_v3-{}",
        ("NVIDIA H200", 4, 2048): "h200x4-ep4-qwen3_30b_a3b-{}",
    }
    entries, bad = library.read_all(LIBRARY)
    assert bad == []
    keys = [one.key for one in entries.values()]
    known = {(*run, dtype) for run in runs for dtype in ("bf16", "fp8")}
    assert {(one.gpu, one.ep, one.hidden, one.dtype) for one in keys} == known
    for file, entry in entries.items():
        assert file.name == entry.key.file_name(entry.routing)
        name = runs[entry.key.gpu, entry.key.ep, entry.key.hidden].format(entry.key.dtype)
        run = published(name)
        assert numbers(entry) == numbers(publishing.entry(tuned.read(run / f"RESULTS_EP{entry.key.ep}.json")))
