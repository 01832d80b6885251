"""RESULTS_EP{n}.json: the results for programs, schema ``deepep-sweep/results/1`` (docs/results.schema.json); pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from launcher.analysis.measurements import Measurement
from launcher.analysis.overlap import Overlap
from launcher.analysis.pairs import Pair
from launcher.analysis.results import Results
from launcher.store.results_file import SCHEMA
from launcher.text import utc


def to_json(results: Results) -> dict[str, Any]:
    """The whole document as plain values."""
    plan, spec, choice = results.plan, results.plan.spec, results.choice
    return {
        "schema": SCHEMA,
        "command": results.manifest.command,
        "started": utc(results.started),
        "ended": utc(results.ended),
        "revision": msgspec.to_builtins(results.manifest.revision),
        "timing": results.manifest.timing,
        "hardware": msgspec.to_builtins(spec.hardware) | {"peak_gb_per_s": results.peak_gb_per_s},
        "ep": spec.ep.size,
        "shared_gpus": spec.ep.share_gpus,
        "dry_run": plan.is_dry,
        "backend": spec.backend,
        "workload": msgspec.to_builtins(spec.workload),
        "search": msgspec.to_builtins(spec.search) | {"final_groups_measured": results.final_groups},
        "environment": None if results.environment is None else msgspec.to_builtins(results.environment),
        "hosts": [msgspec.to_builtins(host) for host in results.hosts],
        "cost": msgspec.to_builtins(results.cost),
        "traffic_tokens": results.tokens,
        "points": msgspec.to_builtins(results.counts),
        "default": _pair(choice.default),
        "optimal": _pair(choice.optimal),
        "worst": _pair(choice.worst),
        "tied": [_pair(pair) for pair in choice.tied],
        "verdict": None if choice.verdict is None else msgspec.to_builtins(choice.verdict),
        "speedup_over_default": results.speedup_over_default,
        "pareto": [_pair(pair) for pair in choice.pareto],
        "best_per_shared": [_pair(pair) for pair in choice.best_per_shared],
        "picks": {name: _pair(pair) for name, pair in choice.picks.items()},
        "own_tuning": _pair(choice.own_tuning),
        "overlapped": [_overlap(one) for one in choice.overlaps],
        "baselines": [_labelled(result) for result in results.baselines],
        "measurements": [_labelled(result) for result in results.measurements],
        "failures": [msgspec.to_builtins(failure) for failure in results.failures],
        "missing": [planned.point.label for planned in results.missing],
        "refused": len(plan.refused),
        "self_checks": [msgspec.to_builtins(check) for check in results.self_checks],
        "rank_ratio": results.rank_ratio,
        "flags": results.flags,
        "damaged_lines": [msgspec.to_builtins(line) for line in results.damaged],
    }


def _pair(pair: Pair | None) -> dict[str, Any] | None:
    """The shared knobs on top, the others with their operation."""
    if pair is None:
        return None
    shared = tuple(pair.shared)
    found = dict(pair.shared) | {
        "dispatch": _operation(pair.dispatch, without=shared),
        "combine": _operation(pair.combine, without=shared),
        "round_trip_us": round(pair.round_trip_us, 2),
    }
    if pair.full is not None:
        found["dispatch_full"] = _operation(pair.full, without=shared)
    return found


def _operation(result: Measurement, *, without: Sequence[str] = ()) -> dict[str, Any]:
    """The knobs and the numbers; ``without`` leaves out knobs that stand elsewhere."""
    knobs = {name: value for name, value in result.point.knobs.items() if name not in without}
    return knobs | {
        "median_us": round(result.median_us, 2),
        "ci95_us": [round(result.ci95_us.low, 2), round(result.ci95_us.high, 2)],
        "spread": round(result.spread, 4),
        "num_samples": len(result.samples),
        "stage": result.stage.value,
        "unstable": result.unstable,
        "logical_gb_per_s": _rounded(result.logical_gb_per_s, 3),
        "wire_gb_per_s": _rounded(result.wire_gb_per_s, 3),
        "peak_fraction": _rounded(result.peak_fraction, 4),
    }


def _overlap(one: Overlap) -> dict[str, Any]:
    shared = tuple(one.pair.shared)
    return dict(one.pair.shared) | {
        "dispatch": {k: v for k, v in one.pair.dispatch.point.knobs.items() if k not in shared},
        "combine": {k: v for k, v in one.pair.combine.point.knobs.items() if k not in shared},
        "makespan_us": round(one.makespan_us, 2),
        "ci95_us": [round(one.ci95_us.low, 2), round(one.ci95_us.high, 2)],
        "compute_us": round(one.compute_us, 2),
        "compute_alone_us": round(one.compute_alone_us, 2),
        "compute_slowdown": round(one.slowdown, 4),
        "compute_slowdown_ci95": [round(end, 4) for end in msgspec.structs.astuple(one.slowdown_ci95)],
        "one_after_the_other_us": round(one.one_after_the_other_us, 2),
        "compute_to_communication": round(one.compute_to_communication, 3),
    }


def _labelled(result: Measurement) -> dict[str, Any]:
    head = {"backend": result.point.backend, "op": result.point.op.value, "dtype": result.point.dtype.value}
    return head | {"role": result.role.value} | _operation(result)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
