"""Measures how far apart the ranks start, by signals in both directions; needs no clock that ranks share.

A rank sends a signal a fixed time after its start, and the receiver times its arrival from its own start. What it reads
is that time, plus the way of the signal, plus how much later than itself the sender started. The way back contains the
same with the opposite difference.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from bench.backends.sessions.session import Context
from bench.rank.timing import LONG_LEAD_US, Mark, Timer, hold

HOLD_US = 20.0
"""A sender waits this long, so that the receiver waits for the signal even if it started this much later.

If it started later still, at least half of the difference shows. Longer waits would differ by the GPUs' clocks.
"""

CPU_HOLD_US = 2000.0
"""The same without GPUs, where a process may be held up for milliseconds."""


def time_signals(
    timer: Timer, context: Context, *, warmup: int, iterations: int, hold_us: float | None = None
) -> list[list[float]]:
    """This rank's times of every operation: signals from rank 0 to all others at once, then from each of these back.

    Collective. An operation of which this rank receives nothing has times without a meaning. A sender does not wait for
    its receivers. GPUs spin for LONG_LEAD_US before each start: to queue a signal takes the host longer than to queue a
    kernel, and a signal that is queued late reads like a late start. ``hold_us``: how long a sender waits; None for
    HOLD_US or CPU_HOLD_US.
    """
    if hold_us is None:
        hold_us = HOLD_US if context.device.type == "cuda" else CPU_HOLD_US
    return [
        timer.measure(
            _operation(context, sender, hold_us), warmup=warmup, iterations=iterations, lead_us=LONG_LEAD_US
        ).total_us
        for sender in range(context.num_ranks)
    ]


def _operation(context: Context, sender: int, hold_us: float) -> Callable[[Mark], object]:
    """This rank's part of a signal from ``sender``: rank 0 sends to all others, which send to rank 0."""
    receivers = range(1, context.num_ranks) if sender == 0 else [0]
    on_gpu = context.device_group is not context.host_group
    signal = torch.zeros(1, device=context.device if on_gpu else "cpu")
    group = context.device_group
    if context.rank == sender:

        def send(_: Mark) -> None:
            hold(hold_us, on_gpu=on_gpu)
            _run_and_wait([dist.P2POp(dist.isend, signal, receiver, group) for receiver in receivers])

        return send
    if context.rank in receivers:
        return lambda _: _run_and_wait([dist.P2POp(dist.irecv, signal, sender, group)])
    return lambda _: None


def _run_and_wait(operations: list[dist.P2POp]) -> None:
    for work in dist.batch_isend_irecv(operations):
        work.wait()
