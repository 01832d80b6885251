"""Names of the pictures of a run: ``pareto.svg``, or ``deepep.pareto.svg`` where there are several libraries; pure."""

from __future__ import annotations

from collections.abc import Mapping

from bench.backends import BACKENDS

LIBRARIES = "libraries.svg"
"""Time over SMs for all libraries."""


def name_of(kind: str, backend: str = "") -> str:
    """The file of a picture; ``backend``: the library, where there are several."""
    return f"{backend}.{kind}.svg" if backend else f"{kind}.svg"


def own(pictures: Mapping[str, str], backend: str) -> dict[str, str]:
    """The pictures about one of several libraries."""
    return {name: svg for name, svg in pictures.items() if name.startswith(f"{backend}.")}


def kind_of(name: str) -> str:
    """``libraries``, ``pareto`` or ``heatmap_dispatch``."""
    return name.removesuffix(".svg").rpartition(".")[2]


def caption(name: str) -> str:
    """What a picture shows, in words."""
    if name == LIBRARIES:
        return "round trip over SMs, a curve for each library"
    backend, _, kind = name.removesuffix(".svg").rpartition(".")
    words = kind.replace("_", " ")
    return f"{BACKENDS[backend].title}: {words}" if backend in BACKENDS else words
