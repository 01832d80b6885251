"""The tables across libraries: their picks, the plain collectives beneath, and every comparison; pure."""

from __future__ import annotations

from bench.backends import BACKENDS, default_label
from bench.records import Op
from launcher.analysis.choice import Choice
from launcher.analysis.libraries import DEFAULT, OPTIMAL, SM_LIMITS, at_most
from launcher.analysis.pairs import Pair
from launcher.analysis.results import Results
from launcher.report import cells
from launcher.report.columns import (
    A_OVER_B,
    CACHED_DISPATCH,
    CI95,
    COMBINE,
    EXCHANGE,
    FULL_DISPATCH,
    FULL_ROUND_TRIP,
    PACKING,
    ROUND_TRIP,
    SMS,
    Column,
    headings,
)
from launcher.report.library_verdict import plain, ranked, title_of
from launcher.report.report import Report
from launcher.report.wording import join_words
from launcher.text import table, text

_TIMES = (CACHED_DISPATCH, FULL_DISPATCH, COMBINE, ROUND_TRIP, CI95, FULL_ROUND_TRIP)
COLUMNS = (Column("library"), Column("pick"), SMS, *_TIMES, Column("other knobs"))
PLAIN_COLUMNS = (
    *(Column("plain collective"), CACHED_DISPATCH, EXCHANGE, PACKING),
    *(FULL_DISPATCH, COMBINE, ROUND_TRIP, CI95, FULL_ROUND_TRIP),
)
COMPARISON_COLUMNS = (
    *(Column("pick"), Column("dispatch"), Column("A"), Column("B")),
    *(A_OVER_B, Column("95 % CI of A / B"), Column("another run"), Column("verdict")),
)

OPTIMUM = "optimum"
_AT_MOST, _NO_RESULT = "at most", "no result"


def named_pairs(choice: Choice, backend: str) -> list[tuple[str, Pair]]:
    """The pairs that are reported of a library, each with its label; limits of SMs with one answer share a label."""
    pairs = [(default_label(backend, name), pair) for name, pair in choice.defaults.items()]
    if choice.optimal is not None:
        pairs.append((OPTIMUM, choice.optimal))
    limits: list[tuple[list[str], Pair]] = []
    for limit in SM_LIMITS:
        pair = at_most(choice, backend, limit)
        if pair is not None and limits and limits[-1][1].same_configs(pair):
            limits[-1][0].append(str(limit))
        elif pair is not None:
            limits.append(([str(limit)], pair))
    return pairs + [(f"{_AT_MOST} {join_words(values, last='or')} SMs", pair) for values, pair in limits]


def is_limit(label: str) -> bool:
    """Whether a label of ``named_pairs`` is a limit of SMs."""
    return label.startswith(_AT_MOST)


def rows(results: Results) -> list[list[str]]:
    """Every pick of every library; see ``COLUMNS``. A library without a result has a row too."""
    found = []
    for name in ranked(results):
        pairs = named_pairs(results.choices[name], name)
        for label, pair in pairs:
            sms, others = _config(name, pair)
            found.append([title_of(name), label, sms, *_times(pair), others])
        if not pairs:
            found.append([title_of(name), _NO_RESULT, *[""] * (len(COLUMNS) - 2)])
    return found


def _config(backend: str, pair: Pair) -> tuple[str, str]:
    """SMs and other knobs."""
    dispatch, combine = pair.dispatch.point.knobs, pair.combine.point.knobs
    return cells.sms(backend, dispatch), cells.without_sms(backend, dispatch, combine)


def _times(pair: Pair) -> list[str]:
    full, whole = pair.full, pair.forward
    return [
        cells.time(pair.dispatch.median_us),
        cells.time(None if full is None else full.median_us),
        cells.time(pair.combine.median_us),
        cells.time(pair.round_trip_us),
        cells.interval(pair.round_trip_ci95_us),
        cells.time(None if whole is None else whole.round_trip_us),
    ]


def plain_rows(results: Results) -> list[list[str]]:
    """Every plain collective that was measured; see ``PLAIN_COLUMNS``."""
    exchanges = {each.point.backend: each for each in results.baselines if each.point.op is Op.EXCHANGE}
    found = []
    for name, pair in sorted(plain(results).items(), key=lambda item: list(BACKENDS).index(item[0])):
        exchange = exchanges.get(name)
        apart = ["", ""] if exchange is None else _apart(exchange.median_us, pair)
        dispatch, *others = _times(pair)
        found.append([title_of(name), dispatch, *apart, *others])
    return found


def _apart(exchange_us: float, pair: Pair) -> list[str]:
    return [cells.time(exchange_us), cells.time(pair.dispatch.median_us - exchange_us)]


def notes(results: Results) -> list[tuple[str, str]]:
    """What each library takes besides its SMs, by its name."""
    return [(title_of(name), note) for name in ranked(results) if (note := BACKENDS[name].besides_sms)]


def plain_notes(results: Results) -> list[tuple[str, str]]:
    """The contract of each plain collective in the table, by its name."""
    shown = {row[0] for row in plain_rows(results)}
    return [(each.title, each.contract) for each in BACKENDS.values() if each.title in shown and each.contract]


def comparison_rows(results: Results) -> list[list[str]]:
    """Every comparison, those of plain collectives included; see ``COMPARISON_COLUMNS``."""
    labels = {DEFAULT: default_label("", "library"), OPTIMAL: OPTIMUM}
    return [
        [
            labels.get(each.pick, each.pick),
            "full" if each.full else "cached",
            title_of(each.first),
            title_of(each.second),
            f"{each.ratio:.3f}",
            f"{each.ci95.low:.3f} to {each.ci95.high:.3f}",
            "" if each.another_run is None else f"{each.another_run.low:.3f} to {each.another_run.high:.3f}",
            each.verdict.replace("_", " ").replace("a is", "A is").replace("b is", "B is"),
        ]
        for each in results.comparisons
    ]


def section(report: Report) -> list[str]:
    """The picks of the libraries, and what they take besides their SMs."""
    found = rows(report.results)
    if not found:
        return []
    for row in found:
        if row[1] == OPTIMUM:
            row[COLUMNS.index(ROUND_TRIP)] = f"**{row[COLUMNS.index(ROUND_TRIP)]}**"
    return [
        "## The libraries",
        "",
        *table(headings(COLUMNS), found),
        *_list(notes(report.results)),
    ]


def plain_section(report: Report) -> list[str]:
    """The plain collectives, apart from the libraries."""
    found = plain_rows(report.results)
    if not found:
        return []
    return [
        "## Plain collectives, with another contract: not ranked with the libraries",
        "",
        *table(headings(PLAIN_COLUMNS), found),
        *_list(plain_notes(report.results)),
    ]


def comparisons_section(report: Report) -> list[str]:
    """Every comparison of two libraries, or of a library with a plain collective."""
    found = comparison_rows(report.results)
    if not found:
        return []
    return ["## Every comparison", "", *table(headings(COMPARISON_COLUMNS), found)]


def _list(named: list[tuple[str, str]]) -> list[str]:
    return [*(f"* **{text(name)}**: {text(note)}" for name, note in named), ""] if named else []
