"""The config groups grid and backend, made of the declarations of the libraries; imports no Hydra."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from bench.backends import BACKENDS, GRIDS
from bench.records import Op
from bench.rules import Axis, GridAxis, values_of
from launcher.errors import UserError

EVERY = {
    "all": "Every library that this machine can run; without GPUs the all-to-all.",
    "auto": "The same, by its name in earlier versions; launcher.validate takes the first of them.",
}
"""The choices of ``backend=NAME`` that name no library, and what each means."""

OWN = "own"
"""The key of a grid below which stand the values of each library. A value of a knob itself takes their place."""

GROUPS = ("grid", "backend")
"""The groups of this module. Those of files stand below conf/."""


def is_every(backend: str | list[str]) -> bool:
    """Whether the value of ``backend`` leaves the libraries to the program."""
    return isinstance(backend, str) and backend in EVERY


def nodes(group: str) -> dict[str, dict[str, Any]]:
    """The content of every choice of a group, by name."""
    if group == "backend":
        return {name: {"name": name} for name in (*EVERY, *BACKENDS)}
    knobs: dict[str, Any] = dict.fromkeys(owners())
    libraries = [backend for backend in BACKENDS.values() if backend.knobs]
    return {grid: knobs | {OWN: {each.name: each.grids[grid] for each in libraries}} for grid in GRIDS}


def meanings(group: str) -> dict[str, str]:
    """What each choice of a group is, a sentence each."""
    if group == "grid":
        return GRIDS
    return EVERY | {name: f"{backend.title}: {backend.meaning}." for name, backend in BACKENDS.items()}


def sizes(grid: str) -> dict[str, str]:
    """How many configs a grid has, rules aside, by library: for each operation, or for dispatch and combine."""
    counted = {}
    for backend in BACKENDS.values():
        axes = backend.grids[grid].values()
        counts = [math.prod(len(values_of(axis, op)) for axis in axes) for op in (Op.DISPATCH, Op.COMBINE)]
        if axes:
            counted[backend.name] = " + ".join(str(count) for count in dict.fromkeys(counts))
    return counted


def owners() -> dict[str, list[str]]:
    """Every knob, with the names of the libraries that have it."""
    found: dict[str, list[str]] = {}
    for backend in BACKENDS.values():
        for knob in backend.knobs:
            found.setdefault(knob.name, []).append(backend.name)
    return found


def axes(grid: Mapping[str, Any]) -> dict[str, GridAxis]:
    """The values of each knob of a composed grid: as they are given, those of ``own`` where libraries have none.

    A knob of several libraries has a dict by library, unless one value is given for all of them. UserError for a name
    below ``own`` that nothing reads, msgspec.ValidationError for a value of another form.
    """
    own = msgspec.convert(grid.get(OWN) or {}, dict[str, dict[str, Axis]])
    for library, knobs in own.items():
        for knob in knobs:
            if library not in owners().get(knob, []):
                raise UserError(f"grid.{OWN}.{library}.{knob} is not a knob", hint="grid.KNOB.LIBRARY=[8,16] sets one")
    merged = {name: value for name, value in grid.items() if name != OWN and value is not None}
    for knob, libraries in owners().items():
        given = merged.get(knob, {})
        defaults = {library: own[library][knob] for library in libraries if knob in own.get(library, {})}
        if defaults and isinstance(given, dict) and given.keys() <= BACKENDS.keys():
            both = defaults | given
            merged[knob] = both if len(both) > 1 else both[libraries[0]]
    return merged
