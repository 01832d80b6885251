"""Libraries of one sweep compared with one another and with the plain collectives."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bench.records import Line, Op, Point
from bench.stats import MIN_GROUPS, centre
from launcher.analysis import libraries
from launcher.analysis.libraries import Comparison, at_most, best_independent, picks_of
from launcher.analysis.results import Results
from launcher.config import planning
from launcher.config.plan import FINAL, Plan, Planned, point_id
from launcher.config.schema import Ep
from launcher.report import results_json
from launcher.store.table import run_records
from tests.analysis.runs import build, build_results, valid
from tests.builders import ENVIRONMENT, HOST, MANIFEST, SELF_CHECK, TRAFFIC, noisy, record, spec

NAMES = ["deepep", "deepep_v2", "nccl_ep"]
BASE = spec(
    *("workload=small", "workload.num_tokens=256", f"backend=[{','.join(NAMES)}]", "search.overlapped=false"),
    *("grid.num_sms={deepep:[16,24,64],deepep_v2:[8,16,32],nccl_ep:[8,16]}", "grid.nvl_chunk=[8]"),
    *("grid.tokens_per_chunk=[64]", "grid.num_stages=[12]", "grid.num_pipelines=[2]", "search.own_tuning=false"),
)
FULL_US = 50.0
Times = Callable[[Point, int], float]


def make(**changes: object) -> Plan:
    return planning.make(msgspec.structs.replace(BASE, **changes))


PLAN = make()
LEVELS = {"deepep": 1.0, "deepep_v2": 0.8, "nccl_ep": 0.9, "alltoall": 1.2, "allgather": 3.0}


def time_of(point: Point, group: int = 0) -> float:
    """200 us on many SMs, 360 on 8, times a level of the library; a dispatch takes 50 us more in full."""
    level = LEVELS[point.backend] * (1 + 6.4 / point.knobs.get("num_sms", 1e9))
    return 200.0 * level + FULL_US * (point.op is Op.DISPATCH_FULL)


def lines(plan: Plan, times: Times = time_of, *, groups: int = 5) -> list[Line]:
    """A sweep of every point, and a final of every point and of the full dispatches."""
    measured = [
        record(planned, noisy(times(planned.point, 0)), sequence=number, started=1000.0 + number)
        for number, planned in enumerate([*plan.every_point, *plan.anchors])
    ]
    full = [
        Planned(point, point_id(plan.spec, point), one.role)
        for one in plan.every_point
        if one.point.op is Op.DISPATCH
        for point in (msgspec.structs.replace(one.point, op=Op.DISPATCH_FULL),)
    ]
    finals = [
        record(planned, noisy(times(planned.point, group)), shard=FINAL, stage="final", round=group, group=group)
        for group in range(groups)
        for planned in [*plan.every_point, *full]
    ]
    return [ENVIRONMENT, HOST, SELF_CHECK, TRAFFIC, *measured, *finals]


def results(times: Times = time_of, *, plan: Plan = PLAN, groups: int = 5) -> Results:
    return build_results(plan, MANIFEST, run_records(lines(plan, times, groups=groups)), [])


RESULTS = results()


def comparison(of: Results, first: str, second: str, pick: str = "optimal", *, full: bool = False) -> Comparison:
    (found,) = (
        one for one in of.comparisons if (one.first, one.second, one.pick, one.full) == (first, second, pick, full)
    )
    return found


def test_every_pick_of_every_two_libraries_is_compared_with_cached_and_with_full_dispatches() -> None:
    picks = ["default", "optimal", "at most 16 SMs", "at most 24 SMs", "at most 32 SMs", "at most 64 SMs"]
    pairs = [("deepep", "deepep_v2"), ("deepep", "nccl_ep"), ("deepep_v2", "nccl_ep")]
    libraries_only = [one for one in RESULTS.comparisons if one.second in NAMES]
    expected = [(full, pick, *pair) for full in (False, True) for pick in picks for pair in pairs]
    assert [(one.full, one.pick, one.first, one.second) for one in libraries_only] == expected


def test_the_optimum_of_every_library_is_compared_with_every_plain_collective() -> None:
    found = {(one.first, one.second, one.full) for one in RESULTS.comparisons if one.second not in NAMES}
    assert found == {
        (name, plain, full) for name in NAMES for plain in ("alltoall", "allgather") for full in (False, True)
    }
    assert {one.pick for one in RESULTS.comparisons if one.second not in NAMES} == {"optimal"}
    plain = comparison(RESULTS, "deepep_v2", "allgather")
    assert plain.verdict == "a_is_faster"
    assert plain.ratio == pytest.approx(0.8 * (1 + 6.4 / 64) / 3.0, rel=1e-3)


def test_a_ratio_is_the_round_trip_of_the_first_over_that_of_the_second() -> None:
    default = comparison(RESULTS, "deepep", "deepep_v2", "default")
    assert default.ratio == pytest.approx((1 + 6.4 / 20) / (0.8 * (1 + 6.4 / 16)), rel=1e-3)
    assert default.verdict == "b_is_faster"
    full = comparison(RESULTS, "deepep", "deepep_v2", "default", full=True)
    sums = [400 * level + FULL_US for level in (1 + 6.4 / 20, 0.8 * (1 + 6.4 / 16))]
    assert full.ratio == pytest.approx(sums[0] / sums[1], rel=1e-3)


def test_at_most_n_sms_is_the_best_pair_that_occupies_no_more() -> None:
    chosen = {
        name: {
            limit: pair.shared["num_sms"]
            for limit in (4, *libraries.SM_LIMITS)
            if (pair := at_most(RESULTS.choices[name], name, limit)) is not None
        }
        for name in NAMES
    }
    assert chosen == {
        "deepep": {16: 16, 24: 24, 32: 24, 64: 64},
        "deepep_v2": {16: 16, 24: 16, 32: 32, 64: 64},
        "nccl_ep": {16: 16, 24: 16, 32: 16, 64: 16},
    }
    assert libraries.sms_knob("allgather") is None
    assert list(picks_of(RESULTS.choices["deepep"], "deepep")) == [
        *("default", "optimal"),
        *(f"at most {limit} SMs" for limit in libraries.SM_LIMITS),
    ]


MIRRORED = {
    "a_is_faster": "b_is_faster",
    "b_is_faster": "a_is_faster",
    "cannot_be_told_apart": "cannot_be_told_apart",
}


@given(
    st.lists(st.floats(0.5, 2.0), min_size=5, max_size=5),
    st.lists(st.floats(-0.02, 0.02), min_size=5, max_size=5),
    st.floats(0.9, 1.1),
)
@example([1.0] * 5, [0.0] * 5, 0.995)
@example([1.0] * 5, [0.0] * 5, 0.99005)  # just beyond 1 % of the second, not of the first
@example([1.0] * 5, [0.0] * 5, 1.005)
def test_a_verdict_needs_an_interval_beyond_one_percent_and_is_mirrored_for_the_other_order(
    hours: list[float], noise: list[float], ratio: float
) -> None:
    """What a whole group does to all of its times changes nothing."""

    def times(point: Point, group: int) -> float:
        level = ratio * np.exp(noise[group]) if point.backend == "deepep" else 1.0
        return float(200.0 * level * hours[group])

    def of(names: list[str]) -> Results:
        return results(times, plan=make(backend=names))

    one = comparison(of(["deepep", "nccl_ep"]), "deepep", "nccl_ep", "default")
    other = comparison(of(["nccl_ep", "deepep"]), "nccl_ep", "deepep", "default")
    assert one.verdict == MIRRORED[other.verdict]
    assert one.ratio * other.ratio == pytest.approx(1.0)
    assert one.ratio == pytest.approx(ratio * centre(np.exp(noise)), rel=1e-3)
    assert (one.verdict == "a_is_faster") == (one.ci95.high < 1 / 1.01)
    assert (one.verdict == "b_is_faster") == (one.ci95.low > 1.01)


@pytest.mark.parametrize("groups", range(MIN_GROUPS + 1))
def test_too_few_groups_compare_nothing(groups: int) -> None:
    assert bool(results(groups=groups).comparisons) == (groups >= MIN_GROUPS)


def test_times_of_shared_gpus_compare_nothing() -> None:
    plan = make(ep=Ep(size=4, share_gpus=True))
    assert plan.baselines == []
    assert results(plan=plan).comparisons == []


def test_without_a_full_dispatch_in_the_final_only_cached_ones_are_compared() -> None:
    kept = [line for line in lines(PLAN) if getattr(getattr(line, "point", None), "op", None) is not Op.DISPATCH_FULL]
    assert {one.full for one in build(kept, plan=PLAN).comparisons} == {False}


def test_the_best_of_each_operation_need_not_be_deployed_together() -> None:
    def times(point: Point, group: int) -> float:
        """Dispatch is fastest on many SMs, combine on few."""
        sms = point.knobs.get("num_sms", 1)
        return 200.0 + (sms if point.op is Op.COMBINE else 200 - sms)

    found = results(times)
    dispatch, combine = best_independent(found.measurements, "deepep_v2")
    assert (dispatch.point.op, dispatch.point.knobs) == (Op.DISPATCH, {"num_sms": 64})
    assert (combine.point.op, combine.point.knobs) == (Op.COMBINE, {"num_sms": 8})
    assert best_independent([], "deepep_v2") == ()


@pytest.mark.parametrize("name", NAMES)
def test_the_answer_for_a_library_is_the_one_of_a_sweep_of_it_alone(name: str) -> None:
    alone, part = results(plan=make(backend=name)), RESULTS.of(name)
    document = results_json.document(RESULTS)
    assert document.library(name) == results_json.document(alone).library(name)
    assert part.plan.backend == name
    assert {one.point.backend for one in part.measurements} == {name, "alltoall", "allgather"}


def test_the_results_of_several_libraries_fit_their_schema() -> None:
    document = valid(RESULTS)
    assert [library["name"] for library in document["libraries"]] == NAMES
    assert [list(library["defaults"]) for library in document["libraries"]] == [
        ["library"],
        ["library", "vllm_sglang"],
        ["library"],
    ]
    assert len(document["comparisons"]) == len(RESULTS.comparisons) > 0
    assert {one["verdict"] for one in document["comparisons"]} >= {"a_is_faster", "b_is_faster"}
