"""Log medians with their errors, and the tests of whether one exceeds another; pure."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats as scipy_stats

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
        return np.array([_quantile(freedom) for freedom in self.freedom])


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
    return float(scipy_stats.t.ppf(0.975, freedom))


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


def significant(p_values: Floats, gates: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which of the hypotheses [slower and faster, points] hold, at 5 % for all of them together.

    Points that gate share one half of the 5 %, the others the other half: a thousand points of the sweep cannot hide
    what the final shows. Holm's correction in each half.
    """
    significant = np.zeros(p_values.shape, dtype=bool)
    families = [family for family in (gates, ~gates) if family.any()]
    for family in families:
        tested = p_values[:, family]
        significant[:, family] = holm(tested.ravel(), alpha=ALPHA / len(families)).reshape(tested.shape)
    return significant
