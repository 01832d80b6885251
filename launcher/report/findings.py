"""What a reader should take home, a sentence each, from the numbers alone; pure, plain text without markup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from bench.backends import BACKENDS
from bench.records import Op
from bench.stats import Floats, Interval, combinations, paired_ratio, paired_ratio_interval
from launcher.analysis.choice import Choice
from launcher.analysis.measurements import Measurement
from launcher.analysis.overlap import Overlap
from launcher.analysis.pairs import Pair
from launcher.analysis.results import Results
from launcher.report.report import Report
from launcher.text import text


def findings(results: Results) -> list[str]:
    """The sentences, most important first; fewer where less was measured, none about times that mean nothing."""
    timed = (
        _verdict,
        _candidates,
        _from_worst,
        _steps,
        _bandwidth,
        _knobs,
        _overlap,
        _baseline,
        _own_tuning,
    )
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
    best = "best" if verdict.over == "optimal" else verdict.over
    interval = f"{verdict.ratio:.3f} (95 % interval {verdict.ci95.low:.3f} to {verdict.ci95.high:.3f})"
    if verdict.kind == "tuned":
        yield f"The default is not optimal: it takes {interval} times as long as the optimal config."
    elif verdict.kind == "default_is_optimal":
        yield f"The default is optimal within {verdict.margin:.0%}: it takes {interval} times as long as the {best}."
    else:
        yield f"Whether the default is optimal stays open: it takes {interval} times as long as the {best}."


def _candidates(results: Results) -> Iterator[str]:
    """Each config that the user asked about, beside the optimal one."""
    spec, optimal = results.plan.spec, results.choice.optimal
    if not spec.search.candidates:
        return
    names = [knob.name for knob in BACKENDS[spec.backend].knobs]
    of = {
        (one.point.op, *one.point.knobs.values()): one
        for one in results.measurements
        if one.point.backend == spec.backend and one.point.knobs.keys() == set(names)
    }
    for values in spec.search.candidates if optimal is not None else ():
        dispatch, combine = of.get((Op.DISPATCH, *values)), of.get((Op.COMBINE, *values))
        if dispatch is None or combine is None or optimal is None:
            continue
        own = Pair({}, dispatch, combine, weights=optimal.weights)
        if own.same_configs(optimal):
            yield f"Your candidate ({_values(values)}) is the optimal config."
            continue
        is_what = _how_it_stands(own, optimal)
        yield (
            f"Your candidate ({_values(values)}) {is_what}: {own.round_trip_us:.0f} us a round trip, dispatch "
            f"{dispatch.median_us:.0f} and combine {combine.median_us:.0f}, is {_times(own, optimal)}."
        )


def _how_it_stands(own: Pair, optimal: Pair) -> str:
    """What a candidate is beside the optimal pair, as far as both were measured in the same groups."""
    if not own.is_final:
        return "is not optimal"
    found = _ratio(own.by_round(), optimal.by_round())
    if found is None:
        return "was measured in too few groups to be judged"
    return "cannot be told from the optimal config" if found[1].low <= 1 else "is not optimal"


def _values(values: list[int]) -> str:
    return ", ".join(map(str, values))


def _times(own: Pair, optimal: Pair) -> str:
    """How many times as long, with the interval where both were in the same groups of a final."""
    found = _ratio(own.by_round(), optimal.by_round())
    if found is None:
        return f"{own.round_trip_us / optimal.round_trip_us:.3f} times that of the optimal one"
    return f"{_interval(*found)} that of the optimal one"


def _ratio(taken: dict[int, float], best: dict[int, float]) -> tuple[float, Interval] | None:
    """How many times as long, and its interval, over what both did in the same groups or passes; None below two."""
    common = sorted(taken.keys() & best.keys())
    if len(common) < 2:
        return None
    pair = [taken[number] for number in common], [best[number] for number in common]
    return paired_ratio(*pair), paired_ratio_interval(*pair)


def _from_worst(results: Results) -> Iterator[str]:
    worst, optimal = results.choice.worst, results.choice.optimal
    if worst is not None and optimal is not None and not worst.same_configs(optimal):
        yield (
            f"From worst to optimal: {worst.round_trip_us:.0f} us to {optimal.round_trip_us:.0f} us a round trip, "
            f"{worst.round_trip_us / optimal.round_trip_us:.1f} times."
        )


def _steps(results: Results) -> Iterator[str]:
    """How much of the gain needs more of the shared resource, and how much does not."""
    choice = results.choice
    same = choice.picks.get("default_sms")
    if choice.default is None or choice.optimal is None or same is None or same.shared == choice.optimal.shared:
        return
    yield (
        f"With the default's own {_shared(same)} the other knobs gain "
        f"{choice.default.round_trip_us / same.round_trip_us - 1:.0%}; {_shared(choice.optimal)} gains another "
        f"{same.round_trip_us / choice.optimal.round_trip_us - 1:.0%}."
    )


def _bandwidth(results: Results) -> Iterator[str]:
    optimal, peak = results.choice.optimal, results.peak_gb_per_s
    if optimal is None or peak is None:
        return
    first, second = optimal.dispatch, optimal.combine
    if first.peak_fraction is None or second.peak_fraction is None:
        return
    yield (
        f"On the wire the optimal dispatch moves {first.wire_gb_per_s:.0f} GB/s ({first.peak_fraction:.0%} of the "
        f"link's {peak:.0f} GB/s in one direction), the optimal combine {second.wire_gb_per_s:.0f} GB/s "
        f"({second.peak_fraction:.0%})."
    )


def _knobs(results: Results) -> Iterator[str]:
    """How far the time moves when one knob alone is changed over its values in the grid: the median over the rest."""
    names = [knob.name for knob in BACKENDS[results.plan.spec.backend].knobs]
    found = [
        one
        for one in results.measurements
        if one.point.backend == results.plan.spec.backend and one.point.op in (Op.DISPATCH, Op.COMBINE)
    ]
    cells = np.array([[one.point.op is Op.COMBINE, *(one.point.knobs[name] for name in names)] for one in found])
    times = np.array([one.relative for one in found])
    effects = {
        name: change
        for at, name in enumerate(names, 1)
        if (change := _knob_effect(cells, times, without=at)) is not None
    }
    if effects:
        parts = [f"{name} {change:.1%}" for name, change in sorted(effects.items(), key=lambda item: -item[1])]
        yield f"One knob alone, changed over its grid, moves the time by (median over the others): {_and(parts)}."


def _knob_effect(cells: npt.NDArray[np.int64], times: Floats, *, without: int) -> float | None:
    """Slowest over fastest, less 1, of the cells [points, op and knobs] that differ in one column: the median."""
    if not len(times):
        return None
    which = combinations(list(np.delete(cells, without, axis=1).T))
    order = np.argsort(which, kind="stable")
    starts = np.flatnonzero(np.diff(which[order], prepend=-1))
    several = np.diff(starts, append=len(times)) > 1
    ratios = np.maximum.reduceat(times[order], starts) / np.minimum.reduceat(times[order], starts) - 1
    return float(np.median(ratios[several])) if several.any() else None


def _overlap(results: Results) -> Iterator[str]:
    """Which answer is for whom, what the wrong one costs, and what cannot be told."""
    choice = results.choice
    fastest, overlapped = choice.picks.get("fastest"), choice.picks.get("overlapped")
    if fastest is None or overlapped is None:
        return
    yield from _beside(choice, overlapped)
    if overlapped.shared == fastest.shared:
        yield f"{_shared(fastest)} is taken both for communication alone and beside expert GEMMs."
    else:
        yield (
            f"Communication alone is fastest with {_shared(fastest)}, beside expert GEMMs {_shared(overlapped)} is "
            f"taken; where communication is waited for that costs "
            f"{overlapped.round_trip_us - fastest.round_trip_us:.0f} us, "
            f"{_cost(overlapped.by_round(), fastest.by_round())}."
        )
        yield from _cost_beside(choice, fastest)
    yield from _does_it_pay(choice)


def _beside(choice: Choice, overlapped: Pair) -> Iterator[str]:
    best = {_value(one) for one in choice.best_overlaps}
    if len(best) > 1:
        names = ", ".join(overlapped.shared)
        yield (
            f"Beside expert GEMMs {names} {_ranges(best, {_value(one) for one in choice.overlaps})} cannot be told "
            "apart: any may be the best, and another run may order them otherwise, since one set of processes "
            "measured all passes."
        )


def _cost_beside(choice: Choice, fastest: Pair) -> Iterator[str]:
    """Against a pick that the compared pass had no part in: who is picked by a pass looks faster in it than it is."""
    taken = choice.overlap_of(fastest)
    found = None if taken is None else _ratio(taken.by_round, choice.overlap_held_out)
    if found is None:
        return
    doubt = _doubt(found[1])
    if not doubt and taken in choice.best_overlaps:
        doubt = f"; among {len(choice.overlaps)} pairs that may be chance"
    yield (
        f"{_shared(fastest)} beside expert GEMMs takes {_interval(*found)} as long as the pick of the passes other "
        f"than the one that is compared{doubt}."
    )


def _value(one: Overlap) -> tuple[int, ...]:
    return tuple(one.pair.shared.values())


def _ranges(chosen: set[tuple[int, ...]], every: set[tuple[int, ...]]) -> str:
    """Values in words, such as ``20 and 28 to 64``: neighbours among every value that there is make a range."""
    runs: list[list[str]] = [[]]
    for value in sorted(every):
        if value in chosen:
            runs[-1].append("/".join(map(str, value)))
        elif runs[-1]:
            runs.append([])
    parts = [part for run in runs for part in (run if len(run) < 3 else [f"{run[0]} to {run[-1]}"])]
    return _and(parts)


def _does_it_pay(choice: Choice) -> Iterator[str]:
    """Whether both together are done before one after the other would be."""
    longer = [one for one in choice.overlaps if one.makespan_us > one.serial_us]
    surely = sum(one.ci95_us.low > one.serial_us for one in longer)
    if longer:
        worst = max(longer, key=lambda one: one.makespan_us / one.serial_us)
        yield (
            f"Overlapping need not pay: {len(longer)} of {len(choice.overlaps)} pairs beside GEMMs took longer than "
            f"GEMMs and communication one after the other ({surely} by more than their interval), most of all "
            f"{_shared(worst.pair)}: {worst.makespan_us:.0f} us against {worst.serial_us:.0f}."
        )


def _cost(taken: dict[int, float], best: dict[int, float]) -> str:
    """How many times as long one takes, with the interval over what both did in the same groups."""
    found = _ratio(taken, best)
    return "never measured together" if found is None else f"{_interval(*found)} as long{_doubt(found[1])}"


def _interval(ratio: float, ends: Interval) -> str:
    return f"{ratio:.3f} times (95 % interval {ends.low:.3f} to {ends.high:.3f})"


def _doubt(ends: Interval) -> str:
    return "; it may be nothing" if ends.low <= 1 <= ends.high else ""


def _baseline(results: Results) -> Iterator[str]:
    optimal = results.choice.optimal
    for result in results.baselines:
        own = None if optimal is None else _of(optimal, result.point.op)
        if own is not None and results.plan.spec.backend != "alltoall":
            yield (
                f"An NCCL all-to-all of the same tokens takes {result.median_us:.0f} us for the {result.point.op}, "
                f"{result.median_us / own.median_us:.2f} times the optimal config's {own.median_us:.0f} us."
            )


def _of(pair: Pair, op: Op) -> Measurement | None:
    return {Op.DISPATCH: pair.dispatch, Op.COMBINE: pair.combine}.get(op)


def _own_tuning(results: Results) -> Iterator[str]:
    tuning, optimal = results.choice.own_tuning, results.choice.optimal
    if tuning is not None and optimal is not None:
        yield (
            f"The best that the library's own tuning grid contains takes {tuning.round_trip_us:.0f} us, "
            f"{tuning.round_trip_us / optimal.round_trip_us:.2f} times the optimal round trip."
        )


def _failures(results: Results) -> Iterator[str]:
    kinds = Counter(failure.kind for failure in results.failures)
    if kinds:
        yield f"Some points failed: {_and([f'{count} {kind}' for kind, count in sorted(kinds.items())])}."


def _shared(pair: Pair) -> str:
    return ", ".join(f"{name} {value}" for name, value in pair.shared.items())


def _and(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
