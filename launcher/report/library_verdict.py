"""The verdict across libraries: which is the fastest, and whether any beats plain collectives; pure, plain text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from bench.backends import BACKENDS
from bench.stats import MIN_GROUPS, Interval
from launcher.analysis.choice import Choice
from launcher.analysis.layers import layer_of
from launcher.analysis.libraries import (
    DEFAULT,
    LAYER,
    LAYER_TRAINING,
    MARGIN,
    OPTIMAL,
    OVERLAPPED,
    collectives,
    picks_of,
)
from launcher.analysis.pairs import Pair
from launcher.analysis.results import Results
from launcher.report.wording import join_words

_SITUATIONS = (
    (OPTIMAL, False, "At their optimum"),
    ("at most 24 SMs", False, "With at most 24 SMs"),
    (DEFAULT, False, "With their own defaults"),
    (OPTIMAL, True, "At their optimum with full dispatches"),
    (OVERLAPPED, False, "Overlapped with expert GEMMs, each with its best pair for that"),
    (LAYER, True, "In a whole layer at their optimum"),
    (LAYER_TRAINING, True, "In a training step of a layer at their optimum"),
)
"""The questions that are asked first: pick, whether with full dispatches, and both in words."""


class _Against(NamedTuple):
    """A library, or a plain collective, seen from another one that is ``speed`` times as fast."""

    name: str
    speed: float
    ci95: Interval
    another_run: Interval | None
    verdict: Literal["slower", "faster", "alike"]

    @property
    def title(self) -> str:
        """Its name in reports."""
        return title_of(self.name)

    @property
    def times_as_fast(self) -> str:
        """``1.390 times as fast as NCCL EP (95 % CI 1.385 to 1.395; another run 1.37 to 1.41)``."""
        return f"{self.speed:.3f} times as fast as {self.title} ({_ends(self.ci95)}{_elsewhere(self.another_run)})"

    @property
    def ratio(self) -> str:
        """``ratio of their times 1.004, 95 % CI 0.998 to 1.010, margin 1 %``."""
        ends = _ends(_inverse(self.ci95))
        return f"ratio of their times {1 / self.speed:.3f}, {ends}, margin {100 * MARGIN:g} %"


def title_of(backend: str) -> str:
    """The name of a library or a plain collective in reports."""
    return BACKENDS[backend].title


def ranked(results: Results) -> list[str]:
    """The libraries of one contract, which may be ranked: all that are not plain collectives."""
    return [name for name in results.plan.spec.backends if not BACKENDS[name].is_baseline]


def plain(results: Results) -> dict[str, Pair]:
    """The plain collectives that were measured: as baselines, or as a library that the user named."""
    pairs = collectives(results.plan, results.baselines)
    named = {name: choice.optimal for name, choice in results.choices.items() if BACKENDS[name].is_baseline}
    return pairs | {name: pair for name, pair in named.items() if pair is not None}


def sentences(results: Results) -> list[str]:
    """The answers for each situation, then the one about plain collectives; empty where nothing can be compared."""
    answers = [*_between_libraries(results), *against_collectives(results)]
    have_optimum = [name for name in ranked(results) if results.choices[name].optimal is not None]
    if len(have_optimum) > 1 and not results.comparisons:
        return [f"The libraries are not compared: fewer than {MIN_GROUPS} groups of the final measured two of them."]
    return answers


def _between_libraries(results: Results) -> Iterator[str]:
    names = ranked(results)
    if len(names) < 2:
        return
    for pick, full, words in _SITUATIONS:
        have = [name for name in names if _has(results.choices[name], name, pick)]
        if len(have) == 1 and pick not in _OF_PASSES:
            yield f"{words}, only {title_of(have[0])} has a result."
        elif len(have) > 1:
            yield from _rank(results, have, pick=pick, full=full, words=words)


_OF_PASSES = (OVERLAPPED, LAYER, LAYER_TRAINING)


def _has(choice: Choice, backend: str, pick: str) -> bool:
    """Whether a library has a pair for a situation."""
    if pick == OVERLAPPED:
        return bool(choice.overlaps)
    if pick in _OF_PASSES:
        return layer_of(choice.layers, choice.optimal, training=pick == LAYER_TRAINING) is not None
    return pick in picks_of(choice, backend)


def _rank(results: Results, names: Sequence[str], *, pick: str, full: bool, words: str) -> Iterator[str]:
    """The leader, which beats the most others and is beaten by the fewest, against each other library."""
    seen = {
        name: [_against(results, name, other, pick, full=full) for other in names if other != name] for name in names
    }
    others = {
        name: sorted((each for each in found if each), key=lambda each: each.speed) for name, found in seen.items()
    }
    leader = max(names, key=lambda name: sum(math.log(each.speed) for each in others[name]))
    if not others[leader]:
        return
    sentence = f"{words}, {_relations(title_of(leader), others[leader], num_libraries=len(names))}."
    for name in names:
        if name not in (leader, *(other.name for other in others[leader])):
            sentence += f" Too few groups of the final measured both {title_of(leader)} and {title_of(name)}."
    yield sentence


def _relations(leader: str, others: Sequence[_Against], *, num_libraries: int) -> str:
    """The leader of a situation against the others, in words."""
    alike = [other for other in others if other.verdict == "alike"]
    faster = join_words([other.times_as_fast for other in others if other.verdict != "alike"])
    if not alike:
        return f"{leader} is the fastest: {faster}" if num_libraries > 2 else f"{leader} is {faster}"
    if len(alike) == 1:
        same = f"{leader} and {alike[0].title} cannot be told apart ({alike[0].ratio})"
    else:
        same = f"{leader} cannot be told apart from {join_words([f'{each.title} ({each.ratio})' for each in alike])}"
    return f"{same}; {leader} is {faster}" if faster else same


def _against(results: Results, name: str, other: str, pick: str, *, full: bool) -> _Against | None:
    """What the comparison of the two says, seen from the first; None where they were not compared."""
    for each in results.comparisons:
        if (each.pick, each.full) == (pick, full) and {each.first, each.second} == {name, other}:
            if each.first == name:
                elsewhere = None if each.another_run is None else _inverse(each.another_run)
                return _Against(other, 1 / each.ratio, _inverse(each.ci95), elsewhere, _OTHERS[each.verdict])
            return _Against(other, each.ratio, each.ci95, each.another_run, _ONES[each.verdict])
    return None


_Seen = Literal["slower", "faster", "alike"]
_OTHERS: dict[str, _Seen] = {"a_is_faster": "slower", "b_is_faster": "faster", "cannot_be_told_apart": "alike"}
_ONES: dict[str, _Seen] = {"a_is_faster": "faster", "b_is_faster": "slower", "cannot_be_told_apart": "alike"}
"""What the second (first) of a comparison is, seen from the first (second)."""


def against_collectives(results: Results) -> list[str]:
    """Whether a library is faster than the fastest plain collective, with cached and with full dispatches."""
    found = [(kind, _best_against(results, full=full)) for full, kind in ((False, "cached"), (True, "full"))]
    is_only = len(plain(results)) == 1
    clauses = [f"with {kind} dispatches {_clause(*both, is_only=is_only)}" for kind, both in found if both is not None]
    verdicts = {both[1].verdict for _, both in found if both is not None}
    if not clauses:
        return []
    libraries = ranked(results)
    subject = "an EP library" if len(libraries) > 1 else title_of(libraries[0])
    answer = _ANSWERS[verdicts.pop()] if len(verdicts) == 1 else "It depends"
    return [f"Is {subject} faster than plain collectives on this node? {answer}: {'; '.join(clauses)}."]


_ANSWERS = {"slower": "Yes", "faster": "No", "alike": "They cannot be told apart"}
"""By what the fastest plain collective is, seen from the fastest library."""


def _best_against(results: Results, *, full: bool) -> tuple[str, _Against] | None:
    """The fastest library at its optimum, against the fastest plain collective; None where nothing compares them."""
    optima = {name: pair for name in ranked(results) if (pair := results.choices[name].optimal) is not None}
    best = _fastest(optima, full=full)
    other = _fastest(plain(results), full=full)
    against = None if best is None or other is None else _against(results, best, other, OPTIMAL, full=full)
    return None if best is None or against is None else (best, against)


def _fastest(pairs: Mapping[str, Pair], *, full: bool) -> str | None:
    timed = {name: pair.forward if full else pair for name, pair in pairs.items()}
    scores = {name: pair.score for name, pair in timed.items() if pair is not None}
    return min(scores, key=lambda name: scores[name], default=None)


def _clause(name: str, other: _Against, *, is_only: bool) -> str:
    library, fastest = f"{title_of(name)} at its optimum", "" if is_only else ", the fastest of them"
    if other.verdict == "alike":
        return f"{library} and {other.title}{fastest}{',' * (not is_only)} cannot be told apart ({other.ratio})"
    if other.verdict == "slower":
        return f"{library} is {other.times_as_fast}{fastest}"
    elsewhere = None if other.another_run is None else _inverse(other.another_run)
    ends = f"{_ends(_inverse(other.ci95))}{_elsewhere(elsewhere)}"
    return f"{other.title} is {1 / other.speed:.3f} times as fast as {library} ({ends})"


def _inverse(ends: Interval) -> Interval:
    return Interval(1 / ends.high, 1 / ends.low)


def _ends(ci95: Interval) -> str:
    return f"95 % CI {ci95.low:.3f} to {ci95.high:.3f}"


def _elsewhere(ends: Interval | None) -> str:
    return "" if ends is None else f"; another run {ends.low:.2f} to {ends.high:.2f}"


def without_result(results: Results) -> list[str]:
    """What was to be measured, or could have been, and has no time: the reason, a sentence each."""
    lines = [f"{title_of(name)} was left out: {reason}." for name, reason in results.plan.left_out.items()]
    measured = {name for name, choice in results.choices.items() if choice.optimal is not None}
    measured |= plain(results).keys()
    planned = [*results.plan.spec.backends, *(each.point.backend for each in results.plan.baselines)]
    without = [name for name in dict.fromkeys(planned) if name not in measured]
    return lines + [f"{title_of(name)} has no result: {_why(results, name)}" for name in without]


def _why(results: Results, backend: str) -> str:
    """Why nothing of a library can be deployed."""
    failures = [failure for failure in results.failures if failure.point.backend == backend]
    if not failures:
        return "it was not measured yet."
    first, failed = failures[0], {failure.point.key for failure in failures}
    points = [each.point for each in results.plan.every_point if each.point.backend == backend]
    every = "every point" if all(point.key in failed for point in points) else f"{len(failed)} points"
    place = first.phase if first.rank is None else f"{first.phase} (rank {first.rank})"
    return f"{every} failed. The first: {first.point.label}: {first.kind} in {place}: {first.message}"
