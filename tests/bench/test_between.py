"""Components between runs against simulation, and the intervals that allow for them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from bench.between import (
    OTHER_GPUS,
    SAME_GPUS,
    THIS_RUN,
    another_run,
    between_runs,
    between_runs_limit,
    other_machine,
    pooled,
    widened,
)
from bench.stats import Floats, paired_ratio_interval

ERRORS = 0.001 * np.exp(np.random.default_rng(0).normal(0, 0.7, 60))
"""Standard errors of 60 changes, most of them between 0.05 and 0.2 %."""


def changes(component: float, rng: np.random.Generator) -> Floats:
    """Log (B / A) of configs to which each of two runs adds this component."""
    return rng.normal(0, np.sqrt(ERRORS**2 + 2 * component**2))


@pytest.mark.parametrize("component", [0.0, 0.0023, 0.006])
def test_the_component_of_simulated_runs_is_found_and_lies_below_its_limit(component: float) -> None:
    rng = np.random.default_rng(1)
    pairs = [changes(component, rng) for _ in range(200)]
    found = np.array([between_runs(pair, ERRORS) for pair in pairs])
    assert pooled(found) == pytest.approx(component, rel=0.03, abs=0.0003)
    below = sum(component <= between_runs_limit(pair, ERRORS) for pair in pairs)
    assert below >= scipy_stats.binom.ppf(0.001, len(pairs), 0.95)


def test_a_change_with_a_large_error_hardly_counts() -> None:
    one, errors = np.array([0.003, -0.003, 0.1]), np.array([0.001, 0.001, 0.1])
    assert between_runs(one, errors) == pytest.approx(between_runs(one[:2], errors[:2]), rel=0.05)


@given(st.floats(1e-6, 0.01), st.integers(2, 9), st.floats(0, 0.01))
def test_a_wider_error_has_the_degrees_of_freedom_of_its_uncertain_part(
    error: float, freedom: int, scatter: float
) -> None:
    (total,), (total_freedom,) = widened(np.array([error]), np.array([float(freedom)]), scatter=scatter)
    assert total == pytest.approx(math.hypot(error, scatter))
    assert total_freedom == pytest.approx(min(total**4 / (error**4 / freedom), 1e6), rel=1e-6)


def test_without_scatter_the_error_is_that_of_the_run() -> None:
    error, freedom = widened(np.array([0.0, 0.001]), np.array([4.0, 4.0]), scatter=THIS_RUN.time)
    assert (error.tolist(), freedom.tolist()) == ([0.0, 0.001], [4.0, 4.0])


@pytest.mark.parametrize("scatter", [0.0, 0.0018, 0.006])
def test_the_interval_of_another_run_contains_what_it_reports_in_95_percent(scatter: float) -> None:
    rng, inside, num_pairs = np.random.default_rng(2), 0, 2000
    for _ in range(num_pairs):
        runs = [400 * np.exp(rng.normal(0, scatter) + rng.normal(0, 0.002, 5)) for _ in range(2)]
        value, other = (float(np.exp(np.log(groups).mean())) for groups in runs)
        error = float(np.log(runs[0]).std(ddof=1)) / math.sqrt(5)
        interval = another_run(value, error=error, freedom=4, scatter=scatter)
        inside += interval.low <= other <= interval.high
    assert scipy_stats.binom.ppf(0.001, num_pairs, 0.94) <= inside <= scipy_stats.binom.ppf(0.999, num_pairs, 0.965)


def test_the_interval_of_another_run_contains_that_of_the_run() -> None:
    groups = np.array([2.32, 2.33, 2.31, 2.32, 2.325])
    own = paired_ratio_interval(groups, np.ones(5))
    value, error = float(np.exp(np.log(groups).mean())), float(np.log(groups).std(ddof=1)) / math.sqrt(5)
    for situation in (SAME_GPUS, OTHER_GPUS):
        interval = another_run(value, error=error, freedom=4, scatter=situation.ratio)
        assert interval.low < own.low < own.high < interval.high


def test_the_machine_adds_to_what_a_run_on_the_same_gpus_adds() -> None:
    assert other_machine(0.005, same_gpus=0.003) == pytest.approx(0.004)
    assert other_machine(0.002, same_gpus=0.003) == 0
    for same, other in zip(SAME_GPUS, OTHER_GPUS, strict=True):
        assert other_machine(other, same_gpus=same) > 0
