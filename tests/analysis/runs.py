"""Runs on paper, each with one thing to change, and the results of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
from hypothesis import strategies as st

from bench.records import (
    Dtype,
    Failed,
    Line,
    Op,
    Point,
    Record,
    Role,
    Stage,
)
from bench.stats import Interval
from launcher.analysis import overlap, results
from launcher.analysis.choice import Choice
from launcher.analysis.measurements import Measurement
from launcher.analysis.overlap import Overlap
from launcher.analysis.pairs import Pair
from launcher.analysis.results import Results
from launcher.config.plan import FINAL, Plan, Planned
from launcher.report import findings, results_json
from launcher.store import results_file
from launcher.store.records_file import Damaged, open_appender
from launcher.store.run_folder import RunFolder
from launcher.store.table import run_records
from tests.builders import (
    ENVIRONMENT,
    HOST,
    MANIFEST,
    ROOT,
    SELF_CHECK,
    TRAFFIC,
    complete,
    deepep_plan,
    is_cell,
    noisy,
    record,
)

MADE = deepep_plan()
LINES = complete(MADE)
SCHEMA = msgspec.json.decode((ROOT / "docs" / "results.schema.json").read_bytes())


def build(lines: Iterable[Line], *, plan: Plan = MADE, damaged: Iterable[Damaged] = ()) -> Results:
    return results.build(plan, MANIFEST, run_records(lines), list(damaged))


def with_times(times: Callable[[Planned], list[float] | Failed | None], *, plan: Plan = MADE) -> list[Line]:
    """One record for each planned point, None for a point that was not reached."""
    drawn = [(planned, times(planned)) for planned in plan.every_point]
    measured = [
        record(planned, outcome, sequence=number)
        for number, (planned, outcome) in enumerate(drawn)
        if outcome is not None
    ]
    return [ENVIRONMENT, HOST, SELF_CHECK, TRAFFIC, *measured]


def faster(pairs: dict[int, float]) -> list[Line]:
    """Default 250 us for each operation; cells of a num_sms take the time given, others 400 us."""
    return with_times(lambda one: noisy(pairs.get(one.point.knobs.get("num_sms", 0), 400.0) if is_cell(one) else 250.0))


def valid(found: Results) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.json.decode(results_file.encode(results_json.document(found)))
    jsonschema.Draft202012Validator(SCHEMA).validate(plain)
    return plain


times = st.dictionaries(
    st.sampled_from([one.point.label for one in MADE.every_point]), st.floats(5.0, 1e5), min_size=0, max_size=16
)

FLOOR_US = 300 * MADE.spec.workload.hidden * 2 / 450e3


def unlike(**changes: Any) -> list[Line]:
    """Two halves of a run, the second in another environment."""
    other = msgspec.structs.replace(ENVIRONMENT, **changes)
    half = [
        msgspec.structs.replace(line, environment=other.id) if isinstance(line, Record) and number % 3 == 0 else line
        for number, line in enumerate(LINES)
    ]
    return [*half, other]


def stored(lines: list[Line], tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(MADE, outputs=tmp_path, path=None, command=["deepep-sweep"])
    with open_appender(folder, 0) as appender:
        for line in lines:
            appender.add(line)
    return folder


def unescaped_pipes(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line))


def check_tables(text: str) -> int:
    """Every table keeps its number of columns; the number of rows."""
    rows = 0
    columns = 0
    for line in text.splitlines():
        columns = (columns or unescaped_pipes(line)) if line.startswith("|") else 0
        if columns:
            rows += 1
            assert unescaped_pipes(line) == columns, line
    return rows


def with_final(
    times: Callable[[Planned, int], list[float] | None], *, groups: int = 5, **changes: Any
) -> tuple[Plan, list[Line]]:
    """A sweep where every point takes its time_of, and a final where the points take the times given."""
    search = msgspec.structs.replace(MADE.spec.search, final_groups=groups)
    made = deepep_plan(search=search, **changes)
    lines: list[Line] = complete(made)
    for number in range(groups):
        for planned in [*made.anchors, *made.cells]:
            samples = times(planned, number)
            if samples is not None:
                lines.append(record(planned, samples, shard=FINAL, stage=Stage.FINAL, round=number, group=number))
    return made, lines


def timed(median_us: float, op: Op = Op.DISPATCH, **knobs: int) -> Measurement:
    point = Point("deepep", op, Dtype.BF16, knobs)
    interval = Interval(median_us, median_us)
    return Measurement(
        point, Role.GRID, Stage.FINAL, median_us, interval, 0.0, median_us, {}, None, None, None, unstable=False,
        samples=np.array([median_us]),
    )  # fmt: skip


def paired(num_sms: int, dispatch_us: float, combine_us: float, whole_us: float | None) -> Pair:
    return Pair(
        {"num_sms": num_sms},
        timed(dispatch_us, num_sms=num_sms),
        timed(combine_us, Op.COMBINE, num_sms=num_sms),
        full=None if whole_us is None else timed(whole_us, Op.DISPATCH_FULL, num_sms=num_sms),
    )


def chosen(**changes: Any) -> Results:
    """A result that was tuned, with another choice here and there."""
    base = build(LINES)
    return msgspec.structs.replace(base, choice=msgspec.structs.replace(base.choice, **changes))


def beside_gemms(passes: dict[int, list[float]], *, alone_us: float = 1000.0) -> list[Overlap]:
    """Pairs by num_sms, with the overlapped time of each pass; isolated, the pair takes 100 us."""
    found = []
    for num_sms, times in passes.items():
        mean = float(np.exp(np.log(times).mean()))
        ends = Interval(0.99 * mean, 1.01 * mean)
        pair = paired(num_sms, 50.0, 50.0, None)
        found.append(Overlap(pair, mean, ends, mean, ends, alone_us, dict(enumerate(times))))
    return found


def choice_of(passes: dict[int, list[float]], *, alone_us: float = 1000.0) -> Choice:
    overlaps = beside_gemms(passes, alone_us=alone_us)
    best = overlap.best_overlap(overlaps)
    fastest = next(one.pair for one in overlaps if one.pair.shared["num_sms"] == max(passes))
    return msgspec.structs.replace(
        build(LINES).choice,
        overlaps=overlaps,
        best_overlaps=overlap.may_be_best(overlaps),
        overlap_held_out=overlap.held_out_overlap(overlaps),
        picks={"fastest": fastest, "overlapped": best.pair},
    )


def said(choice: Choice) -> list[str]:
    found = msgspec.structs.replace(build(LINES), choice=choice)
    return list(findings._overlap(found))
