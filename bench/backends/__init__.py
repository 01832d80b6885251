"""The libraries that can be measured: a declaration that plans without torch, and a session that runs with it.

A new library is one file beside these: an object that satisfies ``Backend``, listed in ``BACKENDS``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from bench.backends.alltoall import AllToAll
from bench.backends.deepep import DeepEP
from bench.records import Dtype, Op, Point

if TYPE_CHECKING:
    from bench.backends.sessions.session import Context, Session
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

    @property
    def overlaps(self) -> bool:
        """Whether its sessions can run beside computation (Session.start_pair)."""

    @property
    def one_kernel(self) -> bool:
        """Whether dispatch and combine are one kernel each: the host queues several more slowly than they run."""

    def default(self, op: Op, *, num_ranks: int) -> dict[str, int]:
        """What the library itself would take; the anchor of every comparison."""

    def own_tuning(self, op: Op) -> list[dict[str, int]]:
        """The configs that the library's own tuning script tries; empty without one."""

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


def join_pair(backend: Backend, dtype: Dtype, *, dispatch: dict[str, int], combine: dict[str, int]) -> Point:
    """The point that measures a dispatch and a combine together beside expert GEMMs.

    Its knobs are the shared ones and, with the operation's name before them, each operation's own.
    """
    shared = shared_knobs(backend)
    knobs = {name: dispatch[name] for name in shared}
    for op, config in ((Op.DISPATCH, dispatch), (Op.COMBINE, combine)):
        knobs |= {f"{op}_{name}": value for name, value in config.items() if name not in shared}
    return Point(backend.name, Op.OVERLAPPED, dtype, knobs)


def split_pair(point: Point) -> tuple[dict[str, int], dict[str, int]]:
    """The configs of dispatch and combine that ``join_pair`` put into one point."""
    backend = BACKENDS[point.backend]
    shared = shared_knobs(backend)
    first, second = (
        {knob.name: point.knobs[knob.name if knob.name in shared else f"{op}_{knob.name}"] for knob in backend.knobs}
        for op in (Op.DISPATCH, Op.COMBINE)
    )
    return first, second
