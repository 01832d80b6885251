"""OPTIMAL_CONFIGS.md: Results in, Markdown out; pure, and safe against whatever a host name or an error contains."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bench.backends import BACKENDS, shared_knobs
from bench.backends.deepep import buffer_bytes
from launcher.analysis.choice import Choice
from launcher.analysis.measurements import Measurement
from launcher.analysis.pairs import TIE_COST, Pair
from launcher.analysis.results import Results
from launcher.config.plan import NOT_A_MEASUREMENT, SHARED_GPUS
from launcher.deploy.formats import EXPORTS
from launcher.report import appendix, findings, literature
from launcher.report.findings import overlap_of
from launcher.text import knobs_text, table, text


def markdown(
    results: Results, *, pictures: Sequence[str] = (), number: int = 0, said: Sequence[str] | None = None
) -> str:
    """The whole report; ``pictures`` are files beside it to be shown.

    ``number``: which it is of a run's unlike environments, see ``file_name``. ``said``: its findings, if known.
    """
    files = functools.partial(_files, pictures=pictures, number=number)
    timed = (
        _answer,
        functools.partial(_findings, said=said),
        _situations,
        _apply,
        _effect,
        functools.partial(_pictures, pictures=pictures),
        _best_per_shared,
        _overlapped,
        _own_tuning,
        _baselines,
        literature.section,
    )
    evident = (appendix.points, appendix.failures, appendix.trust)
    if means_nothing(results):
        sections: Sequence[_Section] = (_head, *evident, files, appendix.provenance, _in_short)
    else:
        sections = (_head, *timed, *evident, appendix.columns, files, appendix.provenance, _in_short)
    return "\n".join(line for section in sections for line in section(results)).rstrip() + "\n"


_Section = Callable[[Results], list[str]]


def means_nothing(results: Results) -> bool:
    """Whether no time of this run may be shown, since several ranks shared a GPU."""
    return results.plan.spec.ep.share_gpus


def file_name(name: str, number: int) -> str:
    """The name of a file of one of several unlike environments: that of the first has none but its own."""
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{number + 1}.{suffix}" if number else name


def _head(results: Results) -> list[str]:
    spec, workload = results.plan.spec, results.plan.spec.workload
    notes = []
    if results.plan.is_dry:
        notes += [f"**{NOT_A_MEASUREMENT}**", ""]
    if spec.ep.share_gpus:
        notes += [f"**{SHARED_GPUS}**", ""]
    if note := objective_note(results):
        notes += [f"**{note}**", ""]
    device = results.environment.device if results.environment else "nothing yet"
    dispatch, combine = results.volumes
    library = "DeepEP" if spec.backend == "deepep" else f"the {spec.backend} backend"
    return [
        *notes,
        f"# Optimal configuration of {library} at EP={spec.ep.size}",
        "",
        f"Measured on {results.environment.num_devices if results.environment else 0} x {text(device)} with "
        f"{spec.ep.size} ranks: {workload.num_tokens} tokens a rank, hidden {workload.hidden}, "
        f"{workload.num_experts} experts, top-{workload.num_topk} ({text(workload.name)}, routing "
        f"{text(workload.routing)}), dispatch in {workload.dtype.upper()}, combine in BF16.",
        f"The busiest rank moves {dispatch.logical / 1e6:.1f} MB in a dispatch ({dispatch.wire / 1e6:.1f} MB of it "
        f"over the links) and {combine.logical / 1e6:.1f} MB ({combine.wire / 1e6:.1f} MB) in a combine.",
        "",
    ]


def _answer(results: Results) -> list[str]:
    choice = results.choice
    lines = ["## Optimal, default and worst", ""]
    if choice.optimal is None:
        return [*lines, "No pair of a dispatch and a combine was measured: see the failures below.", ""]
    named = [("optimal", choice.optimal), ("default", choice.default), ("worst", choice.worst)]
    rows = [row for name, pair in named if pair is not None for row in _pair_rows(name, pair)]
    lines += table(_COLUMNS, rows)
    lines += [_how_measured(results), ""]
    if choice.default is None:
        lines += ["**The library's default has no result**, so nothing can be compared with it.", ""]
    verdict = choice.verdict
    if verdict is not None:
        lines += [
            f"**Verdict: {verdict.kind}.** {verdict.meaning[0].upper()}{verdict.meaning[1:]}: "
            f"default / {verdict.over} = **{verdict.ratio:.3f}** (95 % interval {verdict.ci95.low:.3f} to "
            f"{verdict.ci95.high:.3f}; margin {verdict.margin:.0%}; from the {verdict.basis}'s samples).",
            "",
        ]
    if len(choice.tied) > 1:
        ties = "; ".join(knobs_text(pair.shared) for pair in choice.tied)
        taken = f"Of those within {TIE_COST:.1%} of it the one with the fewest resources is taken."
        lines += [f"Not to be told apart from the fastest: {ties}. {taken}", ""]
    return lines


def _how_measured(results: Results) -> str:
    """Where the numbers of the first table come from."""
    search = results.plan.spec.search
    final = results.choice.optimal is not None and results.choice.optimal.is_final
    if final:
        text = (
            f"Optimal and default: the final, {results.final_groups} fresh process groups that measured the best "
            "configs in turn. Worst: the sweep."
        )
    else:
        text = "**These numbers are the sweep's own**, which also chose: they flatter the winner."
    if results.unfinished:
        text += f" **{' '.join(results.unfinished)}** This is the best answer so far."
    if results.lacks_final:
        text += f" **{search.final_groups - results.final_groups} groups of the final are missing.**"
    return text


class PickTable(NamedTuple):
    """Which answers there are: a row for each pick, in text."""

    columns: tuple[str, ...]
    rows: list[list[str]]


def picks(choice: Choice) -> PickTable:
    """The picks of a run, what each takes alone, as a whole dispatch, and beside GEMMs."""
    rows = []
    for name, pair in choice.picks.items():
        one = overlap_of(choice, pair)
        whole_us, beside_us = (pair.full.median_us if pair.full else None), (one.makespan_us if one else None)
        times = ["n/a" if us is None else f"{us:.1f}" for us in (pair.round_trip_us, whole_us, beside_us)]
        rows.append([name, _config(pair), *times])
    return PickTable(("pick", "config", "round trip us", "whole dispatch us", "beside GEMMs us"), rows)


def _situations(results: Results) -> list[str]:
    """Which answer is for whom, and what the wrong one costs."""
    shown = picks(results.choice)
    if not shown.rows:
        return []
    return [
        "## Which one to take",
        "",
        *table(*shown),
        "* **fastest**: for serial communication, where computation waits for it.",
        "* **overlapped**: for communication that runs beside expert GEMMs: both together are done first.",
        "* **default_sms**: the fastest with as many SMs as the default takes.",
        "* **knee**: the fewest SMs within 5 % of the fastest.",
        "* **whole dispatch us**: layout, exchange of counts and the wait for them on the CPU included. "
        "**beside GEMMs us**: with this pick's SMs, see below.",
        *_memory(results),
        "",
    ]


def _memory(results: Results) -> list[str]:
    """What the buffers of the picks take, where a formula is known."""
    spec = results.plan.spec
    if spec.backend != "deepep":
        return []
    sizes = {
        name: max(
            buffer_bytes(one.point.knobs, num_ranks=spec.ep.size, hidden_bytes=2 * spec.workload.hidden)
            for one in (pair.dispatch, pair.combine)
        )
        for name, pair in results.choice.picks.items()
    }
    said = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in sizes.items())
    return [f"* **memory** of a rank's NVLink buffer, by DeepEP's own hint: {text(said)}."]


def objective_note(results: Results) -> str:
    """What is minimised, where that is not the round trip; else empty."""
    dispatch, combine = results.plan.spec.search.weights
    if dispatch == combine:
        return ""
    return (
        f"The objective (search.objective) is {dispatch:g} x dispatch + {combine:g} x combine: by it is decided, "
        "ratios, intervals and the verdict are of it, while a round trip is the sum of both."
    )


def findings_title(results: Results) -> str:
    """The heading of the findings, which says so where they are about no GPU."""
    return "Key findings of a dry run, about this CPU" if results.plan.is_dry else "Key findings"


def _findings(results: Results, *, said: Sequence[str] | None = None) -> list[str]:
    found = findings.findings(results) if said is None else said
    if not found:
        return []
    return [
        f"## {findings_title(results)}",
        "",
        *(f"{number}. {text(one)}" for number, one in enumerate(found, start=1)),
        "",
    ]


def _apply(results: Results) -> list[str]:
    """For each framework what to set; the files themselves are the exports'."""
    if results.plan.spec.backend != "deepep" or results.choice.optimal is None:
        return []
    rows = [[one.framework, one.use, one.num_sms, one.chunk_and_buffer] for one in EXPORTS.values()]
    return [
        "## How to apply it",
        "",
        "`python -m launcher.export RUN` writes the files below for the pick *fastest*; `--pick overlapped` and the "
        "others write theirs into `exports/overlapped/` and so on. docs/APPLY.md says for each framework how to see "
        "that it took effect, and what was checked.",
        "",
        *table(("framework", "what to do", "num_sms", "nvl_chunk, nvl_buffer"), rows),
    ]


def _effect(results: Results) -> list[str]:
    """What a model gains, by the formula that stands below the table."""
    found = findings.effect(results)
    if found is None:
        return []
    rows = [
        [name, f"{before:.1f}", f"**{after:.1f}**", f"{before - after:.1f}"]
        for name, (before, after) in (("forward pass", found.forward_ms), ("training step", found.training_ms))
    ]
    whole = (
        "The dispatch of a forward pass is the whole one, with layout, exchange of counts and the wait for them."
        if found.has_whole
        else "**The whole dispatch was not measured: that of a forward pass counts as if its handle existed**, which "
        "is too little."
    )
    return [
        "## Expected effect on the model",
        "",
        *table(("before overlap", "default ms", "optimal ms", "saved ms"), rows),
        f"{text(found.model)}, computed, not measured: {found.num_layers} MoE layers x (dispatch + combine) for a "
        f"forward pass. {whole} A training step adds as many x (dispatch with the handle + combine) for the backward "
        "pass, where a combine becomes a dispatch and the other way round, of as many bytes. For one micro-batch of "
        "as many tokens as here. Where communication is hidden behind compute less is gained: see *overlapped*. "
        "A model with another hidden size, number of experts or top-k has to be measured: workload=NAME.",
        "",
    ]


def _pictures(_: Results, *, pictures: Sequence[str]) -> list[str]:
    shown = [f"![{name.removesuffix('.svg').replace('_', ' ')}]({name})" for name in pictures]
    return ["## Pictures", "", *shown, ""] if shown else []


def _files(results: Results, *, pictures: Sequence[str], number: int) -> list[str]:
    """What lies in the run folder."""
    found = [
        ("OPTIMAL_CONFIGS.md", "this report"),
        ("SUMMARY.md", "the same on one page"),
        (file_name("report.html", number), "the same with every point, to sort and filter; one file, no network"),
        (
            file_name(f"RESULTS_EP{results.plan.spec.ep.size}.json", number),
            "the same for programs (docs/results.schema.json)",
        ),
        *[(name, "a picture") for name in pictures],
        ("plan.json", "what was to be measured"),
        ("run.json", "the command and the code that did it"),
        ("shards/*/records.jsonl", "every sample and every failure, as it was written (docs/RECORDS.md)"),
    ]
    if _apply(results) and not means_nothing(results) and not results.plan.is_dry:
        names = ", ".join(one.file for one in EXPORTS.values())
        found.append(("exports/", f"once `python -m launcher.export RUN` has written them: {names}"))
    return ["## Files", "", *(f"* `{name}`: {what}" for name, what in found), ""]


def _in_short(results: Results) -> list[str]:
    return ["## Summary", "", *in_short(results), ""]


def in_short(results: Results) -> list[str]:
    """The answer in a few Markdown lines."""
    counts = results.counts
    points = (
        f"* {counts.planned} points planned: {counts.measured} measured, {counts.failed} failed, "
        f"{counts.missing} missing."
    )
    if means_nothing(results):
        return ["* No config: ranks shared a GPU, so that only tokens were checked.", points]
    choice = results.choice
    if choice.optimal is None:
        return ["Nothing was measured that could be deployed."]
    verdict = ""
    if choice.verdict is not None:
        over = "" if choice.verdict.over == "optimal" else f", default / {choice.verdict.over}"
        verdict = f", **{choice.verdict.kind}** ({choice.verdict.ratio:.3f}x{over})"
    lines = [f"* Fastest: {_config(choice.optimal)}: {choice.optimal.round_trip_us:.1f} us a round trip{verdict}."]
    if choice.default is not None:
        lines.append(f"* Default: {_config(choice.default)}: {choice.default.round_trip_us:.1f} us.")
    other = choice.picks.get("overlapped")
    if other is not None and not other.same_configs(choice.optimal):
        lines.append(f"* Beside computation: {_config(other)}: {other.round_trip_us:.1f} us.")
    return [*lines, points]


def summary(results: Results, *, number: int = 0, said: Sequence[str] | None = None) -> str:
    """SUMMARY.md: the head, the verdict, the findings and what to do, on one page."""
    sections = (_head, _in_short, functools.partial(_findings, said=said), _effect, _what_to_do)
    lines = [line for section in sections for line in section(results)]
    page = file_name("report.html", number)
    lines += [f"Everything else, with how it was measured: OPTIMAL_CONFIGS.md; with every point: {page}.", ""]
    return "\n".join(lines).rstrip() + "\n"


def _what_to_do(results: Results) -> list[str]:
    """The next command, by the verdict."""
    return ["## What to do", "", *(f"* {line}" for line in _advice(results)), ""]


def _advice(results: Results) -> list[str]:
    lines = []
    if results.counts.missing or results.unfinished or results.lacks_final:
        lines.append("Complete the run: `python -m launcher.resume RUN`.")
    verdict = results.choice.verdict
    if results.plan.is_dry or means_nothing(results):
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


def _config(pair: Pair) -> str:
    """Both configs in one cell."""
    shared = tuple(pair.shared)
    return (
        f"{knobs_text(pair.shared)}; dispatch {knobs_text(_own(pair.dispatch, shared))}; "
        f"combine {knobs_text(_own(pair.combine, shared))}"
    )


def _overlapped(results: Results) -> list[str]:
    """The table of pairs beside GEMMs."""
    overlaps = results.choice.overlaps
    if not overlaps:
        return []
    workload = results.plan.spec.workload
    best = min(one.makespan_us for one in overlaps)
    rows = [
        [
            ", ".join(str(value) for value in one.pair.shared.values()),
            knobs_text(_own(one.pair.dispatch, tuple(one.pair.shared))),
            knobs_text(_own(one.pair.combine, tuple(one.pair.shared))),
            f"{one.pair.round_trip_us:.1f}",
            f"**{one.makespan_us:.1f}**" if one.makespan_us == best else f"{one.makespan_us:.1f}",
            f"{one.ci95_us.low:.1f} to {one.ci95_us.high:.1f}",
            f"{one.slowdown:.2f}x ({one.slowdown_ci95.low:.2f} to {one.slowdown_ci95.high:.2f})",
            f"{one.one_after_the_other_us:.1f}",
            f"{one.compute_to_communication:.1f}",
        ]
        for one in overlaps
    ]
    header = (
        ", ".join(overlaps[0].pair.shared),
        "dispatch",
        "combine",
        "alone us",
        "beside GEMMs us",
        "95 % interval us",
        "GEMM slowdown",
        "one after the other us",
        "compute / communication",
    )
    return [
        "## Beside expert GEMMs",
        "",
        "One dispatch and one combine on the library's own stream, beside one layer's expert GEMMs (BF16, hidden "
        f"{workload.hidden}, moe_intermediate {workload.moe_intermediate}; "
        f"{overlaps[0].compute_alone_us:.1f} us alone). "
        "The answer moves with the last column: where computation is scarcer than here, more SMs pay.",
        *_uncorrected(results),
        "",
        *table(header, rows),
        "",
    ]


def _uncorrected(results: Results) -> list[str]:
    """What the numbers of this section must not be taken for."""
    said = []
    if results.num_unjudged:
        said.append(
            f"**{results.num_unjudged} of the visits have no GEMMs alone right beside them**, so that nothing takes "
            "out what the power cap did to the clocks meanwhile."
        )
    if any(one.slowdown_ci95.high < 1 for one in results.choice.overlaps):
        why = "clocks differed between GEMMs alone and beside the pair"
        said.append(f"A slowdown surely below 1 is no gain: {why}.")
    return said


_COLUMNS = ("", "config", "median us", "95 % interval us", "spread", "logical GB/s", "wire GB/s", "of peak")


def _pair_rows(name: str, pair: Pair) -> list[list[str]]:
    bold = "**" if name == "optimal" else ""
    return [
        _row(f"{name} dispatch", pair.dispatch, bold=bold),
        _row(f"{name} combine", pair.combine, bold=bold),
        [f"{name} round trip", "", f"{bold}{pair.round_trip_us:.1f}{bold}", _round_trip_ends(pair), "", "", "", ""],
    ]


def _round_trip_ends(pair: Pair) -> str:
    ends = pair.round_trip_ci95_us
    return "" if ends is None else f"{ends.low:.1f} to {ends.high:.1f}"


def _row(name: str, result: Measurement, *, bold: str = "") -> list[str]:
    peak = "n/a" if result.peak_fraction is None else f"{result.peak_fraction:.0%}"
    logical, wire = result.logical_gb_per_s or 0.0, result.wire_gb_per_s or 0.0
    spread = f"{result.spread:.1%}" + (" unstable" if result.unstable else "")
    return [
        name,
        knobs_text(result.point.knobs),
        f"{bold}{result.median_us:.1f}{bold}",
        f"{result.ci95_us.low:.1f} to {result.ci95_us.high:.1f}",
        spread,
        f"{logical:.1f}",
        f"{wire:.1f}",
        peak,
    ]


def _best_per_shared(results: Results) -> list[str]:
    names = shared_knobs(BACKENDS[results.plan.spec.backend])
    if not results.choice.best_per_shared:
        return []
    frontier = [pair.shared for pair in results.choice.pareto]
    rows = []
    for pair in results.choice.best_per_shared:
        bold = "**" if pair is results.choice.best_per_shared[_fastest(results.choice.best_per_shared)] else ""
        rows.append(
            [
                ", ".join(str(value) for value in pair.shared.values()) + (" *" if pair.shared in frontier else ""),
                knobs_text(_own(pair.dispatch, names)),
                f"{pair.dispatch.median_us:.1f}",
                knobs_text(_own(pair.combine, names)),
                f"{pair.combine.median_us:.1f}",
                f"{bold}{pair.round_trip_us:.1f}{bold}",
                _round_trip_ends(pair),
            ]
        )
    title = " and ".join(names)
    return [
        f"## The best pair for each {title}",
        "",
        f"A dispatch and its combine share {title}. Pairs marked * are on the Pareto frontier: "
        "none is faster with less.",
        "",
        *table((title, "dispatch", "dispatch us", "combine", "combine us", "round trip us", "95 % interval us"), rows),
    ]


def _fastest(pairs: list[Pair]) -> int:
    return min(range(len(pairs)), key=lambda index: pairs[index].round_trip_us)


def _own(result: Measurement, shared: Sequence[str]) -> dict[str, int]:
    return {name: value for name, value in result.point.knobs.items() if name not in shared}


def _own_tuning(results: Results) -> list[str]:
    """What the library's own tuning script would have chosen, measured here side by side."""
    tuning, optimal = results.choice.own_tuning, results.choice.optimal
    if tuning is None or optimal is None:
        return []
    same = next((pair for pair in results.choice.best_per_shared if pair.shared == tuning.shared), None)
    named = [("its best", tuning), ("ours with as many SMs", same), ("optimal", optimal)]
    rows = [
        [
            name,
            _config(pair),
            f"{pair.dispatch.median_us:.1f}",
            f"{pair.combine.median_us:.1f}",
            f"{pair.round_trip_us:.1f}",
            f"{tuning.round_trip_us / pair.round_trip_us:.3f}x",
        ]
        for name, pair in named
        if pair is not None
    ]
    return [
        "## The library's own tuning grid, in the same run",
        "",
        "Its tuning script fixes the SMs and the buffer and varies the chunk alone.",
        "",
        *table(("", "config", "dispatch us", "combine us", "round trip us", "speed"), rows),
    ]


def _baselines(results: Results) -> list[str]:
    spec = results.plan.spec
    if spec.backend == "alltoall":
        return []
    if not results.plan.baselines:
        return ["## NCCL all-to-all", "", "Not measured: NCCL refuses several ranks on one GPU.", ""]
    rows = [_row(f"NCCL all-to-all, {result.point.op}", result) for result in results.baselines]
    return ["## NCCL all-to-all of the same tokens", "", *table(_COLUMNS, rows)]
