"""The Session protocol, which a library implements on one rank, and the tensors that pass through it.

All tensors are on ``Context.device``. Kernels may run on any stream; a method returns when the current stream is
ordered after them, which need not be the end of them on the GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist

from bench.records import Dtype, Op
from bench.workload import Workload

Payload = tuple[torch.Tensor, torch.Tensor | None]
"""Tokens [tokens, hidden] in BF16 or FP8 e4m3, and for FP8 their FP32 scales [tokens, hidden / 128], else None."""


class Inputs(NamedTuple):
    """What one rank sends: payload, expert indices [tokens, num_topk] in int64, -1 for none, and their FP32 weights."""

    payload: Payload
    topk_idx: torch.Tensor
    topk_weights: torch.Tensor


class Dispatched(NamedTuple):
    """What one rank received, in the library's own order of rows; ``Session.rows`` names the order of the oracle.

    ``topk_idx`` [rows, num_topk], any integer type: this rank's experts counted from 0, any number outside them for
    those of other ranks. ``topk_weights``: in FP32, without meaning there. ``tokens_per_expert``: how many tokens each
    of this rank's experts received; None where the library does not tell the host.
    """

    payload: Payload
    topk_idx: torch.Tensor
    topk_weights: torch.Tensor
    tokens_per_expert: list[int] | None


class Overlapped(NamedTuple):
    """Outputs of a dispatch and a combine that ran overlapped with GEMMs."""

    payload: Payload
    combined: torch.Tensor


class Pending(Protocol):
    """A dispatch and a combine in flight on the library's own stream."""

    def wait(self) -> Overlapped:
        """Orders the current stream after both, and returns their outputs."""


Operation = Callable[[], object]
"""Queues kernels on the current stream and returns their output without waiting for it."""


class Context(NamedTuple):
    """Where a session runs.

    ``host_group`` is a gloo group of all ranks. ``device_group`` is an NCCL group of them where each rank has a GPU of
    its own, else ``host_group`` itself.
    """

    rank: int
    num_ranks: int
    device: torch.device
    workload: Workload
    host_group: dist.ProcessGroup
    device_group: dist.ProcessGroup


class Session(Protocol):
    """One library on one rank.

    Every method is collective: all ranks call it in the same order with the same knobs, one value for each of the
    backend's. The session keeps the handle of the last ``dispatch`` for each combination of shared knobs. It lives as
    long as its rank, whose process ends without destructors. An exception or a hang becomes the record of the point.
    """

    def dispatch(self, inputs: Inputs, *, dtype: Dtype, knobs: dict[str, int]) -> Dispatched:
        """A full dispatch: layout, exchange of counts, host wait and tokens. Keeps the handle. Timed as dispatch_full.

        ``dtype`` is that of the payload. Received tokens, indices and weights must equal those sent, bit for bit.
        """

    def cached_dispatch(self, inputs: Inputs, *, dtype: Dtype, knobs: dict[str, int]) -> Payload:
        """A cached dispatch: only the payload, with the kept handle of the same shared knobs. Timed as dispatch.

        The other knobs may differ from those of the dispatch that made the handle; the order of rows is the same.
        """

    def combine(self, tokens: torch.Tensor, *, knobs: dict[str, int]) -> torch.Tensor:
        """Sends ``tokens`` [received rows, hidden] in BF16 back by the kept handle. Timed as combine.

        Returns BF16 [tokens, hidden]: for each token of this rank the sum over the ranks that it went to, without
        weights, accumulated in FP32 and rounded once.
        """

    def start_pair(
        self, inputs: Inputs, tokens: torch.Tensor, *, dtype: Dtype, dispatch: dict[str, int], combine: dict[str, int]
    ) -> Pending:
        """Queues a cached dispatch, then a combine of ``tokens``, on the library's own stream. Timed as overlapped.

        Returns at once, without ordering the current stream after them: GEMMs follow there. The two configs have the
        same shared knobs. Never called where Backend.overlaps is False.
        """

    def exchange(self, inputs: Inputs) -> Operation:
        """The transfer of a cached dispatch, with the tokens packed beforehand and not unpacked. Timed as exchange.

        Never called where Backend.exchanges is False.
        """

    def rows(self, *, knobs: dict[str, int]) -> torch.Tensor | None:
        """The received row of each expected token, by the kept handle: int64 [expected tokens].

        Expected are the tokens that have an expert on this rank, each once, ordered by source rank, then by position
        there. None where the received rows are just these, in this order. Not timed.
        """

    def library_default(self, op: Op) -> dict[str, int] | None:
        """The config that the library takes by itself here, as far as it says so; None where it says nothing."""

    def layout(self) -> list[int]:
        """How many tokens the last full dispatch sent to each rank, itself included, as the library counts them."""
