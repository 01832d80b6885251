"""Ratios of two times, computed and in words; pure."""

from __future__ import annotations

from bench.stats import Interval, paired_ratio, paired_ratio_interval

INDISTINGUISHABLE = "The two are indistinguishable."


def as_long_as(other: str, ratio: float, ci95: Interval | None = None, *, method: str = "") -> str:
    """``1.431x as long as the optimal config (95 % CI 1.429 to 1.434)``."""
    ends = "" if ci95 is None else f" ({method}95 % CI {ci95.low:.3f} to {ci95.high:.3f})"
    return f"{ratio:.3f}x as long as {other}{ends}"


def compare_times(
    times: dict[int, float], other_times: dict[int, float], *, robust: bool = True
) -> tuple[float, Interval] | None:
    """The ratio of the times over the groups or passes that measured both, with its 95 % CI; None below two."""
    numbers = sorted(times.keys() & other_times.keys())
    if len(numbers) < 2:
        return None
    pairs = [times[number] for number in numbers], [other_times[number] for number in numbers]
    return paired_ratio(*pairs, robust=robust), paired_ratio_interval(*pairs, robust=robust)
