"""Compiles kernels before they are measured: several process groups run each point once; imports no torch.

Some libraries compile a kernel for each config at its first use, for seconds on one CPU of every rank. Measured one
after the other, most of a sweep would be compilation. What does not compile here is compiled when it is measured.
"""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench import forkserver, protocol
from bench.backends import BACKENDS, PAIR_OPS, shared_knobs, split_pair
from bench.group import Group, RankError
from bench.records import Dtype, Failed, Op, Point

MOST_GROUPS = 16
"""Groups at once: they share the GPUs, and each takes a CUDA context and the buffers of its library there."""

_POINT_S = 30.0
"""Seconds for each point that a group compiles."""

_LEAST_START_S = 5.0
"""Seconds without which no ranks are started: a fork that comes too late ends the forkserver, and every group."""

_POLL_S = 0.2


class Compilation(NamedTuple):
    """A point that has run once, or the failure that kept it from that."""

    point: Point
    failed: Failed | None


def with_kernels(points: Iterable[Point]) -> list[Point]:
    """The dispatches and combines that compile every kernel of these points, each once.

    A full dispatch and a pair have no kernels of their own.
    """
    distinct: dict[tuple[object, ...], Point] = {}
    for point in points:
        if BACKENDS[point.backend].compiles:
            distinct |= {part.key: part for part in _parts(point)}
    return list(distinct.values())


def _parts(point: Point) -> list[Point]:
    if point.op in (Op.DISPATCH, Op.COMBINE):
        return [point]
    if point.op is Op.DISPATCH_FULL:
        return [msgspec.structs.replace(point, op=Op.DISPATCH)]
    if point.op in PAIR_OPS:
        dispatch, combine = split_pair(point)
        backend = point.backend
        dtypes = {point.dtype, Dtype.BF16} if point.op is Op.LAYER_TRAINING else {point.dtype}  # gradients are BF16
        dispatches = [Point(backend, Op.DISPATCH, dtype, dispatch) for dtype in sorted(dtypes)]
        return [*dispatches, Point(backend, Op.COMBINE, Dtype.BF16, combine)]
    return []


def compile_kernels(
    spec: protocol.GroupSpec,
    points: Sequence[Point],
    *,
    log_folder: Path,
    startup_s: float,
    note: Callable[[Compilation], None],
    stop: Callable[[], bool],
    limit_s: float = math.inf,
) -> None:
    """Runs each point once, several at a time, until ``limit_s`` seconds have passed or ``stop`` returns True.

    ``spec``: the process group of each; its faults are not injected. ``startup_s``: how long ranks may take to start,
    and a point to run. ``note`` gets every point that has ended, in this thread. The ranks log to a folder for each
    group in ``log_folder``.
    """
    spec = msgspec.structs.replace(spec, faults=[])
    lanes = [
        _Lane(spec, share, log_folder / f"kernels{number}", startup_s=startup_s, limit_s=limit_s)
        for number, share in enumerate(distribute(points, num_groups(points, num_ranks=spec.num_ranks)))
    ]
    results: queue.SimpleQueue[Compilation] = queue.SimpleQueue()
    with ThreadPoolExecutor(max(1, len(lanes)), thread_name_prefix="kernels") as threads:
        runs = [threads.submit(lane.run, results.put) for lane in lanes]
        try:
            _follow(runs, results, note, stop)
        finally:
            if not all(run.done() for run in runs):
                for lane in lanes:
                    lane.is_over.set()
                forkserver.end()


def num_groups(points: Sequence[Point], *, num_ranks: int) -> int:
    """How many groups compile at once: each rank compiles, on a CPU of its own."""
    return max(1, min(len(points), MOST_GROUPS, len(os.sched_getaffinity(0)) // num_ranks))


def distribute(points: Sequence[Point], num_shares: int) -> list[list[Point]]:
    """The points of each group, as equal in number as possible; those with the same shared knobs stay together.

    They share kernels: a combine needs the dispatch that made its handle.
    """
    by_shared: dict[tuple[object, ...], list[Point]] = defaultdict(list)
    for point in points:
        shared = shared_knobs(BACKENDS[point.backend])
        by_shared[point.backend, *(point.knobs[name] for name in shared)].append(point)
    shares: list[list[Point]] = [[] for _ in range(num_shares)]
    for same in sorted(by_shared.values(), key=len, reverse=True):
        min(shares, key=len).extend(same)
    return [share for share in shares if share]


def _follow(
    runs: Sequence[Future[None]],
    results: queue.SimpleQueue[Compilation],
    note: Callable[[Compilation], None],
    stop: Callable[[], bool],
) -> None:
    """Passes results on until all runs have ended, or have to."""
    while not stop():
        has_ended = all(run.done() for run in runs)
        try:
            while True:
                note(results.get(timeout=0 if has_ended else _POLL_S))
                if stop():
                    return
        except queue.Empty:
            if has_ended:
                break
    for run in runs:
        if run.done():
            run.result()  # raises our own mistakes


class _Lane:
    """One process group after the other, for some of the points; runs in a thread of its own."""

    def __init__(
        self, spec: protocol.GroupSpec, points: list[Point], log_folder: Path, *, startup_s: float, limit_s: float
    ) -> None:
        self._spec, self._points, self._log_folder, self._startup_s = spec, points, log_folder, startup_s
        self._end = time.monotonic() + min(limit_s, max(startup_s, _POINT_S * len(points)))
        self._group: Group | None = None
        self.is_over = threading.Event()

    def run(self, report: Callable[[Compilation], None]) -> None:
        """Reports each point that has ended. Ranks that fail are replaced; ranks that do not start are the last."""
        try:
            for point in self._points:
                if self._left_s() < (_LEAST_START_S if self._group is None else 0.1):
                    return
                failed = self._run(point)
                if self.is_over.is_set():
                    return
                report(Compilation(point, failed))
                if failed is not None and failed.phase == "startup":
                    return
        finally:
            self._end_group()

    def _run(self, point: Point) -> Failed | None:
        try:
            if self._group is None:
                self._group = Group(self._spec, log_folder=self._log_folder, startup_s=self._left_s())
            self._group.warm(protocol.Warm(point), deadline_s=self._left_s())
        except RankError as failure:
            self._end_group()
            return failure.failed
        return None

    def _left_s(self) -> float:
        """How long ranks may take now."""
        return max(0.0, min(self._startup_s, self._end - time.monotonic()))

    def _end_group(self) -> None:
        if self._group is not None:
            self._group.kill()
            self._group = None
