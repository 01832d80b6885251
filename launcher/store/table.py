"""The records of a run as columns, so that a million of them fit into memory and are judged as arrays; pure."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from bench.records import Failed, Line, Measured, Op, Point, Record, Role, Stage
from bench.stats import Floats

ROLES, STAGES, OPS = list(Role), list(Stage), list(Op)
_ROLE_INDEX = {role: index for index, role in enumerate(ROLES)}
_STAGE_INDEX = {stage: index for index, stage in enumerate(STAGES)}

_NOTHING = Measured([], [])

ROW = np.dtype(
    [
        ("point", "i4"),  # index into RecordTable.points
        ("environment", "i4"),  # index into RecordTable.environments
        ("role", "i1"),  # index into ROLES
        ("stage", "i1"),  # index into STAGES
        ("op", "i1"),  # index into OPS
        ("round", "i4"),
        ("shard", "i4"),
        ("group", "i4"),
        ("sequence", "i8"),
        ("started", "f8"),
        ("wall_s", "f8"),
        ("busy_s", "f8"),
        ("first", "i8"),  # where its samples begin
        ("count", "i4"),  # how many they are; 0 for a failure
        ("median_us", "f8"),
        ("spread", "f8"),  # interquartile range over median
        ("rank_ratio", "f8"),  # of an anchor: slowest over fastest rank's median; else NaN
    ]
)
"""One record, without its samples."""

Rows = npt.NDArray[np.void]


class RecordTable(NamedTuple):
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

    def only(self, environment: int) -> RecordTable:
        """The records of one environment."""
        if len(self.environments) == 1:
            return self
        kept = np.flatnonzero(self.rows["environment"] == environment)
        moved = {int(old): new for new, old in enumerate(kept)}
        name = self.environments[environment]
        return self._replace(
            rows=self.rows[kept],
            compute={moved[row]: values for row, values in self.compute.items() if row in moved},
            failed=[record for record in self.failed if record.environment == name],
        )


class RunRecords(NamedTuple):
    """All that was written down: the records as columns, and every other line."""

    table: RecordTable
    others: list[Line]


def run_records(lines: Iterable[Line]) -> RunRecords:
    """The columns of some lines."""
    records: list[Record] = []
    others: list[Line] = []
    for line in lines:
        if isinstance(line, Record):
            records.append(line)
        else:
            others.append(line)
    return RunRecords(record_table(records), others)


def record_table(records: Sequence[Record]) -> RecordTable:
    """The columns of some records, in their order."""
    rows = np.zeros(len(records), dtype=ROW)
    fields = zip(*map(msgspec.structs.astuple, records), strict=True)
    columns = dict(zip(Record.__struct_fields__, fields, strict=False))  # none at all without records
    if not columns:
        return RecordTable(rows, [], [], np.zeros(0), {}, [])
    by_id = dict(zip(columns["point_id"], columns["point"], strict=True))
    numbers = {name: number for number, name in enumerate(by_id)}
    points = list(by_id.values())
    environments = {name: number for number, name in enumerate(dict.fromkeys(columns["environment"]))}
    outcomes = [outcome if isinstance(outcome, Measured) else _NOTHING for outcome in columns["outcome"]]
    rows["point"] = [numbers[name] for name in columns["point_id"]]
    rows["environment"] = [environments[name] for name in columns["environment"]]
    rows["op"] = np.array([OPS.index(point.op) for point in points])[rows["point"]]
    rows["role"] = [_ROLE_INDEX[role] for role in columns["role"]]
    rows["stage"] = [_STAGE_INDEX[stage] for stage in columns["stage"]]
    for name in ("round", "shard", "group", "sequence", "started", "wall_s", "busy_s"):
        rows[name] = columns[name]
    rows["count"] = [len(outcome.samples_us) for outcome in outcomes]
    rows["first"] = np.cumsum(rows["count"]) - rows["count"]
    rows["rank_ratio"] = np.nan
    for anchor in np.flatnonzero(rows["role"] == ROLES.index(Role.ANCHOR)):
        rows["rank_ratio"][anchor] = _ratio(outcomes[anchor].rank_median_us)
    samples = np.array([value for outcome in outcomes for value in outcome.samples_us], dtype=float)
    _summarise(rows, samples)
    compute = {number: outcome.compute_us for number, outcome in enumerate(outcomes) if outcome.compute_us}
    failed = [record for record in records if isinstance(record.outcome, Failed)]
    return RecordTable(rows, points, list(environments), samples, compute, failed)


def _ratio(medians: list[float]) -> float:
    return max(medians) / min(medians) if medians and min(medians) > 0 else float("nan")


def _summarise(rows: Rows, samples: Floats) -> None:
    """Median and spread of each row, all rows of one length at once; NaN for a failure."""
    rows["median_us"] = rows["spread"] = np.nan
    for length in np.unique(rows["count"]):
        if length == 0:
            continue
        where = np.flatnonzero(rows["count"] == length)
        block = samples[rows["first"][where][:, None] + np.arange(length)]
        low, middle, high = np.percentile(block, [25, 50, 75], axis=1)
        rows["median_us"][where] = middle
        rows["spread"][where] = np.where(middle > 0, (high - low) / np.where(middle > 0, middle, 1), 0.0)


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """Without the search for cycles: records have none, and it would walk a million of them again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def concatenated(parts: Sequence[RecordTable]) -> RecordTable:
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
            if points.setdefault(point.key, len(found)) == len(found):
                found.append(point)
        keys = [points[point.key] for point in part.points]
        names = [environments.setdefault(name, len(environments)) for name in part.environments]
        if len(rows):
            rows["point"] = np.asarray(keys)[rows["point"]]
            rows["environment"] = np.asarray(names)[rows["environment"]]
        rows["first"] += first
        compute |= {before + row: values for row, values in part.compute.items()}
        tables.append(rows)
        first, before = first + len(part.samples), before + len(rows)
    return RecordTable(
        rows=np.concatenate(tables) if tables else np.zeros(0, dtype=ROW),
        points=found,
        environments=list(environments),
        samples=np.concatenate([part.samples for part in parts]) if parts else np.zeros(0),
        compute=compute,
        failed=[record for part in parts for record in part.failed],
    )


def in_measured_order(table: RecordTable) -> RecordTable:
    """The same in the order in which each shard measured, whatever the order of files and lines was.

    By process group first: in older runs the sequence began anew with every attempt, but groups of the final did not.
    """
    rows = table.rows
    order = np.lexsort((rows["started"], rows["sequence"], rows["group"], rows["shard"]))
    place = np.argsort(order) if table.compute else order
    return table._replace(
        rows=rows[order],
        compute={int(place[row]): values for row, values in table.compute.items()},
        failed=sorted(table.failed, key=lambda record: (record.shard, record.group, record.sequence, record.started)),
    )
