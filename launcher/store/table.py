"""The records of a run as columns: a million of them fit into memory, and are evaluated as arrays; pure."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from bench.records import Dtype, Failed, Line, Measured, Op, Point, Record, Role, Stage
from bench.stats import Floats

ROLES, STAGES, OPS = list(Role), list(Stage), list(Op)
DTYPES = list(Dtype)
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
        ("first", "i8"),  # index of its first sample in RecordTable.samples
        ("count", "i4"),  # number of its samples; 0 for a failure
        ("median_us", "f8"),
        ("spread", "f8"),  # interquartile range over median
        ("gemms", "i1"),  # index into DTYPES of what its GEMMs multiplied; -1 without any, and in older lines
        ("rank_ratio", "f8"),  # slowest over fastest rank's median for an anchor, else NaN
    ]
)
"""One record, without its samples."""

Rows = npt.NDArray[np.void]


class RecordTable(NamedTuple):
    """Every record: ``rows`` (dtype ROW), the values they point to, and the failed records in full.

    ``samples``: the samples of all rows, one after the other, in microseconds. ``compute``: by index of the row, when
    the GEMMs of an overlapped record ended.
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

    def select_environment(self, environment: int) -> RecordTable:
        """The records of one environment."""
        if len(self.environments) == 1:
            return self
        kept = np.flatnonzero(self.rows["environment"] == environment)
        new_index = {int(old): new for new, old in enumerate(kept)}
        name = self.environments[environment]
        return self._replace(
            rows=self.rows[kept],
            compute={new_index[row]: values for row, values in self.compute.items() if row in new_index},
            failed=[record for record in self.failed if record.environment == name],
        )


class RunRecords(NamedTuple):
    """Every line of a run: the records as columns, and all other lines."""

    table: RecordTable
    others: list[Line]


def run_records(lines: Iterable[Line]) -> RunRecords:
    """The lines with their records as columns."""
    records: list[Record] = []
    others: list[Line] = []
    for line in lines:
        if isinstance(line, Record):
            records.append(line)
        else:
            others.append(line)
    return RunRecords(record_table(records), others)


def record_table(records: Sequence[Record]) -> RecordTable:
    """The records as columns, in their order."""
    rows = np.zeros(len(records), dtype=ROW)
    if not records:
        return RecordTable(rows, [], [], np.zeros(0), {}, [])
    fields = zip(*map(msgspec.structs.astuple, records), strict=True)
    columns = dict(zip(Record.__struct_fields__, fields, strict=True))
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
    rows["gemms"] = [-1 if outcome.gemms is None else DTYPES.index(outcome.gemms) for outcome in outcomes]
    rows["rank_ratio"] = np.nan
    for anchor in np.flatnonzero(rows["role"] == ROLES.index(Role.ANCHOR)):
        rows["rank_ratio"][anchor] = _slowest_over_fastest(outcomes[anchor].rank_median_us)
    samples = np.array([value for outcome in outcomes for value in outcome.samples_us], dtype=float)
    _summarise(rows, samples)
    compute = {number: outcome.compute_us for number, outcome in enumerate(outcomes) if outcome.compute_us}
    failed = [record for record in records if isinstance(record.outcome, Failed)]
    return RecordTable(rows, points, list(environments), samples, compute, failed)


def _slowest_over_fastest(medians: list[float]) -> float:
    return max(medians) / min(medians) if medians and min(medians) > 0 else float("nan")


def _summarise(rows: Rows, samples: Floats) -> None:
    """Median and spread of each row, all rows of one length at once; NaN for a failure."""
    rows["median_us"] = rows["spread"] = np.nan
    for length in np.unique(rows["count"]):
        if length == 0:
            continue
        indices = np.flatnonzero(rows["count"] == length)
        block = samples[rows["first"][indices][:, None] + np.arange(length)]
        low, median, high = np.percentile(block, [25, 50, 75], axis=1)
        rows["median_us"][indices] = median
        rows["spread"][indices] = np.where(median > 0, (high - low) / np.where(median > 0, median, 1), 0.0)


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """Pauses the cyclic garbage collector: records have no cycles, and it would walk a million of them repeatedly."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def concatenate(parts: Sequence[RecordTable]) -> RecordTable:
    """Several tables as one, in their order."""
    point_index: dict[tuple[object, ...], int] = {}
    points: list[Point] = []
    environment_index: dict[str, int] = {}
    tables: list[Rows] = []
    compute: dict[int, list[float]] = {}
    first = before = 0
    for part in parts:
        rows = part.rows.copy()
        for point in part.points:
            if point_index.setdefault(point.key, len(points)) == len(points):
                points.append(point)
        new_points = [point_index[point.key] for point in part.points]
        new_environments = [environment_index.setdefault(name, len(environment_index)) for name in part.environments]
        if len(rows):
            rows["point"] = np.asarray(new_points)[rows["point"]]
            rows["environment"] = np.asarray(new_environments)[rows["environment"]]
        rows["first"] += first
        compute |= {before + row: values for row, values in part.compute.items()}
        tables.append(rows)
        first, before = first + len(part.samples), before + len(rows)
    return RecordTable(
        rows=np.concatenate(tables) if tables else np.zeros(0, dtype=ROW),
        points=points,
        environments=list(environment_index),
        samples=np.concatenate([part.samples for part in parts]) if parts else np.zeros(0),
        compute=compute,
        failed=[record for part in parts for record in part.failed],
    )


def in_measured_order(table: RecordTable) -> RecordTable:
    """The records in the order in which each shard measured them, whatever the order of files and lines.

    Sorted by process group before sequence: in older runs every attempt restarted the sequence, but not the groups.
    """
    rows = table.rows
    order = np.lexsort((rows["started"], rows["sequence"], rows["group"], rows["shard"]))
    new_index = np.argsort(order) if table.compute else order
    return table._replace(
        rows=rows[order],
        compute={int(new_index[row]): values for row, values in table.compute.items()},
        failed=sorted(table.failed, key=lambda record: (record.shard, record.group, record.sequence, record.started)),
    )
