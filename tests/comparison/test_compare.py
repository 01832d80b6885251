"""What differs between two runs, and what that proves."""

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

from bench.stats import DRIFT, Interval, median_interval, paired_ratio_interval
from launcher.comparison import levels, render
from launcher.comparison.compare import Comparison
from launcher.errors import UserError
from tests.comparison.runs import (
    FINAL,
    FINALS,
    SLOW_SWEPT,
    SWEPT,
    Document,
    compared,
    failure,
    label,
    measurement,
    run,
    sided,
)

LABELS = ("backend", "op", "dtype", "role", "num_sms")
"""Members of a measurement that an operation of a pair does not have."""


def verdicts(found: Comparison) -> dict[str, str]:
    return {row.point: row.verdict for row in found.points}


def test_a_point_that_is_missing_stands_before_those_that_are_not_worse() -> None:
    found = compared(run(*FINALS, SWEPT), run(FINALS[0], FINALS[1], SLOW_SWEPT))
    assert list(verdicts(found).items()) == [
        (label(6), "slower"),
        (label(10), "missing in B"),
        (label(4), "same"),
        (label(8), "same"),
    ]


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
    assert "B lacks: a judgement: " in render.plain(found)


def test_what_a_run_chose_gates_also_where_the_other_s_final_left_it_out() -> None:
    dispatch, combine = measurement(8, 200.0), measurement(10, 200.0, op="combine")
    numbers = [{name: value for name, value in one.items() if name not in LABELS} for one in (dispatch, combine)]
    pair = {"num_sms": 24, "round_trip_us": 400.0, "dispatch": numbers[0], "combine": numbers[1]}
    a = run(FINAL, dispatch, combine, optimal=pair)
    swept = [measurement(8, 300.0, stage="sweep"), measurement(10, 200.0, op="combine", stage="sweep")]
    found = compared(a, run(FINAL, *swept))
    assert found.worse == [label(8)]
    assert {row.point for row in found.points if row.gates} == {label(4), label(8), label(10, "combine")}
    assert compared(run(FINAL, measurement(8, 200.0)), run(FINAL, swept[0])).worse == []


def test_times_beside_gemms_share_their_processes_and_do_not_gate() -> None:
    beside = [measurement(4, median_us, op="overlapped", half=0.001) for median_us in (5000.0, 6000.0)]
    found = compared(run(FINAL, beside[0]), run(FINAL, beside[1]))
    assert verdicts(found) == {label(4): "same", label(4, "overlapped"): "slower"}
    assert found.worse == []


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
    assert str(caught.value) == f"the hardware differs: {phrase}"
    assert caught.value.hint.startswith("--unlike-hardware ")
    assert compared(a, b, unlike_hardware=True).notes == [f"The hardware differs: {phrase}."]


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
    both = [levels.levels_of(one, [label(4)]) for one in sides]
    wanted = scipy_stats.ttest_ind(
        np.log(other) - math.log1p(tolerance), np.log(one), equal_var=False, alternative="greater"
    )
    found = levels.slower_p(*both, margin=math.log1p(tolerance))
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
