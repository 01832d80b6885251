"""The tuner against machines whose best config is known: their noise is simulated, the tuner is not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from bench.records import Measured, Op, Record, Role, Stage
from bench.stats import holm, log_median_errors, paired_ratio_interval, paired_slower_p
from launcher import final, search, shard
from launcher import plan as planning
from launcher.choose import choose
from launcher.judge import judge
from launcher.plan import FINAL, Plan, Planned
from launcher.search import Arms
from launcher.visits import visits
from tests.builders import spec


def make_plan(*, sms: list[int], chunks: list[int], num_shards: int = 1, seed: int = 1, method: str = "racing") -> Plan:
    """DeepEP at EP=4 with this grid, nothing overlapped."""
    base = spec(
        f"grid.num_sms={sms}",
        f"grid.nvl_chunk={chunks}",
        "grid.nvl_buffer=[256]",
        f"shard.count={num_shards}",
        f"seed={seed}",
        f"search={method}",
        "search.overlapped=false",
        "search.own_tuning=false",
        "workload=small",
        "workload.num_tokens=256",
    )
    return planning.make(base)


NODE_OFFSET = 0.015
DRIFT = 0.03
NOISE = 0.006
SPIKE_SHARE, SPIKE = 0.02, 1.5
GROUP_NOISE = 0.003


class Machine:
    """A simulated cluster: every config has a true time, every observation is disturbed as real ones are."""

    def __init__(self, plan: Plan, *, seed: int, default_factor: float) -> None:
        self.plan, self.rng = plan, np.random.default_rng(seed)
        self.truth: dict[str, float] = {}
        for op, base in ((Op.DISPATCH, 200.0), (Op.COMBINE, 215.0)):
            for cell in [*plan.anchors, *plan.cells]:
                if cell.point.op is op:
                    self.truth[cell.point.label] = base * self._factor(cell.point.knobs)
            for anchor in plan.anchors:
                if anchor.point.op is op:
                    least = min(t for label, t in self.truth.items() if f"/{op}/" in label)
                    self.truth[anchor.point.label] = least * default_factor
        self.nodes: dict[int, float] = {}
        self.clock = 0.0

    def _factor(self, knobs: dict[str, int]) -> float:
        sms, chunk = knobs["num_sms"], knobs["nvl_chunk"]
        shape = 1 + 0.9 * (64 / sms - 0.5) ** 2 / 4 + 0.25 * np.log(chunk / 10) ** 2
        return float(shape * (1 + self.rng.uniform(0, 0.02)))

    def measure(
        self, planned: Planned, *, shard_index: int, stage: Stage, number: int, role: Role, count: int
    ) -> Record:
        node = self.nodes.setdefault(shard_index, self.rng.normal(0, NODE_OFFSET))
        self.clock += 1
        drift = DRIFT * np.sin(self.clock / 400 + shard_index)
        level = self.truth[planned.point.label] * np.exp(node + drift + self.rng.normal(0, GROUP_NOISE))
        samples = level * np.exp(self.rng.normal(0, NOISE, count))
        samples *= np.where(self.rng.random(count) < SPIKE_SHARE, SPIKE, 1.0)
        return Record(
            point=planned.point,
            point_id=planned.id,
            outcome=Measured(samples.round(3).tolist(), []),
            environment="",
            started=self.clock,
            wall_s=0.0,
            role=role,
            stage=stage,
            round=number,
            shard=shard_index,
        )

    def run(self) -> list[Record]:
        """Shards round by round, then the final: the program's own decisions, fed with simulated times."""
        records: list[Record] = []
        for index in range(self.plan.spec.num_shards):
            arms = Arms()
            while wanted := search.next_round(self.plan, self.plan.shard(index), arms):
                number, cells = wanted
                for task in shard.in_order(self.plan, cells, number):
                    count = task.iterations or self.plan.spec.measure.iterations
                    planned = Planned(task.point, task.point_id, task.role)
                    record = self.measure(
                        planned, shard_index=index, stage=Stage.SWEEP, number=number, role=task.role, count=count
                    )
                    records.append(record)
                    arms.add(record)
        chosen = {cell.point.label: cell for cell in search.finalists(self.plan, Arms(records))}
        programme = final.contestants(self.plan, Arms(records))
        for number, points in programme.rounds(self.plan):
            contestants = [chosen[p.label] for p in points if p.label in chosen] + 2 * self.plan.anchors
            for planned in contestants:
                role = Role.ANCHOR if planned in self.plan.anchors else Role.GRID
                records.append(
                    self.measure(planned, shard_index=FINAL, stage=Stage.FINAL, number=number, role=role, count=30)
                )
        return records

    def round_trip(self, pair) -> float:
        return self.truth[pair.dispatch.point.label] + self.truth[pair.combine.point.label]

    def best(self) -> float:
        by_sms: dict[int, dict[Op, float]] = {}
        for cell in [*self.plan.anchors, *self.plan.cells]:
            ops = by_sms.setdefault(cell.point.knobs["num_sms"], {})
            ops[cell.point.op] = min(ops.get(cell.point.op, np.inf), self.truth[cell.point.label])
        return min(sum(ops.values()) for ops in by_sms.values() if len(ops) == 2)


def tuned(seed: int, *, default_factor: float, num_shards: int = 4):
    plan = make_plan(sms=[16, 20, 24, 48, 64, 128], chunks=[4, 8, 12, 16, 24], num_shards=num_shards, seed=seed)
    machine = Machine(plan, seed=seed, default_factor=default_factor)
    results, _ = judge(plan, visits(machine.run()), [[1] * plan.spec.ep.size] * plan.spec.ep.size)
    return machine, choose(plan, results)


def test_the_chosen_config_is_the_best_within_a_twentieth_of_a_percent_on_average():
    regrets = []
    for seed in range(12):
        machine, choice = tuned(seed, default_factor=2.0)
        regrets.append(machine.round_trip(choice.optimal) / machine.best() - 1)
        assert choice.verdict.kind == "tuned"
    assert np.mean(regrets) <= 0.0005, regrets


def test_the_verdicts_interval_covers_the_true_ratio_at_its_nominal_rate():
    covered = []
    for seed in range(100, 140):
        machine, choice = tuned(seed, default_factor=1.3, num_shards=1)
        truth = machine.round_trip(choice.default) / machine.round_trip(choice.optimal)
        covered.append(choice.verdict.ci95.low <= truth <= choice.verdict.ci95.high)
    assert np.mean(covered) >= 0.85  # 34 of 40: below that 95 % coverage is refuted (binomial, p < 0.05)


def test_a_default_that_is_optimal_is_not_called_tuned():
    kinds = [tuned(seed, default_factor=1.0, num_shards=1)[1].verdict.kind for seed in range(200, 220)]
    assert kinds.count("tuned") == 0
    assert kinds.count("default_is_optimal") >= 18


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
        wanted = search.next_round(plan, plan.shard(0), Arms(records[:cut]))
        number, cells = wanted or (0, [])
        assert cells or all(record.role is Role.ANCHOR for record in records[cut:])
        seen = {(r.point_id, r.round) for r in records[:cut]}
        assert not any((cell.id, number) in seen for cell in cells)
    assert search.next_round(plan, plan.shard(0), Arms(records)) is None
