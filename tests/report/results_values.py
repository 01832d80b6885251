"""The numbers of a RESULTS document, independent of its format and wording."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from launcher.config import groups

RENAMED = {
    "compute_alone_us": "compute_isolated_us",
    "compute_slowdown": "gemm_slowdown",
    "compute_slowdown_ci95": "gemm_slowdown_ci95",
    "one_after_the_other_us": "serial_us",
}
"""Members of results/1 -> their names in results/2."""

_KNOBS = tuple(groups.owners())
"""Knobs; those of an overlapped pair have the name of their operation in front."""

LEFT_OUT = {"compile_s", "finalists_per_group"}
"""Settings of results/1 that results/2 dropped."""


def values(document: Mapping[str, Any]) -> dict[str, float]:
    """Every number of a decoded document by its path: ``optimal.dispatch.ci95_us.0`` -> 495.19.

    Paths are those of results/1 with the names of results/2: the members of the first library are at the top level,
    the library's default is ``default``, and knobs are among the numbers, shared knobs once for each pair. Measurements
    stand under their points, since those with equal times may change places.
    """
    first, *others = document.get("libraries", [{}])
    rest = {name: member for name, member in document.items() if name != "libraries"}
    defaults = {"default" if name == "library" else name: pair for name, pair in first.get("defaults", {}).items()}
    library = {name: member for name, member in first.items() if name != "defaults"}
    return dict(_walk(rest | defaults | library | {other["name"]: other for other in others}, ()))


def differences(first: dict[str, float], second: dict[str, float]) -> list[str]:
    """A line for each number that differs, or that only one document has.

    The last digits of a sum depend on the processor's vector units.
    """
    return [
        f"{path}: {first.get(path)} | {second.get(path)}"
        for path in sorted(first.keys() | second.keys())
        if not math.isclose(first.get(path, math.nan), second.get(path, math.nan), rel_tol=1e-12)
    ]


def _walk(part: Any, path: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    if isinstance(part, dict):
        for name, member in _flat(part).items():
            if name not in LEFT_OUT:
                yield from _walk(member, (*path, RENAMED.get(name, name)))
    elif isinstance(part, list):
        for at, member in enumerate(part):
            yield from _walk(member, (*path, _label(member) or str(at)))
    elif isinstance(part, int | float):
        yield ".".join(path), part


def _label(member: Any) -> str | None:
    """What a measurement is of; None for another member of a list."""
    if not isinstance(member, dict) or "op" not in member:
        return None
    knobs = [f"{name}={value}" for name, value in _flat(member).items() if name.endswith(_KNOBS)]
    return "/".join([member["backend"], member["op"], member["dtype"], *knobs])


def _flat(part: dict[str, Any]) -> dict[str, Any]:
    """Knobs among the numbers; a pair has its shared knobs at the top, and each operation has the others."""
    shared = part.get("shared_knobs", {})
    members = {name: member for name, member in part.items() if name not in ("knobs", "shared_knobs")}
    if shared:
        operations = {name: _unshared(member, shared) for name, member in members.items() if isinstance(member, dict)}
        members |= operations
    return {**part.get("knobs", {}), **shared, **members}


def _unshared(operation: dict[str, Any], shared: dict[str, int]) -> dict[str, Any]:
    """The knobs that the operation does not share, and its numbers if any."""
    knobs = operation.get("knobs", operation)
    assert shared.items() <= knobs.items()
    numbers = {name: member for name, member in operation.items() if name != "knobs"} if "knobs" in operation else {}
    return {name: value for name, value in knobs.items() if name not in shared} | numbers
