"""The libraries that can be measured: a declaration that plans without torch, and a session that runs with it.

A new library is one file beside these: an object that satisfies ``Backend``, listed in ``BACKENDS``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from bench.backends.alltoall import AllToAll
from bench.backends.deepep import DeepEP

if TYPE_CHECKING:
    from bench.backends.session import Context, Session
    from bench.records import Op, Point
    from bench.rules import Facts, Knob, Violation


class Backend(Protocol):
    """What planning, searching and reporting need to know of a library; importing it needs no torch."""

    @property
    def name(self) -> str:
        """The name in ``backend=NAME`` and in every point."""

    @property
    def packages(self) -> tuple[str, ...]:
        """Distributions whose versions belong to the environment."""

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """The numbers to choose, in the order of their display."""

    def default(self, op: Op, *, num_ranks: int) -> dict[str, int]:
        """What the library itself would take; the anchor of every comparison."""

    def point_violations(self, op: Op, knobs: dict[str, int], *, facts: Facts) -> list[Violation]:
        """The rules that this config breaks, empty when it may run."""

    def workload_violations(self, facts: Facts) -> list[Violation]:
        """The rules that the workload breaks on this number of ranks, whatever the config."""

    def open(self, context: Context, points: list[Point]) -> Session:
        """A session on this rank, ready for any of the points. Collective: every rank calls it at once."""


BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (DeepEP(), AllToAll())}


def shared_knobs(backend: Backend) -> tuple[str, ...]:
    """Names of the knobs that a dispatch and its combine have in common."""
    return tuple(knob.name for knob in backend.knobs if knob.shared)
