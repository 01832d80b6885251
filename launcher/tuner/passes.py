"""The passes that measure pairs overlapped with GEMMs: to which group each belongs, and whether more are needed; pure.

Passes follow each group of the final, in its processes, so that neither is packed into half a minute of one process
group. When all groups are through, more passes measure the pairs that cannot be told apart yet.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from scipy import stats as scipy_stats

from bench.records import Measured, Op, Point, Record
from bench.stats import ALPHA, MIN_GROUPS, paired_slower_p
from launcher.config.plan import Plan

PASSES = 10
"""Of every pair: two after each of five groups. Pairs are compared within a pass."""

LAYER_PASSES = 7
"""Of layers only, after those of the last group: layers are chosen when all groups are through."""

MOST_PASSES = 36
"""Passes of a pair at most."""

MORE_S = 30.0
"""Seconds that the passes after the last group may take, layers aside."""

SERIAL_EVERY = 2
"""One pass of this many also measures each pair serially, right beside the overlapped one: it scatters less."""

FIRST = 2
"""Passes after which the chunks of the best pairs are varied."""

CLOSE = 0.02
"""Pairs that are known to be within this of the best need no more passes: to take one of them costs no more."""


def of_group(plan: Plan, group: int) -> Iterator[int]:
    """The passes, from 0, that follow a group of the final."""
    num_groups = plan.spec.search.final_groups
    return (number for number in range(PASSES) if number * num_groups // PASSES == group)


def has_layers(plan: Plan, number: int) -> bool:
    """Whether a pass measures layers: those after the last group."""
    return number >= PASSES or number * plan.spec.search.final_groups // PASSES == plan.spec.search.final_groups - 1


def has_serial(number: int) -> bool:
    """Whether a pass also measures dispatch, GEMMs and combine of each pair one after the other."""
    return number < PASSES and number % SERIAL_EVERY == SERIAL_EVERY - 1


def times_by_pass(plan: Plan, records: Iterable[Record]) -> dict[str, dict[int, float]]:
    """For the label of each overlapped pair its mean in each pass, in units of that pass's isolated GEMMs."""
    means: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    gemms: dict[int, list[float]] = defaultdict(list)
    for record in records:
        number = record.round - plan.spec.search.final_groups
        if number < 0 or not isinstance(record.outcome, Measured):
            continue
        mean = statistics.mean(record.outcome.samples_us)
        if record.point.op is Op.COMPUTE:
            gemms[number].append(mean)
        elif record.point.op is Op.OVERLAPPED:
            means[record.point.label][number].append(mean)
    return {
        label: {
            number: statistics.mean(values) / statistics.mean(gemms[number])
            for number, values in by_pass.items()
            if number in gemms
        }
        for label, by_pass in means.items()
    }


def unresolved(times: Mapping[str, Mapping[int, float]]) -> list[str]:
    """The best pair and those of which it is open whether they are slower; empty where none is open.

    A pair is settled when it is significantly slower than the best (Student's paired test, Bonferroni over the pairs)
    or, by its one-sided 95 % limit, within CLOSE of it.
    """
    known = {label: by_pass for label, by_pass in times.items() if by_pass}
    if len(known) < 2:
        return []
    best = min(known, key=lambda label: statistics.mean(np.log(list(known[label].values()))))
    alpha = ALPHA / (len(known) - 1)
    others = [label for label in known if label != best]
    is_open = [label for label in others if not _is_settled(known[label], known[best], alpha=alpha)]
    return [best, *is_open] if is_open else []


def _is_settled(times: Mapping[int, float], best: Mapping[int, float], *, alpha: float) -> bool:
    common = sorted(times.keys() & best.keys())
    if len(common) < MIN_GROUPS:
        return False
    ours, theirs = [times[number] for number in common], [best[number] for number in common]
    if paired_slower_p(ours, theirs) <= alpha:
        return True
    logs = np.log(ours) - np.log(theirs)
    reach = float(scipy_stats.t.ppf(1 - ALPHA, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs)))
    return float(logs.mean()) + reach <= float(np.log1p(CLOSE))


def more(plan: Plan, overlapped: Sequence[Point], records: Sequence[Record]) -> tuple[int, list[Point]] | None:
    """The next pass after the planned ones, from 0, and its pairs; None where every library's are told apart.

    None too where the pairs have had their most passes, or the passes so far their time.
    """
    first = PASSES + LAYER_PASSES
    num_groups = plan.spec.search.final_groups
    spent_s = sum(record.wall_s for record in records if record.round >= num_groups + first)
    numbers = {record.round - num_groups for record in records if record.round >= num_groups + first}
    number = max(numbers, default=first - 1) + 1
    if spent_s >= MORE_S or PASSES + len(numbers) >= MOST_PASSES:
        return None
    times = times_by_pass(plan, records)
    points: list[Point] = []
    for backend in dict.fromkeys(point.backend for point in overlapped):
        own = {point.label: point for point in overlapped if point.backend == backend}
        points += [own[label] for label in unresolved({label: times.get(label, {}) for label in own})]
    return (number, points) if points else None
