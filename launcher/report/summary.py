"""SUMMARY.md: the picks, the findings and what to do on one page; pure."""

from __future__ import annotations

from launcher.report import across, cells, deployment, effect, findings, heading, layer_table
from launcher.report.report import Report
from launcher.text import text


def markdown(report: Report) -> str:
    """The whole page."""
    one = (section, findings.section, layer_table.section, effect.section)
    sections = (heading.section, *((across.section, layer_table.section) if report.libraries else one), _what_to_do)
    lines = [line for part in sections for line in part(report)]
    page = report.file_name("report.html")
    lines += [f"Details and method: OPTIMAL_CONFIGS.md. Every point: {page}.", ""]
    return "\n".join(lines).rstrip() + "\n"


def section(report: Report) -> list[str]:
    """The configs and the verdict in a few lines."""
    counts, lines = report.results.counts, []
    if not report.has_times:
        lines.append("* No config: ranks shared a GPU, so only tokens were checked.")
    elif report.libraries:
        lines += [f"* {text(part.title)}: {line}" for part in report.libraries.values() for line in _configs(part)]
    elif report.results.choice.optimal is None:
        return ["## Summary", "", "No pair that could be deployed was measured.", ""]
    else:
        lines += [f"* {line}" for line in _configs(report)]
    fates = f"{counts.measured} measured, {counts.failed} failed, {counts.missing} missing"
    lines.append(f"* {counts.planned} points planned: {fates}.")
    return ["## Summary", "", *lines, ""]


def _configs(report: Report) -> list[str]:
    """The configs of one library."""
    choice = report.results.choice
    if choice.optimal is None:
        return ["no pair that could be deployed was measured."]
    verdict = ""
    if choice.verdict is not None:
        over = "" if choice.verdict.over == "optimal" else f", default / {choice.verdict.over}"
        verdict = f", **{choice.verdict.kind}** ({choice.verdict.ratio:.3f}x{over})"
    lines = [f"Fastest: {cells.config(choice.optimal)}: {choice.optimal.round_trip_us:.1f} us per round trip{verdict}."]
    if choice.default is not None:
        lines.append(f"Default: {cells.config(choice.default)}: {choice.default.round_trip_us:.1f} us.")
    overlapped = choice.picks.get("overlapped")
    if overlapped is not None and not overlapped.same_configs(choice.optimal):
        overlap = choice.overlap_of(overlapped)
        makespan = "" if overlap is None else f"{overlap.makespan_us:.1f} us overlapped, "
        times = f"{makespan}{overlapped.round_trip_us:.1f} us isolated"
        lines.append(f"For overlap with GEMMs: {cells.config(overlapped)}: {times}.")
    return lines


def _what_to_do(report: Report) -> list[str]:
    """The next commands, by the verdict on each library."""
    results, lines = report.results, []
    if results.counts.missing or results.unfinished or results.lacks_final:
        lines.append("Complete the run: `python -m launcher.resume RUN`.")
    if results.plan.is_dry or not report.has_times:
        lines.append("Measure on a machine with a GPU for each rank; nothing here is to be deployed.")
    elif report.libraries:
        lines += [f"{text(part.title)}: {line}" for part in report.libraries.values() for line in _advice(part)]
    else:
        lines += _advice(report)
    return ["## What to do", "", *(f"* {line}" for line in lines), ""]


def _advice(report: Report) -> list[str]:
    """What to do with the config of one library."""
    verdict = report.results.choice.verdict
    if verdict is None:
        return ["Nothing can be deployed without a result of the default: see the failures."]
    if verdict.kind == "within_margin":
        return ["Leave the default as it is."]
    if verdict.kind == "inconclusive":
        return ["Measure more before anything is changed: the same command with `search.final_groups=10`."]
    if not deployment.can_export(report):
        return [f"Pass the optimal config above to the calling code. {deployment.ONLY}"]
    return [
        "`python -m launcher.export RUN` writes the files that apply *fastest*, for each framework; docs/APPLY.md "
        "shows how to use them and how to check that they took effect.",
        "Where communication overlaps with GEMMs: `python -m launcher.export RUN --pick overlapped`.",
        "To load the config at start-up: `python -m launcher.publish RUN`, then `load_tuned_config`.",
    ]
