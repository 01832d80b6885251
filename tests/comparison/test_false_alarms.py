"""Simulated runs: how often a comparison of equal ones raises an alarm, and whether it finds a slower point."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from scipy import stats as scipy_stats

from bench.between import SAME_GPUS
from bench.records import Stage
from bench.stats import Interval, median_interval, paired_ratio_interval
from launcher.comparison.compare import compare
from launcher.comparison.run import ComparedRun
from tests.comparison.runs import as_compared_run, label, measurement, run

NUM_PAIRS = 300
NUM_FINAL, NUM_SWEPT, NUM_EITHER = 16, 24, 4
NUM_POINTS = NUM_FINAL + NUM_EITHER + NUM_SWEPT
TEMPLATE = as_compared_run(run(*(measurement(chunk, 200.0) for chunk in range(NUM_POINTS))))
DEPLOYED = {label(0), label(1)}


class Machine:
    """Measures points of 200 us. Process groups, points and runs scatter, runs by ``between`` (0.01 is 1 %)."""

    def __init__(self, seed: int, *, between: float) -> None:
        self.rng = np.random.default_rng(seed)
        self.scatter = 0.003 * np.exp(self.rng.normal(0, 0.5, NUM_FINAL + NUM_EITHER))
        self.between = between

    def run(self, *, swept: int, times: dict[int, float]) -> ComparedRun:
        """A run with these times by chunk; ``swept`` (0 or 1) selects the chunks that only its sweep measured."""
        measured = {}
        for chunk in range(NUM_POINTS):
            median_us = times.get(chunk, 200.0) * math.exp(self.rng.normal(0, self.between))
            is_final = chunk < NUM_FINAL or (chunk < NUM_FINAL + NUM_EITHER and chunk % 2 != swept)
            numbers = self.final(chunk, median_us) if is_final else self.sweep(median_us)
            measured[label(chunk)] = msgspec.structs.replace(TEMPLATE.measured[label(chunk)], **numbers)
        return TEMPLATE._replace(measured=measured, optimal=DEPLOYED)

    def final(self, chunk: int, median_us: float) -> dict[str, object]:
        groups = median_us * np.exp(self.rng.normal(0, self.scatter[chunk], 5))
        return rounded(float(np.exp(np.log(groups).mean())), paired_ratio_interval(groups, np.ones(5)), Stage.FINAL)

    def sweep(self, median_us: float) -> dict[str, object]:
        samples = median_us * np.exp(self.rng.normal(0, 0.003) + self.rng.normal(0, 0.006, 48))
        return rounded(float(np.median(samples)), median_interval(samples), Stage.SWEEP)


def rounded(median_us: float, ci95: Interval, stage: Stage) -> dict[str, object]:
    ends = round(ci95.low, 2), round(ci95.high, 2)
    return {"median_us": round(median_us, 2), "ci95_us": ends, "stage": stage, "num_samples": 48}


@pytest.mark.slow
@pytest.mark.parametrize("tolerance", [0.0, 0.005, 0.01, 0.02])
@pytest.mark.parametrize("between", [0.0023, 0.0035])
def test_runs_that_differ_by_the_tolerance_raise_a_false_alarm_in_at_most_5_percent(
    tolerance: float, between: float
) -> None:
    truth = dict.fromkeys(range(NUM_POINTS), 200.0 * (1 + tolerance))
    alarms = 0
    for seed in range(NUM_PAIRS):
        machine = Machine(seed, between=between)
        before, after = machine.run(swept=0, times={}), machine.run(swept=1, times=truth)
        comparison = compare(before, after, tolerance=tolerance)
        assert comparison.same_gpus
        alarms += "slower" in comparison.counts or (tolerance == 0 and "faster" in comparison.counts)
    assert alarms <= 0.05 * NUM_PAIRS


@pytest.mark.slow
def test_the_interval_of_a_ratio_contains_the_truth_where_runs_scatter_as_published_ones_do() -> None:
    covered = []
    for seed in range(100):
        machine = Machine(seed, between=SAME_GPUS.time)
        rows = compare(machine.run(swept=0, times={}), machine.run(swept=1, times={}), tolerance=0.0).points
        covered += [row.ci95.low <= 1 <= row.ci95.high for row in rows if row.ci95 is not None]
    assert len(covered) == 100 * NUM_POINTS
    assert 0.945 < np.mean(covered) < 0.98


@pytest.mark.slow
def test_a_final_point_that_is_5_percent_slower_is_found_and_nothing_else() -> None:
    exact, num_pairs = 0, 100
    for seed in range(num_pairs):
        machine = Machine(seed, between=SAME_GPUS.time)
        machine.scatter[7] = 0.003
        before, after = machine.run(swept=0, times={}), machine.run(swept=1, times={7: 210.0})
        comparison = compare(before, after, tolerance=0.02)
        assert label(7) in comparison.worse, seed
        exact += comparison.worse == [label(7)]
    assert exact >= scipy_stats.binom.ppf(0.001, num_pairs, 0.95)


@pytest.mark.slow
def test_a_slower_point_of_the_deployed_pair_is_found_more_often_than_another_one() -> None:
    found = {0: 0, 7: 0}
    for seed in range(100):
        for chunk in found:
            machine = Machine(seed, between=SAME_GPUS.time)
            machine.scatter[[0, 7]] = 0.003
            after = machine.run(swept=1, times={chunk: 207.0})
            found[chunk] += label(chunk) in compare(machine.run(swept=0, times={}), after, tolerance=0.02).worse
    assert found[0] > found[7] + 10
