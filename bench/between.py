"""How much runs of the same sweep scatter beyond their own intervals, and intervals that allow for it; pure.

The groups of a final follow each other within a minute on the same GPUs, so the interval of a run cannot contain what
the whole run adds to a config: where its memory lies, the clocks of that day, the links of these GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize
from scipy import stats as scipy_stats

from bench.stats import ALPHA, Floats, Interval, paired_ratio

_LARGEST = 1.0
"""A component of more than this (a factor of e between runs) is not searched for."""

_KNOWN = 1e6
"""Degrees of freedom of an error that is known."""


class Scatter(NamedTuple):
    """Standard deviations that one run adds to a log result, rounded up: 0.01 is 1 %.

    ``time``: of a config's time, pooled over pairs of like runs. ``ratio``: of the ratio of two round trips of one run,
    in which what the run adds to all configs alike cancels. ``time_limit``: the upper limit of ``time`` in the noisiest
    pair of runs, for tests that promise few false alarms.
    """

    time: float
    ratio: float
    time_limit: float


THIS_RUN = Scatter(0.0, 0.0, 0.0)
"""The run itself: its own interval is enough."""

SAME_GPUS = Scatter(time=0.0018, ratio=0.0013, time_limit=0.0035)
"""Another run on the same GPUs, 3 to 9 minutes later: three pairs of published runs, 219 times in both finals."""

OTHER_GPUS = Scatter(time=0.0038, ratio=0.0025, time_limit=0.006)
"""A run on other GPUs of the kind, 18 minutes to 4 days later: five pairs of published runs, 286 times in both finals.

Both are estimated again by tests/comparison/test_like_runs.py, which finds the pairs.
"""


def other_machine(scatter: float, *, same_gpus: float) -> float:
    """The part of ``scatter`` that the machine adds to that of a run on the same GPUs; 0 where it adds nothing."""
    return float(np.sqrt(max(scatter**2 - same_gpus**2, 0.0)))


def between_runs(changes: Floats, errors: Floats) -> float:
    """Standard deviation that each of two like runs adds to a log result, estimated from one pair of them.

    ``changes``: log (B / A) of each config [configs]. ``errors``: their standard errors within the two runs, above 0.
    The component for which the mean of changes^2 / (errors^2 + 2 component^2) is 1, or 0 where the errors explain the
    changes [Paule and Mandel 1982, J. Res. NBS 87:377]; configs with a large error count little.
    """
    return _solve(changes, errors, target=len(changes))


def between_runs_limit(changes: Floats, errors: Floats) -> float:
    """The one-sided upper 95 % limit of ``between_runs``, by the Q profile [Viechtbauer 2007, Stat. Med. 26:37].

    It takes the configs as independent. A shift that a run gives to all of them makes the true limit larger.
    """
    return _solve(changes, errors, target=float(scipy_stats.chi2.ppf(ALPHA, len(changes))))


def _solve(changes: Floats, errors: Floats, *, target: float) -> float:
    def excess(component: float) -> float:
        return float(np.sum(changes**2 / (errors**2 + 2 * component**2))) - target

    return float(optimize.brentq(excess, 0.0, _LARGEST)) if excess(0.0) > 0 else 0.0


def pooled(components: Floats) -> float:
    """The root mean square of the components of several pairs of runs, each pair with the same weight."""
    return float(np.sqrt(np.mean(np.square(components))))


def widened(
    error: Floats, freedom: Floats, *, scatter: float, scatter_freedom: float = math.inf
) -> tuple[Floats, Floats]:
    """The standard error of a log result as one of many runs, and its degrees of freedom.

    ``error``: within the run, with ``freedom`` degrees of freedom. ``scatter`` is taken as known
    unless it has degrees of freedom itself [Satterthwaite 1946, Biometrics 2:110].
    """
    total = np.hypot(error, scatter)
    share = np.divide(error, total, out=np.ones_like(total), where=total > 0)
    total_freedom = np.minimum(freedom / np.maximum(share, 1e-3) ** 4, _KNOWN)
    if math.isfinite(scatter_freedom):
        of_scatter = np.divide(scatter, total, out=np.zeros_like(total), where=total > 0)
        total_freedom = 1 / (1 / total_freedom + of_scatter**4 / scatter_freedom)
    return total, total_freedom


def another_run(
    value: float, *, error: float, freedom: float, scatter: float, scatter_freedom: float = math.inf
) -> Interval:
    """The 95 % interval for what another run would report, in the unit of ``value``.

    ``value``: a time, or a ratio of times, of this run; ``error``: the standard error of its log, from ``freedom``
    degrees of freedom (groups - 1); ``scatter``: a member of SAME_GPUS or OTHER_GPUS, or what the run's own repeats
    show, from ``scatter_freedom`` degrees. A prediction interval: the other run, as long as this one, has the same
    error and its own scatter, so the variance of the difference is 2 (error^2 + scatter^2).
    """
    total, total_freedom = widened(
        np.array([error]), np.array([freedom]), scatter=scatter, scatter_freedom=scatter_freedom
    )
    half = float(scipy_stats.t.ppf(1 - ALPHA / 2, total_freedom[0]) * np.sqrt(2) * total[0])
    return Interval(float(value * np.exp(-half)), float(value * np.exp(half)))


def another_ratio(
    numerator: Sequence[float] | Floats,
    denominator: Sequence[float] | Floats,
    *,
    scatter: float,
    scatter_freedom: float = math.inf,
    robust: bool = True,
) -> Interval:
    """``another_run`` of ``bench.stats.paired_ratio``, by the scatter of the pairs; needs two of them."""
    logs = np.log(np.asarray(numerator, dtype=float) / np.asarray(denominator, dtype=float))
    error, freedom = float(logs.std(ddof=1) / np.sqrt(len(logs))), len(logs) - 1
    ratio = paired_ratio(numerator, denominator, robust=robust)
    return another_run(ratio, error=error, freedom=freedom, scatter=scatter, scatter_freedom=scatter_freedom)
