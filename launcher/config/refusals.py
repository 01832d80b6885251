"""What keeps a sweep from being planned: each check raises a UserError with key, rule and value; pure."""

from __future__ import annotations

from collections.abc import Sequence

from bench import rules, workload
from bench.backends import Backend
from bench.records import Op
from bench.rules import Facts
from bench.workload import ROUTINGS
from launcher.config import groups
from launcher.config.schema import METHODS, Spec
from launcher.errors import UserError


def check_spec(spec: Spec) -> None:
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
    gpus = spec.hardware.gpus_per_node
    if 0 < gpus < spec.ep.size and not spec.ep.share_gpus:
        raise UserError(
            f"ep.size must be at most {gpus}, the GPUs of a {spec.hardware.name} node, got {spec.ep.size}",
            hint="one node is measured at a time; ep.share_gpus=true tests the path without measuring",
        )


def check_grid(spec: Spec, backends: Sequence[Backend]) -> None:
    """UserError for an axis that is a knob of no library, or whose dict names what has no values of it."""
    owners = groups.owners()
    for name, axis in spec.grid.items():
        if name not in owners:
            knobs = ", ".join(dict.fromkeys(knob.name for backend in backends for knob in backend.knobs))
            raise UserError(f"grid.{name} is not a knob", hint=f"knobs of this sweep: {knobs}")
        parts = list(axis.values()) if isinstance(axis, dict) and axis.keys() <= {*owners[name]} else [axis]
        for part in parts:
            if isinstance(part, dict) and not part.keys() <= {Op.DISPATCH, Op.COMBINE}:
                raise UserError(
                    f"a dict of grid.{name} must name operations (dispatch, combine) or libraries "
                    f"({', '.join(owners[name])}), got {', '.join(part)}",
                    hint=f"grid.{name}=[8,16] is for all of them",
                )


def check_workload(backend: Backend, facts: Facts) -> None:
    """UserError for a workload that the library, or any library, cannot move on this number of ranks."""
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
