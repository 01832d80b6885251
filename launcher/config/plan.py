"""The points of a sweep, their order and their shards; pure. Refuses a sweep that cannot run."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import msgspec

from bench import rules, workload
from bench.backends import BACKENDS, Backend, shared_knobs
from bench.faults import Fault
from bench.protocol import GroupSpec
from bench.records import Dtype, Op, Point, Role, digest
from bench.rules import Facts, Violation
from bench.workload import ROUTINGS
from launcher.config.schema import METHODS, Axis, Spec
from launcher.errors import UserError

ANCHOR_EVERY = 25
"""Points between two measurements of the library's default, which show drift and let it be divided out."""

FINAL = -1
"""The final stage, where a shard's index is expected."""

FINALISTS_PER_GROUP = 2
"""Configs that reach the final at most, for each operation and value of the shared knobs."""

NOT_A_MEASUREMENT = (
    "This is a dry run on CPUs, not a measurement of DeepEP: gloo moved every token, "
    "but the times mean nothing for a GPU."
)

SHARED_GPUS = (
    "Several ranks shared a GPU (ep.share_gpus=true): every token was checked, but the times mean nothing, "
    "so there is no verdict, no speed-up and no config to deploy."
)

_PAIR = (Op.DISPATCH, Op.COMBINE)
_STARTUP_S = 15.0
_POINT_OVERHEAD_S = 0.02
_CPU_GB_PER_S = 0.2
_LINK_SHARE = 0.3


class Planned(msgspec.Struct, frozen=True):
    """A point, the hash of everything that its result depends on, and why it is measured."""

    point: Point
    id: str
    role: Role


class Refused(msgspec.Struct, frozen=True):
    """A cell of the grid that is not measured, with the rules that it violates."""

    op: Op
    knobs: dict[str, int]
    violations: list[Violation]


class Plan(msgspec.Struct, frozen=True):
    """Everything that is decided before anything runs."""

    spec: Spec
    anchors: list[Planned]
    baselines: list[Planned]
    cells: list[Planned]
    refused: list[Refused]

    @property
    def id(self) -> str:
        """A hash of the spec without its budget, which changes no result, and of the points."""
        unbounded = msgspec.structs.replace(self.spec.search, budget_s=None)
        spec = msgspec.structs.replace(self.spec, search=unbounded)
        return digest(spec, [planned.id for planned in self.every_point])

    @property
    def every_point(self) -> list[Planned]:
        """Each point once: anchors, baselines, cells."""
        return [*self.anchors, *self.baselines, *self.cells]

    @property
    def is_dry(self) -> bool:
        """Whether this runs without GPUs: its times mean nothing for DeepEP."""
        return self.spec.hardware.name == "cpu"

    def shard(self, index: int) -> list[Planned]:
        """The cells of one shard: a strided slice of the seeded shuffle, which covers the whole space."""
        return self.cells[index :: self.spec.num_shards]

    def group_spec(self) -> GroupSpec:
        """The message to the ranks of a shard."""
        return GroupSpec(
            num_ranks=self.spec.ep.size,
            device="cpu" if self.is_dry else "cuda",
            shared_gpus=self.spec.ep.share_gpus,
            workload=self.spec.workload,
            points=[planned.point for planned in self.every_point],
            faults=[Fault.parse(text) for text in self.spec.faults],
        )

    def final_points(self, finalists: list[Planned]) -> list[Point]:
        """The points of one group of the final besides the anchors: finalists, and each dispatch as a full dispatch."""
        points = [planned.point for planned in finalists]
        return points + [
            Point(point.backend, Op.DISPATCH_FULL, point.dtype, point.knobs)
            for point in [planned.point for planned in self.anchors] + points
            if point.op is Op.DISPATCH
        ]

    def upstream(self, op: Op) -> list[Planned]:
        """The cells of the library's own tuning grid, also those of our grid; empty without search.own_tuning."""
        if not self.spec.search.own_tuning:
            return []
        tuning = BACKENDS[self.spec.backend].own_tuning(op)
        cells = [planned for planned in self.anchors + self.cells if planned.point.op is op]
        return [planned for planned in cells if planned.point.knobs in tuning]

    @property
    def has_final(self) -> bool:
        """Whether a final follows the shards. The times of shared GPUs mean too little for one."""
        return self.spec.search.final_groups > 0 and not self.spec.ep.share_gpus

    @property
    def overlaps(self) -> bool:
        """Whether the final measures pairs overlapped with expert GEMMs."""
        has_own_gpu = not self.is_dry and not self.spec.ep.share_gpus
        return self.spec.search.overlapped and has_own_gpu and BACKENDS[self.spec.backend].overlaps

    def expected_s(self, index: int) -> float:
        """A rough forecast of a shard's wall time, from its bytes at 30 % of the link's peak (CPUs: 0.2 GB/s)."""
        search, measure = self.spec.search, self.spec.measure
        if index == FINAL:
            points = 3 * FINALISTS_PER_GROUP * len(self.shared_values())
            return search.final_groups * (_STARTUP_S + points * self._repetition_s(measure.iterations))
        rounds = 2 if search.method == "racing" else search.rounds
        points = len(self.shard(index)) + len(self.baselines) + len(self.anchors)
        repetitions = rounds * points * (1 + 2 / ANCHOR_EVERY)
        return _STARTUP_S + repetitions * self._repetition_s(search.iterations)

    def shared_values(self) -> set[tuple[int, ...]]:
        """The values of the shared knobs in the plan."""
        names = shared_knobs(BACKENDS[self.spec.backend])
        return {tuple(planned.point.knobs[name] for name in names) for planned in self.anchors + self.cells}

    def _repetition_s(self, iterations: int) -> float:
        peak = self.spec.hardware.peak_gb_per_s
        rate = 1e9 * (_CPU_GB_PER_S if peak is None else _LINK_SHARE * peak)
        tokens = self.spec.workload.num_tokens * min(self.spec.ep.size, self.spec.workload.num_topk)
        sample_s = tokens * self.spec.workload.bytes_per_token(Dtype.BF16) / rate
        return _POINT_OVERHEAD_S + (self.spec.measure.warmup + iterations) * sample_s


def make(spec: Spec) -> Plan:
    """The plan of a resolved spec. UserError if the sweep cannot run."""
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
    cells, refused = _candidates(spec, backend, facts, taken), []
    grid = [(op, knobs, Role.GRID) for op in _PAIR for knobs in _cells(spec, backend, op)]
    tuning = [(op, knobs, Role.UPSTREAM) for op in _PAIR for knobs in backend.own_tuning(op) if spec.search.own_tuning]
    for op, knobs, role in grid + tuning:
        violations = backend.point_violations(op, knobs, facts=facts)
        if violations:
            refused.append(Refused(op, knobs, violations))
            continue
        planned = _planned(spec, backend, op, knobs, role)
        if planned.id not in taken:
            taken.add(planned.id)
            cells.append(planned)
    if refused and not any(cell.role is Role.GRID for cell in cells):
        first = refused[0].violations[0]
        raise UserError(f"every cell of the grid is refused; the first: {first}", hint=first.hint)
    random.Random(spec.seed).shuffle(cells)  # noqa: S311
    return Plan(spec, anchors, _baselines(spec, backend), cells, refused)


def _candidates(spec: Spec, backend: Backend, facts: Facts, taken: set[str]) -> list[Planned]:
    """The user's own configs for both operations, also those of the grid."""
    candidates = []
    for values in spec.search.candidates:
        if len(values) != len(backend.knobs):
            raise UserError(
                f"search.candidates must hold configs of {len(backend.knobs)} numbers, got {values}",
                hint=f"their order is {_names(backend)}",
            )
        knobs = dict(zip((knob.name for knob in backend.knobs), values, strict=True))
        for op in _PAIR:
            for violation in backend.point_violations(op, knobs, facts=facts):
                raise UserError(f"search.candidates {values}: {violation} ({op})", hint=violation.hint)
            planned = _planned(spec, backend, op, knobs, Role.CANDIDATE)
            if planned.id not in taken:
                taken.add(planned.id)
                candidates.append(planned)
    return candidates


def _backend(spec: Spec) -> Backend:
    if spec.backend not in BACKENDS:
        raise UserError(
            f"backend must be one of {', '.join(BACKENDS)}, got {spec.backend}", hint="backend=auto chooses"
        )
    return BACKENDS[spec.backend]


def _refuse_spec(spec: Spec) -> None:
    """UserError for values that are wrong for every backend."""
    for key, value, least in (
        ("shard.count", spec.num_shards, 1),
        ("measure.warmup", spec.measure.warmup, 0),
        ("measure.iterations", spec.measure.iterations, 3),
        ("workload.num_tokens", spec.workload.num_tokens, 1),
        ("workload.num_experts", spec.workload.num_experts, 1),
        ("workload.hidden", spec.workload.hidden, 1),
        ("workload.seed", spec.workload.seed, 0),
        ("ep.size", spec.ep.size, 1),
        ("search.rounds", spec.search.rounds, 1),
        ("search.iterations", spec.search.iterations, 3),
        ("search.final_groups", spec.search.final_groups, 0),
    ):
        if value < least:
            raise UserError(f"{key} must be at least {least}, got {value}")
    if spec.measure.deadline_s <= 0 or spec.measure.startup_s <= 0:
        raise UserError("measure.deadline_s and measure.startup_s must be positive")
    if spec.search.method not in METHODS:
        raise UserError(f"search.method must be one of {', '.join(METHODS)}, got {spec.search.method}")
    if spec.search.budget_s is not None and not spec.search.budget_s > 0:
        raise UserError(f"search.budget_s must be positive, or null for none, got {spec.search.budget_s:g}")
    if spec.search.final_groups == 1:
        raise UserError("search.final_groups must be 0 or at least 2, got 1", hint="one group shows no spread")
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
    """Every combination of the backend's knobs. A grid may name knobs of other backends; UserError for unknown ones."""
    known = {knob.name for other in BACKENDS.values() for knob in other.knobs}
    for name in spec.grid:
        if name not in known:
            raise UserError(f"grid.{name} is not a knob", hint=f"knobs of backend {backend.name}: {_names(backend)}")
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
    """The all-to-all that a user would take without DeepEP. NCCL refuses ranks that share a GPU."""
    if backend.name == "alltoall" or spec.ep.share_gpus:
        return []
    alltoall = BACKENDS["alltoall"]
    return [_planned(spec, alltoall, op, alltoall.default(op, num_ranks=spec.ep.size), Role.BASELINE) for op in _PAIR]


def _planned(spec: Spec, backend: Backend, op: Op, knobs: dict[str, int], role: Role) -> Planned:
    dtype = Dtype.BF16 if op is Op.COMBINE else spec.workload.dtype
    point = Point(backend.name, op, dtype, knobs)
    return Planned(point, point_id(spec, point), role)


def point_id(spec: Spec, point: Point) -> str:
    """The identity of a result: the point, the workload, the ranks and the kind of GPU."""
    return digest(point, spec.workload, spec.ep, spec.hardware.name, spec.measure.warmup)


def shard_name(index: int) -> str:
    """A shard's index in words."""
    return "the final" if index == FINAL else f"shard {index}"
