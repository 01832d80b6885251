"""OPTIMAL_CONFIGS.md: a Report in, Markdown out; pure, and safe against whatever a host name or an error contains."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from launcher.analysis.pairs import TIE_COST
from launcher.analysis.verdict import Verdict
from launcher.report import (
    across,
    appendix,
    columns,
    components_table,
    deployment,
    effect,
    findings,
    heading,
    layer_table,
    library_tables,
    literature,
    pair_tables,
    picks,
    pictures,
    summary,
)
from launcher.report.report import Report
from launcher.text import knobs_text

_Sections = Sequence[Callable[[Report], list[str]]]


def markdown(report: Report) -> str:
    """The whole report."""
    first = _several() if report.libraries else _one()
    details = (appendix.points, appendix.failures, appendix.nodes, components_table.section, appendix.checks)
    without_times = (across.without_result, *details) if report.libraries else details
    body = (*first, *details, columns.section) if report.has_times else without_times
    end = (_files, appendix.provenance, summary.section)
    return "\n".join(line for part in (heading.section, *body, *end) for line in part(report)).rstrip() + "\n"


def _one() -> _Sections:
    """The sections about times in a report on one library."""
    return (
        _named_pairs,
        findings.section,
        picks.section,
        deployment.section,
        layer_table.section,
        effect.section,
        _pictures,
        *_PAIR_TABLES,
        library_tables.plain_section,
        pair_tables.baselines,
        literature.section,
    )


def _several() -> _Sections:
    """The sections about times in a report on several libraries: what compares them, then each."""
    return (
        across.section,
        _unfinished,
        layer_table.section,
        _libraries,
        library_tables.comparisons_section,
        pair_tables.baselines,
    )


_PAIR_TABLES = (pair_tables.best_per_shared, pair_tables.overlapped, pair_tables.own_tuning)


def _libraries(report: Report) -> list[str]:
    """A section for each library, with what a report on it alone would say."""
    sections = (_named_pairs, findings.section, picks.section, deployment.section, effect.section, _pictures)
    lines = []
    for part in report.libraries.values():
        lines += [f"## {part.title}", ""]
        for section in (*sections, *_PAIR_TABLES, literature.section):
            lines += [f"#{line}" if line.startswith("## ") else line for line in section(part)]
    return lines


def _named_pairs(report: Report) -> list[str]:
    choice = report.results.choice
    lines = ["## Optimal, default and worst", ""]
    if choice.optimal is None:
        return [*lines, "No pair of a dispatch and a combine was measured: see the failures below.", ""]
    doubts = [] if report.is_part else _unfinished(report)[:1]
    lines += [*pair_tables.named(report.results), " ".join([_source(report), *_empty(report), *doubts]), ""]
    if choice.default is None:
        lines += ["**The library's default has no result**, so nothing can be compared with it.", ""]
    verdict = choice.verdict
    if verdict is not None:
        lines += [
            f"**Verdict: {verdict.kind}.** {verdict.meaning[0].upper()}{verdict.meaning[1:]}. "
            f"Default / {verdict.over} = **{verdict.ratio:.3f}** (95 % CI {verdict.ci95.low:.3f} to "
            f"{verdict.ci95.high:.3f}; margin {verdict.margin:.0%}; from the {verdict.basis}).{_more(verdict)}",
            "",
        ]
    if len(choice.tied) > 1:
        ties = "; ".join(knobs_text(pair.shared) for pair in choice.tied)
        rule = f"Of those within {TIE_COST:.1%} of the fastest, the optimal pair is the one with the fewest resources."
        lines += [f"Indistinguishable from the fastest: {ties}. {rule}", ""]
    return lines


def _empty(report: Report) -> list[str]:
    """What the timer adds to every number: what it reads of an empty operation."""
    readings = sorted(value for check in report.results.self_checks for value in check.empty_op_us)
    optimal = report.results.choice.optimal
    if not readings or optimal is None or report.results.plan.is_dry:
        return []
    empty_us = readings[len(readings) // 2]
    share = 2 * empty_us / optimal.round_trip_us
    reading = f"the {empty_us:.1f} us that an empty operation reads"
    return [f"Every time includes {reading}: {share:.1%} of the optimal round trip."]


def _more(verdict: Verdict) -> str:
    """What another run would find, and the same with full dispatches, as far as it was measured."""
    sentences = ""
    if verdict.another_run is not None:
        ends = f"{verdict.another_run.low:.3f} to {verdict.another_run.high:.3f}"
        sentences += f" That interval is of this run; another run on this kind of machine would report {ends}."
    if verdict.forward is not None and verdict.forward_ci95 is not None:
        ends = f"{verdict.forward_ci95.low:.3f} to {verdict.forward_ci95.high:.3f}"
        sentences += f" In a forward pass, with full dispatches: **{verdict.forward:.3f}** (95 % CI {ends})."
    return sentences


def _source(report: Report) -> str:
    """Where the numbers of the first table come from."""
    results = report.results
    if results.choice.optimal is not None and results.choice.optimal.is_final:
        return (
            f"Optimal and default are from the final: {results.final_groups} fresh process groups, each of which "
            "measured the best configs. Worst is from the sweep."
        )
    return "**These times are from the sweep, which also chose the winner**: they flatter it."


def _unfinished(report: Report) -> list[str]:
    """What of the run is not done, as a paragraph; empty for a complete run."""
    results, sentences = report.results, []
    if results.unfinished:
        sentences.append(f"**{' '.join(results.unfinished)}** These are the best configs so far.")
    if results.lacks_final:
        num_missing = results.plan.spec.search.final_groups - results.final_groups
        sentences.append(f"**{num_missing} groups of the final are missing.**")
    return [" ".join(sentences), ""] if sentences else []


def _pictures(report: Report) -> list[str]:
    lines = [f"![{pictures.caption(name)}]({name})" for name in sorted(report.pictures)]
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
