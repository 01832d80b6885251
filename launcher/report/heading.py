"""The heading of a report: its caveats, the machine and the workload; pure."""

from __future__ import annotations

from launcher.config.plan import NOT_A_MEASUREMENT, SHARED_GPUS
from launcher.report.report import Report
from launcher.text import text


def caveats(report: Report) -> list[str]:
    """The notes to read before any number."""
    notes = []
    if report.results.plan.is_dry:
        notes.append(NOT_A_MEASUREMENT)
    if not report.has_times:
        notes.append(SHARED_GPUS)
    if report.objective_note:
        notes.append(report.objective_note)
    return notes


def section(report: Report) -> list[str]:
    """The caveats, the title, the machine and the workload."""
    results, spec, workload = report.results, report.results.plan.spec, report.results.plan.spec.workload
    environment = results.environment
    num_devices = f"{environment.num_devices} x " if environment and environment.num_devices else ""
    dispatch, combine = results.volumes
    several = f"{report.title} compared at EP={spec.ep.size}"
    title = several if report.libraries else f"Optimal configuration of {report.title} at EP={spec.ep.size}"
    return [
        *(line for note in caveats(report) for line in (f"**{note}**", "")),
        f"# {title}",
        "",
        f"Measured on {num_devices}{text(report.device)} with {spec.ep.size} ranks: {workload.num_tokens} tokens per "
        f"rank, hidden {workload.hidden}, "
        f"{workload.num_experts} experts, top-{workload.num_topk} ({text(workload.name)}, routing "
        f"{text(workload.routing)}), dispatch in {workload.dtype.upper()}, combine in BF16.",
        f"The busiest rank moves {dispatch.logical / 1e6:.1f} MB in a dispatch ({dispatch.wire / 1e6:.1f} MB of it "
        f"over the links) and {combine.logical / 1e6:.1f} MB ({combine.wire / 1e6:.1f} MB) in a combine.",
        "",
    ]
