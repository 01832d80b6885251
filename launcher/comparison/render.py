"""A comparison as text, for terminals and for GitHub; names of hosts and commands stay text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from launcher import text as markdown
from launcher.comparison.compare import Comparison, Picked, PointRow, Source
from launcher.text import one_line

_NUMBERS = ("A us", "B us", "B/A", "95 % CI")
"""Right-aligned columns, which hold no user's text."""

_MAX_NAMES = 5


class TableSection(NamedTuple):
    """A table, and sentences below it."""

    title: str
    header: Sequence[str]
    rows: list[list[str]]
    below: list[str]


def plain(comparison: Comparison) -> str:
    """In columns, the same on a terminal and in a pipe."""
    lines = [one_line(note) for note in comparison.notes]
    for section in _sections(comparison):
        lines += ["", section.title, *_align(section.header, section.rows), *section.below]
    return "\n".join(lines).strip() + "\n"


def _align(header: Sequence[str], rows: list[list[str]]) -> list[str]:
    if not rows:
        return []
    columns = []
    for name, *cells in zip(header, *rows, strict=True):
        texts = [name, *map(one_line, cells)]
        width = max(map(len, texts))
        columns.append([text.rjust(width) if name in _NUMBERS else text.ljust(width) for text in texts])
    return ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]


def github(comparison: Comparison) -> str:
    """In Markdown."""
    lines = [line for note in comparison.notes for line in (f"**{markdown.text(note)}**", "")]
    for section in _sections(comparison):
        cells = [[_cell(name, cell) for name, cell in zip(section.header, row, strict=True)] for row in section.rows]
        lines += [f"## {section.title}", "", *(markdown.table(section.header, cells) if cells else [])]
        lines += [*(f"* {markdown.text(sentence)}" for sentence in section.below), *([""] if section.below else [])]
    return "\n".join(lines).rstrip() + "\n"


def _cell(column: str, value: str) -> str:
    return value if column in _NUMBERS or not value else markdown.code(value)


def _sections(comparison: Comparison) -> list[TableSection]:
    facts = [[fact.field, fact.a, fact.b] for fact in comparison.differences]
    return [
        TableSection("Runs", ("", "file", "measured"), [_run("A", comparison.a), _run("B", comparison.b)], []),
        TableSection("What differs", ("fact", "A", "B"), facts, [] if facts else ["No recorded fact differs."]),
        TableSection(
            "Points, worst first, those that gate before the others",
            ("point", "A us", "B us", "B/A", "95 % CI", "stage", "verdict"),
            [_point(row) for row in comparison.points],
            _meaning(comparison),
        ),
        TableSection(
            "Picks",
            ("pick", "A us", "B us", "B/A", "config in A", "config in B"),
            [_pick(pick) for pick in comparison.picks],
            _times_of(comparison.picks),
        ),
        TableSection("Result", (), [], _result(comparison)),
    ]


def _run(name: str, source: Source) -> list[str]:
    return [name, source.file, f"{source.started or 'unknown'} to {source.ended or 'unknown'}"]


def _point(row: PointRow) -> list[str]:
    stages = dict.fromkeys(stage.value for stage in (row.stage_a, row.stage_b) if stage)
    interval = "" if row.ci95 is None else f"{row.ci95.low:.3f} to {row.ci95.high:.3f}"
    verdict = row.verdict if row.failure is None else f"{row.verdict}: {row.failure}"
    times = [_format_us(time) for time in (row.a_us, row.b_us)]
    return [row.point, *times, _format_ratio(row.ratio), interval, ", ".join(stages), verdict]


def _pick(picked: Picked) -> list[str]:
    config, other = ("" if pick is None else pick.config for pick in (picked.a, picked.b))
    times = [_format_us(time) for time in picked.times_us]
    return [picked.name, *times, _format_ratio(picked.ratio), config, "the same" if config == other else other]


def _times_of(picks: list[Picked]) -> list[str]:
    if any(pick.is_overlapped for pick in picks):
        return ["Times are round trips; for overlapped, until the pair and the GEMMs that it overlaps are done."]
    return ["Times are round trips, isolated, of the configs that each run picked."]


def _format_us(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _format_ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _meaning(comparison: Comparison) -> list[str]:
    """What the columns of the points mean."""
    gating = sum(row.gates for row in comparison.points)
    gate = (
        f"Points that gate: {gating}, measured by both runs in the fresh process groups of a final, or picked by one. "
        "The others (the sweep, overlapped passes) are shown only: at least one run measured them in one set of "
        "processes."
        if comparison.gate == "final"
        else f"Points that gate: all {gating} with two times, since no point is in the finals of both runs."
    )
    first = f" Of these, the {len(comparison.deployed)} of A's optimal pairs are tested first, with half of the 5 %."
    gpus = "the same GPUs" if comparison.same_gpus else "other GPUs"
    return [
        "A us, B us: medians. B/A: above 1 where B is slower, with its 95 % CI. Runs on "
        f"{gpus} scatter by {100 * comparison.scatter:g} %, and the interval allows for that.",
        f"slower, faster: by significantly more than {100 * comparison.tolerance:g} %, at 5 % for all points together, "
        f"also if runs scatter by {100 * comparison.scatter_limit:g} %.",
        "unstable: the samples scatter too much for a verdict.",
        gate + (first if comparison.deployed else ""),
    ]


def _result(comparison: Comparison) -> list[str]:
    lines = [f"Points: {', '.join(f'{count} {verdict}' for verdict, count in comparison.counts.items())}."]
    if comparison.geometric_mean is not None:
        lines.append(
            f"Geometric mean of B/A: {comparison.geometric_mean:.4f} (stable points: {comparison.num_ratios})."
        )
    if comparison.missing:
        lines.append(f"B lacks: {_abbreviate(comparison.missing)}.")
    worse = Counter(row.verdict for row in comparison.points if row.is_worse)
    verdict = ", ".join(f"{count} {verdict}" for verdict, count in worse.items())
    return [*lines, f"B is worse: {verdict}." if worse else _nothing_is_worse(comparison)]


def _nothing_is_worse(comparison: Comparison) -> str:
    """The last line of a comparison that passes, or lacks points: slower points that do not gate are counted in it."""
    shown = sum(row.verdict == "slower" for row in comparison.points)
    points = "1 point that does not gate is" if shown == 1 else f"{shown} points that do not gate are"
    subject = "Nothing that gates" if shown else "Nothing"
    among = " among the points that B has" if comparison.missing else ""
    return f"{subject} is worse{among}" + (f"; {points} slower." if shown else ".")


def _abbreviate(names: list[str]) -> str:
    """The first few, and how many more."""
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
