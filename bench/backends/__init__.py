"""The libraries that can be measured. Each has a declaration, which imports no torch, and a session, which does.

A new library NAME needs:

1. ``bench/backends/NAME.py``: a class that implements ``Backend``, on top of ``bench.backends.declaration.Library``,
   and an instance of it in ``BACKENDS`` below. Plans and reports are made on machines without torch, GPUs or the
   library, so only ``open`` may import the session.
2. ``bench/backends/sessions/NAME.py``: a class that implements ``Session`` of ``bench.backends.sessions.session``.

Users choose it with ``backend=NAME``; ``backend=all`` takes it where it can run. Nothing else knows its knobs: the
config groups grid and backend are made of the declarations.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol, TypeVar

from bench.backends.allgather import AllGather
from bench.backends.alltoall import AllToAll
from bench.backends.deepep import DeepEP
from bench.backends.deepep_v2 import DeepEPV2
from bench.backends.machine import Problem
from bench.backends.nccl_ep import NcclEP
from bench.records import Dtype, Op, Point

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bench.backends.sessions.session import Context, Session
    from bench.rules import Facts, Grids, Knob, Violation


T = TypeVar("T")


class Backend(Protocol):
    """The declaration of a library: what planning, tuning and reports need to know of it.

    A config, ``dict[str, int]``, has a value for each knob, in the order of ``knobs``. ``op`` is dispatch or combine;
    a full dispatch takes the configs of dispatch.
    """

    @property
    def name(self) -> str:
        """The value of ``backend=NAME``, which every point carries."""

    @property
    def title(self) -> str:
        """Its name in reports."""

    @property
    def meaning(self) -> str:
        """What of it is measured, in a few words for the manual."""

    @property
    def is_baseline(self) -> bool:
        """Whether it is a plain collective: measured beside the libraries, not ranked with them."""

    @property
    def needs_gpu(self) -> bool:
        """Whether it runs on GPUs only."""

    @property
    def packages(self) -> tuple[str, ...]:
        """Import names of packages, or "nccl", whose versions must be equal for measurements to be comparable."""

    @property
    def preload(self) -> tuple[str, ...]:
        """Modules that the forkserver imports before it forks ranks. Their import must not touch a GPU."""

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """The tuning parameters, in the order of their display. Grids and candidates refer to them by name."""

    @property
    def grids(self) -> Grids:
        """For each name of ``GRIDS`` the values of every knob."""

    @property
    def besides_sms(self) -> str:
        """What a call takes besides the SMs of its knob, as a sentence; empty where it takes nothing else."""

    @property
    def contract(self) -> str:
        """How a plain collective's contract differs from that of the libraries, as a sentence; else empty."""

    @property
    def default_labels(self) -> Mapping[str, str]:
        """Those who set a default, as reports name them, by its name in ``defaults``; without the library itself."""

    @property
    def compiles(self) -> bool:
        """Whether it compiles kernels at the first use of a config, so that these are compiled before the search."""

    @property
    def kernel_variable(self) -> str:
        """The variable that names the folder of its compiled kernels; empty if it compiles none."""

    @property
    def overlaps(self) -> bool:
        """Whether sessions implement ``start_pair``. Without it no pair is measured overlapped with GEMMs."""

    @property
    def regroups(self) -> bool:
        """Whether a config belongs to a group of the library, which is costly to change.

        Points with equal knobs are then measured one after the other.
        """

    @property
    def exchanges(self) -> bool:
        """Whether sessions implement ``exchange``: the transfer apart from the packing of tokens."""

    @property
    def one_kernel(self) -> bool:
        """Whether dispatch and combine are one kernel each.

        The host needs longer to queue several kernels, so the timer gives it more time (bench.rank.timing).
        """

    def defaults(self, op: Op, facts: Facts) -> dict[str, dict[str, int]]:
        """Configs that users run who choose none, by who sets them. All are measured.

        The first, ``library``, is what the library itself takes: the anchor of every comparison.
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

    def buffer_bytes(self, knobs: dict[str, int], facts: Facts) -> int | None:
        """Bytes that a rank's buffers take with this config, by the library's own formula; None where it has none."""

    def roundings(self, num_ranks: int) -> int:
        """How often a combined value is rounded to BF16 on its way; 1 where the sum is taken in FP32."""

    def problems(self) -> list[Problem]:
        """What keeps it from running on this machine, apart from the number of GPUs. Imports nothing."""

    def environment(self) -> dict[str, str]:
        """Variables that ranks and the forkserver set for it, unless the user has set them."""

    def open(self, context: Context, points: list[Point]) -> Session:
        """A session on this rank. Collective: every rank calls it at once.

        ``points``: a dispatch or a combine with each config that may be requested, to size buffers by. The session and
        the library are imported here, not at the top of the module.
        """


BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (DeepEP(), DeepEPV2(), NcclEP(), AllToAll(), AllGather())
}


GRIDS = {
    "smoke": "A few corners: shows that everything runs, finds nothing.",
    "standard": "The knobs that matter.",
    "full": "More values, and every knob.",
    "upstream": "What the library's own tuning script tries; its default where it has none.",
}
"""The choices of ``grid=NAME``, and what each is for."""

LIBRARY_DEFAULT = "library"
"""Name of the default that a library takes by itself; others are named after those who set them."""


def default_label(backend: str, name: str) -> str:
    """A default of a library in words: ``the library's default``, ``default of vLLM, SGLang``."""
    if name == LIBRARY_DEFAULT:
        return "the library's default"
    return f"default of {BACKENDS[backend].default_labels.get(name, name)}"


def sms_knob(backend: str) -> str | None:
    """The knob that counts SMs; None for plain collectives."""
    return next((knob.name for knob in BACKENDS[backend].knobs if knob.counts_sms), None)


def backends_of(points: Iterable[Point]) -> list[Backend]:
    """The libraries of some points, each once, in the order of BACKENDS."""
    names = {point.backend for point in points}
    return [backend for backend in BACKENDS.values() if backend.name in names]


def preload_of(points: Iterable[Point]) -> list[str]:
    """The modules that the forkserver imports for ranks that run these points, in the order of BACKENDS.

    DeepEP comes first: deep_ep 2.1 refuses a process that has loaded libnccl_ep, which it takes for a second NCCL.
    """
    return list(dict.fromkeys(module for backend in backends_of(points) for module in backend.preload))


def settings_of(points: Iterable[Point]) -> dict[str, str]:
    """The variables that ranks set for the libraries of these points: those that the user has not set."""
    wanted = {name: value for backend in backends_of(points) for name, value in backend.environment().items()}
    return {name: value for name, value in wanted.items() if name not in os.environ}


def shared_knobs(backend: Backend) -> tuple[str, ...]:
    """Names of the knobs whose value a dispatch and its combine share."""
    return tuple(knob.name for knob in backend.knobs if knob.shared)


PAIR_OPS = (Op.OVERLAPPED, Op.SERIAL, Op.LAYER, Op.LAYER_TRAINING)
"""Operations of a dispatch and a combine together."""


def shuffle_points(points: list[T], point_of: Callable[[T], Point], *, seed: str) -> list[T]:
    """The points in a seeded order; those of one group of a library stay together (Backend.regroups)."""
    blocks: dict[tuple[object, ...], list[T]] = {}
    for each in points:
        point = point_of(each)
        key = (point.backend, *point.knobs.items()) if BACKENDS[point.backend].regroups else point.key
        blocks.setdefault(key, []).append(each)
    order = list(blocks.values())
    random.Random(seed).shuffle(order)  # noqa: S311
    return [each for block in order for each in block]


def join_pair(
    backend: Backend, dtype: Dtype, *, dispatch: dict[str, int], combine: dict[str, int], op: Op = Op.OVERLAPPED
) -> Point:
    """The point that measures a dispatch and a combine together, one of PAIR_OPS.

    Its knobs are the shared ones, then those of each operation, prefixed with its name: ``dispatch_nvl_chunk``. The
    values of the shared knobs must be the same in both configs.
    """
    shared = shared_knobs(backend)
    knobs = {name: dispatch[name] for name in shared}
    for part, config in ((Op.DISPATCH, dispatch), (Op.COMBINE, combine)):
        knobs |= {f"{part}_{name}": value for name, value in config.items() if name not in shared}
    return Point(backend.name, op, dtype, knobs)


def split_pair(point: Point) -> tuple[dict[str, int], dict[str, int]]:
    """The configs of dispatch and combine in a point of ``join_pair``."""
    backend = BACKENDS[point.backend]
    shared = shared_knobs(backend)
    first, second = (
        {knob.name: point.knobs[knob.name if knob.name in shared else f"{op}_{knob.name}"] for knob in backend.knobs}
        for op in (Op.DISPATCH, Op.COMBINE)
    )
    return first, second
