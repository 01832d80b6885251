"""Reads ``deepep-sweep/results/1``: the same document with knobs flat among the numbers, of one library; pure.

In that format every member of an operation or a pair that is not one of its numbers is a knob. No run writes it any
more; the published files of 2026 do, and stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

Plain = dict[str, Any]

_NUMBERS = (
    "median_us",
    "ci95_us",
    "spread",
    "num_samples",
    "stage",
    "unstable",
    "logical_gb_per_s",
    "wire_gb_per_s",
    "peak_fraction",
)
_POINT = ("backend", "op", "dtype", "role")
_PAIR = ("dispatch", "combine", "round_trip_us", "dispatch_full")
_OVERLAP = {
    "makespan_us": "makespan_us",
    "ci95_us": "ci95_us",
    "compute_us": "compute_us",
    "compute_alone_us": "compute_isolated_us",
    "compute_slowdown": "gemm_slowdown",
    "compute_slowdown_ci95": "gemm_slowdown_ci95",
    "one_after_the_other_us": "serial_us",
    "compute_to_communication": "compute_to_communication",
}
"""Member of results/1 -> member of results/2."""

_OF_LIBRARY = (
    *("backend", "default", "optimal", "worst", "tied", "verdict", "speedup_over_default"),
    *("pareto", "best_per_shared", "picks", "own_tuning", "overlapped"),
)
_ABSENT: Plain = {
    "started": None,
    "ended": None,
    "revision": {"commit": None, "dirty": None, "code": "unknown"},
    "hardware": {"name": "unknown"},
    "hosts": [],
    "cost": {"wall_s": 0.0, "busy_s": 0.0, "startup_s": 0.0},
    "traffic_tokens": [],
    "failures": [],
    "missing": [],
}
"""For members that exports and the library never needed: a trimmed file of the old format still loads."""

_PACKAGE = {"deepep": "deep_ep", "alltoall": "nccl"}
"""Where a library's version stands among the versions of the environment."""


def upgrade(document: Mapping[str, Any]) -> Plain:
    """The document as ``results/2`` has it. msgspec.ValidationError for one that is not of the old form."""
    try:
        return _upgrade(document)
    except KeyError as error:
        raise msgspec.ValidationError(f"Object missing required field `{error.args[0]}`") from None
    except (TypeError, AttributeError) as error:
        raise msgspec.ValidationError(f"not of the form of results/1: {error}") from None


def _upgrade(document: Mapping[str, Any]) -> Plain:
    kept = {name: value for name, value in document.items() if name not in _OF_LIBRARY}
    return (
        _ABSENT
        | kept
        | {
            "libraries": [_library(document)],
            "baselines": [_measurement(value) for value in document.get("baselines", [])],
            "measurements": [_measurement(value) for value in document.get("measurements", [])],
        }
    )


def _library(document: Mapping[str, Any]) -> Plain:
    versions = (document["environment"] or {}).get("versions", {})
    return {
        "name": document["backend"],
        "version": versions.get(_PACKAGE.get(document["backend"], "")),
        "defaults": {} if document.get("default") is None else {"library": _pair(document.get("default"))},
        "optimal": _pair(document["optimal"]),
        "worst": _pair(document.get("worst")),
        "tied": [_pair(value) for value in document.get("tied", [])],
        "verdict": document["verdict"],
        "speedup_over_default": document.get("speedup_over_default"),
        "pareto": [_pair(value) for value in document.get("pareto", [])],
        "best_per_shared": [_pair(value) for value in document.get("best_per_shared", [])],
        "picks": {name: _pair(value) for name, value in document["picks"].items()},
        "own_tuning": _pair(document.get("own_tuning")),
        "overlapped": [_overlap(value) for value in document.get("overlapped", [])],
    }


def _pair(value: Plain | None) -> Plain | None:
    if value is None:
        return None
    shared = _members_except(value, _PAIR)
    names = [name for name in ("dispatch", "combine", "dispatch_full") if value.get(name) is not None]
    operations = {name: _operation(value[name], shared) for name in names}
    return {"shared_knobs": shared, **operations, "round_trip_us": value["round_trip_us"]}


def _operation(value: Plain, shared: Mapping[str, int]) -> Plain:
    return {"knobs": {**shared, **_members_except(value, _NUMBERS)}} | _members(value, _NUMBERS)


def _measurement(value: Plain) -> Plain:
    return {"knobs": _members_except(value, (*_NUMBERS, *_POINT))} | _members(value, (*_NUMBERS, *_POINT))


def _overlap(value: Plain) -> Plain:
    shared = _members_except(value, (*_OVERLAP, "dispatch", "combine"))
    knobs = {name: {**shared, **value[name]} for name in ("dispatch", "combine")}
    numbers = {new: value[old] for old, new in _OVERLAP.items() if old in value}
    return {"shared_knobs": shared, "gemm_slowdown_ci95": None, **knobs, **numbers}


def _members(value: Plain, names: tuple[str, ...]) -> Plain:
    return {name: value[name] for name in names if name in value}


def _members_except(value: Plain, names: tuple[str, ...] | Plain) -> dict[str, int]:
    return {name: member for name, member in value.items() if name not in names}
