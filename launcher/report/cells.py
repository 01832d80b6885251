"""Cells of the reports' tables: configs, times and intervals as text; pure."""

from __future__ import annotations

from collections.abc import Sequence

from bench.stats import Interval
from launcher.analysis.measurements import Measurement
from launcher.analysis.pairs import Pair
from launcher.text import knobs_text


def config(pair: Pair) -> str:
    """Both configs of a pair; the knobs that they share stand first, once."""
    shared = tuple(pair.shared)
    return (
        f"{knobs_text(pair.shared)}; dispatch {own_knobs(pair.dispatch, shared)}; "
        f"combine {own_knobs(pair.combine, shared)}"
    )


def own_knobs(measurement: Measurement, shared: Sequence[str]) -> str:
    """The knobs of one config that the other operation may set otherwise."""
    return knobs_text({name: value for name, value in measurement.point.knobs.items() if name not in shared})


def shared_values(pair: Pair) -> str:
    """Only the values of the shared knobs, for a column that is headed by their names."""
    return ", ".join(str(value) for value in pair.shared.values())


def time(median_us: float | None, *, bold: bool = False) -> str:
    """A time in microseconds."""
    if median_us is None:
        return "n/a"
    return f"**{median_us:.1f}**" if bold else f"{median_us:.1f}"


def interval(ends: Interval | None) -> str:
    """Both ends of an interval in microseconds; empty without one."""
    return "" if ends is None else f"{ends.low:.1f} to {ends.high:.1f}"
