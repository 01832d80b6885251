"""Phases 1 and 2: copies between each pair of GPUs, and all-to-alls."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable

import msgspec

from bench import protocol
from launcher.validation.measure.clock import Clock
from launcher.validation.measure.context import SuiteContext
from launcher.validation.measure.peaks import gpu_peak, pair_peak
from launcher.validation.node import Rate

_MIB = 2**20
_CPU_ALLTOALL_MIB = (1, 4)
_BLOCKS, _BLOCK_ITERATIONS, _WARMUP = 5, 3, 2


def measure_pairs(context: SuiteContext, clock: Clock) -> str | None:
    """Copies between each pair of GPUs in both directions, by copy engine and by kernel; every byte is compared."""
    if context.spec.on_cpu:
        return "this machine has no GPUs, hence no links"
    for engine in ("copy", "sm"):
        for source, target in itertools.permutations(range(context.spec.gpus), 2):
            _measure_pair(context, clock, engine, source, target)
    return None


def _measure_pair(context: SuiteContext, clock: Clock, engine: str, source: int, target: int) -> None:
    order, size = context.order, context.spec.copy_mib * _MIB
    where = f"gpu{order[source]}>gpu{order[target]}"
    peak = pair_peak(context, order[source], order[target])
    timed_rank = source if engine == "copy" else target
    _move(
        context,
        clock,
        protocol.Copy(source, target, engine, size, _WARMUP, _BLOCKS * _BLOCK_ITERATIONS),
        Rate(f"pair_{engine}", where, f"{context.spec.copy_mib} MiB", "GB/s", [], peak),
        label=f"pairs: {engine} {where}",
        size=size,
        samples_of=lambda responses: responses[timed_rank].samples_us,
    )


def measure_all_to_all(context: SuiteContext, clock: Clock) -> str | None:
    """All-to-alls of each size; every byte is compared."""
    ranks = context.spec.gpus
    for size_mib in _CPU_ALLTOALL_MIB if context.spec.on_cpu else context.spec.alltoall_mib:
        size = size_mib * _MIB // ranks * ranks
        context.running_group(clock)  # the peak needs the ranks' environment
        _move(
            context,
            clock,
            protocol.Exchange(size, _WARMUP, _BLOCKS * _BLOCK_ITERATIONS),
            Rate("all_to_all", "", f"{size_mib} MiB", "GB/s", [], gpu_peak(context)),
            label=f"alltoall: {size_mib} MiB",
            size=size * (ranks - 1) / ranks,
            samples_of=_slowest_us,
        )
    return None


def _slowest_us(responses: list[protocol.Moved]) -> list[float]:
    """The time of the slowest rank in each iteration."""
    return [max(samples) for samples in zip(*(response.samples_us for response in responses), strict=True)]


def _move(
    context: SuiteContext,
    clock: Clock,
    request: protocol.Copy | protocol.Exchange,
    rate: Rate,
    *,
    label: str,
    size: float,
    samples_of: Callable[[list[protocol.Moved]], list[float]],
) -> None:
    """Notes the rate and whether a byte was wrong. If the blocks scatter, as many again follow.

    ``rate`` has no blocks yet; ``size`` is the number of bytes that cross the links in one iteration.
    """
    result = "ok"
    for _ in range(2):
        group = context.running_group(clock)
        with clock.waiting():
            responses = group.move(request, deadline_s=clock.left_s(context.spec.measure.startup_s))
        samples = samples_of(responses)
        blocks_us = [statistics.median(samples[block::_BLOCKS]) for block in range(_BLOCKS)]
        rate = msgspec.structs.replace(rate, blocks=rate.blocks + [size / block_us / 1000 for block_us in blocks_us])
        result = next((response.wrong for response in responses if response.wrong), result)
        if rate.variation <= context.spec.thresholds.noise(rate.test):
            break
    context.note_rates([rate])
    context.note_checks({label: result})
