"""A comparison as text, for terminals and for GitHub; whatever a host or a command is named, it stays text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from launcher import text as markdown
from launcher.comparison.compare import Comparison, Picked, PointRow, Source
from launcher.comparison.run import one_line

_NUMBERS = ("A us", "B us", "B/A", "95 % interval")
"""Columns that stand right-aligned, and are nobody's own words."""


_MAX_NAMES = 5


class Section(NamedTuple):
    """A table, and sentences below it."""

    title: str
    header: Sequence[str]
    rows: list[list[str]]
    below: list[str]


def plain(found: Comparison) -> str:
    """In columns, the same whether a terminal reads it or not."""
    lines = [one_line(note) for note in found.notes]
    for section in _sections(found):
        lines += ["", section.title, *_aligned(section.header, section.rows), *section.below]
    return "\n".join(lines).strip() + "\n"


def _aligned(header: Sequence[str], rows: list[list[str]]) -> list[str]:
    if not rows:
        return []
    columns = []
    for name, *cells in zip(header, *rows, strict=True):
        texts = [name, *map(one_line, cells)]
        width = max(map(len, texts))
        columns.append([text.rjust(width) if name in _NUMBERS else text.ljust(width) for text in texts])
    return ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]


def github(found: Comparison) -> str:
    """In Markdown."""
    lines = [line for note in found.notes for line in (f"**{markdown.text(note)}**", "")]
    for section in _sections(found):
        cells = [[_cell(name, cell) for name, cell in zip(section.header, row, strict=True)] for row in section.rows]
        lines += [f"## {section.title}", "", *(markdown.table(section.header, cells) if cells else [])]
        lines += [*(f"* {markdown.text(sentence)}" for sentence in section.below), *([""] if section.below else [])]
    return "\n".join(lines).rstrip() + "\n"


def _cell(column: str, value: str) -> str:
    return value if column in _NUMBERS or not value else markdown.code(value)


def _sections(found: Comparison) -> list[Section]:
    facts = [[one.field, one.a, one.b] for one in found.differences]
    return [
        Section("Runs", ("", "file", "measured"), [_run("A", found.a), _run("B", found.b)], []),
        Section("What differs", ("fact", "A", "B"), facts, [] if facts else ["Nothing but the numbers."]),
        Section(
            "Points, worst first, those that gate before the others",
            ("point", "A us", "B us", "B/A", "95 % interval", "stage", "verdict"),
            [_point(row) for row in found.points],
            _meaning(found),
        ),
        Section(
            "Picks",
            ("pick", "A us", "B us", "B/A", "config in A", "config in B"),
            [_pick(one) for one in found.picks],
            _of_picks(found.picks),
        ),
        Section("Result", (), [], _result(found)),
    ]


def _run(name: str, source: Source) -> list[str]:
    return [name, source.file, f"{source.started or 'unknown'} to {source.ended or 'unknown'}"]


def _point(row: PointRow) -> list[str]:
    stages = dict.fromkeys(stage.value for stage in (row.stage_a, row.stage_b) if stage)
    interval = "" if row.ci95 is None else f"{row.ci95.low:.3f} to {row.ci95.high:.3f}"
    verdict = row.verdict if row.failure is None else f"{row.verdict}: {row.failure}"
    return [row.point, _us(row.a_us), _us(row.b_us), _ratio(row.ratio), interval, ", ".join(stages), verdict]


def _pick(one: Picked) -> list[str]:
    config, other = ("" if pick is None else pick.config for pick in (one.a, one.b))
    times = [_us(time) for time in one.times_us]
    return [one.name, *times, _ratio(one.ratio), config, "the same" if config == other else other]


def _of_picks(picks: list[Picked]) -> list[str]:
    if any(one.is_beside_gemms for one in picks):
        return ["Times are round trips; of overlapped, until the pair and the GEMMs beside it are done."]
    return ["Times are round trips, without GEMMs, of the configs that each run picked."]


def _us(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _meaning(found: Comparison) -> list[str]:
    """What the columns of the points say."""
    gating = sum(row.gates for row in found.points)
    gate = (
        f"Points that gate: {gating}, measured by both runs in the fresh process groups of a final, or chosen by one. "
        "The others (the sweep, the passes beside GEMMs) are shown: one set of processes measured them, on one side at "
        "least."
        if found.gate == "final"
        else f"Points that gate: all {gating} with two times, since no final measured one of them in both runs."
    )
    return [
        "A us, B us: medians. B/A: above 1 where B is slower, with its 95 % interval.",
        f"slower, faster: by significantly more than {100 * found.tolerance:g} %, at 5 % for all points together.",
        "unstable: the samples scatter too much to say anything.",
        gate,
    ]


def _result(found: Comparison) -> list[str]:
    lines = [f"Points: {', '.join(f'{count} {verdict}' for verdict, count in found.counts.items())}."]
    if found.geometric_mean is not None:
        lines.append(f"Geometric mean of B/A: {found.geometric_mean:.4f} (stable points: {found.num_ratios}).")
    if found.missing:
        lines.append(f"B lacks what A is judged by: {_some(found.missing)}.")
    worse = Counter(row.verdict for row in found.points if row.is_worse)
    verdict = ", ".join(f"{count} {verdict}" for verdict, count in worse.items())
    nothing = "Nothing that was measured is worse." if found.missing else "Nothing is worse."
    return [*lines, f"B is worse: {verdict}." if worse else nothing]


def _some(names: list[str]) -> str:
    """The first few, and how many more."""
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
