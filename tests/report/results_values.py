"""The numbers of a RESULTS document, whatever its format and its wording."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

RENAMED = {
    "compute_alone_us": "compute_isolated_us",
    "compute_slowdown": "gemm_slowdown",
    "compute_slowdown_ci95": "gemm_slowdown_ci95",
    "one_after_the_other_us": "serial_us",
}
"""Members of results/1 -> their names in results/2."""

LEFT_OUT = {"finalists_per_group"}
"""Settings of results/1 that results/2 has no more."""


def values(document: Mapping[str, Any]) -> dict[str, float]:
    """Path -> number of every number in a document as it was decoded: ``optimal.dispatch.ci95_us.0`` -> 495.19.

    Paths are those of results/1 with the names of results/2: the members of the first library stand at the top, the
    default of the library itself is ``default``, and knobs lie among the numbers, shared ones once for each pair.
    """
    first, *others = document.get("libraries", [{}])
    rest = {name: member for name, member in document.items() if name != "libraries"}
    defaults = {"default" if name == "library" else name: pair for name, pair in first.get("defaults", {}).items()}
    answer = {name: member for name, member in first.items() if name != "defaults"}
    return dict(_walk(rest | defaults | answer | {library["name"]: library for library in others}, ()))


def differences(one: dict[str, float], other: dict[str, float]) -> list[str]:
    """A line for each number that only one has, or that is not the same to the last digit."""
    return [
        f"{path}: {one.get(path)} | {other.get(path)}"
        for path in sorted(one.keys() | other.keys())
        if one.get(path) != other.get(path)
    ]


def _walk(part: Any, path: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    if isinstance(part, dict):
        for name, member in _flat(part).items():
            if name not in LEFT_OUT:
                yield from _walk(member, (*path, RENAMED.get(name, name)))
    elif isinstance(part, list):
        for at, member in enumerate(part):
            yield from _walk(member, (*path, str(at)))
    elif isinstance(part, int | float):
        yield ".".join(path), part


def _flat(part: dict[str, Any]) -> dict[str, Any]:
    """Knobs beside the numbers; of a pair those that are shared on top, and with each operation only the others."""
    shared = part.get("shared_knobs", {})
    members = {name: member for name, member in part.items() if name not in ("knobs", "shared_knobs")}
    if shared:
        operations = {name: _unshared(member, shared) for name, member in members.items() if isinstance(member, dict)}
        members |= operations
    return {**part.get("knobs", {}), **shared, **members}


def _unshared(operation: dict[str, Any], shared: dict[str, int]) -> dict[str, Any]:
    """The operation's own knobs, and its numbers where it has any."""
    knobs = operation.get("knobs", operation)
    assert shared.items() <= knobs.items()
    numbers = {name: member for name, member in operation.items() if name != "knobs"} if "knobs" in operation else {}
    return {name: value for name, value in knobs.items() if name not in shared} | numbers
