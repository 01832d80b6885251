"""Which points a sweep measures, in which order and in which shard; pure, and the place where a sweep is refused."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import msgspec

from bench import rules, workload
from bench.backends import BACKENDS, Backend
from bench.faults import Fault
from bench.protocol import GroupSpec
from bench.records import Dtype, Op, Point, Role, digest
from bench.rules import Facts, Violation
from bench.workload import ROUTINGS
from launcher.errors import UserError
from launcher.schema import Axis, Spec

ANCHOR_EVERY = 25
"""Points between two measurements of the library's default, so that drift can be seen and divided out."""

_PAIR = (Op.DISPATCH, Op.COMBINE)
_STARTUP_S = 15.0
_POINT_OVERHEAD_S = 0.02
_CPU_GB_PER_S = 0.2
_LINK_SHARE = 0.3


class Planned(msgspec.Struct, frozen=True):
    """A point, the hash of all that its result depends on, and why it is measured."""

    point: Point
    id: str
    role: Role


class Refused(msgspec.Struct, frozen=True):
    """A cell of the grid that is not measured, with the rules that it breaks."""

    op: Op
    knobs: dict[str, int]
    violations: list[Violation]


class Plan(msgspec.Struct, frozen=True):
    """All that is decided before anything runs."""

    spec: Spec
    anchors: list[Planned]
    baselines: list[Planned]
    cells: list[Planned]
    refused: list[Refused]

    @property
    def id(self) -> str:
        """A hash of what is measured: a run folder belongs to one plan."""
        return digest(self.spec, [planned.id for planned in self.every_point])

    @property
    def every_point(self) -> list[Planned]:
        """Each point once: anchors, baselines, cells."""
        return [*self.anchors, *self.baselines, *self.cells]

    @property
    def is_dry(self) -> bool:
        """Whether this runs without GPUs, so that its times say nothing about DeepEP."""
        return self.spec.hardware.name == "cpu"

    def shard(self, index: int) -> list[Planned]:
        """The cells of one shard: a strided slice of the seeded shuffle, so that each sees the whole space."""
        return self.cells[index :: self.spec.num_shards]

    def group_spec(self) -> GroupSpec:
        """What the ranks of a shard are told."""
        return GroupSpec(
            num_ranks=self.spec.ep.size,
            device="cpu" if self.is_dry else "cuda",
            shared_gpus=self.spec.ep.share_gpus,
            workload=self.spec.workload,
            points=[planned.point for planned in self.every_point],
            faults=[Fault.parse(text) for text in self.spec.faults],
        )

    def expected_s(self, index: int) -> float:
        """A rough forecast of a shard's wall time, from its bytes at 30 % of the link's peak (CPUs: 0.2 GB/s)."""
        peak = self.spec.hardware.peak_gb_per_s
        rate = 1e9 * (_CPU_GB_PER_S if peak is None else _LINK_SHARE * peak)
        cells = len(self.shard(index)) + len(self.baselines) + len(self.anchors)
        tokens = self.spec.workload.num_tokens * min(self.spec.ep.size, self.spec.workload.num_topk)
        sample_s = tokens * self.spec.workload.bytes_per_token(Dtype.BF16) / rate
        samples = self.spec.measure.warmup + self.spec.measure.iterations
        return _STARTUP_S + cells * (1 + 2 / ANCHOR_EVERY) * (_POINT_OVERHEAD_S + samples * sample_s)


def make(spec: Spec) -> Plan:
    """The plan of a resolved spec. UserError, before anything starts, for a sweep that cannot run."""
    backend = _backend(spec)
    facts = Facts(
        num_ranks=spec.ep.size,
        workload=spec.workload,
        num_sms=spec.hardware.num_sms,
        memory_bytes=None if spec.hardware.memory_gb is None else int(spec.hardware.memory_gb * 1e9),
    )
    _refuse_spec(spec)
    _refuse_workload(backend, facts)
    anchors = [_planned(spec, backend, op, backend.default(op, num_ranks=spec.ep.size), Role.ANCHOR) for op in _PAIR]
    taken = {planned.id for planned in anchors}
    cells, refused = [], []
    for op in _PAIR:
        for knobs in _cells(spec, backend, op):
            violations = backend.point_violations(op, knobs, facts=facts)
            if violations:
                refused.append(Refused(op, knobs, violations))
                continue
            planned = _planned(spec, backend, op, knobs, Role.GRID)
            if planned.id not in taken:
                taken.add(planned.id)
                cells.append(planned)
    if not cells and refused:
        first = refused[0].violations[0]
        raise UserError(f"every cell of the grid is refused; the first: {first}", hint=first.hint)
    random.Random(spec.seed).shuffle(cells)  # noqa: S311
    return Plan(spec, anchors, _baselines(spec, backend), cells, refused)


def _backend(spec: Spec) -> Backend:
    if spec.backend not in BACKENDS:
        raise UserError(
            f"backend must be one of {', '.join(BACKENDS)}, got {spec.backend}", hint="backend=auto chooses"
        )
    return BACKENDS[spec.backend]


def _refuse_spec(spec: Spec) -> None:
    """Values that are wrong whatever the backend."""
    for key, value, least in (
        ("shard.count", spec.num_shards, 1),
        ("measure.warmup", spec.measure.warmup, 0),
        ("measure.iterations", spec.measure.iterations, 3),
        ("workload.num_tokens", spec.workload.num_tokens, 1),
        ("workload.num_experts", spec.workload.num_experts, 1),
        ("workload.hidden", spec.workload.hidden, 1),
        ("ep.size", spec.ep.size, 1),
    ):
        if value < least:
            raise UserError(f"{key} must be at least {least}, got {value}")
    if spec.measure.deadline_s <= 0 or spec.measure.startup_s <= 0:
        raise UserError("measure.deadline_s and measure.startup_s must be positive")
    for text in spec.faults:
        try:
            Fault.parse(text)
        except ValueError as error:
            raise UserError(f"faults: {error}") from None
    gpus = spec.hardware.gpus_per_node
    if 0 < gpus < spec.ep.size and not spec.ep.share_gpus:
        raise UserError(
            f"ep.size must be at most {gpus}, the GPUs of a {spec.hardware.name} node, got {spec.ep.size}",
            hint="one node is measured at a time; ep.share_gpus=true tests the path without measuring",
        )


def _refuse_workload(backend: Backend, facts: Facts) -> None:
    for violation in rules.workload_violations(facts) + backend.workload_violations(facts):
        raise UserError(str(violation), hint=violation.hint)
    if facts.workload.routing not in ROUTINGS:
        try:
            workload.route(facts.workload, rank=facts.num_ranks - 1, num_ranks=facts.num_ranks)
        except (OSError, ValueError) as error:
            raise UserError(
                f"workload.routing must be {', '.join(ROUTINGS)} or a readable trace, "
                f"got {facts.workload.routing}: {error}",
                hint="a trace is a .npy of int64 [ranks, tokens, top-k]",
            ) from None


def _cells(spec: Spec, backend: Backend, op: Op) -> Iterator[dict[str, int]]:
    """Every combination of the backend's knobs; grids may name knobs of other backends too, but no unknown ones."""
    known = {knob.name for other in BACKENDS.values() for knob in other.knobs}
    for name in spec.grid:
        if name not in known:
            raise UserError(f"grid.{name} is no knob", hint=f"knobs of backend {backend.name}: {_names(backend)}")
    axes = []
    for knob in backend.knobs:
        values = _values(spec.grid.get(knob.name, []), op)
        if not values:
            raise UserError(f"grid.{knob.name} must list at least one value for {op}", hint=f"grid.{knob.name}=[8,16]")
        axes.append(values)
    for combination in itertools.product(*axes):
        yield dict(zip((knob.name for knob in backend.knobs), combination, strict=True))


def _values(axis: Axis, op: Op) -> list[int]:
    return axis.get(op, []) if isinstance(axis, dict) else axis


def _names(backend: Backend) -> str:
    return ", ".join(knob.name for knob in backend.knobs)


def _baselines(spec: Spec, backend: Backend) -> list[Planned]:
    """The all-to-all that a user would otherwise take; NCCL refuses ranks that share a GPU."""
    if backend.name == "alltoall" or spec.ep.share_gpus:
        return []
    other = BACKENDS["alltoall"]
    return [_planned(spec, other, op, other.default(op, num_ranks=spec.ep.size), Role.BASELINE) for op in _PAIR]


def _planned(spec: Spec, backend: Backend, op: Op, knobs: dict[str, int], role: Role) -> Planned:
    dtype = Dtype.BF16 if op is Op.COMBINE else spec.workload.dtype
    point = Point(backend.name, op, dtype, knobs)
    return Planned(point, point_id(spec, point), role)


def point_id(spec: Spec, point: Point) -> str:
    """The identity of a result: the point, the workload, the ranks and the kind of GPU."""
    return digest(point, spec.workload, spec.ep, spec.hardware.name, [spec.measure.warmup, spec.measure.iterations])
