"""The numbers of a RESULTS document, whatever its format and its wording."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def values(document: Any) -> dict[str, float]:
    """Path -> number of every number in a document as it was decoded: ``optimal.dispatch.ci95_us.0`` -> 495.19.

    A member ``knobs`` counts as if its members stood beside it, as they do in results/1.
    """
    return dict(_walk(document, ()))


def _walk(part: Any, path: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    if isinstance(part, dict):
        for name, member in part.items():
            yield from _walk(member, path if name == "knobs" else (*path, name))
    elif isinstance(part, list):
        for at, member in enumerate(part):
            yield from _walk(member, (*path, str(at)))
    elif isinstance(part, int | float):
        yield ".".join(path), part


def differences(one: dict[str, float], other: dict[str, float]) -> list[str]:
    """A line for each number that only one has, or that is not the same to the last digit."""
    return [
        f"{path}: {one.get(path)} | {other.get(path)}"
        for path in sorted(one.keys() | other.keys())
        if one.get(path) != other.get(path)
    ]
