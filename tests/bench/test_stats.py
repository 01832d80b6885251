"""Statistics against theory, simulation and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from bench.stats import (
    centre,
    holm,
    log_median_errors,
    median_interval,
    paired_ratio_interval,
    paired_slower_p,
    spread,
)

times = st.lists(st.floats(1.0, 1e6), min_size=1, max_size=60)


@given(times, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_interval_contains_the_median_and_lies_within_the_samples(samples: list[float], confidence: float) -> None:
    interval = median_interval(samples, confidence=confidence)
    assert min(samples) <= interval.low <= np.median(samples) <= interval.high <= max(samples)


@given(times, st.randoms())
def test_the_interval_does_not_depend_on_the_order_of_the_samples(samples: list[float], chance: object) -> None:
    shuffled = list(samples)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert median_interval(shuffled) == median_interval(samples)


groups = st.lists(st.floats(1.0, 1e3), min_size=5, max_size=9)


@given(groups, st.floats(0.1, 10.0))
def test_the_centre_lies_within_the_values_and_scales_with_them(values: list[float], factor: float) -> None:
    middle = centre(values)
    assert min(values) * (1 - 1e-9) <= middle <= max(values) * (1 + 1e-9)
    assert centre([factor * value for value in values]) == pytest.approx(factor * middle)


@given(groups, st.integers(0, 4), st.floats(1e-6, 1e9))
def test_one_value_cannot_move_the_centre_beyond_the_others(values: list[float], index: int, burst: float) -> None:
    others = values[:index] + values[index + 1 :]
    moved = centre([*others, burst])
    assert min(others) * (1 - 1e-9) <= moved <= max(others) * (1 + 1e-9)


def test_the_centre_is_the_hodges_lehmann_estimator_of_the_logs() -> None:
    logs = np.random.default_rng(3).normal(size=7)
    pairs = [(logs[i] + logs[j]) / 2 for i in range(7) for j in range(i, 7)]
    assert centre(np.exp(logs)) == pytest.approx(np.exp(np.median(pairs)))


@pytest.mark.parametrize("count", [6, 10, 30, 31, 60, 200])
def test_the_interval_is_the_tightest_pair_of_order_statistics_with_95_percent(count: int) -> None:
    interval = median_interval(list(range(count)))
    low = int(interval.low)
    assert interval.high == count - 1 - low
    assert 1 - 2 * scipy_stats.binom.cdf(low, count, 0.5) >= 0.95
    assert 1 - 2 * scipy_stats.binom.cdf(low + 1, count, 0.5) < 0.95


@pytest.mark.parametrize("count", [1, 2, 5])
def test_with_too_few_samples_the_interval_is_their_full_range(count: int) -> None:
    interval = median_interval(list(range(count)))
    assert (interval.low, interval.high) == (0, count - 1)


def test_of_30_samples_the_interval_spans_the_10th_to_the_21st() -> None:
    interval = median_interval(list(range(1, 31)))
    assert (interval.low, interval.high) == (10, 21)


@pytest.mark.parametrize("count", [10, 30])
def test_the_interval_covers_the_true_median_as_often_as_theory_predicts(count: int) -> None:
    trials = 4000
    draws = np.random.default_rng(7).exponential(size=(trials, count))
    intervals = [median_interval(row) for row in draws]
    covered = np.mean([one.low <= np.log(2) <= one.high for one in intervals])
    rank = int(median_interval(list(range(count))).low)
    theory = 1 - 2 * scipy_stats.binom.cdf(rank, count, 0.5)
    assert covered == pytest.approx(theory, abs=4 * np.sqrt(theory * (1 - theory) / trials))


def test_the_spread_is_the_interquartile_range_over_the_median() -> None:
    samples = [float(value) for value in range(1, 102)]
    assert spread(samples) == pytest.approx(scipy_stats.iqr(samples) / 51)
    assert spread([5.0, 5.0, 5.0]) == 0.0
    assert spread([0.0, 0.0]) == 0.0


@given(times, st.floats(0.1, 10))
def test_the_spread_has_no_unit(samples: list[float], factor: float) -> None:
    assert spread([factor * value for value in samples]) == pytest.approx(spread(samples), abs=1e-9)


def test_the_paired_interval_covers_as_often_as_stated():
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


def test_holm_rejects_the_same_hypotheses_as_the_step_down_procedure():
    assert holm([0.001, 0.04, 0.03, 0.2], alpha=0.05).tolist() == [True, False, False, False]
    assert holm([0.001, 0.012, 0.02, 0.03], alpha=0.05).tolist() == [True, True, True, True]
    assert holm([0.5], alpha=0.05).tolist() == [False]


def test_the_error_of_a_log_median_agrees_with_theory():
    rng = np.random.default_rng(5)
    samples = np.exp(rng.normal(0, 0.01, (300, 15)))
    theory = 0.01 * np.sqrt(np.pi / 2 / 15)
    assert np.median(log_median_errors(samples.tolist())) == pytest.approx(theory, rel=0.25)
