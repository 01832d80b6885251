"""What a repeat measures."""

from __future__ import annotations

import pytest

from bench.records import Failed, Op, Role, Stage
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


def test_a_config_that_failed_in_the_final_is_not_measured_again() -> None:
    plan = make_plan(sms=(16, 24), chunks=(8, 12))
    machine = Machine(plan)
    swept = machine.sweep()
    records = machine.final(swept)
    first = repeats.choose(plan, Arms(swept), records)[0]
    at = next(index for index, record in enumerate(records) if record.point.label == first.label)
    assert not isinstance(records[at].outcome, Failed)
    broken = [*records, type(records[at])(first, first.label, failed(), "", 0.0, 0.0, stage=Stage.FINAL)]
    assert first.label not in {point.label for point in repeats.choose(plan, Arms(swept), broken)}
