"""The tuner against machines whose best config is known: their noise is simulated, the tuner is not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from builders import ENVIRONMENT, HOST, SELF_CHECK, deepep_plan, failed, record, spec
from scipy import stats as scipy_stats

from bench.backends import BACKENDS, join_pair
from bench.records import Dtype, FailureKind, Line, Measured, Op, Point, Record, Role, Stage
from bench.stats import UNSTABLE_SPREAD, holm, log_median_errors, paired_ratio_interval, paired_slower_p
from bench.supervisor import Task
from launcher.analysis.choice import Choice, choose
from launcher.analysis.measurements import Failure, Measurement, evaluate
from launcher.analysis.pairs import Pair
from launcher.analysis.verdict import MARGIN
from launcher.config import plan as planning
from launcher.config.plan import FINAL, Plan, point_id
from launcher.store.records_file import open_appender
from launcher.store.run_folder import RunFolder
from launcher.store.table import in_measured_order, record_table
from launcher.tuner import final, racing, shard
from launcher.tuner.racing import Arms

NODE_OFFSET = 0.015
DRIFT = 0.03
NOISE = 0.006
SPIKE_SHARE, SPIKE = 0.02, 1.5
VISIT_NOISE = 0.003
"""Of a config between visits of the sweep, and between process groups of the final, whatever its samples show."""

WHOLE_US = 60.0
"""What layout, notify and the wait on the CPU add to a dispatch."""


def make_plan(
    *,
    sms: Sequence[int],
    chunks: Sequence[int],
    num_shards: int = 1,
    seed: int = 1,
    buffers: Sequence[int] = (256,),
    **changes: Any,
) -> Plan:
    """DeepEP at EP=4 with this grid, nothing overlapped; ``changes`` are of ``search``."""
    base = spec("workload=small", "workload.num_tokens=256", "search.overlapped=false", "search.own_tuning=false")
    grid = {"num_sms": list(sms), "nvl_chunk": list(chunks), "nvl_buffer": list(buffers)}
    wanted = msgspec.structs.replace(base.search, **changes)
    return planning.make(msgspec.structs.replace(base, grid=grid, num_shards=num_shards, seed=seed, search=wanted))


class Machine:
    """A simulated cluster: every config has a true time, every observation is disturbed as real ones are."""

    def __init__(self, plan: Plan, *, seed: int = 1, default_factor: float | None = None) -> None:
        """``default_factor``: how much slower the default is than the best config; None: what its knobs say."""
        self.plan, self.rng = plan, np.random.default_rng(seed)
        self.truth: dict[str, float] = {}
        for op, base in ((Op.DISPATCH, 200.0), (Op.COMBINE, 215.0)):
            for cell in [*plan.anchors, *plan.cells]:
                if cell.point.op is op:
                    self.truth[cell.point.label] = base * self._factor(cell.point.knobs)
            for anchor in plan.anchors:
                if anchor.point.op is op and default_factor is not None:
                    least = min(t for label, t in self.truth.items() if f"/{op}/" in label)
                    self.truth[anchor.point.label] = least * default_factor
        self.clock = 0

    def _factor(self, knobs: dict[str, int]) -> float:
        sms, chunk = knobs["num_sms"], knobs["nvl_chunk"]
        shape = 1 + 0.9 * (64 / sms - 0.5) ** 2 / 4 + 0.25 * np.log(chunk / 10) ** 2
        return float(shape * (1 + self.rng.uniform(0, 0.02)))

    def true_us(self, point: Point) -> float:
        if point.op is Op.DISPATCH_FULL:
            return WHOLE_US + self.true_us(msgspec.structs.replace(point, op=Op.DISPATCH))
        return self.truth[point.label]

    def measure(self, tasks: Sequence[Task], *, shard_index: int, node: float, group: int) -> list[Record]:
        """The records of some tasks in a row, in one process group."""
        labels = {task.point.label: at for at, task in enumerate(tasks)}
        noise = self.rng.normal(0, VISIT_NOISE, len(tasks))
        if shard_index == FINAL:
            noise = noise[[labels[task.point.label] for task in tasks]]
        clock = self.clock + np.arange(len(tasks))
        drift = DRIFT * np.sin(clock / 400 + shard_index)
        levels = np.array([self.true_us(task.point) for task in tasks]) * np.exp(node + drift + noise)
        counts = [task.iterations or self.plan.spec.measure.iterations for task in tasks]
        shape = (len(tasks), max(counts))
        spikes = np.where(self.rng.random(shape) < SPIKE_SHARE, SPIKE, 1.0)
        samples = (levels[:, None] * np.exp(self.rng.normal(0, NOISE, shape)) * spikes).round(3).tolist()
        first, self.clock = self.clock, self.clock + len(tasks)
        return [
            Record(
                point=task.point,
                point_id=task.point_id,
                outcome=Measured(samples[at][: counts[at]], []),
                environment="",
                started=float(first + at),
                wall_s=0.0,
                role=task.role,
                stage=task.stage,
                round=task.round,
                sequence=first + at,
                group=group,
                shard=shard_index,
            )
            for at, task in enumerate(tasks)
        ]

    def sweep(self) -> list[Record]:
        """Shards round by round: the program's own decisions, fed with simulated times."""
        records: list[Record] = []
        for index in range(self.plan.spec.num_shards):
            arms, node = Arms(), self.rng.normal(0, NODE_OFFSET)
            while wanted := racing.next_round(self.plan, self.plan.shard(index), arms):
                number, cells = wanted
                tasks = list(shard.in_order(self.plan, cells, number))
                for one in self.measure(tasks, shard_index=index, node=node, group=0):
                    records.append(one)
                    arms.add(one)
        return records

    def final(self, swept: Iterable[Record]) -> list[Record]:
        """Each group in the program's own order."""
        node, records = self.rng.normal(0, NODE_OFFSET), []
        for number, points in final.contestants(self.plan, Arms(swept)).rounds(self.plan):
            tasks = final.in_order(self.plan, points, number)
            records += self.measure(tasks, shard_index=FINAL, node=node, group=number)
        return records

    def run(self) -> list[Record]:
        swept = self.sweep()
        return swept + self.final(swept)

    def round_trip(self, pair: Pair) -> float:
        return self.truth[pair.dispatch.point.label] + self.truth[pair.combine.point.label]

    def best(self) -> float:
        by_sms: dict[int, dict[Op, float]] = {}
        for cell in [*self.plan.anchors, *self.plan.cells]:
            ops = by_sms.setdefault(cell.point.knobs["num_sms"], {})
            ops[cell.point.op] = min(ops.get(cell.point.op, np.inf), self.truth[cell.point.label])
        return min(sum(ops.values()) for ops in by_sms.values() if len(ops) == 2)


def judged(plan: Plan, records: Sequence[Record]) -> tuple[list[Measurement], list[Failure]]:
    return evaluate(plan, in_measured_order(record_table(records)), [[1] * plan.spec.ep.size] * plan.spec.ep.size)


def chosen(plan: Plan, records: Sequence[Record]) -> Choice:
    return choose(plan, judged(plan, records)[0])


class Tuned(NamedTuple):
    """A simulated sweep, and what came of it."""

    machine: Machine
    choice: Choice

    def regret_of(self, pair: Pair) -> float:
        """How much slower it truly is than the best there is."""
        return self.machine.round_trip(pair) / self.machine.best() - 1

    @property
    def covers(self) -> bool:
        truth = self.machine.round_trip(self.choice.default) / self.machine.round_trip(self.choice.optimal)
        return self.choice.verdict.ci95.low <= truth <= self.choice.verdict.ci95.high


def tuned(seed: int, *, default_factor: float, **grid: Any) -> Tuned:
    plan = make_plan(seed=seed, **grid)
    machine = Machine(plan, seed=seed, default_factor=default_factor)
    return Tuned(machine, chosen(plan, machine.run()))


SMALL = {"sms": [20, 48, 64, 128], "chunks": [4, 8, 12, 16, 24]}


def test_the_fastest_of_620_configs_is_found_within_a_twentieth_of_a_percent_on_average():
    """Nodes, hours, spikes and processes differ; the pair that breaks a tie costs next to nothing."""
    grid = {"sms": [16, 24, 32, 40, 48, 64, 80, 96, 112, 128], "chunks": list(range(2, 64, 2)), "num_shards": 4}
    runs = [tuned(seed, default_factor=2.0, **grid) for seed in range(12)]
    assert len(runs[0].machine.plan.cells) == 620
    assert [one.choice.verdict.kind for one in runs] == ["tuned"] * len(runs)
    assert np.mean([one.regret_of(one.choice.tied[0]) for one in runs]) <= 0.0005
    assert np.mean([one.regret_of(one.choice.optimal) for one in runs]) <= 0.0005


@pytest.fixture(scope="module")
def at_the_margin() -> list[Tuned]:
    """Sweeps of machines whose default is exactly as much slower as the verdict forgives."""
    return [tuned(seed, default_factor=1 + MARGIN, **SMALL) for seed in range(100, 500)]


def test_the_verdicts_interval_covers_the_true_ratio_as_often_as_it_says(at_the_margin: list[Tuned]):
    """Of 400 intervals that cover 88 %, 93 % or more hold the truth once in a thousand times."""
    assert np.mean([one.covers for one in at_the_margin]) >= 0.93


def test_a_default_within_the_margin_is_called_worse_in_at_most_a_twentieth_of_the_sweeps(at_the_margin: list[Tuned]):
    assert np.mean([one.choice.verdict.kind == "tuned" for one in at_the_margin]) <= 0.05


def test_a_default_that_is_optimal_is_not_called_worse():
    kinds = Counter(tuned(seed, default_factor=1.0, **SMALL).choice.verdict.kind for seed in range(500, 600))
    assert kinds["tuned"] == 0
    assert kinds["default_is_optimal"] >= 95


def test_the_paired_interval_covers_as_it_says():
    rng = np.random.default_rng(7)
    truth, hits = 1.4, 0
    for _ in range(2000):
        group = rng.normal(0, 0.02, 5)
        slow = truth * np.exp(group + rng.normal(0, 0.005, 5))
        fast = np.exp(group + rng.normal(0, 0.005, 5))
        interval = paired_ratio_interval(slow, fast)
        hits += interval.low <= truth <= interval.high
    assert 0.94 <= hits / 2000 <= 0.96


def test_the_paired_test_is_students():
    rng = np.random.default_rng(3)
    values, reference = np.exp(rng.normal(0.01, 0.02, 8)), np.exp(rng.normal(0, 0.02, 8))
    expected = scipy_stats.ttest_rel(np.log(values), np.log(reference), alternative="greater").pvalue
    assert paired_slower_p(values, reference) == pytest.approx(expected)


def test_holm_rejects_what_the_step_down_procedure_rejects():
    assert holm([0.001, 0.04, 0.03, 0.2], alpha=0.05).tolist() == [True, False, False, False]
    assert holm([0.001, 0.012, 0.02, 0.03], alpha=0.05).tolist() == [True, True, True, True]
    assert holm([0.5], alpha=0.05).tolist() == [False]


def test_the_error_of_a_log_median_is_that_of_theory():
    rng = np.random.default_rng(5)
    samples = np.exp(rng.normal(0, 0.01, (300, 15)))
    theory = 0.01 * np.sqrt(np.pi / 2 / 15)
    assert np.median(log_median_errors(samples.tolist())) == pytest.approx(theory, rel=0.25)


def test_racing_visits_at_most_a_third_of_what_exhaustive_visits():
    visits = {}
    for method in ("racing", "exhaustive"):
        plan = make_plan(sms=[16, 24, 48, 128], chunks=list(range(2, 32, 2)), method=method)
        machine = Machine(plan, seed=1, default_factor=2.0)
        visits[method] = sum(r.stage is Stage.SWEEP and r.role is Role.GRID for r in machine.run())
    assert visits["racing"] <= visits["exhaustive"] / 3


def test_a_search_that_is_cut_anywhere_goes_on_where_it_was():
    plan = make_plan(sms=[16, 24], chunks=[4, 8, 12])
    records = [r for r in Machine(plan, seed=4, default_factor=2.0).run() if r.stage is Stage.SWEEP]
    for cut in range(0, len(records), 7):
        wanted = racing.next_round(plan, plan.shard(0), Arms(records[:cut]))
        number, cells = wanted or (0, [])
        assert cells or all(record.role is Role.ANCHOR for record in records[cut:])
        seen = {(r.point_id, r.round) for r in records[:cut]}
        assert not any((cell.id, number) in seen for cell in cells)
    assert racing.next_round(plan, plan.shard(0), Arms(records)) is None


OF_EACH_OBJECTIVE: list[tuple[str | dict[str, float], int]] = [
    ("dispatch", 64),
    ("combine", 16),
    ("round_trip", 32),
    ("training", 32),
    ({"dispatch": 6, "combine": 1}, 64),
    ({"dispatch": 1, "combine": 6}, 16),
    ({"dispatch": 1}, 64),
    ({"combine": 0.5}, 16),
]


@pytest.mark.parametrize(("objective", "num_sms"), OF_EACH_OBJECTIVE)
def test_each_objective_has_its_own_answer_with_one_num_sms_for_both(
    objective: str | dict[str, float], num_sms: int
) -> None:
    plan = make_plan(sms=[16, 32, 64], chunks=[8, 12], objective=objective)
    machine = Machine(plan)
    for cell in plan.cells:
        distance = {Op.DISPATCH: 64 / cell.point.knobs["num_sms"], Op.COMBINE: cell.point.knobs["num_sms"] / 16}
        machine.truth[cell.point.label] = 200 + 20 * distance[cell.point.op] + 3 * (cell.point.knobs["nvl_chunk"] == 12)
    optimal = chosen(plan, machine.run()).optimal
    assert optimal is not None
    assert optimal.shared == {"num_sms": num_sms}
    assert [one.point.knobs["num_sms"] for one in (optimal.dispatch, optimal.combine)] == [num_sms] * 2


def test_default_candidates_and_the_librarys_own_best_reach_the_final_however_slow_they_are() -> None:
    plan = make_plan(sms=[24, 64], chunks=[8, 10], buffers=[512], candidates=[[64, 2, 256]], own_tuning=True)
    machine = Machine(plan)
    slow = {cell.point.label for cell in [*plan.anchors, *plan.cells] if cell.role is not Role.GRID}
    machine.truth |= {label: 3 * machine.truth[label] for label in slow}
    records = machine.run()
    measured = Counter(one.point.label for one in records if one.stage is Stage.FINAL)
    groups = plan.spec.search.final_groups
    for op in (Op.DISPATCH, Op.COMBINE):
        own = min(
            (machine.truth[one.point.label], one.point.label) for one in plan.upstream(op) if one.role is Role.UPSTREAM
        )
        (default,) = (one.point.label for one in plan.anchors if one.point.op is op)
        (candidate,) = (one.point.label for one in plan.cells if one.role is Role.CANDIDATE and one.point.op is op)
        assert (measured[default], measured[candidate], measured[own[1]]) == (3 * groups, groups, groups)


def test_the_whole_dispatch_is_measured_in_every_group_of_the_final_for_every_finalist_and_the_default() -> None:
    plan = make_plan(sms=[16, 64], chunks=[8, 12])
    machine = Machine(plan)
    results, _ = judged(plan, machine.run())
    whole = {one.point.label: one for one in results if one.point.op is Op.DISPATCH_FULL}
    cached = [one for one in results if one.point.op is Op.DISPATCH and one.stage is Stage.FINAL]
    assert plan.anchors[0].point in [one.point for one in cached]
    assert len(cached) == len(whole) >= 3
    for one in cached:
        full = whole[msgspec.structs.replace(one.point, op=Op.DISPATCH_FULL).label]
        assert list(full.by_round) == list(one.by_round) == list(range(plan.spec.search.final_groups))
        assert full.median_us == pytest.approx(machine.true_us(full.point), rel=0.1)
    optimal = choose(plan, results).optimal
    assert optimal is not None
    assert optimal.full in whole.values()


@pytest.mark.parametrize("stage", list(Stage))
def test_samples_that_scatter_more_than_the_limit_make_a_result_unstable(stage: Stage) -> None:
    plan = make_plan(sms=[16], chunks=[8, 12], final_groups=0 if stage is Stage.SWEEP else 5)
    spreads = dict(zip((one.id for one in plan.cells), (0.5, 0.9, 1.1, 2.0), strict=True))
    records = [
        record(cell, (100 * (1 + UNSTABLE_SPREAD * spreads[cell.id] * np.linspace(-1, 1, 9))).tolist(), stage=stage)
        for cell in plan.cells
    ]
    results, _ = judged(plan, records)
    assert {point_id(plan.spec, one.point): one.unstable for one in results} == {
        name: spread > 1 for name, spread in spreads.items()
    }


def failing(records: Sequence[Record], point: Point, kind: FailureKind, *, round_number: int) -> list[Record]:
    """The same records, except that the final's of one point and round are failures."""

    def is_it(one: Record) -> bool:
        return one.stage is Stage.FINAL and one.round == round_number and one.point == point

    assert any(map(is_it, records))
    return [msgspec.structs.replace(one, outcome=failed(kind)) if is_it(one) else one for one in records]


@pytest.mark.parametrize("kind", list(FailureKind))
def test_the_fastest_that_fails_once_in_the_final_has_no_result_and_the_next_one_wins(kind: FailureKind) -> None:
    plan = make_plan(sms=[16, 64], chunks=[8, 12])
    records = Machine(plan).run()
    best = chosen(plan, records).optimal
    assert best is not None
    results, failures = judged(plan, failing(records, best.dispatch.point, kind, round_number=1))
    assert best.dispatch.point not in [one.point for one in results]
    assert [(one.point, one.kind) for one in failures] == [(best.dispatch.point, kind)]
    second = choose(plan, results).optimal
    assert second is not None
    assert second.dispatch.point != best.dispatch.point


def test_a_config_whose_whole_dispatch_gives_a_wrong_token_is_incorrect_itself() -> None:
    plan = make_plan(sms=[16, 64], chunks=[8, 12])
    records = Machine(plan).run()
    best = chosen(plan, records).optimal
    assert best is not None
    assert best.full is not None
    wrong = failing(records, best.full.point, FailureKind.INCORRECT, round_number=2)
    results, failures = judged(plan, wrong)
    assert not {best.dispatch.point.key, best.full.point.key} & {one.point.key for one in results}
    assert [(one.point, one.kind) for one in failures] == [
        (best.full.point, "incorrect"),
        (best.dispatch.point, "incorrect"),
    ]
    assert failures[1].message == f"in {best.full.point.label}: no answer within 20 s from rank 1"


def test_a_pair_that_gives_a_wrong_token_beside_gemms_makes_both_its_configs_incorrect() -> None:
    plan = make_plan(sms=[16, 64], chunks=[8, 12])
    records = Machine(plan).run()
    dispatch, combine = (
        next(one.point for one in plan.cells if one.point.op is op) for op in (Op.DISPATCH, Op.COMBINE)
    )
    both = join_pair(
        BACKENDS["deepep"],
        Dtype.BF16,
        dispatch=dispatch.knobs,
        combine=combine.knobs | {"num_sms": dispatch.knobs["num_sms"]},
    )
    wrong = Record(both, both.label, failed(FailureKind.INCORRECT), "", 1e6, 0.0, stage=Stage.FINAL, shard=FINAL)
    results, failures = judged(plan, [*records, wrong])
    ruled_out = [one.point for one in failures]
    assert ruled_out[:2] == [both, dispatch]
    assert ruled_out[2].op is Op.COMBINE
    assert not {one.key for one in ruled_out} & {one.point.key for one in results}


@pytest.mark.parametrize("kind", list(FailureKind))
def test_what_failed_in_any_round_of_the_sweep_is_neither_a_finalist_nor_a_result(kind: FailureKind) -> None:
    plan = make_plan(sms=[24, 64], chunks=[8, 10], candidates=[[24, 4, 256]], own_tuning=True)
    swept = Machine(plan).sweep()
    arms = Arms(swept)
    for cell in racing.finalists(plan, arms):
        wrong = msgspec.structs.replace(
            swept[-1], point=cell.point, point_id=cell.id, role=cell.role, outcome=failed(kind)
        )
        records = [*swept, wrong]
        assert cell not in racing.finalists(plan, Arms(records))
        assert cell.point not in [one.point for one in judged(plan, records)[0]]


def test_a_default_that_gave_a_wrong_token_is_not_paired_beside_gemms_as_the_best_of_its_num_sms() -> None:
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
        absent = [one for one in lost if (one.point_id, one.round) != (best.id, 2)]  # only the others have a bare time
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


def test_ranks_that_replace_failed_ones_in_the_final_measure_what_the_round_is_judged_by() -> None:
    plan = deepep_plan(search=spec("workload=small").search)
    programme = final.contestants(plan, Arms(Machine(plan).sweep()))
    for number, points in programme.rounds(plan):
        in_group = number < plan.spec.search.final_groups
        expected = [one.point for one in plan.anchors] if in_group else programme.compute
        for task in final.in_order(plan, points, number):
            assert (task.stage, task.round) == (Stage.FINAL, number)
            if task.role is Role.ANCHOR or task.point.op is Op.COMPUTE:
                assert task.references == ()
            else:
                assert [one.point for one in task.references] == expected
                assert {(one.stage, one.round) for one in task.references} == {(Stage.FINAL, number)}


def test_the_budget_is_spent_by_earlier_attempts_too_but_not_by_the_time_between_them() -> None:
    plan = make_plan(sms=[16], chunks=[8], budget_s=100.0)
    cell = plan.cells[0]

    def attempt(began: float) -> list[Line]:
        """20 s: 9 s of start-up, 6 s of self test, two visits of 2 s with 1 s between them."""
        visits = [record(cell, [1.0], started=began + after, wall_s=2.0) for after in (15.0, 18.0)]
        return [ENVIRONMENT, msgspec.structs.replace(HOST, started=began, startup_s=9.0), SELF_CHECK, *visits]

    once, twice = attempt(1000.0), [*attempt(1000.0), *attempt(90_000.0)]
    never_measured = [*once, msgspec.structs.replace(HOST, started=90_000.0, startup_s=9.0)]
    assert [shard.left_s(plan, lines, share=0.6) for lines in ([], once, twice, never_measured)] == [60, 40, 20, 31]
    unlimited = make_plan(sms=[16], chunks=[8])
    assert shard.left_s(unlimited, twice, share=0.6) == math.inf


@pytest.mark.parametrize("index", [0, FINAL])
def test_what_has_spent_its_budget_measures_nothing_when_it_is_run_again(tmp_path: Path, index: int) -> None:
    plan = make_plan(sms=[16], chunks=[8, 12], budget_s=10.0)
    folder = RunFolder.create(plan, outputs=tmp_path, path=None, command=[])
    with open_appender(folder, 0) as appender:
        for line in [msgspec.structs.replace(HOST, startup_s=9.0), *Machine(plan).sweep()[:9]]:
            appender.add(line)
    with open_appender(folder, FINAL) as appender:
        appender.add(msgspec.structs.replace(HOST, startup_s=9.0, shard=FINAL))
    before = folder.records_file(index).read_bytes()
    assert not (final.run(folder) if index == FINAL else shard.run(folder, 0))
    assert folder.records_file(index).read_bytes() == before
