"""Small values of every kind for the tests, each with fields to change."""

from __future__ import annotations

import functools
import subprocess
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from hypothesis import strategies as st

from bench import records
from bench.records import (
    Dtype,
    Environment,
    Failed,
    FailureKind,
    Host,
    Line,
    Measured,
    Op,
    Point,
    Record,
    Role,
    SelfCheck,
    Traffic,
)
from bench.rules import Facts
from bench.workload import Workload
from launcher import api
from launcher.analysis.results import Results
from launcher.config import planning
from launcher.config.plan import Plan, Planned
from launcher.config.schema import Spec
from launcher.report import assembly, html_report, optimal_configs, summary
from launcher.report.report import Report
from launcher.store.records_file import open_appender
from launcher.store.revision import Revision
from launcher.store.run_folder import Manifest, RunFolder

ROOT = Path(__file__).resolve().parents[1]

ENVIRONMENT = Environment(
    device="NVIDIA H200",
    num_devices=4,
    num_ranks=4,
    shared_gpus=False,
    num_sms=132,
    memory_bytes=150_000_000_000,
    num_links=18,
    link_gb_per_s=25.0,
    driver="580.65",
    topology="NVLINK",
    versions={"torch": "2.11.0", "deep_ep": "tokenspeed-deepep 1.2.1"},
)
HOST = Host(hostname="node1", group=0, started=1000.0, startup_s=9.0, gpu_uuids=["GPU-0"], python="3.12.3")
SELF_CHECK = SelfCheck(empty_op_us=[3.0, 4.0, 5.0], edge_routings={"one_token": "ok"}, group=0)
TRAFFIC = Traffic(tokens=[[100] * 4 for _ in range(4)])
MANIFEST = Manifest(
    format=1,
    created=1000.0,
    command=["deepep-sweep", "-m"],
    revision=Revision(commit="0" * 40, dirty=False, code="0" * 16),
    program="0.1.0",
    plan_id="0" * 16,
)


def facts(*, num_ranks: int = 4, memory_bytes: int | None = 141_000_000_000, **layer: Any) -> Facts:
    """An H200 and a layer of DeepSeek-V3's width."""
    workload = small_workload(**({"hidden": 7168, "num_experts": 256, "num_topk": 8} | layer))
    return Facts(num_ranks, workload, num_sms=132, memory_bytes=memory_bytes, nvlink_gb_per_s=450.0)


def small_workload(**changes: Any) -> Workload:
    """64 tokens of 256 columns, 16 experts, top-4."""
    base = Workload(
        name="tiny",
        num_tokens=64,
        hidden=256,
        num_experts=16,
        num_topk=4,
        dtype=Dtype.BF16,
        routing="uniform",
        num_moe_layers=4,
        moe_intermediate=256,
    )
    return msgspec.structs.replace(base, **changes)


@functools.cache
def spec(*overrides: str) -> Spec:
    """The Spec of a sweep on H200s with DeepEP, or that of the overrides; independent of this machine."""
    return api.plan("hardware=h200", "backend=deepep", *overrides).spec


def deepep_plan(**changes: Any) -> Plan:
    """DeepEP at EP=4 on H200s with a small layer; 3 num_sms x 2 nvl_chunk for each operation."""
    grid = {"num_sms": [16, 24, 32], "nvl_chunk": [8, 12], "nvl_buffer": [256]}
    base = spec("workload=small", "workload.num_tokens=256", "search.own_tuning=false", "search.final_groups=0")
    return planning.make(msgspec.structs.replace(base, **({"grid": grid} | changes)))


def noisy(median_us: float, *, count: int = 30) -> list[float]:
    """Samples within 0.1 % of a median."""
    return [median_us * (1 + 0.001 * (2 * index / (count - 1) - 1)) for index in range(count)]


def record(planned: Planned, outcome: Measured | Failed | Sequence[float], **changes: Any) -> Record:
    """A record of a planned point; a list of samples becomes a measurement on four equal ranks."""
    if not isinstance(outcome, Measured | Failed):
        outcome = Measured(list(outcome), [float(outcome[0])] * 4)
    base = Record(
        point=planned.point,
        point_id=planned.id,
        outcome=outcome,
        environment=ENVIRONMENT.id,
        started=1000.0,
        wall_s=1.0,
        busy_s=0.5,
        role=planned.role,
    )
    return msgspec.structs.replace(base, **changes)


def failed(kind: FailureKind = FailureKind.HANG, message: str = "no response within 20 s from rank 1") -> Failed:
    """A failure of rank 1."""
    return Failed(kind, message, "time", 1, "last words")


def time_of(point: Point) -> float:
    """An invented time in us: 400 at 16 SMs, 240 at 32; chunk 8 beats 12; combine takes 10 us longer."""
    knobs = point.knobs
    if point.backend != "deepep":
        return 300.0
    slower = 10.0 * (point.op is Op.COMBINE) + 2.0 * (knobs["nvl_chunk"] != 8)
    return 80.0 + 5120.0 / knobs["num_sms"] + slower


def complete(plan: Plan, **changes: Any) -> list[Line]:
    """Every line of a shard without failures, with the anchors measured first and last."""
    order = [*plan.every_point, *plan.anchors]
    lines: list[Line] = [ENVIRONMENT, HOST, SELF_CHECK, TRAFFIC]
    return lines + [
        record(planned, noisy(time_of(planned.point)), sequence=number, started=1000.0 + number, **changes)
        for number, planned in enumerate(order)
    ]


def anchor_of(plan: Plan, op: Op) -> Planned:
    """The default of one operation."""
    return next(anchor for anchor in plan.anchors if anchor.point.op is op)


def is_cell(planned: Planned) -> bool:
    """Whether this is a cell of the grid."""
    return planned.role is Role.GRID


def lines() -> st.SearchStrategy[Line]:
    """Any line of any type; every field is drawn by its annotation, which covers new fields too."""
    return st.one_of([_any(kind) for kind in typing.get_args(records.Line)])


@functools.cache
def _any(kind: Any) -> st.SearchStrategy[Any]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind)
        fields = {field.name: _any(hints[field.name]) for field in msgspec.structs.fields(kind)}
        if "v" in fields:
            fields["v"] = st.just(records.FORMAT_VERSION)
        return st.builds(kind, **fields)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return st.sampled_from(list(kind))
    inside = [_any(part) for part in typing.get_args(kind)]
    if isinstance(kind, types.UnionType):
        return st.one_of(inside)
    if typing.get_origin(kind) is list:
        return st.lists(inside[0], max_size=3)
    if typing.get_origin(kind) is dict:
        return st.dictionaries(*inside, max_size=3)
    return {
        str: st.text(max_size=20),
        int: st.integers(-(2**63), 2**63 - 1),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
        types.NoneType: st.none(),
    }[kind]


def measured_twice(folder: RunFolder, plan: Plan) -> RunFolder:
    """The folder after two shards were measured on nodes with different drivers."""
    for shard, driver in enumerate(("580.65", "570.1")):
        environment = msgspec.structs.replace(ENVIRONMENT, driver=driver)
        measured = complete(plan, shard=shard, environment=environment.id)
        records: list[Line] = [line for line in measured if isinstance(line, Record)]
        with open_appender(folder, shard) as appender:
            for line in [environment, *records]:
                appender.add(line)
    return folder


def report_of(results: Results, pictures: Mapping[str, str] | None = None) -> Report:
    """The report of some results, with findings."""
    return assembly.with_pictures(assembly.assemble(results), pictures or {})


def markdown_of(results: Results, pictures: Mapping[str, str] | None = None) -> str:
    """OPTIMAL_CONFIGS.md."""
    return optimal_configs.markdown(report_of(results, pictures))


def summary_of(results: Results) -> str:
    """SUMMARY.md."""
    return summary.markdown(report_of(results))


def html_of(results: Results, pictures: Mapping[str, str] | None = None) -> str:
    """report.html."""
    return html_report.html(report_of(results, pictures))


Command = Callable[..., subprocess.CompletedProcess[str]]
"""``run_module(module, *arguments)``, see conftest."""


class Sweep(NamedTuple):
    """A finished sweep and its run folder."""

    process: subprocess.CompletedProcess[str]
    outputs: Path
    folder: Path


def calling(function: Callable[..., object], *arguments: object) -> list[str]:
    """A command line that calls a module's function with string arguments; run it with cwd=ROOT."""
    code = f"import sys; from {function.__module__} import {function.__name__} as called; called(*sys.argv[1:])"
    return [sys.executable, "-c", code, *map(str, arguments)]


def command(module: str, *arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The finished process of ``python -m MODULE ARGUMENTS``."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
