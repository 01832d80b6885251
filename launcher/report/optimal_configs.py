"""OPTIMAL_CONFIGS.md: a Report in, Markdown out; pure, and safe against whatever a host name or an error contains."""

from __future__ import annotations

from launcher.analysis.pairs import TIE_COST
from launcher.report import (
    appendix,
    columns,
    deployment,
    effect,
    findings,
    heading,
    literature,
    pair_tables,
    picks,
    summary,
)
from launcher.report.report import Report
from launcher.text import knobs_text


def markdown(report: Report) -> str:
    """The whole report."""
    timed = (
        _named_pairs,
        findings.section,
        picks.section,
        deployment.section,
        effect.section,
        _pictures,
        pair_tables.best_per_shared,
        pair_tables.overlapped,
        pair_tables.own_tuning,
        pair_tables.baselines,
        literature.section,
    )
    details = (appendix.points, appendix.failures, appendix.checks)
    end = (_files, appendix.provenance, summary.section)
    body = (*timed, *details, columns.section) if report.has_times else details
    return "\n".join(line for part in (heading.section, *body, *end) for line in part(report)).rstrip() + "\n"


def _named_pairs(report: Report) -> list[str]:
    choice = report.results.choice
    lines = ["## Optimal, default and worst", ""]
    if choice.optimal is None:
        return [*lines, "No pair of a dispatch and a combine was measured: see the failures below.", ""]
    lines += [*pair_tables.named(report.results), _source(report), ""]
    if choice.default is None:
        lines += ["**The library's default has no result**, so nothing can be compared with it.", ""]
    verdict = choice.verdict
    if verdict is not None:
        lines += [
            f"**Verdict: {verdict.kind}.** {verdict.meaning[0].upper()}{verdict.meaning[1:]}. "
            f"Default / {verdict.over} = **{verdict.ratio:.3f}** (95 % CI {verdict.ci95.low:.3f} to "
            f"{verdict.ci95.high:.3f}; margin {verdict.margin:.0%}; from the {verdict.basis}).",
            "",
        ]
    if len(choice.tied) > 1:
        ties = "; ".join(knobs_text(pair.shared) for pair in choice.tied)
        rule = f"Of those within {TIE_COST:.1%} of the fastest, the optimal pair is the one with the fewest resources."
        lines += [f"Indistinguishable from the fastest: {ties}. {rule}", ""]
    return lines


def _source(report: Report) -> str:
    """Where the numbers of the first table come from."""
    results = report.results
    if results.choice.optimal is not None and results.choice.optimal.is_final:
        text = (
            f"Optimal and default are from the final: {results.final_groups} fresh process groups, each of which "
            "measured the best configs. Worst is from the sweep."
        )
    else:
        text = "**These times are from the sweep, which also chose the winner**: they flatter it."
    if results.unfinished:
        text += f" **{' '.join(results.unfinished)}** These are the best configs so far."
    if results.lacks_final:
        num_missing = results.plan.spec.search.final_groups - results.final_groups
        text += f" **{num_missing} groups of the final are missing.**"
    return text


def _pictures(report: Report) -> list[str]:
    lines = [f"![{name.removesuffix('.svg').replace('_', ' ')}]({name})" for name in sorted(report.pictures)]
    return ["## Pictures", "", *lines, ""] if lines else []


def _files(report: Report) -> list[str]:
    """The files of the run folder."""
    results_file = f"RESULTS_EP{report.results.plan.spec.ep.size}.json"
    files = [
        ("OPTIMAL_CONFIGS.md", "this report"),
        ("SUMMARY.md", "the same on one page"),
        (report.file_name("report.html"), "the same with every point, to sort and filter; works offline"),
        (report.file_name(results_file), "the same for programs (docs/results.schema.json)"),
        *((name, "a picture") for name in sorted(report.pictures)),
        ("plan.json", "the planned points"),
        ("run.json", "the command and the revision of the code"),
        ("shards/*/records.jsonl", "every sample and every failure (docs/RECORDS.md)"),
        *deployment.files(report),
    ]
    return ["## Files", "", *(f"* `{name}`: {meaning}" for name, meaning in files), ""]
