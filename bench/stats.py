"""Statistics of raw samples: pure, vectorised, seeded; every number in a report comes through here."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from scipy import stats as scipy_stats

UNSTABLE_SPREAD = 0.10
"""Above this IQR / median a point is unstable: its samples are extended once, then it is reported as unstable."""

ALPHA = 0.05
"""Significance level of every test; intervals are at 1 - ALPHA."""

MIN_GROUPS = 3
"""Fewest groups of a final, or overlapped passes, by which two configs are compared."""

DRIFT = 0.003
"""Standard deviation of a config's log time between visits, beyond what its samples show (seen on H200s: 0.3 %)."""

Floats = npt.NDArray[np.float64]


class Interval(msgspec.Struct, frozen=True, array_like=True):
    """A two-sided interval."""

    low: float
    high: float


def median_interval(samples: Sequence[float] | Floats, *, confidence: float = 0.95) -> Interval:
    """The order-statistic interval of the median: exact for independent samples of any continuous distribution.

    Ranks come from the binomial distribution (n, 1/2) [Conover, Practical Nonparametric Statistics, 3.2]. With too
    few samples for the confidence (fewer than 6 for 95 %) it is the whole range of the samples.
    """
    low, high = median_intervals(np.asarray(samples, dtype=float)[None, :], confidence=confidence)[0]
    return Interval(float(low), float(high))


def median_intervals(samples: Floats, *, confidence: float = 0.95) -> Floats:
    """The same for each row of ``samples`` [sets, samples of each]: low and high ends [sets, 2]."""
    ordered = np.sort(samples, axis=1)
    low = _low_rank(ordered.shape[1], confidence)
    return ordered[:, [low, ordered.shape[1] - 1 - low]]


@functools.cache
def _low_rank(count: int, confidence: float) -> int:
    """Index of the order statistic that bounds the median from below."""
    return max(int(scipy_stats.binom.ppf((1 - confidence) / 2, count, 0.5)) - 1, 0)


def spread(samples: Sequence[float] | Floats) -> float:
    """Interquartile range over median, a share."""
    low, middle, high = np.percentile(np.asarray(samples, dtype=float), [25, 50, 75])
    return float((high - low) / middle) if middle > 0 else 0.0


def paired_ratio(numerator: Sequence[float] | Floats, denominator: Sequence[float] | Floats) -> float:
    """The geometric mean of the ratios of paired values."""
    return float(np.exp(np.mean(np.log(np.asarray(numerator) / np.asarray(denominator)))))


def paired_ratio_interval(
    numerator: Sequence[float] | Floats, denominator: Sequence[float] | Floats, *, confidence: float = 0.95
) -> Interval:
    """Student's interval of the mean log ratio of paired values, back on the scale of ratios.

    A pair is what one fresh process group measured of two configs, so that what the group adds to both cancels. With
    few groups the t distribution covers as it says, which a bootstrap of five values does not. Needs two pairs.
    """
    logs = np.log(np.asarray(numerator, dtype=float) / np.asarray(denominator, dtype=float))
    half = float(scipy_stats.t.ppf((1 + confidence) / 2, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs)))
    middle = float(logs.mean())
    return Interval(float(np.exp(middle - half)), float(np.exp(middle + half)))


def paired_slower_p(values: Sequence[float] | Floats, reference: Sequence[float] | Floats) -> float:
    """One-sided p-value of Student's paired test that ``values`` are not slower than ``reference``."""
    logs = np.log(np.asarray(values, dtype=float) / np.asarray(reference, dtype=float))
    deviation = float(logs.std(ddof=1))
    if deviation == 0:
        return 1.0 if logs.mean() <= 0 else 0.0
    return float(scipy_stats.t.sf(logs.mean() / (deviation / np.sqrt(len(logs))), len(logs) - 1))


def holm(p_values: Sequence[float] | Floats, *, alpha: float) -> npt.NDArray[np.bool_]:
    """Which hypotheses fall when all are tested at once at ``alpha`` [Holm 1979]: by p, until one stands."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    passed = p[order] <= alpha / (len(p) - np.arange(len(p)))
    fallen = np.zeros(len(p), dtype=bool)
    fallen[order[: int(np.argmin(passed)) if not passed.all() else len(p)]] = True
    return fallen


def log_median_errors(samples: Sequence[Sequence[float]], *, resamples: int = 100, seed: int = 0) -> Floats:
    """Bootstrap standard error of the log of each sample set's median, all sets at once."""
    generator = np.random.default_rng(seed)
    errors = np.zeros(len(samples))
    for length in {len(one) for one in samples}:
        rows = [index for index, one in enumerate(samples) if len(one) == length]
        matrix = np.asarray([samples[index] for index in rows], dtype=float)
        draws = generator.integers(0, length, size=(resamples, length))
        medians = np.median(matrix[:, draws], axis=2)
        errors[rows] = np.log(medians).std(axis=1, ddof=1)
    return errors


def combinations(columns: Sequence[npt.NDArray[np.integer[Any]]]) -> npt.NDArray[np.int64]:
    """One number for each distinct combination of several columns' values, in their lexical order [rows].

    What ``numpy.unique(axis=0)`` finds, an order of magnitude sooner.
    """
    which = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        values, place = np.unique(column, return_inverse=True)
        which = which * len(values) + place
    return np.unique(which, return_inverse=True)[1]
