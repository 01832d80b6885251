"""What a rank does with a library: the Session protocol, and the values that pass through it; needs torch."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist

from bench.records import Dtype
from bench.workload import Workload

Payload = tuple[torch.Tensor, torch.Tensor | None]
"""Tokens [num_tokens, hidden] in BF16 or FP8 e4m3, and for FP8 the FP32 scales [num_tokens, hidden / 128]."""


class Inputs(NamedTuple):
    """What one rank sends: its payload, its choice of experts [num_tokens, num_topk] and their FP32 weights."""

    payload: Payload
    topk_idx: torch.Tensor
    topk_weights: torch.Tensor


class Dispatched(NamedTuple):
    """What one rank received, ordered by source rank and then by the source's token.

    ``topk_idx`` counts this rank's own experts from 0, -1 for experts elsewhere; ``topk_weights`` are 0 there.
    ``tokens_per_expert`` is how many tokens each of this rank's experts got.
    """

    payload: Payload
    topk_idx: torch.Tensor
    topk_weights: torch.Tensor
    tokens_per_expert: list[int]


class Overlapped(NamedTuple):
    """What a pair gave that ran beside GEMMs."""

    payload: Payload
    combined: torch.Tensor


class Pending(Protocol):
    """A pair under way on the library's own stream."""

    def wait(self) -> Overlapped:
        """Makes the current stream wait for it."""


class Context(NamedTuple):
    """Where a session lives. ``device_group`` is NCCL on GPUs of their own, else the gloo group of the hosts."""

    rank: int
    num_ranks: int
    device: torch.device
    workload: Workload
    host_group: dist.ProcessGroup
    device_group: dist.ProcessGroup


class Session(Protocol):
    """One library on one rank. Each method is collective; the handle of a dispatch stays inside the session."""

    def dispatch(self, inputs: Inputs, *, dtype: Dtype, knobs: dict[str, int]) -> Dispatched:
        """Layout, exchange of counts and tokens; keeps the handle for the two below."""

    def cached_dispatch(self, inputs: Inputs, *, dtype: Dtype, knobs: dict[str, int]) -> Payload:
        """Tokens alone, with the handle of the last dispatch that had the same shared knobs."""

    def combine(self, tokens: torch.Tensor, *, knobs: dict[str, int]) -> torch.Tensor:
        """The sum over ranks of what each sends back for a token [num_tokens, hidden], BF16, same handle."""

    def start_pair(
        self, inputs: Inputs, tokens: torch.Tensor, *, dtype: Dtype, dispatch: dict[str, int], combine: dict[str, int]
    ) -> Pending:
        """A cached dispatch and a combine on the library's own stream, so that the current one can compute."""

    def layout(self) -> list[int]:
        """How many tokens the last dispatch sent to each rank, as the library itself counts."""

    def close(self) -> None:
        """Give the library's memory back."""
