"""One MoE layer's expert GEMMs, to measure communication beside real computation."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bench.workload import Workload


class ExpertGemms:
    """Gate-and-up and down projections of every local expert as two batched BF16 products, on balanced batches.

    Each expert gets ceil(total / experts) rows, so that the operations are those of the received tokens:
    ``tokens_per_expert`` counts a token once for each of its experts here. Shapes: [experts, rows, hidden] x
    [experts, hidden, 2 * moe_intermediate], then [experts, rows, moe_intermediate] x [experts, moe_intermediate,
    hidden]; 6 * rows * hidden * moe_intermediate floating-point operations for each expert.
    """

    def __init__(self, workload: Workload, tokens_per_expert: Sequence[int], *, device: torch.device) -> None:
        experts, width = len(tokens_per_expert), workload.moe_intermediate
        rows = max(1, -(-sum(tokens_per_expert) // experts))

        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device=device, dtype=torch.bfloat16)

        self._tokens = noise(experts, rows, workload.hidden)
        self._up = noise(experts, workload.hidden, 2 * width)
        self._down = noise(experts, width, workload.hidden)
        self._inner = self._tokens.new_empty(experts, rows, 2 * width)
        self._out = torch.empty_like(self._tokens)
        self._width = width

    def run(self) -> None:
        """Queues the two products on the current stream."""
        torch.bmm(self._tokens, self._up, out=self._inner)
        torch.bmm(self._inner[:, :, : self._width], self._down, out=self._out)
