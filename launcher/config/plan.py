"""What a plan holds: the points of a sweep, their shards, and how long these take; pure."""

from __future__ import annotations

import msgspec

from bench.backends import BACKENDS, shared_knobs
from bench.faults import Fault
from bench.kernels import MOST_GROUPS
from bench.protocol import GroupSpec
from bench.records import Dtype, Op, Point, Role, digest
from bench.rules import Violation
from launcher.config.schema import Spec

ANCHOR_EVERY = 25
"""Points between two measurements of the library's default, which show drift and let it be divided out."""

FINAL = -1
"""The final stage, where a shard's index is expected."""

REPEAT_GROUPS = 2
"""Process groups of a repeat, a short final that is appended to a run. Repeats are numbered from 1."""

FINALISTS_PER_GROUP = 2
"""Configs that reach the final at most, for each operation and value of the shared knobs."""

NOT_A_MEASUREMENT = (
    "This is a dry run on CPUs, not a measurement of DeepEP: gloo moves every token, "
    "and the times mean nothing for a GPU."
)

SHARED_GPUS = (
    "Several ranks shared a GPU (ep.share_gpus=true): every token was checked, but the times mean nothing, "
    "so there is no verdict, no speed-up and no config to deploy."
)

_STARTUP_S = 15.0
_POINT_OVERHEAD_S = 0.02
_CONFIG_COMPILE_S = 20.0
"""For one operation's config in one group: 48 of NCCL EP took 60 s in 16 groups, 22 of DeepEP V2 49 s in 11 (H100s)."""

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
    backend: str = ""


class Plan(msgspec.Struct, frozen=True):
    """Everything that is decided before anything runs.

    ``anchors``: for each library, in the order of ``spec.backends``, a dispatch and a combine with its own default.
    ``cells``: everything else that is searched. ``baselines``: plain collectives. ``left_out``: libraries that
    backend=all did not take, and why. ``repeats``: how many short finals follow the final; more may be added later.
    """

    spec: Spec
    anchors: list[Planned]
    baselines: list[Planned]
    cells: list[Planned]
    refused: list[Refused]
    left_out: dict[str, str] = {}
    repeats: int = 0

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
    def backend(self) -> str:
        """The only library of the plan; see ``of``."""
        (name,) = self.spec.backends
        return name

    def of(self, backend: str) -> Plan:
        """The part of the plan that is about one library, with the baselines."""
        return Plan(
            spec=msgspec.structs.replace(self.spec, backend=backend),
            anchors=[planned for planned in self.anchors if planned.point.backend == backend],
            baselines=self.baselines,
            cells=[planned for planned in self.cells if planned.point.backend == backend],
            refused=[cell for cell in self.refused if cell.backend in ("", backend)],
            left_out=self.left_out,
            repeats=self.repeats,
        )

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
        """The points of one group of the final without the anchors: finalists and baselines.

        Each dispatch is measured as a full dispatch too.
        """
        points = [planned.point for planned in [*finalists, *self.baselines]]
        return points + [
            Point(point.backend, Op.DISPATCH_FULL, point.dtype, point.knobs)
            for point in [planned.point for planned in self.anchors] + points
            if point.op is Op.DISPATCH
        ]

    def upstream(self, op: Op) -> list[Planned]:
        """The cells of the libraries' own tuning grids, also those of ours; empty without search.own_tuning."""
        if not self.spec.search.own_tuning:
            return []
        tuning = {name: BACKENDS[name].own_tuning(op) for name in self.spec.backends}
        cells = [planned for planned in self.anchors + self.cells if planned.point.op is op]
        return [planned for planned in cells if planned.point.knobs in tuning[planned.point.backend]]

    @property
    def has_final(self) -> bool:
        """Whether a final follows the shards. The times of shared GPUs mean too little for one."""
        return self.spec.search.final_groups > 0 and not self.spec.ep.share_gpus

    @property
    def overlaps(self) -> bool:
        """Whether the final measures pairs overlapped with expert GEMMs."""
        has_own_gpu = not self.is_dry and not self.spec.ep.share_gpus
        is_possible = any(BACKENDS[name].overlaps for name in self.spec.backends)
        return self.spec.search.overlapped and has_own_gpu and is_possible

    def expected_s(self, index: int) -> float:
        """A rough forecast of a shard's wall time, from its bytes at 30 % of the link's peak (CPUs: 0.2 GB/s).

        With the time for compiling its kernels; the final may run on a node that has none of them. Its repeats
        run in its job, and their groups count as long as its own.
        """
        search, measure = self.spec.search, self.spec.measure
        if index == FINAL:
            points = 3 * FINALISTS_PER_GROUP * len(self.shared_values())
            groups = search.final_groups + REPEAT_GROUPS * self.repeats
            return self._compile_s(self.cells) + groups * (_STARTUP_S + points * self._repetition_s(measure.iterations))
        rounds = 2 if search.method == "racing" else search.rounds
        points = len(self.shard(index)) + len(self.baselines) + len(self.anchors)
        repetitions = rounds * points * (1 + 2 / ANCHOR_EVERY)
        return self._compile_s(self.shard(index)) + _STARTUP_S + repetitions * self._repetition_s(search.iterations)

    def _compile_s(self, cells: list[Planned]) -> float:
        """Seconds for the kernels of these cells and of the defaults, a CPU of every rank for each group."""
        configs = sum(BACKENDS[planned.point.backend].compiles for planned in cells + self.anchors)
        return _CONFIG_COMPILE_S * configs / min(MOST_GROUPS, max(1, self.spec.hardware.cpus_per_gpu))

    def shared_values(self) -> set[tuple[object, ...]]:
        """The values of the shared knobs in the plan, for each library."""
        names = {name: shared_knobs(BACKENDS[name]) for name in self.spec.backends}
        points = [planned.point for planned in self.anchors + self.cells]
        return {(point.backend, *(point.knobs[name] for name in names[point.backend])) for point in points}

    def _repetition_s(self, iterations: int) -> float:
        peak = self.spec.hardware.peak_gb_per_s
        rate = 1e9 * (_CPU_GB_PER_S if peak is None else _LINK_SHARE * peak)
        tokens = self.spec.workload.num_tokens * min(self.spec.ep.size, self.spec.workload.num_topk)
        sample_s = tokens * self.spec.workload.bytes_per_token(Dtype.BF16) / rate
        return _POINT_OVERHEAD_S + (self.spec.measure.warmup + iterations) * sample_s


def point_id(spec: Spec, point: Point) -> str:
    """The identity of a result: the point, the workload, the ranks and the kind of GPU."""
    return digest(point, spec.workload, spec.ep, spec.hardware.name, spec.measure.warmup)


def shard_name(index: int) -> str:
    """A shard's index in words."""
    if index < FINAL:
        return f"repeat {FINAL - index}"
    return "the final" if index == FINAL else f"shard {index}"


def repeat_index(number: int) -> int:
    """The index of a repeat, where a shard's is expected: below that of the final."""
    return FINAL - number
