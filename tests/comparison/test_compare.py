"""Differences between two runs and their significance."""

from __future__ import annotations

import copy
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from bench.between import OTHER_GPUS, SAME_GPUS
from bench.stats import DRIFT, Interval, paired_ratio_interval
from launcher.comparison import levels, render
from launcher.comparison.compare import Comparison, compare
from launcher.errors import UserError
from tests.comparison.runs import (
    FINAL,
    FINALS,
    SLOW_SWEPT,
    SWEPT,
    Document,
    as_compared_run,
    compare_documents,
    failure,
    label,
    measurement,
    run,
)

LABELS = ("backend", "op", "dtype", "role", "num_sms")
"""Members of a measurement that an operation of a pair does not have."""


def verdicts(comparison: Comparison) -> dict[str, str]:
    return {row.point: row.verdict for row in comparison.points}


def test_a_missing_point_is_listed_before_the_points_that_are_not_worse() -> None:
    comparison = compare_documents(run(*FINALS, SWEPT), run(FINALS[0], FINALS[1], SLOW_SWEPT))
    assert list(verdicts(comparison).items()) == [
        (label(6), "slower"),
        (label(10), "missing in B"),
        (label(4), "same"),
        (label(8), "same"),
    ]


SPIKY = measurement(8, 1100.0, stage="sweep", count=16, unstable=True)


@pytest.mark.parametrize("pair", [(SPIKY | {"unstable": False, "median_us": 384.0}, SPIKY)])
def test_an_unstable_point_of_one_set_of_processes_has_no_verdict_and_is_listed(
    pair: tuple[Document, Document],
) -> None:
    calm = [measurement(chunk, 200.0, stage="sweep", count=48) for chunk in (4, 6)]
    for a, b in (pair, pair[::-1]):
        comparison = compare_documents(run(*calm, a), run(*calm, b))
        row = next(row for row in comparison.points if row.point == label(8))
        assert (row.verdict, row.ratio, row.ci95) == ("unstable", b["median_us"] / a["median_us"], None)
        assert (comparison.worse, comparison.missing) == ([], [])
        assert (comparison.geometric_mean, comparison.num_ratios) == (1.0, 2)
        assert comparison.counts == {"unstable": 1, "same": 2}
        assert next(line for line in render.plain(comparison).splitlines() if label(8) in line).endswith("unstable")


def test_the_groups_of_a_final_hold_the_scatter_of_an_unstable_point_in_their_interval() -> None:
    slow = measurement(4, 300.0, half=0.1, unstable=True)
    assert verdicts(compare_documents(run(FINAL), run(slow))) == {label(4): "slower"}
    assert verdicts(compare_documents(run(FINAL), run(slow | {"median_us": 210.0}))) == {label(4): "same"}


def test_a_comparison_without_a_judged_gating_point_does_not_pass() -> None:
    calm, wild = SWEPT, measurement(6, 600.0, stage="sweep", count=48, unstable=True)
    comparison = compare_documents(run(calm), run(wild))
    assert (comparison.worse, comparison.missing) == ([], ["a judgement: every point that gates is unstable"])
    assert "B lacks: a judgement: " in render.plain(comparison)


def test_a_pick_of_one_run_gates_also_where_the_other_s_final_left_it_out() -> None:
    dispatch, combine = measurement(8, 200.0), measurement(10, 200.0, op="combine")
    numbers = [{name: value for name, value in one.items() if name not in LABELS} for one in (dispatch, combine)]
    pair = {"num_sms": 24, "round_trip_us": 400.0, "dispatch": numbers[0], "combine": numbers[1]}
    a = run(FINAL, dispatch, combine, optimal=pair)
    swept = [measurement(8, 300.0, stage="sweep"), measurement(10, 200.0, op="combine", stage="sweep")]
    comparison = compare_documents(a, run(FINAL, *swept))
    assert comparison.worse == [label(8)]
    assert {row.point for row in comparison.points if row.gates} == {label(4), label(8), label(10, "combine")}
    assert compare_documents(run(FINAL, measurement(8, 200.0)), run(FINAL, swept[0])).worse == []


def test_overlapped_times_share_their_processes_and_do_not_gate() -> None:
    overlapped = [measurement(4, median_us, op="overlapped", half=0.001) for median_us in (5000.0, 6000.0)]
    comparison = compare_documents(run(FINAL, overlapped[0]), run(FINAL, overlapped[1]))
    assert verdicts(comparison) == {label(4): "same", label(4, "overlapped"): "slower"}
    assert comparison.worse == []


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
            "workload.routing is uniform in A, a\\nb\\x1b[2J in B",
        ),
        ({"workload__seed": 2}, "the two runs measured different things: workload.seed is 1 in A, 2 in B"),
    ],
)
def test_runs_of_different_things_are_refused_whatever_the_flags(changes: Document, message: str) -> None:
    for allowed in (False, True):
        with pytest.raises(UserError) as caught:
            compare_documents(run(FINAL), run(FINAL, **changes), unlike_hardware=allowed)
        assert (str(caught.value), caught.value.hint) == (message, "sweep B with the options of A")


def test_another_name_of_the_same_workload_is_listed_as_a_difference_and_not_refused() -> None:
    comparison = compare_documents(run(FINAL), run(FINAL, workload__name="ours"))
    assert [(one.field, one.a, one.b) for one in comparison.differences] == [("workload.name", "deepseek_v3", "ours")]


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
        compare_documents(a, b)
    assert str(caught.value) == f"the hardware differs: {phrase}"
    assert caught.value.hint.startswith("--unlike-hardware ")
    assert compare_documents(a, b, unlike_hardware=True).notes == [f"The hardware differs: {phrase}."]


def test_a_memory_size_that_differs_by_the_driver_still_counts_as_the_same_hardware() -> None:
    comparison = compare_documents(run(FINAL), run(FINAL, environment__memory_bytes=152_000_000_000))
    assert comparison.notes == []
    assert [one.field for one in comparison.differences] == ["environment.memory_bytes"]


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
        compare_documents(a, b)


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
    """Any mixture of measured, failed and absent points; the first is always measured."""
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
def test_a_run_is_the_same_as_itself(document: Document, tolerance: float) -> None:
    comparison = compare_documents(document, document, tolerance=tolerance)
    assert set(comparison.counts) <= {"same", "unstable", "failed in both"}
    assert {row.ratio for row in comparison.points if row.verdict == "same"} == {1.0}
    assert (comparison.geometric_mean, comparison.worse, comparison.missing, comparison.differences) == (
        1.0,
        [],
        [],
        [],
    )


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
    first: Document, second: Document, tolerance: float
) -> None:
    comparison, mirrored = (
        compare_documents(first, second, tolerance=tolerance),
        compare_documents(second, first, tolerance=tolerance),
    )
    there, back = (
        {point: "only in A" if verdict == "missing in B" else verdict for point, verdict in verdicts(result).items()}
        for result in (comparison, mirrored)
    )
    assert {point: MIRROR.get(verdict, verdict) for point, verdict in there.items()} == back
    rows = {row.point: row for row in mirrored.points}
    for row in comparison.points:
        mirror = rows[row.point]
        assert (row.a_us, row.b_us, row.gates) == (mirror.b_us, mirror.a_us, mirror.gates)
        if row.ratio is not None and mirror.ratio is not None:
            assert row.ratio * mirror.ratio == pytest.approx(1)
        if row.ci95 is not None and mirror.ci95 is not None:
            assert row.ci95.low * mirror.ci95.high == pytest.approx(1)
    assert comparison.gate == mirrored.gate
    assert (comparison.geometric_mean or 0) * (mirrored.geometric_mean or 0) == pytest.approx(1)


@given(runs(), runs(), st.randoms(use_true_random=False))
def test_the_order_of_the_points_in_a_file_does_not_matter(first: Document, second: Document, chance: Any) -> None:
    shuffled = copy.deepcopy(second)
    chance.shuffle(shuffled["measurements"])
    chance.shuffle(shuffled["failures"])
    assert compare_documents(first, shuffled) == compare_documents(first, second)


@given(runs(), runs())
def test_every_point_has_one_verdict_and_the_worst_stand_first(first: Document, second: Document) -> None:
    comparison = compare_documents(first, second)
    assert sum(comparison.counts.values()) == len(comparison.points) == len(verdicts(comparison))
    assert [row.verdict for row in comparison.points] == [
        verdict for verdict, count in comparison.counts.items() for _ in range(count)
    ]
    assert all(row.ratio == row.b_us / row.a_us for row in comparison.points if row.a_us and row.b_us and row.ratio)
    assert comparison.worse == [row.point for row in comparison.points if row.is_worse]


def test_the_interval_of_a_ratio_of_two_finals_is_the_quadrature_of_theirs_and_of_the_scatter_between_runs() -> None:
    a, b = run(measurement(4, 200.0, half=0.03)), run(measurement(4, 208.0, half=0.04))
    (row,) = compare_documents(a, b).points
    assert row.ci95 is not None
    t = [scipy_stats.t.ppf(0.975, 4 * (1 + (2.776 * SAME_GPUS.time / half) ** 2) ** 2) for half in (0.03, 0.04)]
    halves = [math.hypot(half / 2.776, SAME_GPUS.time) * each for half, each in zip((0.03, 0.04), t, strict=True)]
    assert row.ci95 == Interval(
        pytest.approx(1.04 * math.exp(-math.hypot(*halves)), rel=1e-5),
        pytest.approx(1.04 * math.exp(math.hypot(*halves)), rel=1e-5),
    )


def test_runs_on_other_gpus_or_on_unnamed_ones_have_wider_intervals() -> None:
    a = run(FINAL)
    other, unnamed = copy.deepcopy(a), run(FINAL, hosts=[])
    for host in other["hosts"]:
        host["gpu_uuids"] = ["GPU-1", "GPU-2"]
    same = compare_documents(a, a)
    assert (same.same_gpus, same.scatter, same.scatter_limit) == (True, SAME_GPUS.time, SAME_GPUS.time_limit)
    for b in (other, unnamed):
        comparison = compare_documents(a, b)
        assert (comparison.same_gpus, comparison.scatter) == (False, OTHER_GPUS.time)
        assert comparison.scatter_limit == OTHER_GPUS.time_limit
        (row,), (narrow,) = comparison.points, same.points
        assert row.ci95 is not None
        assert narrow.ci95 is not None
        assert row.ci95.high > narrow.ci95.high
        assert "Runs on other GPUs scatter by 0.38 %" in render.plain(comparison)


@pytest.mark.parametrize("groups", [1, 5])
def test_the_drift_between_processes_widens_the_interval_where_one_set_of_processes_measured(groups: int) -> None:
    stage = "sweep" if groups == 5 else "final"
    document = run(measurement(4, 200.0, half=0.0, stage=stage), search__final_groups_measured=groups)
    (row,) = compare_documents(document, document).points
    assert row.ci95 is not None
    assert math.log(row.ci95.high) == pytest.approx(1.96 * math.sqrt(2) * math.hypot(DRIFT, SAME_GPUS.time), rel=1e-3)


@pytest.mark.parametrize("tolerance", [0.0, 0.01, 0.0199])
def test_runs_without_a_common_final_are_not_compared_at_a_small_tolerance(tolerance: float) -> None:
    with pytest.raises(UserError) as caught:
        compare_documents(run(FINAL, SWEPT), run(SWEPT), tolerance=tolerance)
    assert str(caught.value) == (f"tolerance must be at least 0.02 for runs without a common final, got {tolerance:g}")
    assert caught.value.hint == "measure both with a final, whose points can be compared at any tolerance"
    compare_documents(run(SWEPT), run(SWEPT), tolerance=0.02)


def test_points_with_too_few_samples_have_no_interval_and_count_as_the_same() -> None:
    few = [measurement(4, median_us, stage="sweep", count=5, half=0.0) for median_us in (100.0, 200.0)]
    (row,) = compare_documents(run(few[0]), run(few[1])).points
    assert (row.verdict, row.ratio, row.ci95) == ("same", 2.0, None)


group_medians = st.lists(st.floats(199.0, 201.0), min_size=5, max_size=5, unique=True)


@given(group_medians, group_medians, st.sampled_from([0.0, 0.02]))
def test_two_finals_are_distinguished_by_welch_s_test(
    first: list[float], second: list[float], tolerance: float
) -> None:
    documents = []
    for groups in (first, second):
        low, high = msgspec.structs.astuple(paired_ratio_interval(groups, np.ones(5), robust=False))
        times = measurement(4, float(np.exp(np.log(groups).mean())))
        documents.append(as_compared_run(run(times | {"ci95_us": [low, high]})))
    log_levels = [levels.levels_of(one, [label(4)]) for one in documents]
    expected = scipy_stats.ttest_ind(
        np.log(second) - math.log1p(tolerance), np.log(first), equal_var=False, alternative="greater"
    )
    p = levels.slower_p(*log_levels, margin=math.log1p(tolerance))
    assert p == pytest.approx(expected.pvalue, rel=1e-2, abs=1e-6)


def test_the_deployed_pair_is_tested_first_with_half_of_the_5_percent() -> None:
    p_values = np.full((2, 60), 0.5)
    p_values[0, :2] = 0.006  # Holm needs 0.025 / 4 for two of 60 points, and 0.05 / 120 among all
    first, rest = np.arange(60) < 2, np.arange(60) >= 2
    nothing = np.zeros(60, dtype=bool)
    assert levels.significant(p_values, (first, rest, nothing))[0].tolist() == first.tolist()
    assert not levels.significant(p_values, (nothing, np.ones(60, dtype=bool), nothing)).any()
    assert not levels.significant(p_values[:, ::-1], (first, rest, nothing)).any()


def test_the_deployed_pair_is_the_optimum_of_a() -> None:
    points = [measurement(chunk, 200.0) for chunk in range(4, 40)]
    a, b = (as_compared_run(run(*points)) for _ in range(2))
    a = a._replace(optimal={label(4), label(6), label(99)})
    comparison = compare(a, b._replace(optimal={label(8)}), tolerance=0.02)
    assert comparison.deployed == [label(4), label(6)]
    assert "Of these, the 2 of A's optimal pairs are tested first, with half of the 5 %." in render.plain(comparison)
