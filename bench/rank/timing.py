"""Times one operation on one rank, with no launch gap and no wait for a late rank inside the timed window."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist

_FLUSH_BYTES = 256 * 2**20
_CYCLES_PER_US = 1700
LEAD_US = 120.0
"""How long a GPU spins while the host queues an operation of one kernel: longer than the host takes for it."""
LONG_LEAD_US = 1200.0
"""The same for several kernels. If the host falls behind, gaps enter the window, and chance orders two streams."""
_HOST_MARGIN = 1.5
"""A lead that is found out allows the host this much more than it took at best."""


class Mark(Protocol):
    """An operation calls it where the current stream has reached the end of the GEMMs."""

    def __call__(self) -> None:
        """Marks this position of the current stream."""


Operation = Callable[[Mark], object]
"""Queues its kernels on the current stream and returns the output without waiting for it."""


class Series(NamedTuple):
    """Microseconds of each iteration on this rank: the whole operation, and up to its mark; empty without a mark."""

    total_us: list[float]
    marked_us: list[float]


class Timer(Protocol):
    """Times an operation on this rank."""

    def measure(
        self,
        operation: Operation,
        *,
        warmup: int,
        iterations: int,
        collective: bool = True,
        lead_us: float | None = LEAD_US,
    ) -> Series:
        """Times the operation ``iterations`` times after ``warmup`` untimed runs.

        ``lead_us``: how long a GPU spins before each run while the host queues it; None: as long as the host took for
        the untimed runs, with a margin, within LEAD_US and LONG_LEAD_US. ``collective``: all ranks call this at once
        and start each run together; without it no rank waits for another, on the host or on a GPU.
        """


class GpuTimer:
    """Times with CUDA events, after an alignment of the ranks on their GPUs.

    Each iteration queues a write of 256 MiB (several times the L2), a spin of ``lead_us`` during which the host queues
    the rest, an NCCL all-reduce of one element that the ranks leave together, the start event, the operation and the
    stop event. The host waits for nothing between iterations.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self._group = group
        self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device)
        self._token = torch.ones(1, device=device)

    def measure(
        self,
        operation: Operation,
        *,
        warmup: int,
        iterations: int,
        collective: bool = True,
        lead_us: float | None = LEAD_US,
    ) -> Series:
        """See Timer."""
        starts, marks, stops, host_us = [], [], [], [LONG_LEAD_US]
        for number in range(warmup + iterations):
            start, mark, stop = _event(), _event(), _event()
            if number == warmup and lead_us is None:
                lead_us = min(LEAD_US + _HOST_MARGIN * min(host_us), LONG_LEAD_US)
            self._flush.zero_()
            spin(lead_us or 0.0)
            if collective:
                dist.all_reduce(self._token, op=dist.ReduceOp.MAX, group=self._group)
            start.record()
            begin = time.perf_counter()
            operation(mark.record)
            host_us.append(1e6 * (time.perf_counter() - begin))
            stop.record()
            starts.append(start)
            marks.append(mark)
            stops.append(stop)
        torch.cuda.synchronize()
        timed = list(zip(starts, marks, stops, strict=True))[warmup:]
        return Series(
            total_us=[1000.0 * start.elapsed_time(stop) for start, _, stop in timed],
            marked_us=[1000.0 * start.elapsed_time(mark) for start, mark, _ in timed if _was_recorded(mark)],
        )


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def spin(duration_us: float) -> None:
    """Keeps the current stream busy for about this long: 15 % less at the highest clock of an H100 or H200."""
    torch.cuda._sleep(int(duration_us * _CYCLES_PER_US))  # type: ignore[no-untyped-call]


def hold(duration_us: float, *, on_gpu: bool) -> None:
    """Holds the current stream for about this long, or else the process."""
    if on_gpu:
        spin(duration_us)
    else:
        time.sleep(duration_us / 1e6)


class HostTimer:
    """Times with the host's clock after a barrier: for CPUs, and for shared GPUs, whose times prove nothing."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self._group, self._on_gpu = group, device.type == "cuda"

    def measure(
        self,
        operation: Operation,
        *,
        warmup: int,
        iterations: int,
        collective: bool = True,
        lead_us: float | None = LEAD_US,
    ) -> Series:
        """See Timer."""
        total_us, marked_us = [], []
        for _ in range(warmup + iterations):
            if collective:
                dist.barrier(group=self._group)
            marks_ns: list[int] = []
            begin_ns = time.perf_counter_ns()
            operation(lambda marks_ns=marks_ns: marks_ns.append(time.perf_counter_ns()))
            if self._on_gpu:
                torch.cuda.synchronize()
            total_us.append((time.perf_counter_ns() - begin_ns) / 1000.0)
            marked_us += [(mark_ns - begin_ns) / 1000.0 for mark_ns in marks_ns]
        return Series(total_us[warmup:], marked_us[warmup:])


def _was_recorded(event: torch.cuda.Event) -> bool:
    return bool(event.cuda_event)
