"""The peak of the links in one direction, GB/s of payload; None if it is not known."""

from __future__ import annotations

from launcher.validation.measure.context import SuiteContext


def pair_peak(context: SuiteContext, gpu: int, other: int) -> float | None:
    """The peak between two GPUs."""
    links = context.readings.pair_links(gpu, other) or context.spec.hardware.num_links
    return _multiply(links, _link_rate(context))


def gpu_peak(context: SuiteContext) -> float | None:
    """The peak of one GPU. On a mesh, links to GPUs that take no part do not count."""
    environment = context.suite_run.environment
    links = (environment.num_links if environment is not None else None) or context.spec.hardware.num_links
    first, *others = context.order
    between = sum(context.readings.pair_links(first, other) or 0 for other in others)
    return _multiply(min(links, between) if links and between else links, _link_rate(context))


def _link_rate(context: SuiteContext) -> float | None:
    """Payload of one link, from the hardware file. NVML reports the signalling rate, 26.6 GB/s for a payload of 25."""
    environment = context.suite_run.environment
    by_nvml = environment.link_gb_per_s if environment is not None else None
    return context.spec.hardware.link_gb_per_s or by_nvml


def _multiply(links: int | None, rate: float | None) -> float | None:
    return None if rate is None or links is None else links * rate
