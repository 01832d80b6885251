"""DeepEP V1 on one rank; the only module that imports deep_ep."""

from __future__ import annotations

from typing import Any

import deep_ep
import torch  # isort: split  (torch first: the extension of deep_ep links against it)

from bench.backends.sessions.deep_ep_values import PendingPair, pack, unpack
from bench.backends.sessions.session import Context, Dispatched, Inputs, Operation, Payload, Pending
from bench.records import Dtype, Op, Point


class DeepEPSession:
    """One Buffer, and the last handle for each num_sms, since a handle fixes the number of channels. See Session."""

    def __init__(self, context: Context, points: list[Point]) -> None:
        """Sizes the Buffer by DeepEP's own hint for the largest of the points, in BF16. Collective."""
        self._context = context
        hidden_bytes = 2 * context.workload.hidden
        size = max(
            self._config(point.knobs).get_nvl_buffer_size_hint(hidden_bytes, context.num_ranks) for point in points
        )
        self._buffer = deep_ep.Buffer(context.host_group, size, 0, explicitly_destroy=True)
        self._handles: dict[int, Any] = {}
        self._per_rank = torch.empty(0)

    @staticmethod
    def _config(knobs: dict[str, int]) -> Any:
        return deep_ep.Config(knobs["num_sms"], knobs["nvl_chunk"], knobs["nvl_buffer"])

    def dispatch(self, inputs: Inputs, *, dtype: Dtype, knobs: dict[str, int]) -> Dispatched:
        """``get_dispatch_layout`` and a dispatch without a handle, in which the host waits for the counts."""
        topk_idx = inputs.topk_idx.to(deep_ep.topk_idx_t)
        per_rank, _, per_expert, in_rank, _ = self._buffer.get_dispatch_layout(
            topk_idx, self._context.workload.num_experts
        )
        received, idx, weights, counts, handle, _ = self._buffer.dispatch(
            pack(inputs.payload),
            num_tokens_per_rank=per_rank,
            is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert,
            topk_idx=topk_idx,
            topk_weights=inputs.topk_weights,
            config=self._config(knobs),
        )
        self._handles[knobs["num_sms"]] = handle
        self._per_rank = per_rank
        return Dispatched(unpack(received), idx, weights, list(counts))

    def cached_dispatch(self, inputs: Inputs, *, dtype: Dtype, knobs: dict[str, int]) -> Payload:
        """DeepEP's cached mode: no layout, no expert indices or weights, no host wait."""
        received, *_ = self._buffer.dispatch(
            pack(inputs.payload), handle=self._handles[knobs["num_sms"]], config=self._config(knobs)
        )
        return unpack(received)

    def combine(self, tokens: torch.Tensor, *, knobs: dict[str, int]) -> torch.Tensor:
        """FP32 sums of BF16 tokens, without weights."""
        combined: torch.Tensor
        combined, _, _ = self._buffer.combine(tokens, self._handles[knobs["num_sms"]], config=self._config(knobs))
        return combined

    def start_pair(
        self, inputs: Inputs, tokens: torch.Tensor, *, dtype: Dtype, dispatch: dict[str, int], combine: dict[str, int]
    ) -> Pending:
        """Queues both on DeepEP's stream (``async_finish``), dispatch first, after what the current one holds now."""
        handle, now = self._handles[dispatch["num_sms"]], deep_ep.Buffer.capture()
        asynchronous = {"async_finish": True, "allocate_on_comm_stream": True, "previous_event": now}
        received, *_ = self._buffer.dispatch(
            pack(inputs.payload), handle=handle, config=self._config(dispatch), **asynchronous
        )
        combined, _, done = self._buffer.combine(tokens, handle, config=self._config(combine), **asynchronous)
        return PendingPair(unpack(received), combined, done)

    def exchange(self, inputs: Inputs) -> Operation:
        """Not supported: packing is part of the kernel."""
        raise NotImplementedError("the deepep backend has no exchange apart (exchanges is False)")

    def rows(self, *, knobs: dict[str, int]) -> torch.Tensor | None:
        """None: rows arrive in the oracle's order."""
        return None

    def library_default(self, op: Op) -> dict[str, int] | None:
        """None: deep_ep.Config does not give its values back."""
        return None

    def layout(self) -> list[int]:
        """``num_tokens_per_rank`` of the last ``get_dispatch_layout``."""
        return [int(count) for count in self._per_rank.tolist()]
