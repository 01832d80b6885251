"""What a reader should take home, a sentence each, from the numbers alone; pure, plain text without markup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import msgspec
import numpy as np
import numpy.typing as npt

from bench.backends import BACKENDS
from bench.records import Op
from bench.stats import Floats, combinations
from launcher.choose import Choice, Overlap, Pair
from launcher.judge import OpResult
from launcher.results import Results


class Effect(msgspec.Struct, frozen=True):
    """What a model's MoE layers wait for, in milliseconds a rank and before any overlap.

    Forward: ``num_layers`` x (dispatch + combine). A training step: twice that, since the backward pass of a dispatch
    is a combine and the other way round.
    """

    model: str
    num_layers: int
    default_forward_ms: float
    optimal_forward_ms: float

    @property
    def saved_forward_ms(self) -> float:
        """What the optimal config saves of a forward pass; of a training step twice as much."""
        return self.default_forward_ms - self.optimal_forward_ms


def effect(results: Results) -> Effect | None:
    """For the model whose layers were measured; None without a verdict, and for dry runs, whose times say nothing."""
    choice, workload = results.choice, results.plan.spec.workload
    if results.plan.is_dry or choice.verdict is None or choice.default is None or choice.optimal is None:
        return None
    before, after = choice.default.round_trip_us, choice.optimal.round_trip_us
    layers = workload.num_moe_layers
    return Effect(workload.name, layers, layers * before / 1000, layers * after / 1000)


def findings(results: Results) -> list[str]:
    """The sentences, most important first; fewer where less was measured."""
    parts = (_verdict, _from_worst, _steps, _bandwidth, _knobs, _overlap, _baseline, _own_tuning, _failures)
    return [sentence for part in parts for sentence in part(results)]


def _verdict(results: Results) -> Iterator[str]:
    verdict = results.choice.verdict
    if verdict is None:
        return
    interval = f"{verdict.ratio:.3f} (95 % interval {verdict.ci95.low:.3f} to {verdict.ci95.high:.3f})"
    if verdict.kind == "tuned":
        yield f"The default is not optimal: it takes {interval} times as long as the optimal config."
    elif verdict.kind == "default_is_optimal":
        yield f"The default is optimal within {verdict.margin:.0%}: it takes {interval} times as long as the best."
    else:
        yield f"Whether the default is optimal stays open: it takes {interval} times as long as the best."


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
    if optimal is None or peak is None or results.plan.spec.ep.share_gpus:
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


def beside(choice: Choice, pair: Pair) -> Overlap | None:
    """What was measured beside GEMMs of this pair, or else of the best with the same shared knobs."""
    same = [one for one in choice.overlaps if one.pair.shared == pair.shared]
    exact = [one for one in same if one.pair.same_configs(pair)]
    return min(exact or same, key=lambda one: one.makespan_us, default=None)


def _overlap(results: Results) -> Iterator[str]:
    """Which answer is for whom, and what the wrong one costs."""
    choice = results.choice
    fastest, overlapped = choice.picks.get("fastest"), choice.picks.get("overlapped")
    if fastest is None or overlapped is None:
        return
    if overlapped.shared == fastest.shared:
        yield f"{_shared(fastest)} is the answer both for communication alone and beside expert GEMMs."
        return
    hidden, taken = beside(choice, overlapped), beside(choice, fastest)
    if hidden is None or taken is None:
        return
    yield (
        f"Communication alone is fastest with {_shared(fastest)}, beside expert GEMMs {_shared(overlapped)} is enough: "
        f"taking the first where communication is overlapped costs {taken.makespan_us - hidden.makespan_us:.0f} us a "
        f"layer ({taken.makespan_us / hidden.makespan_us - 1:.1%}), taking the second where it is waited for costs "
        f"{overlapped.round_trip_us - fastest.round_trip_us:.0f} us "
        f"({overlapped.round_trip_us / fastest.round_trip_us - 1:.1%})."
    )


def _baseline(results: Results) -> Iterator[str]:
    optimal = results.choice.optimal
    for result in results.baselines:
        own = None if optimal is None else _of(optimal, result.point.op)
        if own is not None and results.plan.spec.backend != "alltoall":
            yield (
                f"An NCCL all-to-all of the same tokens takes {result.median_us:.0f} us for the {result.point.op}, "
                f"{result.median_us / own.median_us:.2f} times the optimal config's {own.median_us:.0f} us."
            )


def _of(pair: Pair, op: Op) -> OpResult | None:
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
