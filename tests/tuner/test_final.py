"""The finalists and the points of the final."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest

from bench.backends import split_pair
from bench.records import FailureKind, Op, Role, Stage
from launcher.analysis.choice import choose
from launcher.config.plan import Planned
from launcher.tuner import final, racing
from launcher.tuner.racing import Arms
from tests.builders import deepep_plan, failed, record, spec
from tests.tuner.machine import Machine, judge, make_plan


def test_the_default_candidates_and_the_best_of_the_library_s_tuner_always_reach_the_final() -> None:
    plan = make_plan(sms=[24, 64], chunks=[8, 10], buffers=[512], candidates=[[64, 2, 256]], own_tuning=True)
    machine = Machine(plan)
    slow = {cell.point.label for cell in [*plan.anchors, *plan.cells] if cell.role is not Role.GRID}
    machine.truth |= {label: 3 * machine.truth[label] for label in slow}
    records = machine.run()
    measured = Counter(one.point.label for one in records if one.stage is Stage.FINAL)
    groups = plan.spec.search.final_groups
    for op in (Op.DISPATCH, Op.COMBINE):
        fastest = min(
            (machine.truth[planned.point.label], planned.point.label)
            for planned in plan.upstream(op)
            if planned.role is Role.UPSTREAM
        )
        (default,) = (one.point.label for one in plan.anchors if one.point.op is op)
        (candidate,) = (one.point.label for one in plan.cells if one.role is Role.CANDIDATE and one.point.op is op)
        assert (measured[default], measured[candidate], measured[fastest[1]]) == (3 * groups, groups, groups)


def test_the_full_dispatch_is_measured_in_every_group_of_the_final_for_every_finalist_and_the_default() -> None:
    plan = make_plan(sms=[16, 64], chunks=[8, 12])
    machine = Machine(plan)
    results, _ = judge(plan, machine.run())
    full_dispatches = {one.point.label: one for one in results if one.point.op is Op.DISPATCH_FULL}
    cached = [one for one in results if one.point.op is Op.DISPATCH and one.stage is Stage.FINAL]
    assert plan.anchors[0].point in [one.point for one in cached]
    assert len(cached) == len(full_dispatches) >= 3
    for measurement in cached:
        full = full_dispatches[msgspec.structs.replace(measurement.point, op=Op.DISPATCH_FULL).label]
        assert list(full.by_round) == list(measurement.by_round) == list(range(plan.spec.search.final_groups))
        assert full.median_us == pytest.approx(machine.true_us(full.point), rel=0.1)
    optimal = choose(plan, results).optimal
    assert optimal is not None
    assert optimal.full in full_dispatches.values()


@pytest.mark.parametrize("kind", list(FailureKind))
def test_a_config_that_failed_in_any_round_of_the_sweep_is_neither_a_finalist_nor_a_result(kind: FailureKind) -> None:
    plan = make_plan(sms=[24, 64], chunks=[8, 10], candidates=[[24, 4, 256]], own_tuning=True)
    swept = Machine(plan).sweep()
    arms = Arms(swept)
    for cell in racing.finalists(plan, arms):
        wrong = msgspec.structs.replace(
            swept[-1], point=cell.point, point_id=cell.id, role=cell.role, outcome=failed(kind)
        )
        records = [*swept, wrong]
        assert cell not in racing.finalists(plan, Arms(records))
        assert cell.point not in [one.point for one in judge(plan, records)[0]]


def test_a_default_that_gave_a_wrong_token_is_not_overlapped_as_the_best_of_its_num_sms() -> None:
    plan = make_plan(sms=[20], chunks=[8, 12])
    plan = msgspec.structs.replace(
        plan, spec=msgspec.structs.replace(plan.spec, search=msgspec.structs.replace(plan.spec.search, overlapped=True))
    )
    swept = Machine(plan, default_factor=0.5).sweep()
    anchor = next(one for one in swept if one.role is Role.ANCHOR)
    wrong = msgspec.structs.replace(anchor, outcome=failed(FailureKind.INCORRECT))
    assert len(final.contestants(plan, Arms(swept)).overlapped) == 1
    assert len(final.contestants(plan, Arms([*swept, wrong])).overlapped) == 2


def test_a_round_whose_anchor_failed_does_not_decide_who_reaches_the_final() -> None:
    plan = make_plan(sms=[64], chunks=[4, 8, 16, 24], method="exhaustive", rounds=3)
    swept = Machine(plan).sweep()
    expected = racing.finalists(plan, Arms(swept))
    for op in (Op.DISPATCH, Op.COMBINE):
        lost = [one for one in swept if (one.role, one.round, one.point.op) != (Role.ANCHOR, 2, op)]
        best = next(one for one in expected if one.point.op is op)
        absent = [one for one in lost if (one.point_id, one.round) != (best.id, 2)]  # the others have bare times
        assert racing.finalists(plan, Arms(lost)) == expected
        assert racing.finalists(plan, Arms(absent)) == expected
        worst = [one for one in lost if one.round < 2 or one.point_id == best.id or one.role is Role.ANCHOR]
        assert racing.finalists(plan, Arms(worst)) == expected


def test_a_shard_without_any_anchor_is_measured_by_those_of_the_others_and_a_run_without_by_time() -> None:
    plan = make_plan(sms=[64], chunks=[4, 10, 24], num_shards=2, method="exhaustive")
    machine = Machine(plan)
    swept = machine.sweep()
    best = {
        op: min((machine.truth[c.point.label], c.id) for c in plan.cells if c.point.op is op)[1]
        for op in (Op.DISPATCH, Op.COMBINE)
    }
    for without in ([0], [1], [0, 1]):
        left = [one for one in swept if one.role is not Role.ANCHOR or one.shard not in without]
        assert {cell.id for cell in racing.finalists(plan, Arms(left))} == set(best.values())


def test_ranks_that_replace_failed_ones_in_the_final_measure_the_references_of_the_round() -> None:
    plan = deepep_plan(search=spec("workload=small").search)
    programme = final.contestants(plan, Arms(Machine(plan).sweep()))
    for number, points in programme.rounds(plan):
        in_group = number < plan.spec.search.final_groups
        expected = [one.point for one in plan.anchors] if in_group else programme.gemms
        for task in final.in_order(plan, points, number):
            assert (task.stage, task.round) == (Stage.FINAL, number)
            if task.role is Role.ANCHOR or task.point.op is Op.COMPUTE:
                assert task.references == ()
            else:
                assert [one.point for one in task.references] == expected
                assert {(one.stage, one.round) for one in task.references} == {(Stage.FINAL, number)}


def test_layers_are_of_the_pairs_that_the_groups_find_fastest_once_all_groups_are_complete() -> None:
    plan = make_plan(sms=[24, 32, 64], chunks=[4, 8, 16])
    search = msgspec.structs.replace(plan.spec.search, overlapped=True)
    plan = msgspec.structs.replace(plan, spec=msgspec.structs.replace(plan.spec, search=search))
    arms = Arms(Machine(plan).sweep())
    schedule = final.contestants(plan, arms)
    swept = [split_pair(point) for point in schedule.layers]
    dispatches, combines = (
        [point for point in schedule.finalists if (point.op, point.backend) == (op, plan.backend)]
        for op in (Op.DISPATCH, Op.COMBINE)
    )
    winner = next(
        {Op.DISPATCH: dispatch, Op.COMBINE: combine}
        for dispatch in dispatches
        for combine in combines
        if dispatch.knobs["num_sms"] == combine.knobs["num_sms"] and (dispatch.knobs, combine.knobs) not in swept
    )
    points = [*(anchor.point for anchor in plan.anchors), *schedule.finalists]
    records = [
        record(
            Planned(point, point.label, Role.GRID),
            [10.0 if point in winner.values() else 500.0] * 5,
            stage=Stage.FINAL,
            round=number,
        )
        for number in range(search.final_groups)
        for point in points
    ]
    pairs = [split_pair(point) for point in final.contestants(plan, arms, records).layers]
    assert (winner[Op.DISPATCH].knobs, winner[Op.COMBINE].knobs) in pairs
    assert final.contestants(plan, arms, records[:-1]).layers == schedule.layers
    assert (plan.anchors[0].point.knobs, plan.anchors[1].point.knobs) in pairs
