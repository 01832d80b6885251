"""The best pair overlapped with GEMMs, and the confidence in it."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from scipy import stats as scipy_stats

from bench.records import Op
from bench.stats import Interval, paired_ratio_interval
from launcher.analysis import overlap
from launcher.store.records_file import read_records
from launcher.store.run_folder import RunFolder
from launcher.store.table import OPS
from launcher.tuner import passes
from tests.analysis.runs import choice_of, overlaps_of
from tests.published import Unpack


def test_the_pick_of_a_pass_is_made_by_the_others() -> None:
    lucky = {8: [900.0, 1100.0, 1100.0, 1100.0], 16: [1050.0, 1050.0, 1050.0, 1050.0]}
    assert choice_of(lucky).picks["overlapped"].shared == {"num_sms": 8}
    assert choice_of(lucky).overlap_held_out == {0: 1050.0, 1: 1100.0, 2: 1100.0, 3: 1100.0}


def test_without_a_true_difference_the_held_out_cost_is_none_on_average() -> None:
    chance = np.random.default_rng(2)
    costs = []
    for _ in range(100):
        passes = {sms: list(1000 * np.exp(chance.normal(0, 0.04, 9))) for sms in range(2, 34, 2)}
        held_out = overlap.held_out_overlap(overlaps_of(passes))
        costs.append(np.log(passes[32]).mean() - np.log(list(held_out.values())).mean())
    assert abs(np.mean(costs)) < 4 * np.std(costs) / 10


@pytest.mark.parametrize("name", ["h200x4-ep4-deepseek_v3-bf16", "h200x4-ep4-qwen3_30b_a3b-bf16"])
def test_the_interval_of_a_pair_covers_the_mean_when_observed_iterations_are_drawn_again(
    name: str, published: Unpack
) -> None:
    """Iterations take one of two times; passes have six."""
    table = read_records(RunFolder.open(published(name)))[0].table
    rows = table.rows[table.rows["op"] == OPS.index(Op.OVERLAPPED)]
    chance, covered = np.random.default_rng(3), []
    for number in np.unique(rows["point"]):
        iterations = table.samples_of(rows[rows["point"] == number])
        truth = np.log(chance.choice(iterations, (5000, 6)).mean(axis=1)).mean()
        for _ in range(40):
            passes_us = chance.choice(iterations, (passes.PASSES, 6)).mean(axis=1)
            interval = paired_ratio_interval(passes_us, np.ones(passes.PASSES), robust=False)
            covered.append(interval.low <= np.exp(truth) <= interval.high)
    assert np.mean(covered) >= 0.92  # 94 % of 4,000; three standard errors of 640 are 2.8 %


def test_a_pair_is_compared_with_its_own_sequence_in_the_same_passes() -> None:
    chance = np.random.default_rng(5)
    levels = np.exp(chance.normal(0, 0.1, 5))  # of the passes: they cancel
    (pair,) = overlaps_of({8: list(900.0 * levels * np.exp(chance.normal(0, 0.001, 5)))})
    assert pair.over_serial() == (pair.makespan_us / 1100, Interval(pair.ci95_us.low / 1100, pair.ci95_us.high / 1100))
    measured = msgspec.structs.replace(pair, serial_by_round=dict(enumerate(1000.0 * levels)))
    ratio, ci95 = measured.over_serial()
    assert ratio == pytest.approx(0.9, abs=0.002)
    assert ci95.low <= 0.9 <= ci95.high
    assert ci95.high - ci95.low <= 0.01
    assert (pair.is_serial_measured, measured.is_serial_measured) == (False, True)
    assert measured.serial_us == pytest.approx(1000 * float(np.exp(np.log(levels).mean())))


def test_two_passes_that_measured_both_are_too_few_for_a_sequence() -> None:
    (pair,) = overlaps_of({8: [900.0] * 5})
    few = msgspec.structs.replace(pair, serial_by_round={3: 1000.0, 4: 1000.0, 9: 1000.0})
    assert not few.is_serial_measured
    assert few.serial_us == 1100.0


def test_what_a_pair_may_cost_bounds_its_cost_over_the_truly_best_pair() -> None:
    chance, exceeded = np.random.default_rng(4), 0
    costs = {8: 0.0, 16: 0.02, 24: 0.05, 32: 0.0}
    for _ in range(300):
        times = {sms: list(1000 * (1 + cost) * np.exp(chance.normal(0, 0.03, 12))) for sms, cost in costs.items()}
        limits = {one.pair.shared["num_sms"]: one.may_cost for one in overlaps_of(times)}
        exceeded += any(limits[sms] < 1 + cost for sms, cost in costs.items())
    assert exceeded <= scipy_stats.binom.ppf(0.999, 300, 0.05)


def test_the_pick_is_the_one_with_the_fewest_sms_that_is_surely_close_to_the_fastest() -> None:
    steady = {8: [1015.0, 1014.0, 1016.0, 1015.0], 16: [1000.0, 1001.0, 999.0, 1000.0]}
    assert choice_of(steady).picks["overlapped"].shared == {"num_sms": 8}
    noisy = {8: [1100.0, 940.0, 1080.0, 920.0], 16: [1000.0, 1001.0, 999.0, 1000.0]}
    assert choice_of(noisy).picks["overlapped"].shared == {"num_sms": 16}
