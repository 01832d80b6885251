"""DeepEP V2 on one rank: ``deep_ep.ElasticBuffer``, rows not expanded."""

from __future__ import annotations

from typing import Any

import deep_ep
import torch  # isort: split  (torch first: the extension of deep_ep links against it)
import torch.distributed as dist

from bench.backends.sessions.deep_ep_values import PendingPair, pack, unpack
from bench.backends.sessions.session import Context, Dispatched, Inputs, Operation, Payload, Pending
from bench.records import Dtype, Op

_LEAST_TOKENS = 128
"""The self test sends up to 109 tokens, whatever the workload."""


class DeepEPV2Session:
    """One ElasticBuffer, and the last handle for each num_sms. See Session."""

    def __init__(self, context: Context) -> None:
        """Sizes the buffer by the library's own formula, in BF16. Collective."""
        self._context, workload = context, context.workload
        self._buffer = deep_ep.ElasticBuffer(
            context.device_group,
            num_max_tokens_per_rank=max(workload.num_tokens, _LEAST_TOKENS),
            hidden=workload.hidden,
            num_topk=workload.num_topk,
            allow_hybrid_mode=False,
            explicitly_destroy=True,
        )
        self._handles: dict[int, Any] = {}
        self._last: Any = None

    def dispatch(self, inputs: Inputs, *, dtype: Dtype, knobs: dict[str, int]) -> Dispatched:
        """One call: the layout is part of the kernel, and the host waits for the counts."""
        received, idx, weights, handle, _ = self._buffer.dispatch(
            pack(inputs.payload),
            topk_idx=inputs.topk_idx.to(deep_ep.topk_idx_t),
            topk_weights=inputs.topk_weights,
            num_experts=self._context.workload.num_experts,
            num_sms=knobs["num_sms"],
        )
        self._handles[knobs["num_sms"]] = self._last = handle
        return Dispatched(unpack(received), idx, weights, list(handle.num_recv_tokens_per_expert_list))

    def cached_dispatch(self, inputs: Inputs, *, dtype: Dtype, knobs: dict[str, int]) -> Payload:
        """The same with a handle: no layout, no host wait."""
        received, *_ = self._buffer.dispatch(pack(inputs.payload), **self._cached(knobs))
        return unpack(received)

    def combine(self, tokens: torch.Tensor, *, knobs: dict[str, int]) -> torch.Tensor:
        """FP32 sums of BF16 tokens, without weights."""
        combined: torch.Tensor
        combined, _, _ = self._buffer.combine(tokens, self._handles[knobs["num_sms"]], num_sms=knobs["num_sms"])
        return combined

    def start_pair(
        self, inputs: Inputs, tokens: torch.Tensor, *, dtype: Dtype, dispatch: dict[str, int], combine: dict[str, int]
    ) -> Pending:
        """Queues both on the library's stream, dispatch first, after what the current stream holds now."""
        asynchronous = {
            "async_with_compute_stream": True,
            "allocate_on_comm_stream": True,
            "previous_event": deep_ep.ElasticBuffer.capture(),
        }
        received, *_ = self._buffer.dispatch(pack(inputs.payload), **self._cached(dispatch), **asynchronous)
        handle = self._handles[dispatch["num_sms"]]
        combined, _, done = self._buffer.combine(tokens, handle, num_sms=combine["num_sms"], **asynchronous)
        return PendingPair(unpack(received), combined, done)

    def exchange(self, inputs: Inputs) -> Operation:
        """Not supported: packing is part of the kernel."""
        raise NotImplementedError("the deepep_v2 backend has no exchange apart (exchanges is False)")

    def rows(self, *, knobs: dict[str, int]) -> torch.Tensor | None:
        """Within a source rank rows come in the order of an atomic counter; the handle keeps where each came from."""
        origin: torch.Tensor = self._handles[knobs["num_sms"]].recv_src_metadata[:, 0]
        return torch.argsort(origin)

    def library_default(self, op: Op) -> dict[str, int] | None:
        """``get_theoretical_num_sms``, which both operations take."""
        workload = self._context.workload
        return {"num_sms": int(self._buffer.get_theoretical_num_sms(workload.num_experts, workload.num_topk))}

    def layout(self) -> list[int]:
        """From what every rank received of this one in the last full dispatch. Collective, on the hosts."""
        ends = self._last.psum_num_recv_tokens_per_scaleup_rank.tolist()
        received = torch.tensor([end - begin for begin, end in zip([0, *ends], ends, strict=False)])
        everyone = [torch.empty_like(received) for _ in range(self._context.num_ranks)]
        dist.all_gather(everyone, received, group=self._context.host_group)
        return [int(counts[self._context.rank]) for counts in everyone]

    def _cached(self, knobs: dict[str, int]) -> dict[str, Any]:
        """The number of experts is passed too: without it the library computes SMs that nobody asked for."""
        return {
            "handle": self._handles[knobs["num_sms"]],
            "num_sms": knobs["num_sms"],
            "num_experts": self._context.workload.num_experts,
        }
