"""Pairs of a dispatch and a combine that share num_sms."""

from __future__ import annotations

import pytest
from hypothesis import given

from bench.records import (
    Op,
)
from launcher.config.plan import Planned
from tests.analysis.runs import PLAN, build, times, with_times
from tests.builders import (
    noisy,
)


@given(times)
def test_the_optimum_shares_one_num_sms_and_is_the_least_of_all_such_pairs(drawn: dict[str, float]) -> None:
    results = build(with_times(lambda one: [drawn[one.point.label]] * 3 if one.point.label in drawn else None))
    best: dict[int, dict[Op, float]] = {}
    for planned in PLAN.every_point:
        if planned.point.backend == "deepep" and planned.point.label in drawn:
            ops = best.setdefault(planned.point.knobs["num_sms"], {})
            ops[planned.point.op] = min(ops.get(planned.point.op, float("inf")), drawn[planned.point.label])
    trips = {sms: sum(ops.values()) for sms, ops in best.items() if len(ops) == 2}
    if not trips:
        assert results.choice.optimal is None
        return
    assert results.choice.optimal is not None
    knobs = (results.choice.optimal.dispatch.point.knobs, results.choice.optimal.combine.point.knobs)
    assert knobs[0]["num_sms"] == knobs[1]["num_sms"] == results.choice.optimal.shared["num_sms"]
    assert results.choice.optimal.round_trip_us == pytest.approx(min(trips.values()))


@given(times)
def test_no_pair_is_on_the_frontier_that_another_beats_with_fewer_sms(drawn: dict[str, float]) -> None:
    results = build(with_times(lambda one: [drawn[one.point.label]] * 3 if one.point.label in drawn else None))
    sms = [pair.shared["num_sms"] for pair in results.choice.pareto]
    trips = [pair.round_trip_us for pair in results.choice.pareto]
    assert sms == sorted(set(sms))
    assert trips == sorted(set(trips), reverse=True)
    for pair in results.choice.best_per_shared:
        assert any(
            other.shared["num_sms"] <= pair.shared["num_sms"] and other.round_trip_us <= pair.round_trip_us
            for other in results.choice.pareto
        )
    if results.choice.optimal is not None:
        assert results.choice.pareto[-1].round_trip_us == pytest.approx(results.choice.optimal.round_trip_us)


def test_the_best_pair_may_use_neither_operations_best_num_sms() -> None:
    table = {("dispatch", 16): 100, ("combine", 16): 400, ("dispatch", 32): 400, ("combine", 32): 100}

    def time(planned: Planned) -> list[float]:
        return noisy(table.get((planned.point.op.value, planned.point.knobs.get("num_sms", 0)), 200.0))

    results = build(with_times(time))
    assert results.choice.optimal is not None
    assert results.choice.optimal.shared == {"num_sms": 20}
    assert results.choice.optimal == results.choice.default
    assert results.choice.worst is not None
    assert results.choice.worst.round_trip_us == pytest.approx(500)
