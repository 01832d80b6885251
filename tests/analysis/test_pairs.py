"""Pairs of a dispatch and a combine that share num_sms."""

from __future__ import annotations

import pytest
from hypothesis import given

from bench.records import (
    Op,
)
from launcher.config.plan import Planned
from tests.analysis.runs import MADE, build, times, with_times
from tests.builders import (
    noisy,
)


@given(times)
def test_the_optimum_shares_one_num_sms_and_is_the_least_of_all_such_pairs(drawn: dict[str, float]) -> None:
    found = build(with_times(lambda one: [drawn[one.point.label]] * 3 if one.point.label in drawn else None))
    best: dict[int, dict[Op, float]] = {}
    for one in MADE.every_point:
        if one.point.backend == "deepep" and one.point.label in drawn:
            ops = best.setdefault(one.point.knobs["num_sms"], {})
            ops[one.point.op] = min(ops.get(one.point.op, float("inf")), drawn[one.point.label])
    trips = {sms: sum(ops.values()) for sms, ops in best.items() if len(ops) == 2}
    if not trips:
        assert found.choice.optimal is None
        return
    assert found.choice.optimal is not None
    knobs = (found.choice.optimal.dispatch.point.knobs, found.choice.optimal.combine.point.knobs)
    assert knobs[0]["num_sms"] == knobs[1]["num_sms"] == found.choice.optimal.shared["num_sms"]
    assert found.choice.optimal.round_trip_us == pytest.approx(min(trips.values()))


@given(times)
def test_no_pair_is_on_the_frontier_that_another_beats_with_fewer_sms(drawn: dict[str, float]) -> None:
    found = build(with_times(lambda one: [drawn[one.point.label]] * 3 if one.point.label in drawn else None))
    sms = [pair.shared["num_sms"] for pair in found.choice.pareto]
    trips = [pair.round_trip_us for pair in found.choice.pareto]
    assert sms == sorted(set(sms))
    assert trips == sorted(set(trips), reverse=True)
    for pair in found.choice.best_per_shared:
        assert any(
            other.shared["num_sms"] <= pair.shared["num_sms"] and other.round_trip_us <= pair.round_trip_us
            for other in found.choice.pareto
        )
    if found.choice.optimal is not None:
        assert found.choice.pareto[-1].round_trip_us == pytest.approx(found.choice.optimal.round_trip_us)


def test_the_best_pair_may_use_neither_operations_best_num_sms() -> None:
    table = {("dispatch", 16): 100, ("combine", 16): 400, ("dispatch", 32): 400, ("combine", 32): 100}

    def time(one: Planned) -> list[float]:
        return noisy(table.get((one.point.op.value, one.point.knobs.get("num_sms", 0)), 200.0))

    found = build(with_times(time))
    assert found.choice.optimal is not None
    assert found.choice.optimal.shared == {"num_sms": 20}
    assert found.choice.optimal == found.choice.default
    assert found.choice.worst is not None
    assert found.choice.worst.round_trip_us == pytest.approx(500)
