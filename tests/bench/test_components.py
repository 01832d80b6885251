"""Components of scatter, and means over runs, against simulations with known components."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from bench.components import Component, Estimate, Observed, component, components, mean_over_runs
from bench.stats import centre

ONE_MACHINE = [[5] + [2] * 12]
TWO_MACHINES = [[5] + [2] * 12, [2] * 12]
RAGGED = [[9, 9, 1], [8, 8], [7, 2, 7], [6]]
GROUP, RUN, MACHINE = 0.002, 0.0013, 0.0021


def observe(
    layout: Sequence[Sequence[int]], rng: np.random.Generator, *, machine: float = MACHINE, run: float = RUN
) -> Observed:
    """One config's logs on machines with runs of so many groups."""
    observed = []
    for groups in layout:
        level = rng.normal(0, machine)
        observed.append([(level + rng.normal(0, run) + rng.normal(0, GROUP, count)).tolist() for count in groups])
    return observed


@pytest.mark.parametrize("layout", [TWO_MACHINES, RAGGED], ids=["alike", "ragged"])
def test_the_components_are_estimated_without_bias(layout: list[list[int]]) -> None:
    rng, found = np.random.default_rng(1), []
    for _ in range(400):
        each = components([observe(layout, rng) for _ in range(5)])
        found.append([each.group.variance, each.run.variance, each.machine.variance])
    means, errors = np.mean(found, axis=0), np.std(found, axis=0) / math.sqrt(len(found))
    assert np.all(np.abs(means - np.square([GROUP, RUN, MACHINE])) <= 4 * errors)
    assert np.all(errors <= 0.1 * means)


def test_the_intervals_of_the_components_contain_them() -> None:
    rng, inside, count = np.random.default_rng(2), np.zeros(3), 400
    layout = [[3] * 4 for _ in range(6)]
    for _ in range(count):
        for at, (each, truth) in enumerate(zip(components([observe(layout, rng)]), (GROUP, RUN, MACHINE), strict=True)):
            assert each.interval is not None
            inside[at] += each.interval.low <= truth <= each.interval.high
    assert np.all(inside >= scipy_stats.binom.ppf(0.001, count, 0.94))


def test_what_nothing_shows_is_unknown() -> None:
    rng = np.random.default_rng(3)
    one_run = components([observe([[5]], rng)])
    assert (one_run.group.freedom, one_run.run.deviation, one_run.machine.deviation) == (4, None, None)
    one_machine = components([observe([[2, 2, 2]], rng)])
    assert (one_machine.run.freedom, one_machine.machine) == (2, Component(0.0, 0, None))
    assert components([]).group.deviation is None


def test_degrees_of_freedom_do_not_grow_with_configs_that_may_move_together() -> None:
    rng = np.random.default_rng(4)
    found = components([observe(TWO_MACHINES, rng) for _ in range(20)])
    assert (found.group.freedom, found.run.freedom, found.machine.freedom) == (28, 23, 1)


@settings(max_examples=30)
@given(st.integers(1, 30), st.floats(1e-6, 1.0))
def test_a_component_without_anything_below_has_the_interval_of_a_variance(freedom: int, square: float) -> None:
    found = component(square, freedom, below=0.0, below_freedom=1)
    assert found.interval is not None
    low, high = (square * freedom / scipy_stats.chi2.ppf(quantile, freedom) for quantile in (0.975, 0.025))
    assert found.interval.low == pytest.approx(math.sqrt(low))
    assert found.interval.high == pytest.approx(math.sqrt(high))


def test_with_equal_runs_the_mean_is_that_of_the_runs_and_its_error_that_of_their_scatter() -> None:
    rng = np.random.default_rng(5)
    observed = observe([[2] * 12], rng)
    own = components([observed])
    run = Estimate(math.sqrt(max(own.run.variance, 0)), own.run.freedom)
    mean = mean_over_runs(observed, run=run, machine=Estimate(0.0), groups=2)
    middles = [np.mean(groups) for groups in observed[0]]
    assert mean is not None
    assert own.run.variance > 0
    assert mean.log == pytest.approx(np.mean(middles))
    half = mean.interval.high - mean.log
    assert half == pytest.approx(scipy_stats.t.ppf(0.975, 11) * np.std(middles, ddof=1) / math.sqrt(12))


@pytest.mark.parametrize("layout", [[[5, 2]], [[5, 2, 2, 2]], ONE_MACHINE, TWO_MACHINES])
def test_both_intervals_cover_at_least_93_percent(layout: list[list[int]]) -> None:
    """Of another run's result, and of the mean of all runs on these machines."""
    rng, count = np.random.default_rng(6), 300
    this = another = 0
    for _ in range(count):
        fixed, elsewhere = observe(layout, rng, machine=0.0), observe(layout, rng)
        means = []
        for observed in (fixed, elsewhere):
            own = components([observed]).run
            run = Estimate(own.deviation, own.freedom) if own.deviation is not None and own.freedom >= 8 else None
            means.append(mean_over_runs(observed, run=run or Estimate(RUN), machine=Estimate(MACHINE), groups=5))
        assert means[0] is not None
        assert means[1] is not None
        groups = rng.normal(0, MACHINE) + rng.normal(0, RUN) + rng.normal(0, GROUP, 5)
        this += means[0].interval.low <= 0 <= means[0].interval.high
        another += means[1].another.low <= math.log(centre(np.exp(groups))) <= means[1].another.high
    least = scipy_stats.binom.ppf(0.001, count, 0.94)
    assert min(this, another) >= least
    assert min(this, another) <= scipy_stats.binom.ppf(0.9999, count, 0.97)
