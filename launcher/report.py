"""OPTIMAL_CONFIGS.md: Results in, Markdown out; pure, and safe against whatever a host name or an error contains."""

from __future__ import annotations

from collections.abc import Sequence

from bench.backends import BACKENDS, shared_knobs
from bench.records import Dtype
from bench.workload import Volume, volume
from launcher import evidence, findings
from launcher.choose import Pair
from launcher.findings import beside
from launcher.judge import OpResult
from launcher.markdown import table, text
from launcher.results import Results

NOT_A_MEASUREMENT = (
    "This is a dry run on CPUs, not a measurement of DeepEP: the tokens really moved, through gloo, "
    "but the times say nothing about a GPU."
)
SHARED_GPUS = (
    "Several ranks shared a GPU (ep.share_gpus=true): every token was checked, but the times mean nothing, "
    "so there is no verdict and no speed-up."
)


def markdown(results: Results, *, pictures: Sequence[str] = ()) -> str:
    """The whole report; ``pictures`` are files beside it to be shown."""
    sections = (
        _head,
        _answer,
        _findings,
        _situations,
        _apply,
        _effect,
        _best_per_shared,
        _overlapped,
        _own_tuning,
        _baselines,
        evidence.points,
        evidence.failures,
        evidence.trust,
        evidence.columns,
        _files,
        evidence.provenance,
        _in_short,
    )
    lines = [line for section in sections for line in section(results)]
    if pictures:
        at = next((index for index, line in enumerate(lines) if line.startswith("## The best pair")), len(lines))
        shown = [f"![{name.removesuffix('.svg').replace('_', ' ')}]({name})" for name in pictures]
        lines[at:at] = ["## Pictures", "", *shown, ""]
    return "\n".join(lines).rstrip() + "\n"


def knobs_text(knobs: dict[str, int]) -> str:
    """Knob values as a user would write them."""
    return ", ".join(f"{name} {value}" for name, value in knobs.items())


def _head(results: Results) -> list[str]:
    spec, workload = results.plan.spec, results.plan.spec.workload
    notes = []
    if results.plan.is_dry:
        notes += [f"**{NOT_A_MEASUREMENT}**", ""]
    if spec.ep.share_gpus:
        notes += [f"**{SHARED_GPUS}**", ""]
    device = results.environment.device if results.environment else "nothing yet"
    dispatch, combine = _volumes(results)
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


def _volumes(results: Results) -> tuple[Volume, Volume]:
    workload = results.plan.spec.workload
    return (
        volume(results.tokens, bytes_per_token=workload.bytes_per_token(workload.dtype)),
        volume(results.tokens, bytes_per_token=workload.bytes_per_token(Dtype.BF16)),
    )


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
            f"default / optimal = **{verdict.ratio:.3f}** (95 % interval {verdict.ci95.low:.3f} to "
            f"{verdict.ci95.high:.3f}; margin {verdict.margin:.0%}; from the {verdict.basis}'s samples).",
            "",
        ]
    if len(choice.tied) > 1:
        ties = "; ".join(knobs_text(pair.shared) for pair in choice.tied)
        lines += [f"Not to be told apart from the fastest: {ties}. The one with the fewest resources is taken.", ""]
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
    if search.budget_s is not None and (results.missing or results.lacks_final):
        text += (
            f" **The budget of {search.budget_s:.0f} s (search.budget_s) was spent before the search was over**: this "
            "is the best answer so far."
        )
    if results.lacks_final:
        text += f" **{search.final_groups - results.final_groups} groups of the final are missing.**"
    return text


def _situations(results: Results) -> list[str]:
    """Which answer is for whom, and what the wrong one costs."""
    choice = results.choice
    if not choice.picks:
        return []
    rows = []
    for name, pair in choice.picks.items():
        one = beside(choice, pair)
        rows.append(
            [
                name,
                _config(pair),
                f"{pair.round_trip_us:.1f}",
                "n/a" if pair.full is None else f"{pair.full.median_us:.1f}",
                "n/a" if one is None else f"{one.makespan_us:.1f}",
            ]
        )
    return [
        "## Which one to take",
        "",
        *table(("pick", "config", "round trip us", "whole dispatch us", "beside GEMMs us"), rows),
        "* **fastest**: for serial communication, where computation waits for it.",
        "* **overlapped**: for communication that runs beside expert GEMMs: both together are done first.",
        "* **default_sms**: the fastest with as many SMs as the default takes.",
        "* **knee**: the fewest SMs within 5 % of the fastest.",
        "* **whole dispatch**: layout, exchange of counts and the wait for them on the CPU included. "
        "**beside GEMMs**: with this pick's SMs, see below.",
        "",
    ]


def _findings(results: Results) -> list[str]:
    found = findings.findings(results)
    if not found:
        return []
    return ["## Key findings", "", *(f"{number}. {text(one)}" for number, one in enumerate(found, start=1)), ""]


_FRAMEWORKS = (
    ("SGLang", "`--deepep-config exports/sglang_deepep_config.json`", "all of it"),
    ("Megatron-LM", "`$(grep -v '^#' exports/megatron.args)`", "num_sms; the rest through the shim"),
    ("vLLM", "`exports/vllm.env`, and the shim", "all of it"),
    ("verl", "`exports/verl.overrides`, and the shim", "num_sms; the rest through the shim"),
    ("PaddleFleet", "`exports/paddle.yaml`", "all of it"),
    (
        "Primus-Turbo, torchtitan",
        "`exports/primus_turbo.yaml`, or the shim",
        "see the file: newer ones take num_sms",
    ),
    ("your own code", "`import deepep_shim` in every rank, before the Buffer is made", "all of it"),
)


def _apply(results: Results) -> list[str]:
    """For each framework what to set; the files themselves are the exports'."""
    if results.plan.spec.backend != "deepep" or results.choice.optimal is None or results.plan.spec.ep.share_gpus:
        return []
    return [
        "## How to apply it",
        "",
        "`python -m launcher.export RUN` writes the files below for the pick *fastest*; `--pick overlapped` and the "
        "others write theirs. docs/APPLY.md says for each framework how to see that it took effect.",
        "",
        *table(("framework", "what to set", "what it carries"), _FRAMEWORKS),
    ]


def _effect(results: Results) -> list[str]:
    """What a model gains, by the formula that stands below the table."""
    found = findings.effect(results)
    if found is None:
        return []
    before, after = found.default_forward_ms, found.optimal_forward_ms
    rows = [
        [name, f"{times * before:.1f}", f"**{times * after:.1f}**", f"{times * (before - after):.1f}"]
        for name, times in (("forward pass", 1), ("training step", 2))
    ]
    return [
        "## Expected effect on the model",
        "",
        *table(("before overlap", "default ms", "optimal ms", "saved ms"), rows),
        f"{text(found.model)}, computed, not measured: {found.num_layers} MoE layers x (dispatch + combine) for a "
        "forward pass, twice that "
        "for a training step (the backward pass of a dispatch is a combine, and the other way round), for one "
        "micro-batch of as many tokens as here. Where communication is hidden behind compute less is gained: see "
        "*overlapped*. A model with another hidden size, number of experts or top-k has to be measured: workload=NAME.",
        "",
    ]


_FILES = (
    ("OPTIMAL_CONFIGS.md", "this report"),
    ("SUMMARY.md", "the same on one page"),
    ("report.html", "the same with every point, to sort and filter; one file, no network needed"),
    ("RESULTS_EP*.json", "the same for programs (docs/results.schema.json)"),
    ("pareto.svg, heatmap_*.svg", "the pictures"),
    ("plan.json, run.json", "what was to be measured; the command and the code that did it"),
    ("shards/*/records.jsonl", "every sample and every failure, as it was written (docs/RECORDS.md)"),
)


def _files(_: Results) -> list[str]:
    return ["## Files", "", *(f"* `{name}`: {what}" for name, what in _FILES), ""]


def _in_short(results: Results) -> list[str]:
    return ["## Summary", "", *in_short(results), ""]


def in_short(results: Results) -> list[str]:
    """The answer in a few Markdown lines."""
    choice = results.choice
    if choice.optimal is None:
        return ["Nothing was measured that could be deployed."]
    verdict = "" if choice.verdict is None else f", **{choice.verdict.kind}** ({choice.verdict.ratio:.3f}x)"
    lines = [f"* Fastest: {_config(choice.optimal)}: {choice.optimal.round_trip_us:.1f} us a round trip{verdict}."]
    other = choice.picks.get("overlapped")
    if other is not None and not other.same_configs(choice.optimal):
        lines.append(f"* Beside computation: {_config(other)}.")
    counts = results.counts
    lines.append(
        f"* {counts.planned} points planned: {counts.measured} measured, {counts.failed} failed, "
        f"{counts.missing} missing."
    )
    return lines


def summary(results: Results) -> str:
    """SUMMARY.md: the head, the verdict, the findings and what to do, on one page."""
    sections = (_head, _in_short, _findings, _effect)
    lines = [line for section in sections for line in section(results)]
    lines += ["Everything else, with how it was measured: OPTIMAL_CONFIGS.md; with every point: report.html.", ""]
    return "\n".join(lines).rstrip() + "\n"


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
            f"{one.slowdown:.2f}x",
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
        "",
        *table(header, rows),
        "",
    ]


_COLUMNS = ("", "config", "median us", "95 % interval us", "spread", "logical GB/s", "wire GB/s", "of peak")


def _pair_rows(name: str, pair: Pair) -> list[list[str]]:
    bold = "**" if name == "optimal" else ""
    return [
        _row(f"{name} dispatch", pair.dispatch, bold=bold),
        _row(f"{name} combine", pair.combine, bold=bold),
        [f"{name} round trip", "", f"{bold}{pair.round_trip_us:.1f}{bold}", "", "", "", "", ""],
    ]


def _row(name: str, result: OpResult, *, bold: str = "") -> list[str]:
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
            ]
        )
    title = " and ".join(names)
    return [
        f"## The best pair for each {title}",
        "",
        f"A dispatch and its combine share {title}. Pairs marked * are on the Pareto frontier: "
        "none is faster with less.",
        "",
        *table((title, "dispatch", "dispatch us", "combine", "combine us", "round trip us"), rows),
    ]


def _fastest(pairs: list[Pair]) -> int:
    return min(range(len(pairs)), key=lambda index: pairs[index].round_trip_us)


def _own(result: OpResult, shared: Sequence[str]) -> dict[str, int]:
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
