"""Passes of overlapped pairs: spread over the groups of the final, and as many as it takes to tell pairs apart."""

from __future__ import annotations

import functools
from collections import Counter

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.backends import split_pair
from bench.records import Op, Point, Record, Stage
from bench.stats import MIN_GROUPS
from launcher.config.plan import Plan
from launcher.tuner import final, passes, racing
from launcher.tuner.racing import Arms
from tests.tuner.machine import Machine, choose_config, make_plan

SERIAL_US = 4600.0
BISTABLE = 0.15
"""How much longer the slow iterations of a pair take."""


class Overlapped(Machine):
    """Pairs whose iterations take one of two times, as on real GPUs; ``costs`` of each num_sms over the best."""

    def __init__(self, plan: Plan, costs: dict[int, float], *, chunk_cost: float = 0.0, seed: int = 1) -> None:
        super().__init__(plan, seed=seed)
        self.costs, self.chunk_cost = costs, chunk_cost

    def true_us(self, point: Point) -> float:
        if point.op is Op.COMPUTE:
            return 4000.0
        if point.op in (Op.LAYER, Op.LAYER_TRAINING):
            return 9000.0
        if point.op is Op.SERIAL:
            return SERIAL_US
        if point.op is Op.OVERLAPPED:
            dispatch, combine = split_pair(point)
            odd = self.chunk_cost * ((dispatch["nvl_chunk"] != 12) + (combine["nvl_chunk"] != 12))
            is_slow = self.rng.random() < 0.5
            return 4200.0 * (1 + self.costs[combine["num_sms"]] + odd) * (1 + BISTABLE * is_slow)
        return super().true_us(point)


@functools.cache
def plan_of(**changes: int) -> Plan:
    plan = make_plan(sms=[16, 32, 64], chunks=[8, 12], **changes)
    search = msgspec.structs.replace(plan.spec.search, overlapped=True)
    return msgspec.structs.replace(plan, spec=msgspec.structs.replace(plan.spec, search=search))


def finals(machine: Machine) -> list[Record]:
    return [record for record in machine.run() if record.stage is Stage.FINAL]


def num_passes(records: list[Record], num_sms: int) -> int:
    """The passes of the pairs with this num_sms, the most of any of them."""
    labels = Counter(
        record.point.label
        for record in records
        if record.point.op is Op.OVERLAPPED and split_pair(record.point)[0]["num_sms"] == num_sms
    )
    return max(labels.values())


@given(st.integers(2, 12))
def test_every_pass_follows_one_group_and_the_groups_share_them_evenly(groups: int) -> None:
    plan = plan_of(final_groups=groups)
    owned = [list(passes.of_group(plan, group)) for group in range(groups)]
    assert sorted(number for numbers in owned for number in numbers) == list(range(passes.PASSES))
    assert max(map(len, owned)) - min(map(len, owned)) <= 1


def test_the_passes_of_a_group_run_in_its_processes_and_the_groups_are_spread_over_the_run() -> None:
    records = finals(Overlapped(plan_of(), {16: 0.0, 20: 0.3, 32: 0.3, 64: 0.3}))
    num_groups = plan_of().spec.search.final_groups
    by_group = {group: [one.round for one in records if one.group == group] for group in range(num_groups)}
    for group, rounds in by_group.items():
        expected = {group, *(num_groups + number for number in passes.of_group(plan_of(), group))}
        assert expected <= set(rounds)
        assert rounds[0] == group
    places = [records.index(next(one for one in records if one.round == group)) for group in range(num_groups)]
    assert places[-1] > len(records) / 3


def test_pairs_that_are_told_apart_get_no_further_passes_and_others_get_more_up_to_the_limit() -> None:
    clear = finals(Overlapped(plan_of(), {16: 0.0, 20: 0.6, 32: 0.6, 64: 0.6}, chunk_cost=0.5))
    assert {one.round for one in clear if one.point.op is Op.OVERLAPPED} == set(range(5, 5 + passes.PASSES))
    machine = Overlapped(plan_of(), {16: 0.0, 20: 0.6, 32: 0.0, 64: 0.6})
    close = finals(machine)
    assert num_passes(close, 16) == num_passes(close, 32) > passes.PASSES
    assert num_passes(close, 64) == passes.PASSES
    assert num_passes(close, 16) <= passes.MOST_PASSES


def test_the_time_of_the_passes_is_limited() -> None:
    plan, machine = plan_of(), Overlapped(plan_of(), {16: 0.0, 20: 0.0, 32: 0.0, 64: 0.0})
    swept = machine.sweep()
    slow = [msgspec.structs.replace(one, wall_s=passes.MORE_S / 20) for one in machine.final(swept)]
    first = plan.spec.search.final_groups + passes.PASSES + passes.LAYER_PASSES
    one_pass = [one for one in slow if one.round <= first]
    assert final.incomplete(plan, Arms(swept), one_pass)
    assert not final.incomplete(plan, Arms(swept), [one for one in slow if one.round <= first + 20])


def test_a_run_that_was_stopped_after_any_record_goes_on_to_the_same_end() -> None:
    plan, machine = plan_of(), Overlapped(plan_of(), {16: 0.0, 20: 0.6, 32: 0.6, 64: 0.6})
    swept = machine.sweep()
    records, arms = machine.final(swept), Arms(swept)
    assert not final.incomplete(plan, arms, records)
    for count in range(0, len(records), 37):
        left = final.incomplete(plan, arms, records[:count])
        assert left, count
        assert left[0][0] in {one.round for one in records[count:]}


def test_all_chunks_of_the_finalists_are_tried_overlapped_where_the_pairs_are_fastest() -> None:
    plan = plan_of()
    machine = Overlapped(plan, {16: 0.0, 20: 0.6, 32: 0.6, 64: 0.6}, chunk_cost=0.3)
    for cell in plan.cells:
        machine.truth[cell.point.label] = 200.0
    swept = machine.sweep()
    chosen = [cell.point for cell in racing.finalists(plan, Arms(swept)) if cell.point.knobs["num_sms"] == 16]
    dispatches, combines = ([one.knobs for one in chosen if one.op is op] for op in (Op.DISPATCH, Op.COMBINE))
    pairs = [split_pair(one.point) for one in machine.final(swept) if one.point.op is Op.OVERLAPPED]
    assert all((dispatch, combine) in pairs for dispatch in dispatches for combine in combines)
    assert len(dispatches) * len(combines) > 1


def test_every_pair_is_also_measured_serially_in_enough_of_the_same_passes_of_several_groups() -> None:
    plan, machine = plan_of(), Overlapped(plan_of(), {16: 0.0, 20: 0.1, 32: 0.0, 64: 0.6})
    records = machine.run()
    planned = [one for one in records if one.round < plan.spec.search.final_groups + passes.PASSES]
    serial, overlapped = (
        {(tuple(one.point.knobs.items()), one.round, one.group) for one in planned if one.point.op is op}
        for op in (Op.SERIAL, Op.OVERLAPPED)
    )
    assert serial <= overlapped
    by_pair = Counter(knobs for knobs, *_ in serial)
    assert by_pair.keys() == {knobs for knobs, *_ in overlapped}
    assert min(by_pair.values()) >= MIN_GROUPS
    assert len({group for *_, group in serial}) == plan.spec.search.final_groups
    choice = choose_config(plan, records)
    for overlap in choice.overlaps:
        assert overlap.is_serial_measured
        assert overlap.serial_us == pytest.approx(SERIAL_US, rel=0.02)


@pytest.mark.parametrize(("cost", "is_open"), [(0.0, False), (0.1, False), (0.03, True)])
def test_a_pair_is_settled_when_it_is_slower_or_surely_close(cost: float, *, is_open: bool) -> None:
    chance = np.random.default_rng(7)
    noise = 0.002 if cost != 0.03 else 0.06
    times = {
        label: dict(enumerate(value * np.exp(chance.normal(0, noise, 12))))
        for label, value in (("a", 1.0), ("b", 1 + cost))
    }
    assert bool(passes.unresolved(times)) == is_open
