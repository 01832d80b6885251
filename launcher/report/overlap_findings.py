"""The findings about pairs overlapped with expert GEMMs; pure, plain text without markup."""

from __future__ import annotations

import math
from collections.abc import Iterator

from bench.stats import Interval
from launcher.analysis.choice import Choice
from launcher.analysis.overlap import Overlap
from launcher.analysis.pairs import Pair
from launcher.analysis.results import Results
from launcher.report.ratios import INDISTINGUISHABLE, as_long_as, compare_times
from launcher.text import knobs_text

RESOLVED = 0.02
"""The overlapped answer is resolved if the pick costs at most this much."""


def overlap_findings(results: Results) -> Iterator[str]:
    """The pick for each use, what it costs in the other, and whether overlap pays."""
    choice = results.choice
    fastest, overlapped = choice.picks.get("fastest"), choice.picks.get("overlapped")
    if fastest is None or overlapped is None:
        return
    yield from _resolution(choice, overlapped)
    if overlapped.shared == fastest.shared:
        yield (
            f"{knobs_text(fastest.shared)} is the pick both for isolated communication and for communication "
            "overlapped with expert GEMMs."
        )
    else:
        yield (
            f"The pick is {knobs_text(fastest.shared)} for isolated communication and {knobs_text(overlapped.shared)} "
            f"for communication overlapped with expert GEMMs. {_isolated_cost(overlapped, fastest)}"
        )
        yield from _overlapped_cost(choice, fastest, overlapped)
    yield from _saved(choice, overlapped)
    yield from _serial(choice)
    yield from _between_gemms(choice, fastest)


def _resolution(choice: Choice, overlapped: Pair) -> Iterator[str]:
    """What the pick may cost, over whichever pair is truly the best; or that the passes do not show it."""
    overlap = choice.overlap_of(overlapped)
    if overlap is None or len(choice.overlaps) < 2:
        return
    name = knobs_text(overlapped.shared)
    if math.isinf(overlap.may_cost):
        yield f"Overlapped with expert GEMMs, too few passes measured {name} and its rivals to bound what it may cost."
    elif overlap.may_cost <= 1 + RESOLVED:
        yield (
            f"Overlapped with expert GEMMs, the pick {name} takes at most {_percent(overlap)} longer than the best "
            "pair, whichever that is (95 % confidence)."
        )
    else:
        yield (
            f"Overlapped with expert GEMMs, the best pair is not resolved: the pick {name} may take up to "
            f"{_percent(overlap)} longer than the best one (95 % confidence; the table has this limit for every pair)."
        )


def _percent(overlap: Overlap) -> str:
    return f"{100 * (overlap.may_cost - 1):.1f} %"


def _isolated_cost(overlapped: Pair, fastest: Pair) -> str:
    cost_us = overlapped.round_trip_us - fastest.round_trip_us
    cost = f"Isolated, {knobs_text(overlapped.shared)} takes {cost_us:.0f} us longer per round trip"
    paired = compare_times(overlapped.by_round(), fastest.by_round())
    if paired is None:
        return f"{cost}; no two groups measured both."
    indistinguishable = f" {INDISTINGUISHABLE}" if _contains_1(paired[1]) else ""
    return f"{cost}: {as_long_as(knobs_text(fastest.shared), *paired)}.{indistinguishable}"


def _overlapped_cost(choice: Choice, fastest: Pair, overlapped: Pair) -> Iterator[str]:
    """What the fastest pair costs where communication overlaps, against the pick for that."""
    overlap, pick = choice.overlap_of(fastest), choice.overlap_of(overlapped)
    if overlap is None or pick is None:
        return
    paired = compare_times(overlap.by_round, pick.by_round, robust=False)
    if paired is None:
        return
    doubt = f" {INDISTINGUISHABLE}" if _contains_1(paired[1]) else ""
    ratio = as_long_as(f"the pick {knobs_text(overlapped.shared)}", *paired)
    yield f"Overlapped with expert GEMMs, {knobs_text(fastest.shared)} takes {ratio}.{doubt}"


def _contains_1(ci95: Interval) -> bool:
    return ci95.low <= 1 <= ci95.high


def _saved(choice: Choice, overlapped: Pair) -> Iterator[str]:
    """What the pick gains over the fastest sequence without overlap, where the passes measured both."""
    pick = choice.overlap_of(overlapped)
    serial = [overlap for overlap in choice.overlaps if overlap.is_serial_measured]
    if pick is None or not serial:
        return
    best = min(serial, key=lambda overlap: overlap.serial_us)
    ratio, ci95 = pick.over_serial(best)
    low, high = 100 * (1 - ci95.high), 100 * (1 - ci95.low)
    doubt = f" {INDISTINGUISHABLE}" if _contains_1(ci95) else ""
    yield (
        f"Overlapping saves {100 * (1 - ratio):.1f} % (95 % CI {low:.1f} to {high:.1f} %): the pick "
        f"{knobs_text(overlapped.shared)} takes {pick.makespan_us:.0f} us overlapped. Dispatch, GEMMs and combine one "
        f"after the other take {best.serial_us:.0f} us at best, with {knobs_text(best.pair.shared)}, in the same "
        f"passes.{doubt}"
    )


_SUM = (
    " Serially stands for a sum here, of GEMMs at the power cap and of communication measured apart, at full clocks: "
    "this run did not measure the sequence."
)


def _serial(choice: Choice) -> Iterator[str]:
    """Whether overlapping a pair is faster than the same pair without overlap."""
    compared = [(overlap, *overlap.over_serial()) for overlap in choice.overlaps]
    longer = [each for each in compared if each[1] > 1]
    if longer:
        worst, *_ = max(longer, key=lambda each: each[1])
        yield (
            f"Overlap does not always pay: {len(longer)} of {len(choice.overlaps)} pairs take longer overlapped than "
            f"serially ({sum(ci95.low > 1 for *_, ci95 in longer)} by more than their 95 % CI). The worst is "
            f"{knobs_text(worst.pair.shared)}: {worst.makespan_us:.0f} us overlapped, {worst.serial_us:.0f} us "
            f"serially.{'' if all(overlap.is_serial_measured for overlap, *_ in longer) else _SUM}"
        )


def _between_gemms(choice: Choice, fastest: Pair) -> Iterator[str]:
    """Default over fastest in the state of a model that computes: between GEMMs, at the clocks that these leave."""
    pairs = [choice.overlap_of(pair) for pair in (choice.default, fastest) if pair is not None]
    default, fast = pairs if len(pairs) == 2 else (None, None)
    if default is None or fast is None or default is fast:
        return
    times = [overlap.communication_by_round for overlap in (default, fast)]
    if not (default.is_serial_measured and fast.is_serial_measured) or min(map(min, map(dict.values, times))) <= 0:
        return
    paired = compare_times(times[0], times[1], robust=False)
    if paired is not None:
        isolated = default.pair.round_trip_us / fast.pair.round_trip_us
        default_us, fast_us = (overlap.serial_us - overlap.compute_isolated_us for overlap in (default, fast))
        yield (
            "Between GEMMs, at the clocks that these leave (the sequence less the isolated GEMMs), dispatch and "
            f"combine take {default_us:.0f} us with the default, "
            f"{as_long_as(f'the {fast_us:.0f} us with {knobs_text(fastest.shared)}', *paired)}; isolated it is "
            f"{isolated:.3f}x."
        )
