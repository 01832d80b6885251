"""The search of a run: what one knob changes, how two runs differ, and where the time went."""

from __future__ import annotations

import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable
from statistics import median
from typing import Any

from tests.rederived import ratios as q
from tests.rederived import records as r
from tests.rederived.records import Knobs, Record

Cell = tuple[str, Knobs]
"""An operation and its config."""

_OPS = ("dispatch", "combine")


@functools.cache
def points(run: str) -> dict[Cell, float]:
    """The time of every dispatch and combine in us: of the final, or else of the search.

    In the search the median over the repetitions.
    """
    found = swept(run)
    for op in _OPS:
        found |= {(op, knobs): r.us(times) for knobs, times in r.final(run, op).items()}
    return found


def swept(run: str) -> dict[Cell, float]:
    """The time of every dispatch and combine in us by the search alone."""
    return {cell: median(values) for cell, values in repetitions(run).items()}


@functools.cache
def repetitions(run: str) -> dict[Cell, list[float]]:
    """Every repetition of the search in us, divided by how much longer than typical the anchor took in its round."""
    anchors: dict[tuple[str, int], list[float]] = defaultdict(list)
    for record in searched(run):
        if record.role == "anchor":
            anchors[record.op, record.round].append(record.median_us)
    levels = {key: median(values) for key, values in anchors.items()}
    typical = {op: median([level for (of, _), level in levels.items() if of == op]) for op in _OPS}
    scaled: dict[Cell, list[float]] = defaultdict(list)
    for record in searched(run):
        level = levels[record.op, record.round] / typical[record.op]
        scaled[record.op, record.knobs].append(record.median_us / level)
    return scaled


def searched(run: str) -> Iterable[Record]:
    """The repetitions of the search, of dispatches and combines."""
    return (
        record for record in r.records(run) if not record.is_final and record.backend == "deepep" and record.op in _OPS
    )


def one_knob(run: str, name: str) -> list[float]:
    """Slowest over fastest, less 1, of each set of cells that differ in this knob only."""
    sets: dict[object, list[float]] = defaultdict(list)
    for (op, knobs), time_us in points(run).items():
        sets[op, tuple(knob for knob in knobs if knob[0] != name)].append(time_us)
    return [max(times) / min(times) - 1 for times in sets.values() if len(times) > 1]


def percent_by_knob(run: str, name: str) -> float:
    """By how many per cent this knob alone changes the time, in the median over the other knobs."""
    return 100 * median(one_knob(run, name))


def percent_by_nothing(run: str, count: int = 4) -> float:
    """Slowest over fastest of so many repetitions of one and the same cell, less 1, in per cent; median over cells."""
    several = [times[:count] for times in repetitions(run).values() if len(times) >= count]
    return 100 * median([max(times) / min(times) - 1 for times in several])


def medians(run: str) -> dict[Cell, float]:
    """The time of every dispatch and combine in us: of the final, or else the median of all samples of the search."""
    samples: dict[Cell, list[float]] = defaultdict(list)
    for record in searched(run):
        samples[record.op, record.knobs] += record.samples_us
    found = {cell: median(values) for cell, values in samples.items()}
    return found | {(op, knobs): r.us(times) for op in _OPS for knobs, times in r.final(run, op).items()}


def differing(first: str, second: str, limit: float) -> list[Cell]:
    """The points of which one run's time is more than ``limit`` above the other's, as a fraction."""
    before, now = medians(first), medians(second)
    return [
        cell for cell in before.keys() & now.keys() if abs(math.log(now[cell] / before[cell])) > math.log(1 + limit)
    ]


def serial_us(run: str, overlap: q.Overlap) -> float:
    """The same work without overlap: isolated GEMMs + dispatch + combine."""
    knobs = dict(overlap.knobs)
    cells = [
        (op, (("num_sms", knobs["num_sms"]), *((name, knobs[f"{op}_{name}"]) for name in ("nvl_chunk", "nvl_buffer"))))
        for op in _OPS
    ]
    return q.gemms_us(run) + sum(points(run)[cell] for cell in cells)


def slower_than_serial(run: str) -> list[int]:
    """SMs of the pairs whose overlapped time exceeds the serial time."""
    return [overlap.num_sms for overlap in q.passes(run) if overlap.us > serial_us(run, overlap)]


def ends(run: str) -> float:
    """Unix time of the end of the last record."""
    return max(record.started + record.wall_s for record in r.records(run))


def begins(run: str) -> float:
    """Unix time at which the first process group began to start."""
    return float(min(line["started"] for line in r.lines(run) if line["type"] == "host"))


def from_command_s(run: str) -> float:
    """Seconds from the command to the last record."""
    return ends(run) - float(r.json_of(run, "run.json")["created"])


def from_start_s(run: str) -> float:
    """Seconds from the first start of ranks to the last record."""
    return ends(run) - begins(run)


def busy_s(run: str) -> float:
    """Seconds in warm-up and timed iterations."""
    return sum(record.busy_s for record in r.records(run))


def starting_s(run: str) -> float:
    """Seconds in which process groups started."""
    return float(sum(line["startup_s"] for line in r.lines(run) if line["type"] == "host"))


def compiling_s(run: str) -> float:
    """Seconds in which kernels were compiled before the search and before the final."""
    return float(sum(line.get("compile_s", 0.0) for line in r.lines(run) if line["type"] == "host"))


def all_to_all(run: str, op: str) -> float:
    """The NCCL all-to-all of a run whose search timed it once: the median of its samples in us."""
    samples = [record.samples_us for record in r.records(run) if (record.backend, record.op) == ("alltoall", op)]
    return median(itertools.chain.from_iterable(samples))


def final_labels(run: str) -> set[Cell]:
    """Every point of the final: dispatches, full dispatches, combines."""
    return {(op, knobs) for op in (*_OPS, "dispatch_full") for knobs in r.final(run, op)}


def of_report(run: str) -> dict[str, Any]:
    """RESULTS of a run at EP=2 of which no records are kept."""
    return r.json_of(run, "RESULTS_EP2.json")


def optimal_labels(run: str) -> set[Cell]:
    best = r.optimal(run)
    return {("dispatch", best.dispatch), ("combine", best.combine)}


def final_labels_of_report(run: str) -> set[Cell]:
    return {
        (one["op"], knobs_of(one))
        for one in of_report(run)["measurements"]
        if one["stage"] == "final" and one["backend"] == "deepep" and one["op"] in (*_OPS, "dispatch_full")
    }


def optimal_labels_of_report(run: str) -> set[Cell]:
    best = of_report(run)["optimal"]
    return {(op, knobs_of({"num_sms": best["num_sms"], **best[op]})) for op in _OPS}


def knobs_of(saved: dict[str, Any]) -> Knobs:
    return tuple((name, saved[name]) for name in ("num_sms", "nvl_chunk", "nvl_buffer"))
