"""Comparisons: false alarms are as rare as promised, real slowdowns are found, and unlike things are refused."""

from __future__ import annotations

import copy
import itertools
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from builders import ROOT, Command, Sweep
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from scipy import stats as scipy_stats

from bench.records import Stage
from bench.stats import Interval, median_interval, paired_ratio_interval
from launcher import compare as command
from launcher.comparison import compare as comparison
from launcher.comparison import render
from launcher.comparison import run as side
from launcher.comparison.compare import SCHEMA, Comparison, compare
from launcher.comparison.run import ComparedRun
from launcher.config.plan import NOT_A_MEASUREMENT
from launcher.errors import UserError
from launcher.tuner.racing import DRIFT

PUBLISHED = ROOT / "outputs" / "published"
REAL: dict[str, Any] = msgspec.json.decode((PUBLISHED / "h200x2-ep2-bf16" / "RESULTS_EP2.json").read_bytes())
BASE = REAL | {"measurements": [], "best_per_shared": [], "pareto": [], "overlapped": []}

Document = dict[str, Any]


def measurement(
    chunk: int,
    median_us: float,
    *,
    half: float = 0.002,
    stage: str = "final",
    op: str = "dispatch",
    count: int = 150,
    unstable: bool = False,
) -> Document:
    """A point with num_sms 24 and an interval of +- ``half`` in logs."""
    return {
        "backend": "deepep",
        "op": op,
        "dtype": "bf16",
        "role": "grid",
        "num_sms": 24,
        "nvl_chunk": chunk,
        "median_us": median_us,
        "ci95_us": [median_us * math.exp(-half), median_us * math.exp(half)],
        "spread": 0.01,
        "num_samples": count,
        "stage": stage,
        "unstable": unstable,
        "logical_gb_per_s": 100.0,
        "wire_gb_per_s": 50.0,
        "peak_fraction": None,
    }


def failure(chunk: int, kind: str = "hang", *, op: str = "dispatch") -> Document:
    point = {"backend": "deepep", "op": op, "dtype": "bf16", "knobs": {"num_sms": 24, "nvl_chunk": chunk}}
    return {
        "point": point,
        "kind": kind,
        "message": "no answer",
        "phase": "time",
        "rank": 1,
        "last_words": "",
        "shard": 0,
    }


def label(chunk: int, op: str = "dispatch") -> str:
    return f"deepep/{op}/bf16/num_sms=24,nvl_chunk={chunk}"


def run(*points: Document, failures: tuple[Document, ...] = (), **changes: Any) -> Document:
    """A RESULTS file of these points; ``changes`` such as ``environment__num_sms`` reach into its parts."""
    found = copy.deepcopy(BASE) | {"measurements": list(points), "failures": list(failures)}
    for path, value in changes.items():
        *parts, last = path.split("__")
        inner = found
        for part in parts:
            inner = inner[part]
        inner[last] = value
    return found


def sided(document: Document, name: str = "RESULTS_EP2.json") -> ComparedRun:
    return side.decode(Path(name), msgspec.json.encode(document))


def compared(a: Document, b: Document, *, tolerance: float = 0.02, unlike_hardware: bool = False) -> Comparison:
    return compare(sided(a), sided(b), tolerance=tolerance, unlike_hardware=unlike_hardware)


def verdicts(found: Comparison) -> dict[str, str]:
    return {row.point: row.verdict for row in found.points}


def written(folder: Path, **documents: Document) -> list[str]:
    """The files, named as they will be shown."""
    for name, document in documents.items():
        (folder / f"{name}.json").write_bytes(msgspec.json.encode(document))
    return [f"{name}.json" for name in documents]


# ---- the command

BEFORE = run(
    measurement(4, 200.0),
    measurement(6, 210.0),
    measurement(8, 220.0),
    measurement(10, 230.0),
    measurement(12, 240.0, stage="sweep", count=48),
    measurement(14, 250.0, stage="sweep", count=48),
    failures=(failure(16, "crash"),),
)
AFTER = run(
    measurement(4, 210.0),
    measurement(6, 200.0),
    measurement(8, 220.5),
    measurement(12, 264.0, stage="sweep", count=48),
    measurement(16, 260.0),
    measurement(18, 270.0),
    failures=(failure(10),),
    environment__versions__nccl="2.29.1",
    environment__driver="590.1",
    ended=None,
    optimal__round_trip_us=420.0,
    optimal__num_sms=64,
    points={"planned": 9, "measured": 6, "failed": 1, "missing": 2},
)
EXPECTED = """\
B is not whole: 2 of 9 points are missing.

Runs
   file    measured
A  A.json  2026-11-22T23:59:56Z to 2026-11-23T00:01:20Z
B  B.json  2026-11-22T23:59:56Z to unknown

What differs
fact                       A           B
environment.driver         580.159.04  590.1
environment.versions.nccl  2.28.9      2.29.1

Points, worst first, those that gate before the others
point                                          A us   B us    B/A   95 % interval  stage  verdict
deepep/dispatch/bf16/num_sms=24,nvl_chunk=10  230.0                                final  failed in B: hang
deepep/dispatch/bf16/num_sms=24,nvl_chunk=4   200.0  210.0  1.050  1.047 to 1.053  final  slower
deepep/dispatch/bf16/num_sms=24,nvl_chunk=12  240.0  264.0  1.100  1.090 to 1.110  sweep  slower
deepep/dispatch/bf16/num_sms=24,nvl_chunk=8   220.0  220.5  1.002  0.999 to 1.005  final  same
deepep/dispatch/bf16/num_sms=24,nvl_chunk=6   210.0  200.0  0.952  0.950 to 0.955  final  faster
deepep/dispatch/bf16/num_sms=24,nvl_chunk=16         260.0                         final  failed in A: crash
deepep/dispatch/bf16/num_sms=24,nvl_chunk=14  250.0                                sweep  only in A
deepep/dispatch/bf16/num_sms=24,nvl_chunk=18         270.0                         final  only in B
A us, B us: medians. B/A: above 1 where B is slower, with its 95 % interval.
slower, faster: by significantly more than 2 %, at 5 % for all points together.
unstable: the samples scatter too much to say anything.
Points that gate: 3, measured by both runs in the fresh process groups of a final, or chosen by one. The others (the sweep, the passes beside GEMMs) are shown: one set of processes measured them, on one side at least.

Picks
pick         A us   B us    B/A  config in A                                                                              config in B
default     958.3  958.3  1.000  num_sms 20; dispatch nvl_chunk 24, nvl_buffer 256; combine nvl_chunk 10, nvl_buffer 256  the same
optimal     412.4  420.0  1.018  num_sms 128; dispatch nvl_chunk 8, nvl_buffer 128; combine nvl_chunk 14, nvl_buffer 256  num_sms 64; dispatch nvl_chunk 8, nvl_buffer 128; combine nvl_chunk 14, nvl_buffer 256
overlapped  436.4  436.4  1.000  num_sms 80; dispatch nvl_chunk 6, nvl_buffer 128; combine nvl_chunk 8, nvl_buffer 256    the same
Times are round trips, without GEMMs, of the configs that each run picked.

Result
Points: 1 failed in B, 2 slower, 1 same, 1 faster, 1 failed in A, 1 only in A, 1 only in B.
Geometric mean of B/A: 1.0247 (stable points: 4).
B is worse: 1 failed in B, 1 slower.
"""  # noqa: E501


def test_the_output_is_this_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main(written(tmp_path, A=BEFORE, B=AFTER)) == 1
    assert capsys.readouterr() == (EXPECTED, "")


def test_markdown_is_the_same_in_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main([*written(tmp_path, A=BEFORE, B=AFTER), "--markdown"]) == 1
    cells = [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("| `deepep")
    ]
    in_text = [line.split() for line in EXPECTED.splitlines() if line.startswith("deepep/")]
    assert [" ".join(row).split() for row in cells] == in_text


def test_json_is_one_document_with_every_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main([*written(tmp_path, A=BEFORE, B=AFTER), "--json"]) == 1
    found = msgspec.json.decode(capsys.readouterr().out)
    assert found["schema"] == SCHEMA == "deepep-sweep/comparison/1"
    assert found == msgspec.to_builtins(compare(sided(BEFORE, "A.json"), sided(AFTER, "B.json"), tolerance=0.02))
    assert found["worse"] == [label(10), label(4)]
    assert found["counts"] == Counter(row["verdict"] for row in found["points"])
    assert found["geometric_mean"] == pytest.approx((1.05 * 200 / 210 * 220.5 / 220 * 1.1) ** 0.25)


def last_line(a: Document, b: Document, *flags: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The exit status of a comparison, and the last line that it prints."""
    written(folder, A=a, B=b)
    status = command.main([str(folder / "A.json"), str(folder / "B.json"), *flags])
    return f"{status} {capsys.readouterr().out.splitlines()[-1]}"


FINAL, SWEPT = measurement(4, 200.0), measurement(6, 200.0, stage="sweep", count=48)
SLOW_FINAL, SLOW_SWEPT = measurement(4, 210.0), measurement(6, 220.0, stage="sweep", count=48)


@pytest.mark.parametrize(
    ("pair", "flags", "status"),
    [
        ((run(FINAL, SWEPT), run(FINAL, SWEPT)), [], 0),
        ((run(FINAL, SWEPT), run(SLOW_FINAL, SWEPT)), [], 1),
        ((run(FINAL, SWEPT), run(SLOW_FINAL, SWEPT)), ["--tolerance", "0.06"], 0),
        ((run(SLOW_FINAL, SWEPT), run(FINAL, SWEPT)), [], 0),
        ((run(FINAL, SWEPT), run(FINAL, SLOW_SWEPT)), [], 0),
        ((run(SWEPT), run(SLOW_SWEPT)), [], 1),
        ((run(FINAL, SWEPT), run(SLOW_SWEPT)), [], 1),
        ((run(FINAL, SWEPT), run(SLOW_SWEPT)), ["--allow-missing"], 1),
        ((run(FINAL, SWEPT), run(FINAL, failures=(failure(6),))), [], 1),
        ((run(FINAL, SWEPT), run(FINAL, SWEPT, failures=(failure(6),))), [], 1),
        ((run(FINAL, failures=(failure(6),)), run(FINAL, SWEPT)), [], 0),
        ((run(FINAL, failures=(failure(6),)), run(FINAL, failures=(failure(6, "crash"),))), [], 0),
        ((run(FINAL, SWEPT), run(FINAL)), [], 0),
        ((run(FINAL), run(failures=(failure(4),))), [], 1),
    ],
)
def test_the_exit_status_is_1_only_for_what_gates(
    pair: tuple[Document, Document], flags: list[str], status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = last_line(*pair, *flags, folder=tmp_path, capsys=capsys)
    assert last.startswith(f"{status} B is worse: " if status else "0 Nothing is worse.")


FINALS = [measurement(chunk, 200.0) for chunk in (4, 8, 10)]
BESIDE = measurement(4, 200.0, op="dispatch_full")


@pytest.mark.parametrize(
    ("pair", "lacks"),
    [
        ((run(*FINALS, SWEPT), run(SWEPT)), [label(10), label(4), label(8), "the final"]),
        ((run(*FINALS, SWEPT), run(FINALS[0], SWEPT)), [label(10), label(8)]),
        ((run(FINAL, SWEPT), run(FINAL | {"stage": "sweep"}, SWEPT)), ["the final"]),
        ((run(FINAL), run(FINAL, search__final_groups_measured=3)), ["2 of 5 groups of the final"]),
        ((run(SWEPT, measurement(8, 200.0, stage="sweep")), run(SWEPT)), [label(8)]),
    ],
)
def test_what_b_lacks_of_what_a_is_judged_by_does_not_pass_unless_it_is_allowed(
    pair: tuple[Document, Document], lacks: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compared(*pair).missing == lacks
    for flags, status in (([], 3), (["--allow-missing"], 0)):
        last = last_line(*pair, *flags, folder=tmp_path, capsys=capsys)
        assert last == f"{status} Nothing that was measured is worse."
    assert f"B lacks what A is judged by: {', '.join(lacks)}.\n" in render.plain(compared(*pair))


@pytest.mark.parametrize(
    "pair",
    [
        (run(FINAL, SWEPT), run(FINAL)),  # the sweep's point does not gate
        (run(FINAL, BESIDE), run(FINAL)),  # the whole dispatch is timed of what the final chose
        (run(FINAL, FINALS[1]), run(FINAL, FINALS[1] | {"stage": "sweep"})),  # B's final chose another
        (run(FINAL), run(FINAL, SWEPT)),
    ],
)
def test_what_a_final_need_not_choose_is_not_missing(pair: tuple[Document, Document]) -> None:
    assert compared(*pair).missing == []


def test_a_point_that_is_missing_stands_before_those_that_are_not_worse() -> None:
    found = compared(run(*FINALS, SWEPT), run(FINALS[0], FINALS[1], SLOW_SWEPT))
    assert list(verdicts(found).items()) == [
        (label(6), "slower"),
        (label(10), "missing in B"),
        (label(4), "same"),
        (label(8), "same"),
    ]


def test_a_long_list_of_what_is_missing_is_cut() -> None:
    found = compared(run(SWEPT, *(measurement(chunk, 200.0) for chunk in range(10, 18))), run(SWEPT))
    line = f"B lacks what A is judged by: {', '.join(label(chunk) for chunk in range(10, 15))} and 4 more."
    assert line in render.plain(found).splitlines()


# ---- unstable points

SPIKY = measurement(8, 1100.0, stage="sweep", count=16, unstable=True)


@pytest.mark.parametrize("pair", [(SPIKY | {"unstable": False, "median_us": 384.0}, SPIKY)])
def test_an_unstable_point_of_one_set_of_processes_says_nothing_and_is_listed(pair: tuple[Document, Document]) -> None:
    calm = [measurement(chunk, 200.0, stage="sweep", count=48) for chunk in (4, 6)]
    for a, b in (pair, pair[::-1]):
        found = compared(run(*calm, a), run(*calm, b))
        row = next(row for row in found.points if row.point == label(8))
        assert (row.verdict, row.ratio, row.ci95) == ("unstable", b["median_us"] / a["median_us"], None)
        assert (found.worse, found.missing) == ([], [])
        assert (found.geometric_mean, found.num_ratios) == (1.0, 2)
        assert found.counts == {"unstable": 1, "same": 2}
        assert next(line for line in render.plain(found).splitlines() if label(8) in line).endswith("unstable")


def test_the_groups_of_a_final_hold_the_scatter_of_an_unstable_point_in_their_interval() -> None:
    slow = measurement(4, 300.0, half=0.1, unstable=True)
    assert verdicts(compared(run(FINAL), run(slow))) == {label(4): "slower"}
    assert verdicts(compared(run(FINAL), run(slow | {"median_us": 210.0}))) == {label(4): "same"}


def test_where_nothing_that_gates_can_be_judged_nothing_passes() -> None:
    calm, wild = SWEPT, measurement(6, 600.0, stage="sweep", count=48, unstable=True)
    found = compared(run(calm), run(wild))
    assert (found.worse, found.missing) == ([], ["a judgement: every point that gates is unstable"])
    assert "B lacks what A is judged by: a judgement: " in render.plain(found)


def test_the_output_says_which_points_gate() -> None:
    with_final = render.plain(compared(run(FINAL, SWEPT), run(FINAL, SWEPT)))
    assert "\nPoints that gate: 1, measured by both runs in the fresh process groups of a final, or c" in with_final
    without = render.plain(compared(run(SWEPT), run(FINAL, SWEPT)))
    assert "\nPoints that gate: all 1 with two times, since no final measured one of them in both runs.\n" in without


def test_what_a_run_chose_gates_also_where_the_other_s_final_left_it_out() -> None:
    pair = {"num_sms": 24, "round_trip_us": 400.0, "dispatch": {"nvl_chunk": 8}, "combine": {"nvl_chunk": 10}}
    a = run(FINAL, measurement(8, 200.0), measurement(10, 200.0, op="combine"), optimal=pair)
    swept = [measurement(8, 300.0, stage="sweep"), measurement(10, 200.0, op="combine", stage="sweep")]
    found = compared(a, run(FINAL, *swept))
    assert found.worse == [label(8)]
    assert {row.point for row in found.points if row.gates} == {label(4), label(8), label(10, "combine")}
    assert compared(run(FINAL, measurement(8, 200.0)), run(FINAL, swept[0])).worse == []


@pytest.mark.parametrize("name", ["h100x2-ep2-bf16", "h100x2-ep2-fp8", "h200x2-ep2-exhaustive"])
def test_what_a_published_run_chose_is_among_its_measurements(name: str) -> None:
    found = side.read(PUBLISHED / name)
    assert len(found.optimal) == 2
    assert {found.measured[label].is_fresh for label in found.optimal} == {True}


def test_times_beside_gemms_share_their_processes_and_do_not_gate() -> None:
    beside = [measurement(4, median_us, op="overlapped", half=0.001) for median_us in (5000.0, 6000.0)]
    found = compared(run(FINAL, beside[0]), run(FINAL, beside[1]))
    assert verdicts(found) == {label(4): "same", label(4, "overlapped"): "slower"}
    assert found.worse == []


# ---- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ep": 4}, "the two runs measured different things: ep is 2 in A, 4 in B"),
        ({"backend": "alltoall"}, "the two runs measured different things: backend is deepep in A, alltoall in B"),
        ({"shared_gpus": True}, "the two runs measured different things: shared_gpus is False in A, True in B"),
        ({"dry_run": True}, "the two runs measured different things: dry_run is False in A, True in B"),
        (
            {"workload__num_tokens": 1, "workload__routing": "a\nb\x1b[2J"},
            "the two runs measured different things: workload.num_tokens is 4096 in A, 1 in B; "
            "workload.routing is uniform in A, a b [2J in B",
        ),
        ({"workload__seed": 2}, "the two runs measured different things: workload.seed is 1 in A, 2 in B"),
    ],
)
def test_runs_of_different_things_are_refused_whatever_the_flags(changes: Document, message: str) -> None:
    for allowed in (False, True):
        with pytest.raises(UserError) as caught:
            compared(run(FINAL), run(FINAL, **changes), unlike_hardware=allowed)
        assert (str(caught.value), caught.value.hint) == (message, "sweep B with the options of A")


def test_another_name_of_the_same_workload_is_a_difference_and_no_refusal() -> None:
    found = compared(run(FINAL), run(FINAL, workload__name="ours"))
    assert [(one.field, one.a, one.b) for one in found.differences] == [("workload.name", "deepseek_v3", "ours")]


@pytest.mark.parametrize(
    ("field", "value", "phrase"),
    [
        ("device", "NVIDIA H100", "device is NVIDIA H200 in A, NVIDIA H100 in B"),
        ("num_devices", 4, "num_devices is 2 in A, 4 in B"),
        ("num_sms", 114, "num_sms is 132 in A, 114 in B"),
        ("num_links", None, "num_links is 18 in A, None in B"),
        ("link_gb_per_s", 25.0, "link_gb_per_s is 26.562 in A, 25.0 in B"),
        ("topology", "PCI", "topology is NVLINK in A, PCI in B"),
        ("memory_bytes", 85_000_000_000, "memory_bytes is 150754820096 in A, 85000000000 in B"),
    ],
)
def test_unlike_hardware_is_refused_and_compared_on_demand(field: str, value: object, phrase: str) -> None:
    a, b = run(FINAL), run(FINAL, **{f"environment__{field}": value})
    with pytest.raises(UserError) as caught:
        compared(a, b)
    assert str(caught.value) == f"the hardware is unlike: {phrase}"
    assert caught.value.hint.startswith("--unlike-hardware ")
    assert compared(a, b, unlike_hardware=True).notes == [f"The hardware is unlike: {phrase}."]


def test_memory_that_another_driver_counts_differently_is_no_other_hardware() -> None:
    found = compared(run(FINAL), run(FINAL, environment__memory_bytes=152_000_000_000))
    assert found.notes == []
    assert [one.field for one in found.differences] == ["environment.memory_bytes"]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (run(FINAL), run(SWEPT)),
        (run(failures=(failure(4),)), run(failures=(failure(4),))),
        (run(FINAL), run(environment=None)),
    ],
)
def test_runs_without_a_common_point_are_refused(a: Document, b: Document) -> None:
    with pytest.raises(UserError, match=r"^the two runs have no point in common$"):
        compared(a, b)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["A.json"], "the following arguments are required: B"),
        (["A.json", "C.json"], "C.json is no run folder: it has no run.json"),
        (["A.json", "bad.json"], "bad.json is no RESULTS file: Expected `float`, got `str` - at `$.median_us`"),
        (["A.json", "newer.json"], "newer.json has schema deepep-sweep/results/2, this program reads"),
        (["A.json", "A.json", "--tolerance", "1"], "tolerance must be at least 0 and below 1, got 1"),
        (["A.json", "A.json", "--tolerance", "-0.1"], "tolerance must be at least 0 and below 1, got -0.1"),
        (["A.json", "A.json", "--tolerance", "nan"], "tolerance must be at least 0 and below 1, got nan"),
        (["A.json", "A.json", "--tolerance", "x"], "argument --tolerance: invalid float value: 'x'"),
        (["A.json", "A.json", "--json", "--markdown"], "argument --markdown: not allowed with argument --json"),
        (["A.json", "A.json", "--tol", "0"], "unrecognized arguments: --tol 0"),
    ],
)
def test_a_bad_command_is_one_line_a_hint_and_status_2(
    arguments: list[str],
    error: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, A=run(FINAL), bad=run(FINAL | {"median_us": "1"}), newer=run(schema="deepep-sweep/results/2"))
    assert command.main(arguments) == 2
    output, (first, second) = (capsys.readouterr()), ("error: ", "hint: ")
    assert output.out == ""
    lines = output.err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(first + error)
    assert lines[1].startswith(second)


# ---- statistics

POINTS = range(2, 12)
results_of_a_point = st.one_of(
    st.none(),
    st.sampled_from(["hang", "crash"]),
    st.tuples(
        st.sampled_from(["final", "sweep"]),
        st.floats(50.0, 60.0).map(lambda one: round(one, 2)),
        st.sampled_from([0.0, 0.002, 0.1]),
        st.sampled_from([4, 48, 150]),
        st.booleans(),
    ),
)


@st.composite
def runs(draw: st.DrawFn) -> Document:
    """Any mixture of points that are measured, failed and not there; the first is always measured."""
    points, failures = [measurement(2, 55.0)], []
    for chunk in POINTS[1:]:
        drawn = draw(results_of_a_point)
        if isinstance(drawn, str):
            failures.append(failure(chunk, drawn))
        elif drawn is not None:
            stage, median_us, half, count, unstable = drawn
            points.append(measurement(chunk, median_us, half=half, stage=stage, count=count, unstable=unstable))
    return run(*points, failures=tuple(failures))


tolerances = st.sampled_from([0.0, 0.02, 0.5])


@given(runs(), tolerances)
def test_a_run_is_the_same_as_itself(one: Document, tolerance: float) -> None:
    found = compared(one, one, tolerance=tolerance)
    assert set(found.counts) <= {"same", "unstable", "failed in both"}
    assert {row.ratio for row in found.points if row.verdict == "same"} == {1.0}
    assert (found.geometric_mean, found.worse, found.missing, found.differences) == (1.0, [], [], [])


MIRROR = {
    "slower": "faster",
    "faster": "slower",
    "failed in A": "failed in B",
    "failed in B": "failed in A",
    "only in A": "only in B",
    "only in B": "only in A",
}


@given(runs(), runs(), tolerances)
def test_swapping_the_runs_inverts_the_ratios_and_mirrors_the_verdicts(
    one: Document, other: Document, tolerance: float
) -> None:
    found, mirrored = compared(one, other, tolerance=tolerance), compared(other, one, tolerance=tolerance)
    there, back = (
        {point: "only in A" if verdict == "missing in B" else verdict for point, verdict in verdicts(one).items()}
        for one in (found, mirrored)
    )
    assert {point: MIRROR.get(verdict, verdict) for point, verdict in there.items()} == back
    rows = {row.point: row for row in mirrored.points}
    for row in found.points:
        mirror = rows[row.point]
        assert (row.a_us, row.b_us, row.gates) == (mirror.b_us, mirror.a_us, mirror.gates)
        if row.ratio is not None and mirror.ratio is not None:
            assert row.ratio * mirror.ratio == pytest.approx(1)
        if row.ci95 is not None and mirror.ci95 is not None:
            assert row.ci95.low * mirror.ci95.high == pytest.approx(1)
    assert found.gate == mirrored.gate
    assert (found.geometric_mean or 0) * (mirrored.geometric_mean or 0) == pytest.approx(1)


@given(runs(), runs(), st.randoms(use_true_random=False))
def test_the_order_of_the_points_in_a_file_does_not_matter(one: Document, other: Document, chance: Any) -> None:
    shuffled = copy.deepcopy(other)
    chance.shuffle(shuffled["measurements"])
    chance.shuffle(shuffled["failures"])
    assert compared(one, shuffled) == compared(one, other)


@given(runs(), runs())
def test_every_point_has_one_verdict_and_the_worst_stand_first(one: Document, other: Document) -> None:
    found = compared(one, other)
    assert sum(found.counts.values()) == len(found.points) == len(verdicts(found))
    assert [row.verdict for row in found.points] == [
        verdict for verdict, count in found.counts.items() for _ in range(count)
    ]
    assert all(row.ratio == row.b_us / row.a_us for row in found.points if row.a_us and row.b_us and row.ratio)
    assert found.worse == [row.point for row in found.points if row.is_worse]


def test_the_interval_of_a_ratio_of_two_finals_is_the_quadrature_of_theirs() -> None:
    a, b = run(measurement(4, 200.0, half=0.003)), run(measurement(4, 208.0, half=0.004))
    (row,) = compared(a, b).points
    assert row.ci95 is not None
    assert row.ci95 == Interval(
        pytest.approx(1.04 * math.exp(-0.005), rel=1e-6), pytest.approx(1.04 * math.exp(0.005), rel=1e-6)
    )


@pytest.mark.parametrize("groups", [1, 5])
def test_where_one_set_of_processes_measured_what_processes_add_is_added(groups: int) -> None:
    stage = "sweep" if groups == 5 else "final"
    one = run(measurement(4, 200.0, half=0.0, stage=stage), search__final_groups_measured=groups)
    (row,) = compared(one, one).points
    assert row.ci95 is not None
    assert math.log(row.ci95.high) == pytest.approx(1.96 * math.sqrt(2) * DRIFT, rel=1e-3)


def test_of_points_with_too_few_samples_nothing_is_said() -> None:
    few = [measurement(4, median_us, stage="sweep", count=5, half=0.0) for median_us in (100.0, 200.0)]
    (row,) = compared(run(few[0]), run(few[1])).points
    assert (row.verdict, row.ratio, row.ci95) == ("same", 2.0, None)


group_medians = st.lists(st.floats(199.0, 201.0), min_size=5, max_size=5, unique=True)


@given(group_medians, group_medians, st.sampled_from([0.0, 0.02]))
def test_two_finals_are_told_apart_by_welch_s_test(one: list[float], other: list[float], tolerance: float) -> None:
    sides = []
    for groups in (one, other):
        low, high = msgspec.structs.astuple(paired_ratio_interval(groups, np.ones(5)))
        times = measurement(4, float(np.exp(np.log(groups).mean())))
        sides.append(sided(run(times | {"ci95_us": [low, high]})))
    levels = [comparison._levels(one, [label(4)]) for one in sides]
    wanted = scipy_stats.ttest_ind(
        np.log(other) - math.log1p(tolerance), np.log(one), equal_var=False, alternative="greater"
    )
    found = comparison._slower_p(*levels, margin=math.log1p(tolerance))
    assert found == pytest.approx(wanted.pvalue, rel=1e-2, abs=1e-6)


NUM_PAIRS = 300
NUM_FINAL, NUM_SWEPT, NUM_EITHER = 16, 24, 4


class Machine:
    """Measures points of 200 us: every process group, and every point's scatter between groups, is its own."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.scatter = 0.003 * np.exp(self.rng.normal(0, 0.5, NUM_FINAL + NUM_EITHER))

    def run(self, *, swept: int, times: dict[int, float]) -> Document:
        """A run that has the points in between only from its sweep if ``swept`` is their remainder; times by chunk."""
        points = []
        for chunk in range(NUM_FINAL + NUM_EITHER + NUM_SWEPT):
            median_us = times.get(chunk, 200.0)
            is_final = chunk < NUM_FINAL or (chunk < NUM_FINAL + NUM_EITHER and chunk % 2 != swept)
            points.append(self.final(chunk, median_us) if is_final else self.sweep(chunk, median_us))
        return run(*points)

    def final(self, chunk: int, median_us: float) -> Document:
        groups = median_us * np.exp(self.rng.normal(0, self.scatter[chunk], 5))
        interval = paired_ratio_interval(groups, np.ones(5))
        return self.rounded(chunk, float(np.exp(np.log(groups).mean())), interval, "final", 150)

    def sweep(self, chunk: int, median_us: float) -> Document:
        samples = median_us * np.exp(self.rng.normal(0, 0.003) + self.rng.normal(0, 0.006, 48))
        return self.rounded(chunk, float(np.median(samples)), median_interval(samples), "sweep", 48)

    def rounded(self, chunk: int, median_us: float, ci95: Interval, stage: str, count: int) -> Document:
        numbers = {"median_us": round(median_us, 2), "ci95_us": [round(ci95.low, 2), round(ci95.high, 2)]}
        return measurement(chunk, median_us, stage=stage, count=count) | numbers


@pytest.mark.parametrize(("tolerance", "truth_us"), [(0.0, 200.0), (0.02, 204.0)])
def test_runs_that_differ_by_no_more_than_the_tolerance_give_a_false_alarm_in_at_most_5_percent(
    tolerance: float, truth_us: float
) -> None:
    truth = dict.fromkeys(range(NUM_FINAL + NUM_EITHER + NUM_SWEPT), truth_us)
    alarms, covered, ratios = 0, 0, 0
    for seed in range(NUM_PAIRS):
        machine = Machine(seed)
        found = compared(machine.run(swept=0, times={}), machine.run(swept=1, times=truth), tolerance=tolerance)
        alarms += bool(found.worse) or bool({"slower", "faster"} & found.counts.keys() and tolerance == 0)
        for row in found.points:
            assert row.ci95 is not None
            covered += row.ci95.low <= truth_us / 200 <= row.ci95.high
            ratios += 1
    assert alarms <= scipy_stats.binom.ppf(0.999, NUM_PAIRS, 0.05)
    assert 0.945 < covered / ratios < 0.99


def test_a_final_point_that_is_5_percent_slower_is_found_and_nothing_else() -> None:
    exact = 0
    for seed in range(100):
        machine = Machine(seed)
        machine.scatter[7] = 0.003
        found = compared(machine.run(swept=0, times={}), machine.run(swept=1, times={7: 210.0}), tolerance=0.02)
        assert label(7) in found.worse, seed
        exact += found.worse == [label(7)]
    assert exact >= 95


# ---- what is shown

hostile = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="\n\r\x1b\x85\u2028'\"`$(){}[]#:;\\|&<>!%*_~@, -=\x00", max_size=30),
)


def spoilt(text: str) -> Comparison:
    """A comparison with a text wherever a machine, a command or a configuration may put one."""
    host = BASE["hosts"][0] | {"hostname": text, "python": text, "gpu_uuids": [text]}
    other = run(
        FINAL,
        measurement(8, 1.0) | {f"{text}_knob": 1},
        failures=(failure(6, f"{text}!"),),
        environment__device=f"{text}!",
        environment__driver=f"{text}!",
        environment__versions={f"{text}!": text},
        workload__name=f"{text}!",
        hardware__source=f"{text}!",
        revision__code=f"{text}!",
        hosts=[host],
        command=["deepep-sweep", text],
    )
    a, b = sided(run(FINAL, SWEPT), f"{text}!"), sided(other, f"{text}!")
    return compare(a, b, tolerance=0.02, unlike_hardware=True)


def structure(text: str) -> list[str]:
    """The kinds of all blocks, without what is in them."""
    return [token.type for token in MarkdownIt("commonmark").enable("table").parse(text)]


HARMLESS = spoilt("x")


@example("</td></tr></table><script>alert(1)</script>")
@example("| a | b |\n| --- | --- |\n")
@example("``` `` ` \\")
@example("@everyone ![x](http://example.org/x.png)")
@example("\x1b[2J\x1b[31m")
@given(hostile)
def test_no_text_from_a_run_gets_out_of_its_cell(text: str) -> None:
    found = spoilt(text)
    marked = render.github(found)
    assert structure(marked) == structure(render.github(HARMLESS))
    inline = [token for token in MarkdownIt("commonmark").enable("table").parse(marked) if token.children]
    kinds = {child.type for token in inline for child in token.children or []}
    assert kinds <= {"text", "code_inline", "strong_open", "strong_close"}
    plain = render.plain(found)
    assert [char for char in plain if not char.isprintable() and char != "\n"] == []
    assert plain.count("\n") == render.plain(HARMLESS).count("\n")


def test_two_dry_runs_are_compared_and_said_to_be_no_measurements(run_module: Command, sweep: Sweep) -> None:
    process = run_module("launcher.compare", str(sweep.folder), str(sweep.folder))
    assert (process.returncode, process.stderr) == (0, "")
    lines = process.stdout.splitlines()
    assert "not a measurement of DeepEP" in NOT_A_MEASUREMENT
    assert lines[0] == "Both are dry runs on CPUs: what is compared are no measurements of DeepEP."
    assert lines[-1] == "Nothing is worse."


def test_shared_gpus_are_said_first() -> None:
    one = run(FINAL, shared_gpus=True)
    assert render.github(compared(one, one)).splitlines()[0] == (
        "**In both several ranks shared a GPU: the times mean nothing.**"
    )


# ---- real runs


PAIRS = [
    *itertools.permutations(("h100x2-ep2-bf16", "h100x2-ep2-bf16-again", "h100x2-ep2-exhaustive"), 2),
    *itertools.permutations(("h200x2-ep2-bf16", "h200x2-ep2-exhaustive"), 2),
]


@pytest.mark.parametrize(("a", "b"), PAIRS, ids=" ".join)
def test_published_sweeps_of_one_machine_pass_with_a_final_and_without(a: str, b: str) -> None:
    sides = [side.read(PUBLISHED / name) for name in (a, b)]
    both = {
        label
        for label, one in sides[0].measured.items()
        if one.stage is Stage.SWEEP and label in sides[1].measured and sides[1].measured[label].stage is Stage.SWEEP
    }
    swept = [one._replace(measured={label: one.measured[label] for label in both}) for one in sides]
    for tolerance in (0.02, 0.2):
        for kind, gate in ((sides, "final"), (swept, "all")):
            found = compare(*kind, tolerance=tolerance)
            assert (found.gate, found.worse, found.missing) == (gate, [], [])
            assert found.counts.keys() <= {"unstable", "same", "only in A", "only in B"}


def test_two_published_sweeps_on_h200s_are_the_same_at_any_tolerance() -> None:
    found = compare(*(side.read(PUBLISHED / f"h200x2-ep2-{name}") for name in ("bf16", "exhaustive")), tolerance=0.0)
    assert found.counts == {"same": 1355, "only in A": 29, "only in B": 13}
    assert sum(row.gates for row in found.points) == 65
    assert [one.field for one in found.differences] == ["command"]
    assert found.geometric_mean == pytest.approx(1, abs=0.001)
    assert [(one.name, one.ratio and round(one.ratio, 2)) for one in found.picks] == [
        ("default", 1.0),
        ("optimal", 1.0),
        ("overlapped", None),
    ]


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_two_other_gpus_of_the_kind_pass_by_their_final_and_differ_in_few_points(dtype: str) -> None:
    first, other = (side.read(PUBLISHED / f"h200x2-ep2-{dtype}{name}") for name in ("", "-again"))
    for a, b in ((first, other), (other, first)):
        found = compare(a, b, tolerance=0.02)
        assert (found.gate, found.worse, found.missing) == ("final", [], [])
        assert "hosts.gpu_uuids" in {one.field for one in found.differences}
        assert 0 < found.counts.get("faster", 0) + found.counts.get("slower", 0) < 0.01 * found.counts["same"]
        assert found.geometric_mean == pytest.approx(1, abs=0.005)
        assert [one.name for one in found.picks] == ["default", "optimal"]
        assert any("taken in two ways (timing " in note for note in found.notes)
        same = compare(a, a, tolerance=0.02)
        (overlapped,) = [one for one in same.picks if one.name == "overlapped"]
        assert overlapped.is_beside_gemms
        assert (overlapped.ratio, same.notes) == (1.0, [])


def test_a_published_run_that_is_cut_short_does_not_pass() -> None:
    whole = side.read(PUBLISHED / "h200x2-ep2-bf16")
    one = next(label for label, found in whole.measured.items() if found.stage is Stage.SWEEP)
    cut = whole._replace(measured={one: whole.measured[one]})
    found = compare(whole, cut, tolerance=0.02)
    assert (found.worse, len(found.missing)) == ([], found.counts["missing in B"] + 1)
    without = {label: found for label, found in whole.measured.items() if found.stage is Stage.SWEEP}
    assert compare(whole, whole._replace(measured=without), tolerance=0.02).missing[-1] == "the final"


def test_every_dispatch_and_combine_of_a_published_final_would_be_found_5_percent_slower() -> None:
    a, b = (side.read(PUBLISHED / name) for name in ("h200x2-ep2-bf16", "h200x2-ep2-exhaustive"))
    gating = {row.point for row in compare(a, b, tolerance=0.02).points if row.gates}
    for point in sorted(one for one in gating if "dispatch_full" not in one):
        times = b.measured[point]
        low, high = times.ci95_us
        slower = msgspec.structs.replace(times, median_us=1.05 * times.median_us, ci95_us=(1.05 * low, 1.05 * high))
        assert compare(a, b._replace(measured=b.measured | {point: slower}), tolerance=0.02).worse == [point]


def test_a_run_folder_and_its_results_file_are_the_same_run(tmp_path: Path) -> None:
    source = PUBLISHED / "h200x2-ep2-bf16"
    for name in ("run.json", "RESULTS_EP2.json"):
        shutil.copy(source / name, tmp_path)
    assert side.read(tmp_path) == side.read(tmp_path / "RESULTS_EP2.json")


def test_help_is_the_manual_page(run_module: Command) -> None:
    process = run_module("launcher.compare", "--help")
    assert (process.returncode, process.stderr) == (0, "")
    for word in ("--tolerance", "--unlike-hardware", "--allow-missing", "--json", "0 nothing is worse; 1 B is worse"):
        assert word in process.stdout
