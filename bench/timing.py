"""Times one operation on one rank so that neither a launch gap nor a wait for a late rank is inside the window."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch
import torch.distributed as dist

_FLUSH_BYTES = 256 * 2**20
_SPIN_CYCLES = 200_000


class Timer(Protocol):
    """Times an operation that all ranks start together."""

    def samples_us(self, operation: Callable[[], object], *, warmup: int, iterations: int) -> list[float]:
        """Microseconds of each iteration on this rank, after ``warmup`` untimed ones. Collective."""


class GpuTimer:
    """CUDA events behind a device-side alignment.

    Each iteration queues: a write of 256 MiB (several times the L2), a spin of about 0.1 ms during which the host
    queues the rest, a one-element NCCL all-reduce that the ranks leave together, start event, operation, stop event.
    Nothing waits on the host between iterations.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self._group = group
        self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device)
        self._token = torch.ones(1, device=device)

    def samples_us(self, operation: Callable[[], object], *, warmup: int, iterations: int) -> list[float]:
        """See Timer."""
        events = [(_event(), _event()) for _ in range(warmup + iterations)]
        for start, stop in events:
            self._flush.zero_()
            spin(_SPIN_CYCLES)
            dist.all_reduce(self._token, op=dist.ReduceOp.MAX, group=self._group)
            start.record()
            operation()
            stop.record()
        torch.cuda.synchronize()
        return [1000.0 * start.elapsed_time(stop) for start, stop in events[warmup:]]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def spin(cycles: int) -> None:
    """Keeps the current stream busy for so many GPU cycles."""
    torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]


class HostTimer:
    """The wall clock behind a host barrier: for CPUs, and for GPUs that several ranks share (no measurement there)."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self._group, self._on_gpu = group, device.type == "cuda"

    def samples_us(self, operation: Callable[[], object], *, warmup: int, iterations: int) -> list[float]:
        """See Timer."""
        samples = []
        for _ in range(warmup + iterations):
            dist.barrier(group=self._group)
            begin = time.perf_counter_ns()
            operation()
            if self._on_gpu:
                torch.cuda.synchronize()
            samples.append((time.perf_counter_ns() - begin) / 1000.0)
        return samples[warmup:]
