"""The findings: what a reader should remember, in a sentence or two each; pure, plain text without markup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from bench.backends import BACKENDS
from bench.records import Op
from bench.stats import Floats, combinations
from launcher.analysis.libraries import best_independent
from launcher.analysis.pairs import Pair
from launcher.analysis.results import Results
from launcher.config import candidates
from launcher.report.library_verdict import against_collectives
from launcher.report.overlap_findings import overlap_findings
from launcher.report.ratios import INDISTINGUISHABLE, as_long_as, compare_times
from launcher.report.report import Report
from launcher.report.wording import join_words
from launcher.text import knobs_text, text


def findings(results: Results) -> list[str]:
    """The findings about the only library, most important first; no times where several ranks shared a GPU."""
    return _sentences(results, (*_ABOUT_A_LIBRARY, _baseline, _own_tuning))


def of_one_library(results: Results) -> list[str]:
    """The same about one of several libraries; plain collectives are compared with all of them together."""
    return _sentences(results, (*_ABOUT_A_LIBRARY, _own_tuning))


def _sentences(results: Results, timed: Sequence[Callable[[Results], Iterator[str]]]) -> list[str]:
    parts = (_failures,) if results.plan.spec.ep.share_gpus else (*timed, _failures)
    return [sentence for part in parts for sentence in part(results)]


def section(report: Report) -> list[str]:
    """The findings as a numbered list."""
    if not report.findings:
        return []
    lines = [f"{number}. {text(finding)}" for number, finding in enumerate(report.findings, start=1)]
    return [f"## {report.findings_title}", "", *lines, ""]


def _verdict(results: Results) -> Iterator[str]:
    verdict = results.choice.verdict
    if verdict is None:
        return
    other = "the optimal config" if verdict.over == "optimal" else f"the {verdict.over}"
    ratio = f"it takes {as_long_as(other, verdict.ratio, verdict.ci95)}"
    if verdict.another_run is not None:
        low, high = verdict.another_run.low, verdict.another_run.high
        ratio += f", in another run on this kind of machine {low:.2f}x to {high:.2f}x"
    if verdict.kind == "tuned":
        yield f"The default is more than {verdict.margin:.0%} slower than the optimum: {ratio}."
    elif verdict.kind == "within_margin":
        yield f"The default is within {verdict.margin:.0%} of the optimum: {ratio}."
    else:
        yield f"It is open whether the default is within {verdict.margin:.0%} of the optimum: {ratio}."


def _candidates(results: Results) -> Iterator[str]:
    """Each config of search.candidates, compared with the optimal one."""
    spec, optimal = results.plan.spec, results.choice.optimal
    own = candidates.of_library(spec, results.plan.backend)
    if not own or optimal is None:
        return
    names = {knob.name for knob in BACKENDS[results.plan.backend].knobs}
    measured = {
        (measurement.point.op, *measurement.point.knobs.values()): measurement
        for measurement in results.measurements
        if measurement.point.backend == results.plan.backend and measurement.point.knobs.keys() == names
    }
    for values in own:
        dispatch, combine = measured.get((Op.DISPATCH, *values)), measured.get((Op.COMBINE, *values))
        if dispatch is None or combine is None:
            continue
        candidate = f"Your candidate ({', '.join(map(str, values))})"
        full = measured.get((Op.DISPATCH_FULL, *values))
        pair = Pair({}, dispatch, combine, optimal.weights, full, optimal.counts_full)
        if pair.same_configs(optimal):
            yield f"{candidate} is the optimal config."
        else:
            yield (
                f"{candidate} takes {pair.round_trip_us:.0f} us per round trip (dispatch {dispatch.median_us:.0f}, "
                f"combine {combine.median_us:.0f}): {_against_optimal(pair, optimal)}"
            )


def _against_optimal(pair: Pair, optimal: Pair) -> str:
    """The ratio to the optimal pair, as far as both were measured in the same groups of a final."""
    paired = compare_times(pair.by_round(), optimal.by_round())
    if paired is not None:
        indistinguishable = f" {INDISTINGUISHABLE}" if paired[1].low <= 1 else ""
        return f"{as_long_as('the optimal config', *paired)}.{indistinguishable}"
    too_few = " Too few groups measured both to judge it." if pair.is_final else ""
    return f"{as_long_as('the optimal config', pair.round_trip_us / optimal.round_trip_us)}.{too_few}"


def _from_worst(results: Results) -> Iterator[str]:
    worst, optimal = results.choice.worst, results.choice.optimal
    if worst is not None and optimal is not None and not worst.same_configs(optimal):
        mixed = f" The sweep ran on {results.num_nodes} nodes, the final on one." if results.num_nodes > 1 else ""
        yield (
            f"The worst pair takes {worst.round_trip_us:.0f} us per round trip: "
            f"{worst.round_trip_us / optimal.round_trip_us:.1f}x as long as the optimal config "
            f"({optimal.round_trip_us:.0f} us).{mixed}"
        )


def _steps(results: Results) -> Iterator[str]:
    """How much of the gain needs more of the shared resource, and how much does not."""
    choice = results.choice
    same = choice.picks.get("default_sms")
    if not _has_own_knobs(results):
        return
    if choice.default is None or choice.optimal is None or same is None or same.shared == choice.optimal.shared:
        return
    yield (
        f"At the default's {knobs_text(same.shared)}, tuning the other knobs makes a round trip "
        f"{choice.default.round_trip_us / same.round_trip_us - 1:.0%} faster. {knobs_text(choice.optimal.shared)} "
        f"makes it another {same.round_trip_us / choice.optimal.round_trip_us - 1:.0%} faster."
    )


def _has_own_knobs(results: Results) -> bool:
    """Whether an operation has knobs that the other may set otherwise."""
    return not all(knob.shared for knob in BACKENDS[results.plan.backend].knobs)


def _independent(results: Results) -> Iterator[str]:
    """What each operation would take for itself, where all of its knobs are shared with the other."""
    optimal, best = results.choice.optimal, best_independent(results.measurements, results.plan.backend)
    if optimal is None or len(best) < 2 or not optimal.shared or _has_own_knobs(results):
        return
    alone = join_words(
        [
            f"the best {each.point.op} takes {each.median_us:.0f} us with {knobs_text(each.point.knobs)} "
            f"(95 % CI {each.ci95_us.low:.1f} to {each.ci95_us.high:.1f})"
            for each in best
        ]
    )
    yield (
        f"If each operation chose for itself, {alone}: {sum(each.median_us for each in best):.0f} us together. "
        f"With one value for both the best is {knobs_text(optimal.shared)}: {optimal.round_trip_us:.0f} us."
    )


def _bandwidth(results: Results) -> Iterator[str]:
    optimal, peak = results.choice.optimal, results.peak_gb_per_s
    if optimal is None or peak is None:
        return
    dispatch, combine = optimal.dispatch, optimal.combine
    if dispatch.peak_fraction is None or combine.peak_fraction is None:
        return
    yield (
        f"The optimal dispatch moves {dispatch.wire_gb_per_s:.0f} GB/s on the wire ({dispatch.peak_fraction:.0%} of "
        f"the link peak of {peak:.0f} GB/s in one direction), the optimal combine {combine.wire_gb_per_s:.0f} GB/s "
        f"({combine.peak_fraction:.0%})."
    )


def _knobs(results: Results) -> Iterator[str]:
    """How much the time changes when one knob varies over its grid, in the median over the other knobs."""
    backend = results.plan.backend
    names = [knob.name for knob in BACKENDS[backend].knobs]
    measured = [
        (measurement.point, measurement.relative)
        for measurement in results.measurements
        if measurement.point.backend == backend and measurement.point.op in (Op.DISPATCH, Op.COMBINE)
    ]
    cells = np.array([[point.op is Op.COMBINE, *(point.knobs[name] for name in names)] for point, _ in measured])
    times = np.array([relative for _, relative in measured])
    effects = {
        name: change
        for column, name in enumerate(names, 1)
        if (change := _knob_effect(cells, times, column=column)) is not None
    }
    if effects:
        parts = [f"{name} {change:.1%}" for name, change in sorted(effects.items(), key=lambda item: -item[1])]
        yield f"Varied over its grid, one knob changes the time by (median over the other knobs): {join_words(parts)}."


def _knob_effect(cells: npt.NDArray[np.int64], times: Floats, *, column: int) -> float | None:
    """The median of slowest / fastest - 1 over the sets of cells [points, op and knobs] that differ in one column only.

    None without such a set.
    """
    if not len(times):
        return None
    codes = combinations(list(np.delete(cells, column, axis=1).T))
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    several = np.diff(starts, append=len(times)) > 1
    ratios = np.maximum.reduceat(times[order], starts) / np.minimum.reduceat(times[order], starts) - 1
    return float(np.median(ratios[several])) if several.any() else None


def _baseline(results: Results) -> Iterator[str]:
    """The plain collectives: whether they are slower; by operation where the final did not measure them."""
    optimal = results.choice.optimal
    compared = against_collectives(results)
    yield from compared
    if optimal is None or compared:
        return
    configs = {Op.DISPATCH: optimal.dispatch, Op.COMBINE: optimal.combine}
    for baseline in results.baselines:
        config = configs.get(baseline.point.op)
        if config is not None:
            title = BACKENDS[baseline.point.backend].title
            yield (
                f"An NCCL {title} of the same tokens takes {baseline.median_us:.0f} us for the {baseline.point.op}: "
                f"{baseline.median_us / config.median_us:.2f}x as long as the optimal config "
                f"({config.median_us:.0f} us)."
            )


def _own_tuning(results: Results) -> Iterator[str]:
    tuning, optimal = results.choice.own_tuning, results.choice.optimal
    if tuning is not None and optimal is not None:
        yield (
            f"The best pair of the library's own tuning grid takes {tuning.round_trip_us:.0f} us per round trip: "
            f"{tuning.round_trip_us / optimal.round_trip_us:.2f}x as long as the optimal config."
        )


def _failures(results: Results) -> Iterator[str]:
    kinds = Counter(failure.kind for failure in results.failures)
    if kinds:
        yield f"Some points failed: {join_words([f'{count} {kind}' for kind, count in sorted(kinds.items())])}."


_ABOUT_A_LIBRARY = (
    _verdict,
    _candidates,
    _from_worst,
    _steps,
    _independent,
    _bandwidth,
    _knobs,
    overlap_findings,
)
"""The findings about each library, in order."""
