"""Compiles what this node lacks of the kernels that a shard or the final will measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from bench import kernels
from bench.backends import machine
from bench.kernels import Compilation
from bench.marks import Marks
from bench.records import Point
from launcher.config.plan import Plan
from launcher.tuner.progress import ShardProgress

_SHARE = 0.5
"""The most of a budget that goes into compiling ahead; what is missing then is compiled when it is measured."""


def compile_ahead(
    plan: Plan,
    points: Iterable[Point],
    *,
    budget_s: float,
    log_folder: Path,
    progress: ShardProgress,
    stop: Callable[[], bool],
) -> float:
    """Compiles the kernels of these points that have no mark on this node; the seconds that it took.

    A point that fails here is only reported.
    """
    wanted = kernels.with_kernels(points)
    if not wanted or budget_s <= 0:
        return 0.0
    began, spec = time.monotonic(), plan.group_spec()
    marks = Marks(spec, machine.kernel_folder("warmed"))
    missing = [point for point in wanted if not marks.has(point)]

    def note(ended: Compilation) -> None:
        if ended.failed is None:
            marks.add(ended.point)
        else:
            reason = f"{ended.failed.failure}: {ended.failed.message}"
            progress.note(f"{ended.point.label} is compiled when it is measured, since it failed ahead: {reason}")
        progress.advance()

    if missing:
        progress.expect(len(missing), what="compiling kernels")
        startup_s, limit_s = plan.spec.measure.startup_s, _SHARE * budget_s
        kernels.compile_kernels(
            spec, missing, log_folder=log_folder, startup_s=startup_s, note=note, stop=stop, limit_s=limit_s
        )
        progress.restart()
    return time.monotonic() - began
