"""The search and the final of several libraries: each is raced against its own default only."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.records import Measured, Op, Record, Role, Stage
from launcher.config import planning
from launcher.config.plan import FINALISTS_PER_GROUP, Plan
from launcher.tuner import final, racing, shard
from launcher.tuner.racing import Arms
from tests.builders import spec
from tests.tuner.machine import Machine

NAMES = ["deepep", "deepep_v2", "nccl_ep"]
PAIR = (Op.DISPATCH, Op.COMBINE)
GRID = (
    "grid.num_sms={deepep:[20,32,64],deepep_v2:[8,16,32],nccl_ep:[8,16]}",
    "grid.nvl_chunk=[4,8,12,16]",
    "grid.tokens_per_chunk=[64]",
)


@functools.cache
def plan_of(*overrides: str) -> Plan:
    """DeepEP V1, V2 and NCCL EP on four H200s."""
    return planning.make(spec("workload=small", f"backend=[{','.join(NAMES)}]", *GRID, *overrides))


@functools.cache
def swept() -> tuple[Record, ...]:
    """A simulated sweep of them."""
    return tuple(Machine(plan_of()).sweep())


def scaled(records: tuple[Record, ...], factors: Mapping[str, float]) -> list[Record]:
    """The records with the times of each library multiplied by its factor."""
    changed = []
    for record in records:
        assert isinstance(record.outcome, Measured)
        samples = [factors.get(record.point.backend, 1.0) * sample for sample in record.outcome.samples_us]
        outcome = msgspec.structs.replace(record.outcome, samples_us=samples)
        changed.append(msgspec.structs.replace(record, outcome=outcome))
    return changed


def test_a_race_is_of_one_library_operation_and_value_of_its_shared_knobs() -> None:
    plan = plan_of()
    races = racing.races(plan, [*plan.anchors, *plan.cells])
    assert sum(map(len, races.values())) == len(plan.anchors) + len(plan.cells)
    for race, cells in races.items():
        for cell in cells:
            shared = ("num_sms", "tokens_per_chunk") if race.backend == "nccl_ep" else ("num_sms",)
            assert (cell.point.backend, cell.point.op) == (race.backend, race.op)
            assert tuple(cell.point.knobs[name] for name in shared) == race.shared


factors = st.fixed_dictionaries({name: st.floats(0.05, 20.0) for name in NAMES})


@given(factors, st.floats(0, 1))
def test_a_library_that_is_slower_as_a_whole_is_searched_alike(scales: dict[str, float], part: float) -> None:
    plan, records = plan_of(), swept()
    cut = round(part * len(records))
    before, now = Arms(records[:cut]), Arms(scaled(records[:cut], scales))
    assert racing.next_round(plan, plan.shard(0), now) == racing.next_round(plan, plan.shard(0), before)
    assert racing.finalists(plan, now) == racing.finalists(plan, before)


@given(st.sampled_from(NAMES))
def test_the_records_of_other_libraries_change_no_decision_about_a_library(name: str) -> None:
    own = [record for record in swept() if record.point.backend == name]
    expected = [cell for cell in racing.finalists(plan_of(), Arms(swept())) if cell.point.backend == name]
    assert racing.finalists(plan_of().of(name), Arms(own)) == expected


def test_the_sweep_measures_the_defaults_of_all_libraries_around_the_points_of_any() -> None:
    plan = plan_of()
    tasks = list(shard.in_order(plan, [*plan.baselines, *plan.cells], 0))
    anchors = [anchor.point for anchor in plan.anchors]
    assert [(point.backend, point.op) for point in anchors] == [(name, op) for name in NAMES for op in PAIR]
    for ends in (tasks[: len(anchors)], tasks[-len(anchors) :]):
        assert [task.point for task in ends] == anchors
    for task in tasks:
        assert [reference.point for reference in task.references] == ([] if task.role is Role.ANCHOR else anchors)


def test_every_library_reaches_the_final_with_its_best_of_each_race_and_every_default() -> None:
    plan, arms = plan_of(), Arms(swept())
    finalists = racing.finalists(plan, arms)
    points = [finalist.point for finalist in finalists] + [anchor.point for anchor in plan.anchors]
    for race, cells in racing.races(plan, [*plan.anchors, *plan.cells]).items():
        best = racing.sort_by_level(cells, arms)[0][1]
        assert best.point in points
        present = [cell for cell in cells if cell in finalists]
        assert len(present) <= FINALISTS_PER_GROUP + (race.backend in ("deepep", "deepep_v2"))  # and those by name
    engines = [finalist.point for finalist in finalists if finalist.role is Role.DEFAULT]
    assert sorted((point.backend, point.op, point.knobs["num_sms"]) for point in engines) == [
        ("deepep_v2", Op.COMBINE, 64),
        ("deepep_v2", Op.DISPATCH, 64),
    ]


def test_the_final_measures_plain_collectives_and_every_dispatch_as_a_full_dispatch_too() -> None:
    plan, arms = plan_of(), Arms(swept())
    schedule = final.contestants(plan, arms)
    points = schedule.finalists
    assert [baseline.point for baseline in plan.baselines if baseline.point not in points] == []
    dispatches = [point for point in points if point.op is Op.DISPATCH] + [
        anchor.point for anchor in plan.anchors if anchor.point.op is Op.DISPATCH
    ]
    full = [msgspec.structs.replace(point, op=Op.DISPATCH_FULL) for point in dispatches]
    assert sorted(point.label for point in points if point.op is Op.DISPATCH_FULL) == sorted(one.label for one in full)
    assert {point.backend for point in full} == {*NAMES, "alltoall", "allgather"}
    assert {point.backend for point in schedule.overlapped} == {*NAMES}


def test_each_library_is_overlapped_with_the_same_gemms_once_for_each_value_of_its_shared_knobs_and_its_default() -> (
    None
):
    plan, arms = plan_of(), Arms(swept())
    schedule = final.contestants(plan, arms)
    assert [point.op for point in schedule.gemms] == [Op.COMPUTE]
    for name in NAMES:
        alone = final.contestants(plan.of(name), arms)
        assert alone.overlapped == [point for point in schedule.overlapped if point.backend == name]
        races = racing.races(plan, [*plan.of(name).anchors, *plan.of(name).cells])
        values = {race.shared for race in races if race.op is Op.DISPATCH} & {
            race.shared for race in races if race.op is Op.COMBINE
        }
        assert len(values) <= len(alone.overlapped) <= len(values) + 1


@pytest.mark.parametrize("name", NAMES)
def test_a_library_without_records_leaves_the_final_to_the_others(name: str) -> None:
    left = [record for record in swept() if record.point.backend != name]
    finalists = racing.finalists(plan_of(), Arms(left))
    expected = [cell for cell in racing.finalists(plan_of(), Arms(swept())) if cell.point.backend != name]
    assert [cell for cell in finalists if cell.role is not Role.DEFAULT] == [
        cell for cell in expected if cell.role is not Role.DEFAULT
    ]


def test_a_simulated_final_has_every_point_in_every_group() -> None:
    plan = plan_of("search.overlapped=false")
    records = [record for record in Machine(plan).run() if record.stage is Stage.FINAL]
    counts: dict[str, set[int]] = {}
    for record in records:
        counts.setdefault(record.point.label, set()).add(record.group)
    assert {len(groups) for groups in counts.values()} == {plan.spec.search.final_groups}
    assert {record.point.backend for record in records} == {*NAMES, "alltoall", "allgather"}
