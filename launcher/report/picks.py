"""The picks: the config for each use, with its times and its memory; pure."""

from __future__ import annotations

from bench.backends import BACKENDS
from launcher.analysis.choice import Choice
from launcher.analysis.results import Results
from launcher.config.hardware import facts_of
from launcher.report import cells
from launcher.report.columns import FULL_DISPATCH, OVERLAPPED, ROUND_TRIP, Column, headings
from launcher.report.report import Report
from launcher.text import table, text

COLUMNS = (Column("pick"), Column("config"), ROUND_TRIP, FULL_DISPATCH, OVERLAPPED)


def rows(choice: Choice) -> list[list[str]]:
    """Each pick with its isolated, full-dispatch and overlapped times; see ``COLUMNS``."""
    return [
        [
            name,
            cells.config(pair),
            cells.time(pair.round_trip_us),
            cells.time(None if pair.full is None else pair.full.median_us),
            cells.time(None if overlap is None else overlap.makespan_us),
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
}
"""The use of each pick, and what needs explaining in its table. ``shared``: what dispatch and combine must share."""


def notes(results: Results) -> dict[str, str]:
    """Those of the notes that are about what the table shows."""
    choice, knobs = results.choice, BACKENDS[results.plan.backend].knobs
    shown = {*choice.picks, *([OVERLAPPED.heading] if choice.overlaps else [])}
    shared = " and ".join("SMs" if knob.counts_sms else knob.name for knob in knobs if knob.shared)
    return {name: note.format(shared=shared) for name, note in _NOTES.items() if name in shown}


def section(report: Report) -> list[str]:
    """The table of picks, the use of each, and the memory that it takes."""
    picks = rows(report.results.choice)
    if not picks:
        return []
    return [
        "## Which pick to use",
        "",
        *table(headings(COLUMNS), picks),
        *(f"* **{name}**: {text(note)}" for name, note in notes(report.results).items()),
        *_memory(report),
        "",
    ]


def _memory(report: Report) -> list[str]:
    """The size of each pick's buffers, where the library has a formula for it."""
    spec = report.results.plan.spec
    backend = BACKENDS[report.results.plan.backend]
    facts = facts_of(spec.hardware, spec.workload, num_ranks=spec.ep.size)
    sizes = []
    for name, pair in report.results.choice.picks.items():
        known = [backend.buffer_bytes(config.point.knobs, facts) for config in (pair.dispatch, pair.combine)]
        sizes += [f"{name} {max(size or 0 for size in known) / 2**20:.0f} MiB"] if any(known) else []
    return [f"* **memory**: buffer per rank, by the library's own hint: {text(', '.join(sizes))}."] if sizes else []
