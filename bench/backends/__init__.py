"""The libraries that can be measured. Each has a declaration, which imports no torch, and a session, which does.

A new library NAME needs:

1. ``bench/backends/NAME.py``: a class that implements ``Backend``, and an instance of it in ``BACKENDS`` below. Plans
   and reports are made on machines without torch, GPUs or the library, so only ``open`` may import the session.
2. ``bench/backends/sessions/NAME.py``: a class that implements ``Session`` of ``bench.backends.sessions.session``.
3. ``conf/backend/NAME.yaml`` with its name, and an axis for each of its knobs in the files of ``conf/grid``.

Users choose it with ``backend=NAME``. Supervision, oracle, timing and tuning need no change: they know knobs only by
their declaration. ``backend=auto`` and the exports for frameworks stay DeepEP's.
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
    """The declaration of a library: what planning, tuning and reports need to know of it.

    A config, ``dict[str, int]``, has a value for each knob, in the order of ``knobs``. ``op`` is dispatch or combine;
    a full dispatch takes the configs of dispatch.
    """

    @property
    def name(self) -> str:
        """The value of ``backend=NAME``, which every point carries."""

    @property
    def packages(self) -> tuple[str, ...]:
        """Import names of packages, or "nccl", whose versions must be equal for measurements to be comparable."""

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """The tuning parameters, in the order of their display. Grids and candidates refer to them by name."""

    @property
    def overlaps(self) -> bool:
        """Whether sessions implement ``start_pair``. Without it no pair is measured overlapped with GEMMs."""

    @property
    def one_kernel(self) -> bool:
        """Whether dispatch and combine are one kernel each.

        The host needs longer to queue several kernels, so the timer gives it more time (bench.rank.timing).
        """

    def default(self, op: Op, *, num_ranks: int) -> dict[str, int]:
        """The config that the library uses when its user chooses none: the anchor of every comparison.

        ``workload_violations`` must refuse a number of ranks without a default.
        """

    def own_tuning(self, op: Op) -> list[dict[str, int]]:
        """The configs that the library's own tuning script tries, measured in addition to the grid; empty if none."""

    def point_violations(self, op: Op, knobs: dict[str, int], *, facts: Facts) -> list[Violation]:
        """The rules that the config breaks for this operation, empty when it may run.

        Must refuse what makes the library assert, trap or hang, since each such point costs new ranks. Unknown facts
        (None) refuse nothing. The key of a violation is ``grid.KNOB``.
        """

    def workload_violations(self, facts: Facts) -> list[Violation]:
        """The rules that the workload breaks on this number of ranks with any config, empty when it may run.

        Rules of every backend are in bench.rules. The key of a violation is ``ep.size`` or ``workload.FIELD``.
        """

    def open(self, context: Context, points: list[Point]) -> Session:
        """A session on this rank. Collective: every rank calls it at once.

        ``points``: a dispatch or a combine with each config that may be requested, to size buffers by. The session and
        the library are imported here, not at the top of the module.
        """


BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (DeepEP(), AllToAll())}


def shared_knobs(backend: Backend) -> tuple[str, ...]:
    """Names of the knobs whose value a dispatch and its combine share."""
    return tuple(knob.name for knob in backend.knobs if knob.shared)


def join_pair(backend: Backend, dtype: Dtype, *, dispatch: dict[str, int], combine: dict[str, int]) -> Point:
    """The point that measures a dispatch and a combine overlapped with expert GEMMs.

    Its knobs are the shared ones, then those of each operation, prefixed with its name: ``dispatch_nvl_chunk``. The
    values of the shared knobs must be the same in both configs.
    """
    shared = shared_knobs(backend)
    knobs = {name: dispatch[name] for name in shared}
    for op, config in ((Op.DISPATCH, dispatch), (Op.COMBINE, combine)):
        knobs |= {f"{op}_{name}": value for name, value in config.items() if name not in shared}
    return Point(backend.name, Op.OVERLAPPED, dtype, knobs)


def split_pair(point: Point) -> tuple[dict[str, int], dict[str, int]]:
    """The configs of dispatch and combine in a point of ``join_pair``."""
    backend = BACKENDS[point.backend]
    shared = shared_knobs(backend)
    first, second = (
        {knob.name: point.knobs[knob.name if knob.name in shared else f"{op}_{knob.name}"] for knob in backend.knobs}
        for op in (Op.DISPATCH, Op.COMBINE)
    )
    return first, second
