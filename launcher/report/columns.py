"""The columns of the reports' tables: heading and meaning, declared once for Markdown and HTML; pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from launcher.report.report import Report


class Column(NamedTuple):
    """``meaning`` is empty where the heading explains itself."""

    heading: str
    meaning: str = ""


MEDIAN = Column(
    "median us",
    "median over iterations of the slowest rank's time, from a device-side alignment to the end of the operation; in "
    "the final, the geometric mean of the medians of its fresh process groups. A dispatch is cached (it reuses a "
    "handle) unless it is called full.",
)
CI95 = Column(
    "95 % CI us",
    "of that time; in the final Student's interval over the process groups, otherwise order statistics of the samples.",
)
SPREAD = Column("spread", "interquartile range / median of the samples.")
LOGICAL = Column(
    "logical GB/s", "bytes of the busiest rank, including tokens that stay on it / median (DeepEP's convention)."
)
WIRE = Column("wire GB/s", "the same without tokens that stay on their rank; only this may be compared with a link.")
PEAK = Column("of peak", "wire GB/s / the link peak (all links of one GPU, one direction).")
DISPATCH = Column("dispatch us", "median us of the dispatch.")
COMBINE = Column("combine us", "median us of the combine.")
ANOTHER_RUN = Column(
    "another run us", "95 % interval for what a run on other GPUs of the kind would report (METHODOLOGY, Another run)."
)
ROUND_TRIP = Column(
    "round trip us", "dispatch + combine; its CI is Student's over the process groups that measured both."
)
BUFFER = Column("buffer MiB", "of one rank, by the library's own formula; empty where it has none.")
FULL_DISPATCH = Column("full dispatch us", "the dispatch with layout, exchange of counts and host wait.")
SMS = Column("SMs", "those that the library's knob counts; what a call takes besides stands under the table.")
CACHED_DISPATCH = Column("cached dispatch us", "median us of a dispatch that reuses a handle.")
FULL_ROUND_TRIP = Column("full round trip us", "full dispatch + combine.")
EXCHANGE = Column("exchange us", "the transfer of a dispatch alone, its tokens packed beforehand.")
PACKING = Column("packing us", "cached dispatch - exchange.")
LAYER = Column(
    "layer us",
    "full dispatch, expert GEMMs of the received tokens and combine, one after the other; training: with the "
    "operations of the backward pass. Geometric mean over the passes, corrected for the power cap as overlapped times "
    "are; its CI is Student's over the passes.",
)
GAIN = Column("gain", "layer with the library's default / this layer, paired over the passes, with its 95 % CI.")
ENGINES_GAIN = Column("gain over engines", "the same over the default that engines set.")
A_OVER_B = Column("A / B", "time of A / time of B, paired within each process group of the final.")
ISOLATED = Column("isolated us", "round trip us, in the table of overlapped pairs.")
OVERLAPPED = Column(
    "overlapped us",
    "from the moment communication may begin, 20 us ahead of one layer's expert GEMMs, until the pair and the GEMMs "
    "are done: geometric mean over the passes of (mean of the pass / how much longer than typical isolated GEMMs "
    "took just before and after it, because clocks move with the power cap); its CI is Student's over the passes.",
)
SLOWDOWN = Column(
    "GEMM slowdown",
    "(time until the overlapped GEMMs are done - 20 us, with the same correction) / GEMMs isolated, with its 95 % CI.",
)
MAY_COST = Column(
    "may cost at most",
    "how much longer than the best pair, whichever that is, this one may take: upper limits with 95 % confidence for "
    "all pairs together.",
)
SLOW_SHARE = Column("slow iterations", "those that take at least 10 % longer than the pair's fast ones.")
SERIAL = Column(
    "serial us",
    "dispatch, GEMMs and combine one after the other, in the same passes and with the same correction; marked *sum* "
    "where a run did not measure that: GEMMs isolated + round trip isolated.",
)
RATIO = Column("compute / communication", "GEMMs isolated / round trip isolated.")
SPEED = Column("speed", "round trip of the library's own tuning / this round trip.")

_MEASURED = (MEDIAN, CI95, ANOTHER_RUN, SPREAD, LOGICAL, WIRE, PEAK, ROUND_TRIP, FULL_DISPATCH, BUFFER)
_PLAIN = (CACHED_DISPATCH, FULL_ROUND_TRIP, EXCHANGE, PACKING)
_LAYERS = (SMS, LAYER, GAIN, ENGINES_GAIN)
_OVERLAP = (ISOLATED, OVERLAPPED, MAY_COST, SLOW_SHARE, SLOWDOWN, SERIAL, RATIO)


def headings(columns: Iterable[Column]) -> list[str]:
    """The first row of a table."""
    return [column.heading for column in columns]


def section(report: Report) -> list[str]:
    """The meaning of each column of the report."""
    choices, peak = report.results.choices.values(), report.results.peak_gb_per_s
    columns = [
        *_MEASURED,
        *(_PLAIN if report.results.baselines or report.libraries else ()),
        *((SMS, A_OVER_B) if report.libraries else ()),
        *(_LAYERS if any(choice.layers for choice in choices) else ()),
        *(_OVERLAP if any(choice.overlaps for choice in choices) else ()),
        *((SPEED,) if any(choice.own_tuning for choice in choices) else ()),
    ]
    link = "This run has no link peak." if peak is None else f"The link peak is {peak:.0f} GB/s."
    unique = dict.fromkeys(columns)
    return ["## Columns", "", *(f"* **{column.heading}**: {column.meaning}" for column in unique), "", link, ""]
