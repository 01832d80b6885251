"""SUMMARY.md: the picks, the findings and what to do on one page; pure."""

from __future__ import annotations

from launcher.report import cells, effect, findings, heading
from launcher.report.report import Report


def markdown(report: Report) -> str:
    """The whole page."""
    sections = (heading.section, section, findings.section, effect.section, _what_to_do)
    lines = [line for part in sections for line in part(report)]
    page = report.file_name("report.html")
    lines += [f"Details and method: OPTIMAL_CONFIGS.md. Every point: {page}.", ""]
    return "\n".join(lines).rstrip() + "\n"


def section(report: Report) -> list[str]:
    """The configs and the verdict in a few lines."""
    return ["## Summary", "", *_configs(report), ""]


def _configs(report: Report) -> list[str]:
    counts, choice = report.results.counts, report.results.choice
    points = (
        f"* {counts.planned} points planned: {counts.measured} measured, {counts.failed} failed, "
        f"{counts.missing} missing."
    )
    if not report.has_times:
        return ["* No config: ranks shared a GPU, so only tokens were checked.", points]
    if choice.optimal is None:
        return ["No pair that could be deployed was measured."]
    verdict = ""
    if choice.verdict is not None:
        over = "" if choice.verdict.over == "optimal" else f", default / {choice.verdict.over}"
        verdict = f", **{choice.verdict.kind}** ({choice.verdict.ratio:.3f}x{over})"
    lines = [
        f"* Fastest: {cells.config(choice.optimal)}: {choice.optimal.round_trip_us:.1f} us per round trip{verdict}."
    ]
    if choice.default is not None:
        lines.append(f"* Default: {cells.config(choice.default)}: {choice.default.round_trip_us:.1f} us.")
    overlapped = choice.picks.get("overlapped")
    if overlapped is not None and not overlapped.same_configs(choice.optimal):
        overlap = choice.overlap_of(overlapped)
        makespan = "" if overlap is None else f"{overlap.makespan_us:.1f} us overlapped, "
        times = f"{makespan}{overlapped.round_trip_us:.1f} us isolated"
        lines.append(f"* For overlap with GEMMs: {cells.config(overlapped)}: {times}.")
    return [*lines, points]


def _what_to_do(report: Report) -> list[str]:
    """The next command, by the verdict."""
    return ["## What to do", "", *(f"* {line}" for line in _advice(report)), ""]


def _advice(report: Report) -> list[str]:
    results, lines = report.results, []
    if results.counts.missing or results.unfinished or results.lacks_final:
        lines.append("Complete the run: `python -m launcher.resume RUN`.")
    verdict = results.choice.verdict
    if results.plan.is_dry or not report.has_times:
        lines.append("Measure on a machine with a GPU for each rank; nothing here is to be deployed.")
    elif verdict is None:
        lines.append("Nothing can be deployed without a result of the default: see the failures.")
    elif verdict.kind == "default_is_optimal":
        lines.append("Leave the default as it is.")
    elif verdict.kind == "inconclusive":
        lines.append("Measure more before anything is changed: the same command with `search.final_groups=10`.")
    elif results.plan.backend == "deepep":
        lines += [
            "`python -m launcher.export RUN` writes the files that apply *fastest*, for each framework; docs/APPLY.md "
            "shows how to use them and how to check that they took effect.",
            "Where communication overlaps with GEMMs: `python -m launcher.export RUN --pick overlapped`.",
            "To load the config at start-up: `python -m launcher.publish RUN`, then `load_tuned_config`.",
        ]
    return lines or ["Pass the optimal config above to the calling code."]
