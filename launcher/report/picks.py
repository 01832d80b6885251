"""The picks: which config is for whom, and what it takes; pure."""

from __future__ import annotations

from bench.backends.deepep import buffer_bytes
from launcher.analysis.choice import Choice
from launcher.report import cells
from launcher.report.columns import FULL_DISPATCH, OVERLAPPED, ROUND_TRIP, Column, headings
from launcher.report.report import Report
from launcher.text import table, text

COLUMNS = (Column("pick"), Column("config"), ROUND_TRIP, FULL_DISPATCH, OVERLAPPED)


def rows(choice: Choice) -> list[list[str]]:
    """The picks of a run, what each takes alone, as a whole dispatch, and beside GEMMs; see ``COLUMNS``."""
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


def section(report: Report) -> list[str]:
    """Which answer is for whom, and what the wrong one costs."""
    picks = rows(report.results.choice)
    if not picks:
        return []
    return [
        "## Which one to take",
        "",
        *table(headings(COLUMNS), picks),
        "* **fastest**: for serial communication, where computation waits for it.",
        "* **overlapped**: for communication that runs beside expert GEMMs: both together are done first.",
        "* **default_sms**: the fastest with as many SMs as the default takes.",
        "* **knee**: the fewest SMs within 5 % of the fastest.",
        "* **whole dispatch us**: layout, exchange of counts and the wait for them on the CPU included. "
        "**beside GEMMs us**: with this pick's SMs, see below.",
        *_memory(report),
        "",
    ]


def _memory(report: Report) -> list[str]:
    """What the buffers of the picks take, where a formula is known."""
    spec = report.results.plan.spec
    if spec.backend != "deepep":
        return []
    sizes = {
        name: max(
            buffer_bytes(measurement.point.knobs, num_ranks=spec.ep.size, hidden_bytes=2 * spec.workload.hidden)
            for measurement in (pair.dispatch, pair.combine)
        )
        for name, pair in report.results.choice.picks.items()
    }
    sizes_text = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in sizes.items())
    return [f"* **memory** of a rank's NVLink buffer, by DeepEP's own hint: {text(sizes_text)}."]
