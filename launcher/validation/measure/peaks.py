"""The most that the links can carry in one direction, GB/s of payload; None where it is not known."""

from __future__ import annotations

from launcher.validation.measure.context import Context


def pair_peak(context: Context, gpu: int, other: int) -> float | None:
    """Of the links between two GPUs."""
    links = context.readings.pair_links(gpu, other) or context.spec.hardware.num_links
    return _multiply(links, _link_rate(context))


def gpu_peak(context: Context) -> float | None:
    """Of all links of one GPU. On a mesh some lead to GPUs that take no part, and these do not count."""
    environment = context.suite_run.environment
    links = (environment.num_links if environment is not None else None) or context.spec.hardware.num_links
    first, *others = context.order
    between = sum(context.readings.pair_links(first, other) or 0 for other in others)
    return _multiply(min(links, between) if links and between else links, _link_rate(context))


def _link_rate(context: Context) -> float | None:
    """Payload of one link, from the hardware file. NVML gives the signalling rate: 26.6 where 25 GB/s are payload."""
    environment = context.suite_run.environment
    by_nvml = environment.link_gb_per_s if environment is not None else None
    return context.spec.hardware.link_gb_per_s or by_nvml


def _multiply(links: int | None, rate: float | None) -> float | None:
    return None if rate is None or links is None else links * rate
