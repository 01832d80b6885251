"""The parts of RESULTS_EP{n}.json about the passes of a final: overlapped pairs and layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

if TYPE_CHECKING:
    from launcher.store.results_file import SavedPair

Positive = Annotated[float, msgspec.Meta(gt=0)]
Knobs = dict[str, int]


class SavedOverlap(msgspec.Struct, frozen=True):
    """A pair overlapped with one layer's expert GEMMs. ``dispatch`` and ``combine`` are all knobs of each.

    ``makespan_us``: until both are done. ``compute_us``: until the GEMMs are; ``compute_isolated_us``: without
    communication; ``gemm_slowdown`` is the ratio of the two. ``serial_us``: GEMMs and round trip, each isolated.
    """

    shared_knobs: Knobs
    dispatch: Knobs
    combine: Knobs
    makespan_us: Positive
    ci95_us: tuple[float, float]
    compute_us: float
    compute_isolated_us: float
    gemm_slowdown: float
    gemm_slowdown_ci95: tuple[float, float] | None
    serial_us: float
    compute_to_communication: float

    def is_of(self, pair: SavedPair) -> bool:
        """Whether it ran just these two configs."""
        return (self.dispatch, self.combine) == (pair.dispatch.knobs, pair.combine.knobs)


class SavedLayer(msgspec.Struct, frozen=True):
    """A layer with one pair of configs: a full dispatch, the expert GEMMs of the received tokens and a combine.

    ``training``: with the operations of its backward pass. ``dispatch`` and ``combine`` are all knobs of each.
    """

    dispatch: Knobs
    combine: Knobs
    training: bool
    median_us: Positive
    ci95_us: tuple[float, float]
