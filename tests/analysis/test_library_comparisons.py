"""What compares libraries: picks paired over groups, passes, and plain collectives."""

from __future__ import annotations

import pytest

from bench.records import Failed, FailureKind, Op, Role, Stage
from launcher.analysis.libraries import Comparison, best_independent, collectives
from tests.libraries import LIBRARIES, all_libraries, plan_of, results_of, true_us


def compared(pick: str, first: str, second: str, *, full: bool = False) -> Comparison:
    (found,) = [
        each
        for each in all_libraries().comparisons
        if (each.pick, each.first, each.second, each.full) == (pick, first, second, full)
    ]
    return found


@pytest.mark.parametrize(
    ("pick", "full", "ratio"),
    [
        ("default", False, 985 / 582),
        ("optimal", False, 418 / 541),
        ("optimal", True, 478 / 541),
        ("at most 24 SMs", False, 820 / 575),
    ],
)
def test_a_pick_of_two_libraries_is_compared_within_each_group(pick: str, ratio: float, *, full: bool) -> None:
    found = compared(pick, "deepep", "deepep_v2", full=full)
    assert found.ratio == pytest.approx(ratio, rel=0.004)
    assert found.ci95.low < found.ratio < found.ci95.high
    assert found.verdict == ("a_is_faster" if ratio < 1 else "b_is_faster")


def test_the_passes_compare_overlapped_pairs_and_layers_with_the_optimal_pairs() -> None:
    assert compared("overlapped", "deepep", "deepep_v2").verdict == "b_is_faster"
    assert compared("layer", "deepep", "nccl_ep", full=True).verdict == "a_is_faster"
    assert compared("layer", "deepep", "deepep_v2", full=True).verdict == "cannot_be_told_apart"
    assert compared("layer_training", "deepep", "nccl_ep", full=True).ratio < 1


def test_the_optimum_of_each_library_is_compared_with_each_plain_collective() -> None:
    assert compared("optimal", "deepep", "alltoall").ratio == pytest.approx(418 / 652, rel=0.004)
    assert compared("optimal", "nccl_ep", "allgather", full=True).ratio == pytest.approx(838 / 576, rel=0.004)


def test_plain_collectives_measured_in_the_final_are_baselines_with_a_full_dispatch() -> None:
    results = all_libraries()
    assert {(each.role, each.stage) for each in results.baselines} == {(Role.BASELINE, Stage.FINAL)}
    pairs = collectives(results.plan, results.baselines)
    assert list(pairs) == ["allgather", "alltoall"]
    full = pairs["alltoall"].forward
    assert full is not None
    assert full.round_trip_us - pairs["alltoall"].round_trip_us == pytest.approx(110, abs=1)
    assert Op.EXCHANGE in {each.point.op for each in results.baselines}


def test_the_best_of_each_operation_may_have_other_knobs_than_the_best_pair() -> None:
    dispatch, combine = best_independent(all_libraries().measurements, "deepep_v2")
    assert (dispatch.point.knobs, combine.point.knobs) == ({"num_sms": 32}, {"num_sms": 64})


def test_the_view_of_one_library_has_its_own_failures_only() -> None:
    lost = Failed(FailureKind.HANG, "no response", "time", 1, "")
    results = results_of(plan_of(*LIBRARIES), lambda point, _: lost if point.backend == "nccl_ep" else true_us(point))
    assert results.of("deepep").failures == []
    assert {failure.point.backend for failure in results.of("nccl_ep").failures} == {"nccl_ep"}
