"""All-gather and reduce-scatter on one rank: every rank receives all tokens."""

from __future__ import annotations

import torch
import torch.distributed as dist

from bench.backends.sessions.session import Context, Dispatched, Inputs, Operation, Payload, Pending
from bench.records import Dtype, Op

_LEAST_TOKENS = 128
"""The self test sends up to 109 tokens, whatever the workload."""


class AllGatherSession:
    """Gathers over ``context.device_group``. Every rank sends as many rows; where tokens are fewer, empty ones.

    See Session.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._most_tokens = max(context.workload.num_tokens, _LEAST_TOKENS)
        self._num_tokens = 0
        self._sent_idx = self._received_idx = torch.empty(0, 0)

    def dispatch(self, inputs: Inputs, *, dtype: Dtype, knobs: dict[str, int]) -> Dispatched:
        """Gathers tokens, expert indices and weights of all ranks. The host waits for nothing."""
        payload = self.cached_dispatch(inputs, dtype=dtype, knobs=knobs)
        first = self._context.rank * self._local_experts
        idx = self._gather(inputs.topk_idx, fill=-1) - first
        weights = self._gather(inputs.topk_weights)
        self._num_tokens, self._sent_idx, self._received_idx = len(inputs.topk_idx), inputs.topk_idx, idx
        return Dispatched(payload, idx, weights, None)

    def cached_dispatch(self, inputs: Inputs, *, dtype: Dtype, knobs: dict[str, int]) -> Payload:
        """Gathers the payload; FP8 scales take a second gather."""
        tokens, scales = inputs.payload
        gathered = self._gather(tokens.view(torch.uint8)).view(tokens.dtype)
        return gathered, None if scales is None else self._gather(scales)

    def combine(self, tokens: torch.Tensor, *, knobs: dict[str, int]) -> torch.Tensor:
        """Sums the rows of all ranks in BF16; rows that no expert here has touched are zero."""
        total = tokens.new_empty(self._most_tokens, tokens.shape[1])
        dist.reduce_scatter_tensor(total, tokens, group=self._context.device_group)
        return total[: self._num_tokens]

    def start_pair(
        self, inputs: Inputs, tokens: torch.Tensor, *, dtype: Dtype, dispatch: dict[str, int], combine: dict[str, int]
    ) -> Pending:
        """Not supported: NCCL chooses its own SMs, so there is no config to overlap with GEMMs."""
        raise NotImplementedError("the allgather backend does not overlap (AllGather.overlaps is False)")

    def exchange(self, inputs: Inputs) -> Operation:
        """Not supported: nothing is packed, so a dispatch is the transfer."""
        raise NotImplementedError("the allgather backend has no exchange apart (AllGather.exchanges is False)")

    def rows(self, *, knobs: dict[str, int]) -> torch.Tensor | None:
        """The rows with an expert on this rank; the others were not asked for."""
        is_local = (self._received_idx >= 0) & (self._received_idx < self._local_experts)
        return is_local.any(dim=1).nonzero()[:, 0]

    def library_default(self, op: Op) -> dict[str, int] | None:
        """None: there is no library beneath."""
        return None

    def layout(self) -> list[int]:
        """How many tokens each rank needed of this one; all were sent to all."""
        owner = torch.where(self._sent_idx >= 0, self._sent_idx // self._local_experts, -1)
        ranks = torch.arange(self._context.num_ranks, device=owner.device)
        return [int(count) for count in (owner[:, :, None] == ranks).any(dim=1).sum(dim=0).tolist()]

    @property
    def _local_experts(self) -> int:
        return self._context.workload.num_experts // self._context.num_ranks

    def _gather(self, rows: torch.Tensor, *, fill: int = 0) -> torch.Tensor:
        """The rows of every rank [ranks * most tokens, columns]."""
        if len(rows) < self._most_tokens:
            padding = rows.new_full((self._most_tokens - len(rows), rows.shape[1]), fill)
            rows = torch.cat([rows, padding])
        gathered = rows.new_empty(self._context.num_ranks * self._most_tokens, rows.shape[1])
        dist.all_gather_into_tensor(gathered, rows, group=self._context.device_group)
        return gathered
