"""The finalists and the points of the final."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import msgspec
import pytest

from bench.backends import split_pair
from bench.records import FailureKind, Measured, Op, Record, Role, Stage
from launcher.analysis.choice import choose
from launcher.analysis.control import control_of
from launcher.analysis.pairs import buffer_bytes
from launcher.analysis.scatter import scatter_of
from launcher.config.plan import FINAL, Plan, Planned
from launcher.store.table import in_measured_order, record_table
from launcher.tuner import final, racing
from launcher.tuner.racing import Arms
from tests.builders import deepep_plan, failed, noisy, record, spec
from tests.tuner.machine import NOISE, REPETITION_NOISE, Machine, choose_config, judge, make_plan


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
        assert (measured[default], measured[candidate], measured[fastest[1]]) == (
            4 * groups,
            groups,
            groups,
        )  # its control too


def test_the_smallest_buffer_of_every_finalist_reaches_the_final_and_wins_where_it_costs_nothing() -> None:
    picked: Counter[int] = Counter()
    for seed in range(8):
        plan = make_plan(sms=[20, 64], chunks=[8, 12], buffers=[128, 256, 512], seed=seed)
        machine = Machine(plan, seed=seed)
        for cell in plan.cells:
            machine.truth[cell.point.label] = 200.0 * (1 + cell.point.knobs["nvl_chunk"] / 100)
        records = machine.run()
        chosen = racing.finalists(plan, Arms(one for one in records if one.stage is Stage.SWEEP))
        for race, cells in racing.races(plan, chosen).items():
            assert 128 in {cell.point.knobs["nvl_buffer"] for cell in cells}, race
        optimal = choose_config(plan, records).optimal
        assert optimal is not None
        picked += Counter(one.point.knobs["nvl_buffer"] for one in (optimal.dispatch, optimal.combine))
    assert picked[128] >= 12, picked  # noise of a group hides the tie now and then


def test_a_buffer_beyond_the_limit_is_no_pick_of_a_run_that_measured_it() -> None:
    plan = make_plan(sms=[20, 64], chunks=[8, 12], buffers=[128, 512], max_buffer_mib=None)
    machine = Machine(plan)
    for cell in plan.cells:
        machine.truth[cell.point.label] = 100.0 if cell.point.knobs["nvl_buffer"] == 512 else 200.0
    records = machine.run()
    sizes = [buffer_bytes(plan, pair) or 0 for pair in choose_config(plan, records).best_per_shared]
    search = msgspec.structs.replace(plan.spec.search, max_buffer_mib=(max(sizes) - 1) / 2**20)
    limited = msgspec.structs.replace(plan, spec=msgspec.structs.replace(plan.spec, search=search))
    for pair in choose_config(limited, records).picks.values():
        assert (buffer_bytes(limited, pair) or 0) < max(sizes)


def test_the_objective_of_a_forward_pass_counts_the_full_dispatch() -> None:
    plan = make_plan(sms=[20, 64], chunks=[8, 12], objective="forward")
    machine = Machine(plan)
    records = machine.run()
    choice = choose_config(plan, records)
    assert choice.optimal is not None
    assert choice.optimal.full is not None
    assert choice.optimal.score == choice.optimal.full.relative + choice.optimal.combine.relative
    assert choice.verdict is not None
    assert choice.verdict.ratio == choice.verdict.forward
    cached = choose_config(make_plan(sms=[20, 64], chunks=[8, 12]), records).verdict
    assert cached is not None
    assert cached.forward == choice.verdict.ratio != cached.ratio


def final_records(plan: Plan, times: Mapping[int, list[float]], role: Role = Role.GRID) -> list[Record]:
    """One config's repetitions in the groups of a final, by group."""
    point = next(cell for cell in plan.cells if cell.point.op is Op.COMBINE)
    return [
        record(point, samples, stage=Stage.FINAL, round=number, role=role, sequence=number, shard=FINAL)
        for number, samples in times.items()
    ]


@pytest.mark.parametrize(
    ("last", "is_off"),
    [(noisy(100.0), False), (noisy(101.9), False), (noisy(103.0), True), (noisy(97.0), True)],
)
def test_a_repetition_that_is_away_from_the_other_groups_is_measured_again_in_its_group(
    last: list[float], *, is_off: bool
) -> None:
    plan = make_plan(sms=[20, 64], chunks=[8, 12])
    times = {0: noisy(100.0), 1: noisy(100.2), 2: last}
    again = final.off(final_records(plan, times), 2, num_groups=plan.spec.search.final_groups)
    assert [(task.role, task.round) for task in again] == ([(Role.AGAIN, 2)] if is_off else [])
    assert final.off(final_records(plan, times), 1, num_groups=plan.spec.search.final_groups) == []
    steady = final_records(plan, {2: noisy(100.1)}, Role.AGAIN)
    assert final.off([*final_records(plan, times), *steady], 2, num_groups=plan.spec.search.final_groups) == []


def test_a_repetition_whose_samples_scatter_is_measured_again_also_in_the_first_group() -> None:
    plan = make_plan(sms=[20, 64], chunks=[8, 12])
    burst = [100.0] * 10 + [160.0] * 20
    assert len(final.off(final_records(plan, {0: burst}), 0, num_groups=plan.spec.search.final_groups)) == 1
    assert final.off(final_records(plan, {0: noisy(100.0)}), 0, num_groups=plan.spec.search.final_groups) == []


def test_a_burst_that_was_measured_again_does_not_move_the_time_and_its_samples_are_kept() -> None:
    plan = make_plan(sms=[20, 64], chunks=[8, 12])
    times = {number: noisy(100.0) for number in range(4)} | {4: noisy(130.0)}
    records = final_records(plan, times)
    (alone,), _ = judge(plan, records)
    assert alone.median_us == pytest.approx(100.0, rel=0.01)  # robust, but its interval shows the burst
    assert alone.ci95_us.high > 110
    again = final_records(plan, {4: noisy(100.2)}, Role.AGAIN)
    (measurement,), _ = judge(plan, [*records, *(msgspec.structs.replace(one, sequence=9) for one in again)])
    assert measurement.by_round[4] == pytest.approx(100.2, rel=0.01)
    assert measurement.ci95_us.high < 101
    assert len(measurement.samples) == 6 * len(noisy(100.0))
    thrice = [msgspec.structs.replace(one, sequence=10) for one in final_records(plan, {4: noisy(100.3)}, Role.AGAIN)]
    (measurement,), _ = judge(plan, [*records, *again, *thrice])
    assert measurement.by_round[4] == pytest.approx(100.3, rel=0.01)


def test_the_scatter_of_a_final_is_that_of_its_iterations_and_of_its_groups() -> None:
    plan = make_plan(sms=[20, 32, 48, 64], chunks=[4, 8, 12, 16])
    scatter = scatter_of(judge(plan, Machine(plan).run())[0])
    assert scatter is not None
    assert scatter.iterations == pytest.approx(NOISE, rel=0.4)
    assert scatter.groups > REPETITION_NOISE / 2


def test_each_group_measures_the_default_once_more_as_its_control_and_the_two_agree() -> None:
    plan = make_plan(sms=[20, 64], chunks=[8, 12])
    records = Machine(plan).run()
    for number in range(plan.spec.search.final_groups):
        controls = [one.point for one in records if (one.role, one.round) == (Role.CONTROL, number)]
        assert sorted(point.label for point in controls) == sorted(anchor.point.label for anchor in plan.anchors)
    control = control_of(plan, in_measured_order(record_table(records)))
    assert control is not None
    assert control.groups == plan.spec.search.final_groups
    assert control.ratio == pytest.approx(1.0, abs=0.01)
    assert control.ci95.low < control.ratio < control.ci95.high


def test_a_control_in_a_burst_is_measured_again_as_a_control_and_does_not_widen_its_interval() -> None:
    plan = make_plan(sms=[20, 64], chunks=[8, 12])
    records = [
        one if (one.role, one.round) != (Role.CONTROL, 2) else msgspec.structs.replace(one, outcome=burst(one))
        for one in Machine(plan).run()
    ]
    num_groups = plan.spec.search.final_groups
    again = [task for task in final.off(records, 2, num_groups=num_groups) if task.role is Role.CONTROL]
    assert sorted(task.point.label for task in again) == sorted(anchor.point.label for anchor in plan.anchors)
    moved = control_of(plan, in_measured_order(record_table(records)))
    quiet = [one for one in Machine(plan).run() if (one.role, one.round) == (Role.CONTROL, 2)]
    control = control_of(plan, in_measured_order(record_table([*records, *quiet])))
    assert moved is not None
    assert control is not None
    assert moved.ci95.high > 1.1
    assert control.ci95.high < 1.02


def burst(record: Record) -> Measured:
    """The same, every sample half as slow again."""
    assert isinstance(record.outcome, Measured)
    samples = [1.5 * sample for sample in record.outcome.samples_us]
    return msgspec.structs.replace(record.outcome, samples_us=samples)


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
