"""Phase 0: the GPUs, their links and counters before any CUDA context exists."""

from __future__ import annotations

from bench.supervisor import StartError, check_libraries
from launcher.validation.measure.clock import Clock
from launcher.validation.measure.context import SuiteContext


def take_stock(context: SuiteContext, clock: Clock) -> str | None:
    """Notes what NVML shows. The other phases do not run if GPUs are missing or in use.

    StartError if the library cannot run on this machine; then they do not run either.
    """
    spec = context.spec
    preflight = context.query_driver(clock, context.readings.preflight)
    before = context.query_driver(clock, context.readings.counters)
    context.note(preflight=preflight, before=before)
    is_busy = any(state.foreign_processes for state in preflight.states)
    is_short = (not spec.on_cpu or preflight.is_synthetic) and len(preflight.gpus) < spec.gpus
    context.is_usable = not (is_busy or is_short)
    if context.is_usable:
        _check_library(context)
    if spec.on_cpu and not preflight.gpus:
        return "this machine has no GPUs to take stock of"
    return None


def _check_library(context: SuiteContext) -> None:
    try:
        check_libraries(context.group_spec(context.spec.workload.dtype))
    except StartError:
        context.is_usable = False
        raise
