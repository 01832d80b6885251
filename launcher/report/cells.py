"""Cells of the reports' tables: configs, times and intervals as text; pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from bench.backends import BACKENDS, shared_knobs, sms_knob
from bench.records import Op
from bench.stats import Interval
from launcher.analysis.measurements import Measurement
from launcher.analysis.pairs import Pair, buffer_bytes
from launcher.config.plan import Plan
from launcher.text import knobs_text


def config(pair: Pair) -> str:
    """Both configs of a pair; the knobs that they share stand first, once. ``no knobs`` where there are none."""
    return _configs(pair.shared, pair.dispatch.point.knobs, pair.combine.point.knobs) or "no knobs"


def sms(backend: str, dispatch: Mapping[str, int]) -> str:
    """The SMs of a pair, by the config of its dispatch; empty where no knob counts them."""
    return str(dispatch.get(sms_knob(backend) or "", ""))


def without_sms(backend: str, dispatch: Mapping[str, int], combine: Mapping[str, int]) -> str:
    """Both configs of a pair without the knob that counts SMs, which has a column of its own."""
    name = sms_knob(backend)
    first, second = ({knob: value for knob, value in config.items() if knob != name} for config in (dispatch, combine))
    shared = {knob: first[knob] for knob in shared_knobs(BACKENDS[backend]) if knob in first}
    return _configs(shared, first, second)


def _configs(shared: Mapping[str, int], dispatch: Mapping[str, int], combine: Mapping[str, int]) -> str:
    parts = [knobs_text(dict(shared))]
    for op, knobs in ((Op.DISPATCH, dispatch), (Op.COMBINE, combine)):
        own = knobs_text({name: value for name, value in knobs.items() if name not in shared})
        parts += [f"{op} {own}"] if own else []
    return "; ".join(part for part in parts if part)


def own_knobs(measurement: Measurement, shared: Collection[str]) -> str:
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


def buffer(plan: Plan, pair: Pair) -> str:
    """The MiB of a pair's buffer on each rank; empty where the library has no formula for it."""
    size = buffer_bytes(plan, pair)
    return "" if size is None else f"{size / 2**20:.0f}"
