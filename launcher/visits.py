"""The records of a run as columns, so that a million of them fit into memory and are judged as arrays; pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bench.records import Failed, Line, Measured, Op, Point, Record, Role, Stage
from bench.stats import Floats

ROLES, STAGES, OPS = list(Role), list(Stage), list(Op)

ROW = np.dtype(
    [
        ("point", "i4"),  # index into Visits.points
        ("environment", "i4"),  # index into Visits.environments
        ("role", "i1"),  # index into ROLES
        ("stage", "i1"),  # index into STAGES
        ("op", "i1"),  # index into OPS
        ("round", "i4"),
        ("shard", "i4"),
        ("sequence", "i8"),
        ("started", "f8"),
        ("wall_s", "f8"),
        ("busy_s", "f8"),
        ("first", "i8"),  # where its samples begin
        ("count", "i4"),  # how many they are; 0 for a failure
        ("median_us", "f8"),
        ("spread", "f8"),  # interquartile range over median
        ("rank_ratio", "f8"),  # slowest over fastest rank's median; NaN without them
    ]
)
"""One record, without its samples."""

Rows = npt.NDArray[np.void]


class Visits(NamedTuple):
    """Every record: ``rows`` (dtype ROW), what they point to, and the failures whole.

    ``samples``: the samples of all rows, one after the other, in microseconds. ``compute``: by row, when the GEMMs of
    an overlapped record were done.
    """

    rows: Rows
    points: list[Point]
    environments: list[str]
    samples: Floats
    compute: dict[int, list[float]]
    failed: list[Record]

    def samples_of(self, rows: Rows) -> Floats:
        """The samples of some rows together."""
        return np.concatenate([self.samples[row["first"] : row["first"] + row["count"]] for row in rows])

    def only(self, environment: int) -> Visits:
        """The records of one environment."""
        kept = np.flatnonzero(self.rows["environment"] == environment)
        moved = {int(old): new for new, old in enumerate(kept)}
        name = self.environments[environment]
        return self._replace(
            rows=self.rows[kept],
            compute={moved[row]: values for row, values in self.compute.items() if row in moved},
            failed=[record for record in self.failed if record.environment == name],
        )


class Evidence(NamedTuple):
    """All that was written down: the records as columns, and every other line."""

    visits: Visits
    others: list[Line]


def evidence(lines: Iterable[Line]) -> Evidence:
    """The columns of some lines."""
    records: list[Record] = []
    others: list[Line] = []
    for line in lines:
        if isinstance(line, Record):
            records.append(line)
        else:
            others.append(line)
    return Evidence(visits(records), others)


def visits(records: Sequence[Record]) -> Visits:
    """The columns of some records, in their order."""
    points: dict[tuple[object, ...], int] = {}
    found: list[Point] = []
    environments: dict[str, int] = {}
    table: list[tuple[Any, ...]] = []
    samples: list[list[float]] = []
    ranks: list[float] = []
    compute: dict[int, list[float]] = {}
    first = 0
    for number, record in enumerate(records):
        point, outcome = record.point, record.outcome
        key = _key(point)
        index = points.setdefault(key, len(found))
        if index == len(found):
            found.append(point)
        values = outcome.samples_us if isinstance(outcome, Measured) else []
        if isinstance(outcome, Measured):
            samples.append(values)
            if outcome.compute_us:
                compute[number] = outcome.compute_us
        middle = outcome.rank_median_us if isinstance(outcome, Measured) else []
        ranks.append(max(middle) / min(middle) if middle and min(middle) > 0 else np.nan)
        table.append(
            (
                *(index, environments.setdefault(record.environment, len(environments))),
                *(ROLES.index(record.role), STAGES.index(record.stage), OPS.index(point.op)),
                *(record.round, record.shard, record.sequence),
                *(record.started, record.wall_s, record.busy_s, first, len(values), np.nan, np.nan, np.nan),
            )
        )
        first += len(values)
    rows = np.array(table, dtype=ROW)
    rows["rank_ratio"] = ranks
    flat = np.fromiter((value for values in samples for value in values), dtype=float, count=first)
    _summarise(rows, flat)
    failed = [record for record in records if isinstance(record.outcome, Failed)]
    return Visits(rows, found, list(environments), flat, compute, failed)


def _key(point: Point) -> tuple[object, ...]:
    """Equal for equal points; a point itself cannot be hashed, since its knobs are a dict."""
    return (point.backend, point.op, point.dtype, *point.knobs.items())


def _summarise(rows: Rows, samples: Floats) -> None:
    """Median and spread of each row, all rows of one length at once."""
    for length in np.unique(rows["count"]):
        if length == 0:
            continue
        where = np.flatnonzero(rows["count"] == length)
        block = samples[rows["first"][where][:, None] + np.arange(length)]
        low, middle, high = np.percentile(block, [25, 50, 75], axis=1)
        rows["median_us"][where] = middle
        rows["spread"][where] = np.where(middle > 0, (high - low) / np.where(middle > 0, middle, 1), 0.0)


def joined(parts: Sequence[Visits]) -> Visits:
    """Several tables as one, in their order."""
    points: dict[tuple[object, ...], int] = {}
    found: list[Point] = []
    environments: dict[str, int] = {}
    tables: list[Rows] = []
    compute: dict[int, list[float]] = {}
    first = before = 0
    for part in parts:
        rows = part.rows.copy()
        for point in part.points:
            if points.setdefault(_key(point), len(found)) == len(found):
                found.append(point)
        keys = [points[_key(point)] for point in part.points]
        names = [environments.setdefault(name, len(environments)) for name in part.environments]
        if len(rows):
            rows["point"] = np.asarray(keys)[rows["point"]]
            rows["environment"] = np.asarray(names)[rows["environment"]]
        rows["first"] += first
        compute |= {before + row: values for row, values in part.compute.items()}
        tables.append(rows)
        first, before = first + len(part.samples), before + len(rows)
    return Visits(
        rows=np.concatenate(tables) if tables else np.zeros(0, dtype=ROW),
        points=found,
        environments=list(environments),
        samples=np.concatenate([part.samples for part in parts]) if parts else np.zeros(0),
        compute=compute,
        failed=[record for part in parts for record in part.failed],
    )


def ordered(visited: Visits) -> Visits:
    """The same in the order of shard, sequence and time, whatever the order of files and lines was."""
    rows = visited.rows
    order = np.lexsort((rows["started"], rows["sequence"], rows["shard"]))
    place = np.argsort(order)
    return visited._replace(
        rows=rows[order],
        compute={int(place[row]): values for row, values in visited.compute.items()},
        failed=sorted(visited.failed, key=lambda record: (record.shard, record.sequence, record.started)),
    )
