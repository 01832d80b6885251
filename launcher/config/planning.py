"""From a Spec to a Plan: which points are measured, in which order. UserError for a sweep that cannot run."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from bench.backends import BACKENDS, LIBRARY_DEFAULT, Backend
from bench.records import Dtype, Op, Point, Role
from bench.rules import Facts, GridAxis, Violation
from launcher.config import candidates, groups, hardware
from launcher.config.memory import buffer_violations
from launcher.config.plan import Plan, Planned, Refused, point_id
from launcher.config.refusals import check_grid, check_spec, check_workload
from launcher.config.schema import Options, Spec
from launcher.errors import UserError

_PAIR = (Op.DISPATCH, Op.COMBINE)


class _EmptyGridError(UserError):
    """The grid has no cell for a library: no value for a knob, or none that its rules allow."""


class _Draft(NamedTuple):
    """A point without its id."""

    point: Point
    role: Role


def plan_sweep(spec: Spec, options: Options, *, local: bool) -> Plan:
    """The plan of a sweep. ``local``: this machine measures. UserError if it cannot run."""
    check_spec(spec)
    resolved, left_out = hardware.resolve(spec, local=local, dry_run=options.dry_run)
    if groups.is_every(spec.backend):
        resolved, without_cells = _leave_out_empty_grids(resolved)
        left_out = left_out | without_cells
    plan = msgspec.structs.replace(make(resolved), left_out=left_out)
    index = options.shard_index
    if index is not None and not 0 <= index < plan.spec.num_shards:
        raise UserError(f"shard.index must lie in 0..{plan.spec.num_shards - 1} (shard.count), got {index}")
    if options.repeat is not None:
        _check_repeat(plan, options)
    return msgspec.structs.replace(plan, repeats=options.repeat or 0)


def _check_repeat(plan: Plan, options: Options) -> None:
    """UserError where no final is measured that could be repeated."""
    if not plan.has_final:
        why = "ranks share a GPU" if plan.spec.ep.share_gpus else "search.final_groups is 0"
        raise UserError(
            f"repeat={options.repeat} needs a final to repeat, and this sweep has none: {why}",
            hint="start a sweep with search.final_groups=5, each rank on a GPU of its own",
        )
    if options.shard_index is not None:
        raise UserError(
            f"repeat={options.repeat} needs the final, which shard.index={options.shard_index} leaves out",
            hint="repeat=N without shard.index, when all shards are measured",
        )


def _leave_out_empty_grids(spec: Spec) -> tuple[Spec, dict[str, str]]:
    """The spec without libraries that the grid has no cell for, and why. UserError if it has none for any of them."""
    refusals: dict[str, _EmptyGridError] = {}
    for backend in _checked(spec):
        try:
            _plan_library(spec, backend)
        except _EmptyGridError as error:
            refusals[backend.name] = error
    names = [name for name in spec.backends if name not in refusals]
    if not names:
        raise next(iter(refusals.values()))
    left_out = {name: str(error) for name, error in refusals.items()}
    return msgspec.structs.replace(spec, backend=names[0] if len(names) == 1 else names), left_out


def make(spec: Spec) -> Plan:
    """The plan of a resolved spec. UserError if the sweep cannot run."""
    libraries = [_plan_library(spec, backend) for backend in _checked(spec)]
    anchors, cells, refused = (list(itertools.chain.from_iterable(parts)) for parts in zip(*libraries, strict=True))
    random.Random(spec.seed).shuffle(cells)  # noqa: S311
    return Plan(spec, _add_ids(spec, anchors), _add_ids(spec, _baselines(spec)), _add_ids(spec, cells), refused)


def _checked(spec: Spec) -> list[Backend]:
    """The libraries of a spec. UserError for values that no plan may hold."""
    check_spec(spec)
    backends = _backends(spec)
    check_grid(spec, backends)
    candidates.check(spec)
    return backends


def _plan_library(spec: Spec, backend: Backend) -> tuple[list[_Draft], list[_Draft], list[Refused]]:
    """The anchors, cells and refused cells of one library."""
    facts = hardware.facts_of(spec.hardware, spec.workload, num_ranks=spec.ep.size)
    check_workload(backend, facts)
    defaults = {op: backend.defaults(op, facts) for op in _PAIR}
    anchors = [_candidate(spec, backend, op, defaults[op][LIBRARY_DEFAULT], Role.ANCHOR) for op in _PAIR]
    others = [
        (op, knobs, Role.DEFAULT) for op in _PAIR for name, knobs in defaults[op].items() if name != LIBRARY_DEFAULT
    ]
    grid = [(op, knobs, Role.GRID) for op in _PAIR for knobs in _cells(spec, backend, op)]
    tuning = [(op, knobs, Role.UPSTREAM) for op in _PAIR for knobs in backend.own_tuning(op) if spec.search.own_tuning]
    allowed, refused = [], []
    for op, knobs, role in others + grid + tuning:
        violations = _violations(spec, backend, op, knobs, facts)
        if violations:
            refused.append(Refused(op, knobs, violations, backend.name))
        else:
            allowed.append(_candidate(spec, backend, op, knobs, role))
    cells = _drop_duplicates([*_candidates(spec, backend, facts), *allowed], without=anchors)
    if refused and not any(one.role is Role.GRID for one in allowed):
        first = refused[0].violations[0]
        message = f"every cell of the grid of {backend.name} is refused; the first: {first}"
        raise _EmptyGridError(message, hint=first.hint)
    return anchors, cells, refused


def _violations(spec: Spec, backend: Backend, op: Op, knobs: dict[str, int], facts: Facts) -> list[Violation]:
    """The rules that a config breaks: those of its library, else the limit on its buffer."""
    broken = backend.point_violations(op, knobs, facts=facts)
    return broken or buffer_violations(spec.search, backend, knobs, facts)


def _add_ids(spec: Spec, points: Sequence[_Draft]) -> list[Planned]:
    return [Planned(point, point_id(spec, point), role) for point, role in points]


def _drop_duplicates(points: Sequence[_Draft], *, without: Sequence[_Draft]) -> list[_Draft]:
    """The first of equal points, in their order, except those of ``without``."""
    keys = {each.point.key for each in without}
    distinct = []
    for each in points:
        if each.point.key not in keys:
            keys.add(each.point.key)
            distinct.append(each)
    return distinct


def _candidates(spec: Spec, backend: Backend, facts: Facts) -> list[_Draft]:
    """The user's own configs for both operations, also those of the grid."""
    found = []
    for values in candidates.of_library(spec, backend.name):
        knobs = dict(zip((knob.name for knob in backend.knobs), values, strict=True))
        for op in _PAIR:
            violations = _violations(spec, backend, op, knobs, facts)
            if violations:
                first = violations[0]
                raise UserError(f"search.candidates {values}: {first} ({op} of {backend.name})", hint=first.hint)
            found.append(_candidate(spec, backend, op, knobs, Role.CANDIDATE))
    return found


def _backends(spec: Spec) -> list[Backend]:
    """The libraries of a spec. UserError for a name that is none, and for a plain collective among libraries."""
    for name in spec.backends:
        if name not in BACKENDS:
            raise UserError(f"backend must be one of {', '.join(BACKENDS)}, got {name}", hint="backend=all chooses")
    backends = [BACKENDS[name] for name in dict.fromkeys(spec.backends)]
    plain = [backend.name for backend in backends if backend.is_baseline]
    if plain and len(plain) < len(backends):
        raise UserError(
            f"backend must not list a plain collective with libraries, got {', '.join(spec.backends)}",
            hint=f"leave out {', '.join(plain)}: on GPUs every sweep measures the plain collectives too",
        )
    return backends


def _cells(spec: Spec, backend: Backend, op: Op) -> Iterator[dict[str, int]]:
    """Every combination of the backend's knobs. A grid may name knobs of other backends."""
    axes = []
    for knob in backend.knobs:
        values = _values(spec.grid.get(knob.name, []), backend, op)
        if not values:
            raise _EmptyGridError(
                f"grid.{knob.name} must list at least one value for {op} of {backend.name}",
                hint=f"grid.{knob.name}=[8,16]",
            )
        axes.append(values)
    for combination in itertools.product(*axes):
        yield dict(zip((knob.name for knob in backend.knobs), combination, strict=True))


def _values(axis: GridAxis, backend: Backend, op: Op) -> list[int]:
    """The values of a knob for one library and operation: a list holds for all of them."""
    part = axis.get(backend.name, axis) if isinstance(axis, dict) else axis
    values = part.get(op, []) if isinstance(part, dict) else part
    assert isinstance(values, list)
    return values


def _baselines(spec: Spec) -> list[_Draft]:
    """The plain collectives that a user would take without a library. NCCL refuses ranks that share a GPU."""
    if spec.ep.share_gpus or any(BACKENDS[name].is_baseline for name in spec.backends):
        return []
    facts = hardware.facts_of(spec.hardware, spec.workload, num_ranks=spec.ep.size)
    return [
        _candidate(spec, backend, op, backend.defaults(op, facts)[LIBRARY_DEFAULT], Role.BASELINE)
        for backend in BACKENDS.values()
        if backend.is_baseline
        for op in (*_PAIR, *([Op.EXCHANGE] if backend.exchanges else []))
    ]


def _candidate(spec: Spec, backend: Backend, op: Op, knobs: dict[str, int], role: Role) -> _Draft:
    dtype = Dtype.BF16 if op is Op.COMBINE else spec.workload.dtype
    return _Draft(Point(backend.name, op, dtype, knobs), role)
