"""The six phases of a suite run: their order, their limits, and how each ended; judges nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

from bench.group import RankError
from bench.supervisor import StartError
from launcher.validation.measure.clock import Clock, OutOfTimeError
from launcher.validation.measure.context import SuiteContext
from launcher.validation.measure.counters import read_counters
from launcher.validation.measure.links import measure_all_to_all, measure_pairs
from launcher.validation.measure.preflight import take_stock
from launcher.validation.measure.readings import SilentDriverError
from launcher.validation.measure.speed import measure_speed
from launcher.validation.measure.tokens import check_correctness
from launcher.validation.node import Phase, SuiteRun, Trouble

_BODIES: dict[str, Callable[[SuiteContext, Clock], str | None]] = {
    "preflight": take_stock,
    "pairs": measure_pairs,
    "alltoall": measure_all_to_all,
    "correctness": check_correctness,
    "speed": measure_speed,
    "counters": read_counters,
}
"""Each notes its results in the context, and returns why it was skipped, or None."""


def run_phases(
    context: SuiteContext, *, checkpoint: Callable[[SuiteRun], None], say: Callable[[str], None]
) -> SuiteRun:
    """Every phase in turn. A phase that fails does not keep the next one from trying.

    ``checkpoint`` gets the suite run before and after each phase, ``say`` one line about each.
    """
    try:
        for name, body in _BODIES.items():
            context.note_phase(Phase(name, "running"))
            checkpoint(context.suite_run)
            phase = _run_phase(context, name, body)
            context.note_phase(phase)
            say(f"{name}: {phase.status}{': ' + phase.reason if phase.reason else ''} ({phase.wall_s:.1f} s)")
            checkpoint(context.suite_run)
    finally:
        context.end_group()
    return context.suite_run


def _run_phase(context: SuiteContext, name: str, body: Callable[[SuiteContext, Clock], str | None]) -> Phase:
    """How the phase ended."""
    began = time.monotonic()
    num_troubles = len(context.suite_run.troubles)
    reason = _try_phase(context, name, body)
    wall_s = round(time.monotonic() - began, 3)
    troubles = context.suite_run.troubles
    if len(troubles) > num_troubles:
        context.end_group()
        return Phase(name, "failed", troubles[-1].message, wall_s)
    return Phase(name, "skipped" if reason else "done", reason or "", wall_s)


def _try_phase(context: SuiteContext, name: str, body: Callable[[SuiteContext, Clock], str | None]) -> str | None:
    """Why the phase was skipped, None if it was not. A failure that ends it is noted as trouble."""
    if context.is_driver_silent:
        return "the driver does not respond"
    if not context.is_usable and name != "counters":
        return "the preflight found that ranks cannot run here"
    limit_s: float = getattr(context.spec.limits, f"{name}_s")
    try:
        return body(context, Clock(limit_s))
    except RankError as failure:
        context.note_failure(name, failure.failed)
    except StartError as failure:
        context.note_trouble(Trouble(name, "start", "", str(failure).splitlines()[0], str(failure)))
    except OutOfTimeError as late:
        context.note_trouble(Trouble(name, "timeout", "", str(late)))
    except SilentDriverError as silent:
        context.note_trouble(Trouble(name, "driver", "", str(silent)))
        context.is_driver_silent, context.is_usable = True, False
    return None
