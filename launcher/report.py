"""OPTIMAL_CONFIGS.md: Results in, Markdown out; pure, and safe against whatever a host name or an error contains."""

from __future__ import annotations

import re
import shlex
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from bench.backends import BACKENDS, shared_knobs
from bench.records import Dtype
from bench.workload import Volume, volume
from launcher.choose import Choice, Overlap, Pair
from launcher.judge import Failure, OpResult
from launcher.plan import FINAL
from launcher.results import Results

NOT_A_MEASUREMENT = (
    "This is a dry run on CPUs, not a measurement of DeepEP: the tokens really moved, through gloo, "
    "but the times say nothing about a GPU."
)
SHARED_GPUS = (
    "Several ranks shared a GPU (ep.share_gpus=true): every token was checked, but the times mean nothing, "
    "so there is no verdict and no speed-up."
)
_MAX_FAILURES = 50


def text(value: object) -> str:
    """A value as Markdown text: whatever could open markup, a table cell or a line is escaped."""
    one_line = " ".join(str(value).split())
    escaped = re.sub(r"([\\`*_\[\]|#~])", r"\\\1", one_line)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code(value: object) -> str:
    """A value as inline code that cannot end early, in a table or out of it."""
    one_line = " ".join(str(value).split()).replace("|", "\\|")
    fence = "`" * (max((len(run) for run in re.findall(r"`+", one_line)), default=0) + 1)
    pad = " " if one_line.startswith("`") or one_line.endswith("`") else ""
    return f"{fence}{pad}{one_line}{pad}{fence}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; the first column is left-aligned, the others are numbers."""
    align = ["---"] + ["---:"] * (len(header) - 1)
    return [f"| {' | '.join(cells)} |" for cells in (header, align, *rows)] + [""]


def markdown(results: Results, *, pictures: Sequence[str] = ()) -> str:
    """The whole report; ``pictures`` are files beside it to be shown."""
    sections = (
        _head,
        _answer,
        _situations,
        _best_per_shared,
        _overlapped,
        _own_tuning,
        _baselines,
        _points,
        _failures,
        _trust,
        _columns,
        _provenance,
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
        one = _beside(choice, pair)
        rows.append(
            [
                name,
                _config(pair),
                f"{pair.round_trip_us:.1f}",
                "n/a" if pair.full is None else f"{pair.full.median_us:.1f}",
                "n/a" if one is None else f"{one.makespan_us:.1f}",
            ]
        )
    lines = [
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
    return lines + _wrong_answer(choice)


def _beside(choice: Choice, pair: Pair) -> Overlap | None:
    """What was measured beside GEMMs of this pair, or else of the best with the same shared knobs."""
    same = [one for one in choice.overlaps if one.pair.shared == pair.shared]
    exact = [one for one in same if one.pair.same_configs(pair)]
    return min(exact or same, key=lambda one: one.makespan_us, default=None)


def _wrong_answer(choice: Choice) -> list[str]:
    """What taking one situation's answer in the other costs."""
    fastest, overlapped = choice.picks["fastest"], choice.picks.get("overlapped")
    if overlapped is None or overlapped.shared == fastest.shared:
        return []
    hidden, taken = _beside(choice, overlapped), _beside(choice, fastest)
    if hidden is None or taken is None:
        return []
    return [
        f"Taking *fastest* where communication is overlapped costs {taken.makespan_us - hidden.makespan_us:.0f} us a "
        f"layer ({taken.makespan_us / hidden.makespan_us - 1:.1%}); taking *overlapped* where it is serial costs "
        f"{overlapped.round_trip_us - fastest.round_trip_us:.0f} us "
        f"({overlapped.round_trip_us / fastest.round_trip_us - 1:.1%}).",
        "",
    ]


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


def _points(results: Results) -> list[str]:
    counts = results.counts
    lines = [
        "## Points",
        "",
        *table(
            ("planned", "measured", "failed", "missing"),
            [[str(counts.planned), str(counts.measured), str(counts.failed), str(counts.missing)]],
        ),
    ]
    if results.missing:
        labels = ", ".join(code(planned.point.label) for planned in results.missing[:10])
        more = f" and {len(results.missing) - 10} more" if len(results.missing) > 10 else ""
        lines += [f"**Missing:** {labels}{more}. The same command with `run=` and this folder measures them.", ""]
    if results.plan.refused:
        rules = Counter(f"{v.key} must {v.rule}" for cell in results.plan.refused for v in cell.violations)
        lines += [f"{len(results.plan.refused)} cells of the grid were refused when planning:", ""]
        lines += [f"* {text(rule)}: {count}" for rule, count in sorted(rules.items())] + [""]
    return lines


def _failures(results: Results) -> list[str]:
    if not results.failures:
        return []
    kinds = Counter(failure.kind for failure in results.failures)
    lines = [f"## Failures: {', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))}", ""]
    lines += table(
        ("point", "kind", "phase", "rank", "what happened"),
        [_failure_row(failure) for failure in results.failures[:_MAX_FAILURES]],
    )
    if len(results.failures) > _MAX_FAILURES:
        lines += [f"{len(results.failures) - _MAX_FAILURES} more are in the RESULTS file.", ""]
    return lines


def _failure_row(failure: Failure) -> list[str]:
    rank = "" if failure.rank is None else str(failure.rank)
    return [code(failure.point.label), text(failure.kind), text(failure.phase), rank, text(failure.message)]


def _trust(results: Results) -> list[str]:
    lines = ["## Checks", ""]
    empty = sorted(value for check in results.self_checks for value in check.empty_op_us)
    if empty:
        lines.append(f"* An empty operation reads {empty[len(empty) // 2]:.1f} us (median of {len(empty)}).")
    if results.rank_ratio is not None:
        lines.append(f"* Slowest over fastest rank in the default dispatch: {results.rank_ratio:.3f}.")
    for check in results.self_checks:
        bad = {name: verdict for name, verdict in check.edge_routings.items() if verdict != "ok"}
        good = [name for name in check.edge_routings if name not in bad]
        if good:
            lines.append(f"* {_place(check.shard)}: edge routings right, every token: {', '.join(map(text, good))}.")
        lines += [f"* {_place(check.shard)}: **{text(name)}**: {text(verdict)}" for name, verdict in bad.items()]
    unstable = sum(result.unstable for result in results.measurements)
    lines.append(f"* Unstable points (spread above 10 % also after an extension): {unstable}.")
    cost = results.cost
    if cost.wall_s:
        lines.append(
            f"* {cost.wall_s:.0f} s from the first start of ranks to the last record: "
            f"{cost.busy_s / cost.wall_s:.0%} in warm-up and timed iterations, "
            f"{cost.startup_s / cost.wall_s:.0%} in waiting for ranks to start."
        )
    if cost.accounting:
        lines.append(f"* {cost.accounting.gpu_hours:.3f} GPU-hours by {text(cost.accounting.source)}.")
    lines += [f"* **{text(flag)}**" for flag in results.flags]
    lines += [f"* **{code(line.file)} line {line.line} cannot be read**: {text(line.why)}" for line in results.damaged]
    return [*lines, ""]


def _place(shard: int) -> str:
    return "Final" if shard == FINAL else f"Shard {shard}"


def _columns(results: Results) -> list[str]:
    peak = results.peak_gb_per_s
    return [
        "## What the columns say",
        "",
        "* **median us**: median over iterations of the slowest rank's time, from a device-side alignment of the "
        "ranks to the end of the operation. Dispatch is the cached dispatch (the handle exists).",
        "* **95 % interval**: of that median; in the final Student's, over its fresh process groups, else by order "
        "statistics of the samples.",
        "* **spread**: interquartile range over median.",
        "* **logical GB/s**: bytes that the busiest rank moves, tokens that stay on it included, over the median "
        "(DeepEP's own convention).",
        "* **wire GB/s**: the same without tokens that stay on their rank; only this may be compared with a link.",
        f"* **of peak**: wire GB/s over {'the link peak (none here)' if peak is None else f'{peak:.0f} GB/s'}, "
        "all links of one GPU, one direction.",
        "* **round trip**: dispatch + combine.",
        "",
    ]


def _provenance(results: Results) -> list[str]:
    manifest, environment = results.manifest, results.environment
    revision = manifest.revision.commit or "unknown"
    dirty = " with local changes" if manifest.revision.dirty else ""
    lines = [
        "## Where this comes from",
        "",
        f"* Command: {code(shlex.join(manifest.command))}",
        f"* Program: deepep-sweep {text(manifest.program)}, revision {text(revision)}{dirty}, "
        f"code {text(manifest.revision.code)}",
        f"* Measured: {_when(results.started)} to {_when(results.ended)}",
        f"* Hosts: {', '.join(sorted({text(host.hostname) for host in results.hosts})) or 'none'}",
    ]
    if environment is not None:
        versions = ", ".join(f"{text(name)} {text(version)}" for name, version in sorted(environment.versions.items()))
        lines.append(f"* Versions: {versions}")
        if environment.driver:
            lines.append(
                f"* Driver {text(environment.driver)}; {environment.num_links or 'unknown number of'} NVLinks a GPU, "
                f"pairs by {text(environment.topology)}"
            )
    lines.append(
        "* Raw samples: `shards/*/records.jsonl`; the same as this report for programs: "
        f"`RESULTS_EP{results.plan.spec.ep.size}.json`"
    )
    return [*lines, ""]


def _when(seconds: float | None) -> str:
    return "never" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
