"""Phase 5: NVML's counters after the other phases, throttling, and XID errors."""

from __future__ import annotations

import time

from bench.nvml.counters import Counters
from launcher.validation.measure.clock import Clock
from launcher.validation.measure.context import SuiteContext

_THROTTLED_SHARE = 0.01
"""A GPU counts as throttled if it was for more than this share of the suite run."""

_THROTTLE = {
    "throttle_hardware_thermal_ns": "hardware thermal slowdown",
    "throttle_software_thermal_ns": "software thermal slowdown",
    "throttle_power_brake_ns": "hardware power brake",
    "throttle_power_ns": "power cap",
}


def read_counters(context: SuiteContext, clock: Clock) -> str | None:
    """Notes the counters, why each GPU was throttled, and XID errors."""
    context.end_group()
    after = context.query_driver(clock, context.readings.counters)
    least_ns = _THROTTLED_SHARE * 1e9 * max(time.monotonic() - context.began, 1.0)
    throttled = {
        f"gpu{gpu}": _throttle_reasons(before, now, least_ns)
        for gpu, (before, now) in enumerate(zip(context.suite_run.before, after, strict=False))
    }
    context.note(after=after, throttled=throttled)
    context.note(xids=context.query_driver(clock, context.readings.xids))
    return None if after else "this machine has no GPUs, hence no counters"


def _throttle_reasons(before: Counters, after: Counters, least_ns: float) -> list[str]:
    return [
        reason
        for name, reason in _THROTTLE.items()
        if (after.values.get(name) or 0) - (before.values.get(name) or 0) > least_ns
    ]
