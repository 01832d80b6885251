"""Statistics of raw samples, pure, vectorised and seeded: the source of every interval and test in a report."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from scipy import stats as scipy_stats

UNSTABLE_SPREAD = 0.10
"""A point whose IQR / median exceeds this is sampled once more, and reported as unstable if it still does."""

ALPHA = 0.05
"""Significance level of every test; intervals have a confidence of 1 - ALPHA."""

MIN_GROUPS = 3
"""Fewest process groups of a final, or passes of overlapped pairs, that compare two configs."""

DRIFT = 0.003
"""Standard deviation of a config's log time between repetitions, beyond its samples' own (0.3 % on H200s)."""

Floats = npt.NDArray[np.float64]


class Interval(msgspec.Struct, frozen=True, array_like=True):
    """A two-sided interval."""

    low: float
    high: float


def median_interval(samples: Sequence[float] | Floats, *, confidence: float = 0.95) -> Interval:
    """The order-statistic interval of the median, in the samples' unit; needs one sample.

    It covers the median of independent samples of any continuous distribution at least as often as ``confidence``
    asks. Its order statistics come from the binomial distribution (n, 1/2) [Conover, Practical Nonparametric
    Statistics, 3.2]. Too few samples for the confidence (fewer than 6 for 95 %) give their whole range.
    """
    low, high = median_intervals(np.asarray(samples, dtype=float)[None, :], confidence=confidence)[0]
    return Interval(float(low), float(high))


def median_intervals(samples: Floats, *, confidence: float = 0.95) -> Floats:
    """``median_interval`` of each row of ``samples`` [sets, samples per set]: low and high ends [sets, 2]."""
    ordered = np.sort(samples, axis=1)
    low = _low_rank(ordered.shape[1], confidence)
    return ordered[:, [low, ordered.shape[1] - 1 - low]]


@functools.cache
def _low_rank(count: int, confidence: float) -> int:
    """Index of the order statistic that bounds the median from below."""
    return max(int(scipy_stats.binom.ppf((1 - confidence) / 2, count, 0.5)) - 1, 0)


def spread(samples: Sequence[float] | Floats) -> float:
    """Interquartile range over median, a fraction; 0 where the median is 0."""
    low, median, high = np.percentile(np.asarray(samples, dtype=float), [25, 50, 75])
    return float((high - low) / median) if median > 0 else 0.0


def centre(values: Sequence[float] | Floats) -> float:
    """A robust geometric mean of positive values: the Hodges-Lehmann estimator of their logs; needs one value.

    The median of the means of all pairs of values, each value with itself too [Hodges and Lehmann 1963, Annals of
    Mathematical Statistics 34:598]. One value of five, however far off, moves it by no more than the others scatter;
    where none is off it varies hardly more than the mean (5 %).
    """
    return float(np.exp(_log_centre(np.log(np.asarray(values, dtype=float)))))


def _log_centre(logs: Floats) -> float:
    first, second = np.triu_indices(len(logs))
    return float(np.median((logs[first] + logs[second]) / 2))


def paired_ratio(
    numerator: Sequence[float] | Floats, denominator: Sequence[float] | Floats, *, robust: bool = True
) -> float:
    """The centre of the ratios of paired positive values; their geometric mean if not ``robust``."""
    ratios = np.asarray(numerator, dtype=float) / np.asarray(denominator, dtype=float)
    return centre(ratios) if robust else float(np.exp(np.log(ratios).mean()))


def paired_ratio_interval(
    numerator: Sequence[float] | Floats,
    denominator: Sequence[float] | Floats,
    *,
    confidence: float = 0.95,
    robust: bool = True,
) -> Interval:
    """Student's t interval of the log ratio of paired values about ``paired_ratio``, as ratios; needs two pairs.

    A pair holds the times of two configs in one fresh process group: an effect of the group on both cancels in their
    ratio. With few groups the t distribution keeps its coverage; a bootstrap of five values does not.
    """
    logs = np.log(np.asarray(numerator, dtype=float) / np.asarray(denominator, dtype=float))
    half = float(scipy_stats.t.ppf((1 + confidence) / 2, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs)))
    middle = _log_centre(logs) if robust else float(logs.mean())
    return Interval(float(np.exp(middle - half)), float(np.exp(middle + half)))


def paired_slower_p(values: Sequence[float] | Floats, reference: Sequence[float] | Floats) -> float:
    """One-sided p-value of Student's paired t test on log ratios; needs two pairs.

    Null hypothesis: ``values`` are not slower than ``reference``.
    """
    logs = np.log(np.asarray(values, dtype=float) / np.asarray(reference, dtype=float))
    deviation = float(logs.std(ddof=1))
    if deviation == 0:
        return 1.0 if logs.mean() <= 0 else 0.0
    return float(scipy_stats.t.sf(logs.mean() / (deviation / np.sqrt(len(logs))), len(logs) - 1))


def holm(p_values: Sequence[float] | Floats, *, alpha: float) -> npt.NDArray[np.bool_]:
    """Which null hypotheses are rejected at a family-wise error rate of ``alpha`` [Holm 1979], in their given order."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    below = p[order] <= alpha / (len(p) - np.arange(len(p)))
    rejected = np.zeros(len(p), dtype=bool)
    rejected[order[: int(np.argmin(below)) if not below.all() else len(p)]] = True
    return rejected


def log_median_errors(samples: Sequence[Sequence[float]], *, resamples: int = 100, seed: int = 0) -> Floats:
    """Bootstrap standard error of the log of each sample set's median [sets]; positive samples, sets of any length."""
    generator = np.random.default_rng(seed)
    errors = np.zeros(len(samples))
    for length in {len(row) for row in samples}:
        rows = [index for index, row in enumerate(samples) if len(row) == length]
        matrix = np.asarray([samples[index] for index in rows], dtype=float)
        draws = generator.integers(0, length, size=(resamples, length))
        medians = np.median(matrix[:, draws], axis=2)
        errors[rows] = np.log(medians).std(axis=1, ddof=1)
    return errors


def combinations(columns: Sequence[npt.NDArray[np.integer[Any]]]) -> npt.NDArray[np.int64]:
    """The index of each row's combination of values among the distinct ones in lexical order [rows].

    The inverse of ``numpy.unique(axis=0)``, ten times as fast. ``columns``: arrays of one length.
    """
    codes = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        values, code = np.unique(column, return_inverse=True)
        codes = codes * len(values) + code
    return np.unique(codes, return_inverse=True)[1]
