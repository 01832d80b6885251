"""Log medians with their errors, and the tests of whether one exceeds another; pure."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats as scipy_stats

from bench.between import widened
from bench.stats import ALPHA, DRIFT, MIN_GROUPS, Floats, holm
from launcher.comparison.run import ComparedRun
from launcher.store.results_file import SavedMeasurement

_MIN_SAMPLES = 6
"""Order statistics of fewer samples have no 95 % CI."""

_LIKE_NORMAL = 1e6
"""Degrees of freedom where the normal distribution is meant."""

_ROUNDING_US = 0.01 / math.sqrt(12)
"""Standard deviation of what RESULTS rounds away."""


class Levels(NamedTuple):
    """Log medians [points], their standard errors towards less and towards more, and the degrees of freedom of these.

    Errors are NaN where nothing is known of them.
    """

    log: Floats
    low: Floats
    high: Floats
    freedom: Floats

    @property
    def below(self) -> Floats:
        """From the log median to the low end of its 95 % CI."""
        return self.low * self._quantile

    @property
    def above(self) -> Floats:
        """From the log median to the high end of its 95 % CI."""
        return self.high * self._quantile

    @property
    def _quantile(self) -> Floats:
        quantile: Floats = scipy_stats.t.ppf(1 - ALPHA / 2, self.freedom)
        return quantile

    def widened(self, scatter: float) -> Levels:
        """The same with errors that contain what a run adds to a log time; ``scatter``: see bench.between."""
        low, low_freedom = widened(self.low, self.freedom, scatter=scatter)
        high, high_freedom = widened(self.high, self.freedom, scatter=scatter)
        return Levels(self.log, low, high, np.minimum(low_freedom, high_freedom))


def levels_of(run: ComparedRun, labels: list[str]) -> Levels:
    """The levels of some points of a run, in the order of ``labels``."""
    groups = run.results.search.final_groups_measured
    return Levels(*np.array([_level(run.measured[label], groups) for label in labels]).T)


def _level(point: SavedMeasurement, groups: int) -> tuple[float, float, float, float]:
    """The row of Levels for a median and its interval in RESULTS.

    The interval of a fresh measurement contains the scatter between processes. Elsewhere, overlapped passes included,
    DRIFT is added for it. An unstable point of one set of processes has no known error.
    """
    is_student = point.is_fresh and groups >= MIN_GROUPS
    freedom = groups - 1 if is_student else _LIKE_NORMAL
    added = math.hypot(0.0 if is_student else DRIFT, _ROUNDING_US / point.median_us)
    if not is_student and (point.unstable or point.num_samples < _MIN_SAMPLES):
        added = math.nan
    low, high = (abs(math.log(end / point.median_us)) / _quantile(freedom) for end in point.ci95_us)
    return math.log(point.median_us), math.hypot(low, added), math.hypot(high, added), freedom


@functools.cache
def _quantile(freedom: float) -> float:
    return float(scipy_stats.t.ppf(1 - ALPHA / 2, freedom))


def ratio_interval(old: Levels, new: Levels) -> tuple[Floats, Floats]:
    """Both ends of the 95 % CI of each ratio new / old.

    That of a difference of logs, by MOVER: from the difference as far as both medians are from the ends of their own
    intervals, in quadrature [Zou and Donner 2008, Statistics in Medicine 27:1693].
    """
    change = new.log - old.log
    low, high = change - np.hypot(new.below, old.above), change + np.hypot(new.above, old.below)
    return np.exp(low), np.exp(high)


def slower_p(old: Levels, new: Levels, *, margin: float) -> Floats:
    """One-sided p-values that ``new`` is not slower by more than ``margin``, in logs.

    Welch's test: Student's distribution with Satterthwaite's degrees of freedom [Satterthwaite 1946, Biometrics 2:110].
    """
    first, second = old.high**2, new.low**2
    freedom = (first + second) ** 2 / (first**2 / old.freedom + second**2 / new.freedom)
    p_values: Floats = scipy_stats.t.sf((new.log - old.log - margin) / np.sqrt(first + second), freedom)
    return p_values


def significant(p_values: Floats, families: Sequence[npt.NDArray[np.bool_]]) -> npt.NDArray[np.bool_]:
    """Which of the hypotheses [slower and faster, points] hold, at 5 % for all of them together.

    ``families``: masks of the points [points] that share a part of the 5 %, the most important first. Each gets half
    of what is left, the last all of it, so that a thousand points of the sweep cannot hide what the final shows. Empty
    ones get nothing. Holm's correction in each.
    """
    significant, left = np.zeros(p_values.shape, dtype=bool), ALPHA
    filled = [family for family in families if family.any()]
    for family in filled:
        alpha = left if family is filled[-1] else left / 2
        tested = p_values[:, family]
        significant[:, family] = holm(tested.ravel(), alpha=alpha).reshape(tested.shape)
        left -= alpha
    return significant
