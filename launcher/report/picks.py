"""The picks: the config for each use, with its times and its memory; pure."""

from __future__ import annotations

from bench.backends import BACKENDS
from launcher.analysis.results import Results
from launcher.report import cells
from launcher.report.columns import BUFFER, FULL_DISPATCH, OVERLAPPED, ROUND_TRIP, Column, headings
from launcher.report.report import Report
from launcher.text import table, text

COLUMNS = (Column("pick"), Column("config"), ROUND_TRIP, FULL_DISPATCH, OVERLAPPED, BUFFER)


def rows(results: Results) -> list[list[str]]:
    """Each pick with its isolated, full-dispatch and overlapped times, and its memory; see ``COLUMNS``."""
    choice = results.choice
    return [
        [
            name,
            cells.config(pair),
            cells.time(pair.round_trip_us),
            cells.time(None if pair.full is None else pair.full.median_us),
            cells.time(None if overlap is None else overlap.makespan_us),
            cells.buffer(results.plan, pair),
        ]
        for name, pair in choice.picks.items()
        for overlap in [choice.overlap_of(pair)]
    ]


_NOTES = {
    "fastest": "for isolated communication, where computation waits for it.",
    "overlapped": "for communication overlapped with expert GEMMs.",
    "default_sms": "the fastest with as many {shared} as the default.",
    "knee": "the fewest {shared} within 5 % of the fastest.",
    OVERLAPPED.heading: "of the overlapped pair with as many {shared} as the pick.",
    BUFFER.heading: "the buffer of each rank, by the library's own formula.",
}
"""The use of each pick, and what needs explaining in its table. ``shared``: what dispatch and combine must share."""


def notes(results: Results) -> dict[str, str]:
    """Those of the notes that are about what the table shows."""
    choice, knobs = results.choice, BACKENDS[results.plan.backend].knobs
    has_sizes = any(cells.buffer(results.plan, pair) for pair in choice.picks.values())
    overlapped, sizes = [OVERLAPPED.heading] * bool(choice.overlaps), [BUFFER.heading] * has_sizes
    shown = {*choice.picks, *overlapped, *sizes}
    shared = " and ".join("SMs" if knob.counts_sms else knob.name for knob in knobs if knob.shared)
    return {name: note.format(shared=shared) for name, note in _NOTES.items() if name in shown}


def section(report: Report) -> list[str]:
    """The table of picks, and the use of each."""
    picks = rows(report.results)
    if not picks:
        return []
    return [
        "## Which pick to use",
        "",
        *table(headings(COLUMNS), picks),
        *(f"* **{name}**: {text(note)}" for name, note in notes(report.results).items()),
        "",
    ]
