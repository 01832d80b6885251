"""Constructed runs, each with one value to change, and their results."""

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
from launcher.analysis import overlap
from launcher.analysis.choice import Choice
from launcher.analysis.measurements import Measurement
from launcher.analysis.overlap import Overlap
from launcher.analysis.pairs import Pair
from launcher.analysis.results import Results
from launcher.analysis.results import build as build_results
from launcher.config.plan import FINAL, Plan, Planned
from launcher.report import overlap_findings as about_overlap
from launcher.report import results_json
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

PLAN = deepep_plan()
LINES = complete(PLAN)
SCHEMA = msgspec.json.decode((ROOT / "docs" / "results.schema.json").read_bytes())


def build(lines: Iterable[Line], *, plan: Plan = PLAN, damaged: Iterable[Damaged] = ()) -> Results:
    return build_results(plan, MANIFEST, run_records(lines), list(damaged))


def with_times(times: Callable[[Planned], list[float] | Failed | None], *, plan: Plan = PLAN) -> list[Line]:
    """One record for each planned point; a time of None leaves the point out."""
    drawn = [(planned, times(planned)) for planned in plan.every_point]
    measured = [
        record(planned, outcome, sequence=number)
        for number, (planned, outcome) in enumerate(drawn)
        if outcome is not None
    ]
    return [ENVIRONMENT, HOST, SELF_CHECK, TRAFFIC, *measured]


def faster(pairs: dict[int, float]) -> list[Line]:
    """Records in which the default takes 250 us, the cells of each given num_sms its time, and all others 400 us."""
    return with_times(lambda one: noisy(pairs.get(one.point.knobs.get("num_sms", 0), 400.0) if is_cell(one) else 250.0))


def valid(results: Results) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.json.decode(results_file.encode(results_json.document(results)))
    jsonschema.Draft202012Validator(SCHEMA).validate(plain)
    return plain


times = st.dictionaries(
    st.sampled_from([one.point.label for one in PLAN.every_point]), st.floats(5.0, 1e5), min_size=0, max_size=16
)

FLOOR_US = 300 * PLAN.spec.workload.hidden * 2 / 450e3


def mixed_environments(**changes: Any) -> list[Line]:
    """A run with a third of its records from another environment."""
    other = msgspec.structs.replace(ENVIRONMENT, **changes)
    half = [
        msgspec.structs.replace(line, environment=other.id) if isinstance(line, Record) and number % 3 == 0 else line
        for number, line in enumerate(LINES)
    ]
    return [*half, other]


def stored(lines: list[Line], tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(PLAN, outputs=tmp_path, path=None, command=["deepep-sweep"])
    with open_appender(folder, 0) as appender:
        for line in lines:
            appender.add(line)
    return folder


def unescaped_pipes(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line))


def check_tables(text: str) -> int:
    """The number of table rows, after checking that every table keeps its number of columns."""
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
    """A sweep in which every point takes its time_of, and a final with the given times."""
    search = msgspec.structs.replace(PLAN.spec.search, final_groups=groups)
    plan = deepep_plan(search=search, **changes)
    lines: list[Line] = complete(plan)
    for number in range(groups):
        for planned in [*plan.anchors, *plan.cells]:
            samples = times(planned, number)
            if samples is not None:
                lines.append(record(planned, samples, shard=FINAL, stage=Stage.FINAL, round=number, group=number))
    return plan, lines


def make_measurement(median_us: float, op: Op = Op.DISPATCH, **knobs: int) -> Measurement:
    point = Point("deepep", op, Dtype.BF16, knobs)
    interval = Interval(median_us, median_us)
    return Measurement(
        point, Role.GRID, Stage.FINAL, median_us, interval, 0.0, median_us, {}, None, None, None, unstable=False,
        samples=np.array([median_us]),
    )  # fmt: skip


def make_pair(num_sms: int, dispatch_us: float, combine_us: float, full_us: float | None) -> Pair:
    return Pair(
        {"num_sms": num_sms},
        make_measurement(dispatch_us, num_sms=num_sms),
        make_measurement(combine_us, Op.COMBINE, num_sms=num_sms),
        full=None if full_us is None else make_measurement(full_us, Op.DISPATCH_FULL, num_sms=num_sms),
    )


def results_with(**changes: Any) -> Results:
    """Results of a tuned run with other members in their choice."""
    base = build(LINES)
    return with_choice(base, msgspec.structs.replace(base.choice, **changes))


def with_choice(results: Results, choice: Choice) -> Results:
    """The results with other decisions about their only library."""
    return msgspec.structs.replace(results, choices={results.plan.backend: choice})


def overlaps_of(passes: dict[int, list[float]], *, isolated_us: float = 1000.0) -> list[Overlap]:
    """Overlaps from the overlapped times of each num_sms in each pass; every pair takes 100 us isolated."""
    overlaps = []
    for num_sms, times in passes.items():
        mean = float(np.exp(np.log(times).mean()))
        ends = Interval(0.99 * mean, 1.01 * mean)
        pair = make_pair(num_sms, 50.0, 50.0, None)
        overlaps.append(Overlap(pair, mean, ends, mean, ends, isolated_us, dict(enumerate(times))))
    return overlap.bounded(overlaps)


def choice_of(passes: dict[int, list[float]], *, isolated_us: float = 1000.0) -> Choice:
    overlaps = overlaps_of(passes, isolated_us=isolated_us)
    best = overlap.best_overlap(overlaps)
    fastest = next(one.pair for one in overlaps if one.pair.shared["num_sms"] == max(passes))
    return msgspec.structs.replace(
        build(LINES).choice,
        overlaps=overlaps,
        overlap_held_out=overlap.held_out_overlap(overlaps),
        picks={"fastest": fastest, "overlapped": best.pair},
    )


def overlap_findings(choice: Choice) -> list[str]:
    return list(about_overlap.overlap_findings(with_choice(build(LINES), choice)))
