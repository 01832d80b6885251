"""The parts of RESULTS_EP{n}.json about the passes of a final: overlapped pairs and layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from bench.records import Dtype

if TYPE_CHECKING:
    from launcher.store.results_file import SavedPair

Positive = Annotated[float, msgspec.Meta(gt=0)]
Knobs = dict[str, int]


class SavedOverlap(msgspec.Struct, frozen=True):
    """A pair overlapped with one layer's expert GEMMs. ``dispatch`` and ``combine`` are all knobs of each.

    ``makespan_us``: until both are done. ``compute_us``: until the GEMMs are; ``compute_isolated_us``: without
    communication; ``gemm_slowdown`` is the ratio of the two. ``serial_us``: the same pair and GEMMs one after the
    other, in the same passes. ``over_serial``: overlapped over that, paired over the passes; null where the passes did
    not measure it, as in older files: then ``serial_us`` is a sum of GEMMs and round trip, each isolated. ``gemms``:
    what they multiply.
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
    over_serial: float | None = None
    over_serial_ci95: tuple[float, float] | None = None
    gemms: Dtype = Dtype.BF16

    def is_of(self, pair: SavedPair) -> bool:
        """Whether it ran just these two configs."""
        return (self.dispatch, self.combine) == (pair.dispatch.knobs, pair.combine.knobs)


class SavedLayer(msgspec.Struct, frozen=True):
    """A layer with one pair of configs: a full dispatch, the expert GEMMs of the received tokens and a combine.

    ``training``: with the operations of its backward pass. ``dispatch`` and ``combine`` are all knobs of each.
    ``gemms``: what those of the forward pass multiply.
    """

    dispatch: Knobs
    combine: Knobs
    training: bool
    median_us: Positive
    ci95_us: tuple[float, float]
    gemms: Dtype = Dtype.BF16
