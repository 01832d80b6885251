"""Runs of several libraries without GPUs: the program's own search and final over invented times."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench.backends import PAIR_OPS, sms_knob, split_pair
from bench.records import Dtype, Failed, Line, Measured, Op, Point, Record, Traffic, encode
from bench.supervisor import Task
from bench.workload import token_matrix
from launcher.analysis.results import Results
from launcher.analysis.results import build as build_results
from launcher.config import planning
from launcher.config.plan import FINAL, Plan
from launcher.config.schema import Ep
from launcher.store.run_folder import RunFolder
from launcher.store.table import run_records
from launcher.tuner import final, racing, shard
from launcher.tuner.racing import Arms
from tests.builders import ENVIRONMENT, HOST, MANIFEST, SELF_CHECK, spec

LIBRARIES = ("deepep", "deepep_v2", "nccl_ep")

GRID: dict[str, Any] = {
    "num_sms": {
        "deepep": [8, 16, 24, 32, 64, 128],
        "deepep_v2": [8, 16, 24, 32, 64, 128],
        "nccl_ep": [8, 16],
    },
    "nvl_chunk": [8, 16],
    "nvl_buffer": [256],
    "tokens_per_chunk": [32, 64],
    "num_stages": [12],
    "num_pipelines": [1, 2],
    "num_slices": [1, 2],
    "num_in_flight": [1],
}

ROUND_TRIP_US: Mapping[str, Mapping[int, float]] = {
    "deepep": {8: 2100.0, 16: 1130.0, 20: 961.0, 24: 820.0, 32: 690.0, 64: 480.0, 128: 418.0},
    "deepep_v2": {8: 1190.0, 16: 720.0, 22: 582.0, 24: 575.0, 32: 556.0, 64: 541.0, 128: 541.5},
    "nccl_ep": {8: 1001.0, 16: 688.0},
    "alltoall": {0: 652.0},
    "allgather": {0: 541.0},
}
"""The fastest round trip of each library by its SMs."""

DISPATCH_SHARE = {"deepep": 0.48, "deepep_v2": 0.46, "nccl_ep": 0.5, "alltoall": 292 / 652, "allgather": 264 / 541}
FULL_US = {"deepep": 60.0, "deepep_v2": 0.0, "nccl_ep": 150.0, "alltoall": 110.0, "allgather": 35.0}
"""What a full dispatch takes longer than a cached one."""

EXCHANGE_US, GEMMS_US, LAYER_GEMMS_US = 231.0, 3960.0, 8850.0

_WORSE = {"nvl_chunk": {8: 1.0}, "tokens_per_chunk": {64: 1.0}, "num_pipelines": {2: 1.0}, "num_slices": {1: 1.0}}
"""Values of knobs that cost nothing; any other value takes 2.5 % longer."""

Times = Callable[[Point, int], float | Failed]
"""The time of a point in a repetition: the number of its round, in the final from 100."""


def plan_of(*backends: str, dtype: Dtype = Dtype.BF16, ep: int = 2, **changes: Any) -> Plan:
    """DeepSeek-V3's layer on two H200s with these libraries; ``changes`` are of ``search``."""
    base = spec("workload=deepseek_v3", "search.own_tuning=false")
    return planning.make(
        msgspec.structs.replace(
            base,
            backend=list(backends) if len(backends) > 1 else backends[0],
            grid=GRID,
            ep=Ep(size=ep, share_gpus=False),
            workload=msgspec.structs.replace(base.workload, dtype=dtype),
            search=msgspec.structs.replace(base.search, **({"final_groups": 5} | changes)),
        )
    )


def true_us(point: Point, _repetition: int = 0) -> float:
    """The invented time of any point, in microseconds."""
    if point.op is Op.COMPUTE:
        return GEMMS_US
    if point.op is Op.EXCHANGE:
        return EXCHANGE_US
    if point.op in PAIR_OPS:
        return _together_us(point)
    base = round_trip_us(point.backend, point.knobs)
    share = DISPATCH_SHARE[point.backend] - 0.02 * (point.backend == "deepep_v2" and point.knobs["num_sms"] == 32)
    time = base * (1 - share if point.op is Op.COMBINE else share)
    return time + FULL_US[point.backend] * (point.op is Op.DISPATCH_FULL)


def round_trip_us(backend: str, knobs: Mapping[str, int]) -> float:
    """The invented round trip of a library with these knobs for both operations."""
    by_sms = ROUND_TRIP_US[backend]
    name = sms_knob(backend)
    place = math.log(knobs[name]) if name is not None else 0.0
    known = [math.log(sms) if sms else 0.0 for sms in by_sms]
    base = math.exp(np.interp(place, known, [math.log(us) for us in by_sms.values()]))
    num_worse = sum(value not in _WORSE[knob] for knob, value in knobs.items() if knob in _WORSE)
    return float(base) * 1.025**num_worse


def _together_us(point: Point) -> float:
    dispatch, combine = split_pair(point)
    parts = [
        true_us(Point(point.backend, op, point.dtype, knobs))
        for op, knobs in ((Op.DISPATCH, dispatch), (Op.COMBINE, combine))
    ]
    if point.op is Op.SERIAL:
        return GEMMS_US + sum(parts)
    full = sum(parts) + FULL_US[point.backend]
    if point.op is Op.LAYER:
        return LAYER_GEMMS_US + full
    if point.op is Op.LAYER_TRAINING:
        return 2.9 * LAYER_GEMMS_US + full + sum(parts)
    sms = dispatch[sms_knob(point.backend) or ""]
    return GEMMS_US * (1 + 0.0011 * sms) + 0.85 * sum(parts) + 80.0


def records(plan: Plan, times: Times = true_us) -> list[Record]:
    """The sweep and the final as the program schedules them, each point with its time and a little noise."""
    lines: list[Record] = []
    for index in range(plan.spec.num_shards):
        lines += _sweep(plan, index, times, first=len(lines))
    if plan.has_final:
        arms, finals, group, done = Arms(lines), list[Record](), 0, set[int]()
        while left := [each for each in final.incomplete(plan, arms, finals) if each[0] not in done]:
            number, points = left[0]
            done.add(number)
            group = number if number < plan.spec.search.final_groups else group
            tasks = final.in_order(plan, points, number)
            finals += _measure(tasks, times, shard_index=FINAL, group=group, first=len(lines) + len(finals))
        lines += finals
    return lines


def _sweep(plan: Plan, index: int, times: Times, *, first: int) -> list[Record]:
    references = [Task(each.point, each.id, each.role) for each in plan.anchors + plan.baselines]
    lines, arms = _measure(references, times, shard_index=index, group=0, first=first), Arms()
    while step := racing.next_round(plan, plan.shard(index), arms):
        number, cells = step
        new = _measure(
            list(shard.in_order(plan, cells, number)), times, shard_index=index, group=0, first=first + len(lines)
        )
        for record in new:
            arms.add(record)
        lines += new
    return lines


def _measure(tasks: Sequence[Task], times: Times, *, shard_index: int, group: int, first: int) -> list[Record]:
    lines = []
    for at, task in enumerate(tasks):
        repetition = task.round + (100 if shard_index == FINAL else 0)
        time = times(task.point, repetition)
        count = task.iterations or 30
        outcome = time if isinstance(time, Failed) else _samples(task.point, time, repetition, count=count)
        lines.append(
            Record(
                point=task.point,
                point_id=task.point_id,
                outcome=outcome,
                environment=environment().id,
                started=1000.0 + first + at,
                wall_s=1.0,
                busy_s=0.5,
                role=task.role,
                stage=task.stage,
                round=task.round,
                sequence=first + at,
                group=group,
                shard=shard_index,
            )
        )
    return lines


def _samples(point: Point, median_us: float, repetition: int, *, count: int) -> Measured:
    """Samples about a median that differs by 0.1 % between repetitions, 0.4 % where GEMMs take part."""
    with_gemms = point.op in (Op.OVERLAPPED, Op.LAYER, Op.LAYER_TRAINING)
    generator = np.random.default_rng([repetition, *point.label.encode()])
    level = median_us * math.exp(generator.normal(0, 0.004 if with_gemms else 0.001))
    samples = [level * (1 + 0.002 * (2 * index / max(count - 1, 1) - 1)) for index in range(count)]
    compute = [sample - 100.0 for sample in samples] if point.op is Op.OVERLAPPED else []
    return Measured(samples, [level, 1.004 * level], compute_us=compute)


@functools.cache
def environment() -> Any:
    """Two H200s with all three libraries."""
    versions = {"torch": "2.11.0", "deep_ep": "sgl-deep-ep 0.1.2", "nccl.ep": "nccl-extensions 0.1.0", "nccl": "2.30.4"}
    return msgspec.structs.replace(ENVIRONMENT, num_devices=2, num_ranks=2, versions=versions)


def lines_of(plan: Plan, times: Times = true_us) -> list[Line]:
    """Every line of the run."""
    checks = [msgspec.structs.replace(SELF_CHECK, backend=name) for name in plan.spec.backends]
    traffic = Traffic(token_matrix(plan.spec.workload, num_ranks=plan.spec.ep.size))
    return [environment(), HOST, *checks, traffic, *records(plan, times)]


def results_of(plan: Plan, times: Times = true_us) -> Results:
    """The results of the run."""
    return build_results(plan, MANIFEST, run_records(lines_of(plan, times)), [])


@functools.cache
def all_libraries() -> Results:
    """The results of all libraries in BF16, without failures."""
    return results_of(plan_of(*LIBRARIES))


def write_run(plan: Plan, path: Path, times: Times = true_us) -> RunFolder:
    """The run folder of a plan with its records, without reports."""
    folder = RunFolder.create(plan, outputs=path.parent, path=path, command=["deepep-sweep", "-m", "backend=all"])
    lines = lines_of(plan, times)
    for index in (*range(plan.spec.num_shards), FINAL):
        file = folder.records_file(index)
        file.parent.mkdir(parents=True)
        file.write_bytes(b"".join(encode(line) + b"\n" for line in _lines_of_shard(lines, index)))
    return folder


def _lines_of_shard(lines: Sequence[Line], index: int) -> Iterator[Line]:
    for line in lines:
        if isinstance(line, Record):
            if line.shard == index:
                yield line
        elif index == 0 or line == environment():
            yield line
