"""From a Spec to a Plan: which points are measured, in which order. UserError for a sweep that cannot run."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.backends import BACKENDS, Backend
from bench.records import Dtype, Op, Point, Role
from bench.rules import Facts
from launcher.config import hardware
from launcher.config.plan import Plan, Planned, Refused, point_id
from launcher.config.refusals import check_spec, check_workload
from launcher.config.schema import Axis, Options, Spec
from launcher.errors import UserError

_PAIR = (Op.DISPATCH, Op.COMBINE)


class _Candidate(NamedTuple):
    """A point before it has its id."""

    point: Point
    role: Role


def plan_sweep(spec: Spec, options: Options, *, local: bool) -> Plan:
    """The plan of a sweep. ``local``: this machine measures. UserError if it cannot run."""
    resolved = hardware.resolve(spec, local=local, dry_run=options.dry_run)
    plan = make(resolved)
    index = options.shard_index
    if index is not None and not 0 <= index < plan.spec.num_shards:
        raise UserError(f"shard.index must lie in 0..{plan.spec.num_shards - 1} (shard.count), got {index}")
    return plan


def make(spec: Spec) -> Plan:
    """The plan of a resolved spec. UserError if the sweep cannot run."""
    backend = _backend(spec)
    facts = Facts(
        num_ranks=spec.ep.size,
        workload=spec.workload,
        num_sms=spec.hardware.num_sms,
        memory_bytes=None if spec.hardware.memory_gb is None else int(spec.hardware.memory_gb * 1e9),
    )
    check_spec(spec)
    check_workload(backend, facts)
    anchors = _defaults(spec, backend, Role.ANCHOR)
    candidates = _candidates(spec, backend, facts)
    grid = [(op, knobs, Role.GRID) for op in _PAIR for knobs in _cells(spec, backend, op)]
    tuning = [(op, knobs, Role.UPSTREAM) for op in _PAIR for knobs in backend.own_tuning(op) if spec.search.own_tuning]
    allowed, refused = [], []
    for op, knobs, role in grid + tuning:
        violations = backend.point_violations(op, knobs, facts=facts)
        if violations:
            refused.append(Refused(op, knobs, violations))
        else:
            allowed.append(_candidate(spec, backend, op, knobs, role))
    cells = _drop_duplicates([*candidates, *allowed], without=anchors)
    if refused and not any(cell.role is Role.GRID for cell in cells):
        first = refused[0].violations[0]
        raise UserError(f"every cell of the grid is refused; the first: {first}", hint=first.hint)
    random.Random(spec.seed).shuffle(cells)  # noqa: S311
    baselines = _baselines(spec, backend)
    return Plan(spec, _add_ids(spec, anchors), _add_ids(spec, baselines), _add_ids(spec, cells), refused)


def _add_ids(spec: Spec, candidates: Sequence[_Candidate]) -> list[Planned]:
    return [Planned(point, point_id(spec, point), role) for point, role in candidates]


def _drop_duplicates(candidates: Sequence[_Candidate], *, without: Sequence[_Candidate]) -> list[_Candidate]:
    """The first of equal points, in their order, except those of ``without``."""
    keys = {candidate.point.key for candidate in without}
    distinct = []
    for candidate in candidates:
        if candidate.point.key not in keys:
            keys.add(candidate.point.key)
            distinct.append(candidate)
    return distinct


def _candidates(spec: Spec, backend: Backend, facts: Facts) -> list[_Candidate]:
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
            violations = backend.point_violations(op, knobs, facts=facts)
            if violations:
                first = violations[0]
                raise UserError(f"search.candidates {values}: {first} ({op})", hint=first.hint)
            candidates.append(_candidate(spec, backend, op, knobs, Role.CANDIDATE))
    return candidates


def _backend(spec: Spec) -> Backend:
    if spec.backend not in BACKENDS:
        raise UserError(
            f"backend must be one of {', '.join(BACKENDS)}, got {spec.backend}", hint="backend=auto chooses"
        )
    return BACKENDS[spec.backend]


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


def _baselines(spec: Spec, backend: Backend) -> list[_Candidate]:
    """The all-to-all that a user would take without DeepEP. NCCL refuses ranks that share a GPU."""
    if backend.name == "alltoall" or spec.ep.share_gpus:
        return []
    return _defaults(spec, BACKENDS["alltoall"], Role.BASELINE)


def _defaults(spec: Spec, backend: Backend, role: Role) -> list[_Candidate]:
    """A library's default for both operations."""
    return [_candidate(spec, backend, op, backend.default(op, num_ranks=spec.ep.size), role) for op in _PAIR]


def _candidate(spec: Spec, backend: Backend, op: Op, knobs: dict[str, int], role: Role) -> _Candidate:
    dtype = Dtype.BF16 if op is Op.COMBINE else spec.workload.dtype
    return _Candidate(Point(backend.name, op, dtype, knobs), role)
