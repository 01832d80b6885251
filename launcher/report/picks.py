"""The picks: the config for each use, with its times and its memory; pure."""

from __future__ import annotations

from bench.backends import BACKENDS, shared_knobs
from bench.backends.deepep import buffer_bytes
from launcher.analysis.choice import Choice
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


NOTES = {
    "fastest": "for isolated communication, where computation waits for it.",
    "overlapped": "for communication overlapped with expert GEMMs.",
    "default_sms": "the fastest with as many {shared} as the default.",
    "knee": "the fewest {shared} within 5 % of the fastest.",
    OVERLAPPED.heading: "of the overlapped pair with as many {shared} as the pick.",
}
"""The use of each pick, and what needs explaining in its table. ``shared``: what dispatch and combine must share."""


def section(report: Report) -> list[str]:
    """The table of picks, the use of each, and the memory that it takes."""
    picks = rows(report.results.choice)
    if not picks:
        return []
    choice, names = report.results.choice, shared_knobs(BACKENDS[report.results.plan.backend])
    shown = {*choice.picks, *([OVERLAPPED.heading] if choice.overlaps else [])}
    shared = " and ".join("SMs" if name == "num_sms" else name for name in names)
    return [
        "## Which pick to use",
        "",
        *table(headings(COLUMNS), picks),
        *(f"* **{name}**: {text(note.format(shared=shared))}" for name, note in NOTES.items() if name in shown),
        *_memory(report),
        "",
    ]


def _memory(report: Report) -> list[str]:
    """The size of each pick's buffer, where a formula is known."""
    spec = report.results.plan.spec
    if report.results.plan.backend != "deepep":
        return []
    sizes = {
        name: max(
            buffer_bytes(measurement.point.knobs, num_ranks=spec.ep.size, hidden_bytes=2 * spec.workload.hidden)
            for measurement in (pair.dispatch, pair.combine)
        )
        for name, pair in report.results.choice.picks.items()
    }
    sizes_text = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in sizes.items())
    return [f"* **memory**: NVLink buffer per rank, by DeepEP's own hint: {text(sizes_text)}."]
