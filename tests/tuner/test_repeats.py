"""What a repeat measures."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from bench.records import Measured, Op, Record, Role
from launcher.tuner import repeats
from launcher.tuner.racing import Arms
from tests.builders import failed
from tests.tuner.machine import Machine, choose_config, make_plan


@pytest.mark.parametrize("seed", range(5))
def test_a_repeat_measures_few_configs_and_among_them_those_of_the_headline(seed: int) -> None:
    plan = make_plan(sms=range(8, 72, 4), chunks=(4, 8, 12, 16), seed=seed, candidates=[[68, 16, 256]])
    machine = Machine(plan, seed=seed, default_factor=1.1)
    swept = machine.sweep()
    records = machine.final(swept)
    points = repeats.choose(plan, Arms(swept), records)
    labels = {point.label for point in points} | {anchor.point.label for anchor in plan.anchors}
    choice = choose_config(plan, swept + records)
    for pair in (choice.default, choice.optimal, choice.rival):
        assert pair is not None
        assert pair.full is not None
        assert {pair.dispatch.point.label, pair.combine.point.label, pair.full.point.label} <= labels
    candidates = {cell.point.label for cell in plan.cells if cell.role is Role.CANDIDATE}
    assert candidates <= labels
    finalists = {record.point.label for record in records}
    assert labels <= finalists
    assert len(labels) < 0.5 * len(finalists)
    assert {point.op for point in points} == {Op.DISPATCH, Op.DISPATCH_FULL, Op.COMBINE}


def test_the_fastest_of_the_final_are_measured_again_also_where_the_sweep_liked_others() -> None:
    plan = make_plan(sms=range(8, 72, 4), chunks=(4, 8, 12, 16))
    machine = Machine(plan)
    swept = machine.sweep()

    def final_of(fast_sms: int) -> list[Record]:
        return [
            replace(one, outcome=Measured([us / 30 for us in one.outcome.samples_us], []))
            if isinstance(one.outcome, Measured) and one.point.knobs.get("num_sms") == fast_sms
            else one
            for one in records
        ]

    records = machine.final(swept)
    for sms in (8, 40):
        chosen = repeats.choose(plan, Arms(swept), final_of(sms))
        others = repeats.choose(plan, Arms(swept), records)
        assert sms in {point.knobs["num_sms"] for point in chosen}
        assert sms not in {point.knobs["num_sms"] for point in others}


def test_a_config_that_failed_in_the_final_is_not_measured_again() -> None:
    plan = make_plan(sms=(16, 24), chunks=(8, 12))
    machine = Machine(plan)
    swept = machine.sweep()
    records = machine.final(swept)
    before = {point.label for point in repeats.choose(plan, Arms(swept), records)}
    first = next(one for one in records if one.point.label in before and one.point.op is Op.DISPATCH_FULL)
    broken = [*records, replace(first, outcome=failed())]
    assert {point.label for point in repeats.choose(plan, Arms(swept), broken)} == before - {first.point.label}
