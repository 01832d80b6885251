"""SUMMARY.md: the answer, the findings and what to do on one page; pure."""

from __future__ import annotations

from launcher.report import cells, effect, findings, heading
from launcher.report.report import Report


def markdown(report: Report) -> str:
    """The whole page."""
    sections = (heading.section, section, findings.section, effect.section, _what_to_do)
    lines = [line for part in sections for line in part(report)]
    page = report.file_name("report.html")
    lines += [f"Everything else, with how it was measured: OPTIMAL_CONFIGS.md; with every point: {page}.", ""]
    return "\n".join(lines).rstrip() + "\n"


def section(report: Report) -> list[str]:
    """The answer in a few lines."""
    return ["## Summary", "", *_answer(report), ""]


def _answer(report: Report) -> list[str]:
    counts, choice = report.results.counts, report.results.choice
    points = (
        f"* {counts.planned} points planned: {counts.measured} measured, {counts.failed} failed, "
        f"{counts.missing} missing."
    )
    if not report.has_times:
        return ["* No config: ranks shared a GPU, so that only tokens were checked.", points]
    if choice.optimal is None:
        return ["Nothing was measured that could be deployed."]
    verdict = ""
    if choice.verdict is not None:
        over = "" if choice.verdict.over == "optimal" else f", default / {choice.verdict.over}"
        verdict = f", **{choice.verdict.kind}** ({choice.verdict.ratio:.3f}x{over})"
    lines = [f"* Fastest: {cells.config(choice.optimal)}: {choice.optimal.round_trip_us:.1f} us a round trip{verdict}."]
    if choice.default is not None:
        lines.append(f"* Default: {cells.config(choice.default)}: {choice.default.round_trip_us:.1f} us.")
    overlapped = choice.picks.get("overlapped")
    if overlapped is not None and not overlapped.same_configs(choice.optimal):
        lines.append(f"* Beside computation: {cells.config(overlapped)}: {overlapped.round_trip_us:.1f} us.")
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
    elif results.plan.spec.backend == "deepep":
        lines += [
            "`python -m launcher.export RUN` writes the files that put *fastest* into force, for each framework; "
            "docs/APPLY.md says how, and how to see that it took effect.",
            "Where communication runs beside computation: `python -m launcher.export RUN --pick overlapped`.",
            "At start-up, by key: `python -m launcher.publish RUN`, then `load_tuned_config`.",
        ]
    return lines or ["Give the optimal config above to whatever makes the calls."]
