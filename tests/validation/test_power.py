"""What validation finds and how often it errs, by its own decisions on simulated nodes (see simulation)."""

from __future__ import annotations

import pytest

from launcher.validation.codes import NodeVerdict
from tests.validation import simulation
from tests.validation.simulation import DISPATCH_AND_COMBINE, judge_alone, judge_fleets

FINE = (NodeVerdict.PASS, NodeVerdict.INCONCLUSIVE)


@pytest.mark.parametrize("kind", simulation.KINDS)
def test_a_single_node_that_is_a_tenth_slower_in_dispatch_and_combine_is_found_without_a_fleet(kind: str):
    verdicts = judge_alone(kind, DISPATCH_AND_COMBINE, count=200, seed=1)
    assert sum(verdicts[verdict] for verdict in verdicts if verdict not in FINE) >= 0.9 * 200


@pytest.mark.parametrize("kind", simulation.KINDS)
def test_a_healthy_node_is_almost_never_a_fault_or_a_warning(kind: str):
    verdicts = judge_alone(kind, {}, count=400, seed=2)
    assert verdicts[NodeVerdict.FAIL] <= 0.005 * 400
    assert verdicts[NodeVerdict.PASS] >= 0.99 * 400


@pytest.mark.parametrize(("size", "count"), [(4, 500), (8, 250), (16, 150)])
def test_healthy_fleets_are_rarely_flagged(size: int, count: int):
    flagged = [judge_fleets(kind, {}, size=size, count=count, seed=3).wrongly for kind in simulation.KINDS]
    assert sum(flagged) / len(flagged) <= 0.015


def test_gemms_of_one_node_that_are_a_tenth_slower_are_found_in_a_fleet():
    assert judge_fleets("4 x H200", {"compute": 0.9}, size=16, count=50, seed=4).found >= 0.95
