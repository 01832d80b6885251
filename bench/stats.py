"""Statistics of raw samples: pure, vectorised, seeded; every number in a report comes through here."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt
from scipy import stats as scipy_stats

UNSTABLE_SPREAD = 0.10
"""Above this IQR / median a point is unstable: its samples are extended once, then it is reported as unstable."""

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
    ordered = np.sort(np.asarray(samples, dtype=float))
    count = len(ordered)
    low = max(int(scipy_stats.binom.ppf((1 - confidence) / 2, count, 0.5)) - 1, 0)
    return Interval(float(ordered[low]), float(ordered[count - 1 - low]))


def spread(samples: Sequence[float] | Floats) -> float:
    """Interquartile range over median, a share."""
    low, middle, high = np.percentile(np.asarray(samples, dtype=float), [25, 50, 75])
    return float((high - low) / middle) if middle > 0 else 0.0


def bootstrap_ratio(
    numerator: Sequence[Sequence[float] | Floats],
    denominator: Sequence[Sequence[float] | Floats],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The percentile-bootstrap interval of a ratio of sums of medians, every part drawn on its own.

    ``numerator`` and ``denominator`` are lists of sample sets: dispatch and combine of two configs, say, so that the
    ratio is that of their round trips [Efron and Tibshirani, An Introduction to the Bootstrap, 13.3].
    """
    generator = np.random.default_rng(seed)

    def sums(parts: Sequence[Sequence[float] | Floats]) -> Floats:
        total = np.zeros(resamples)
        for part in parts:
            samples = np.asarray(part, dtype=float)
            total += np.median(generator.choice(samples, size=(resamples, len(samples))), axis=1)
        return total

    tail = (1 - confidence) / 2
    low, high = np.quantile(sums(numerator) / sums(denominator), [tail, 1 - tail])
    return Interval(float(low), float(high))
