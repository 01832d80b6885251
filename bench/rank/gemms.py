"""The expert GEMMs of one MoE layer, isolated or overlapped with communication."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bench.workload import Workload


class ExpertGemms:
    """The gate-and-up and the down projection of every local expert, as two batched GEMMs in BF16.

    The batches are balanced: each expert gets ceil(total / experts) rows, which keeps the floating-point operations of
    the received tokens. Shapes: [experts, rows, hidden] x [experts, hidden, 2 * moe_intermediate], then [experts, rows,
    moe_intermediate] x [experts, moe_intermediate, hidden]: 6 * rows * hidden * moe_intermediate floating-point
    operations per expert. The activation between them is left out.
    """

    def __init__(self, workload: Workload, tokens_per_expert: Sequence[int], *, device: torch.device) -> None:
        """``tokens_per_expert``: for each local expert; a token counts once for each of its experts on this rank."""
        experts, width = len(tokens_per_expert), workload.moe_intermediate
        rows = max(1, -(-sum(tokens_per_expert) // experts))

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device=device, dtype=torch.bfloat16)

        self._tokens = draw(experts, rows, workload.hidden)
        self._up = draw(experts, workload.hidden, 2 * width)
        self._down = draw(experts, width, workload.hidden)
        self._inner = self._tokens.new_empty(experts, rows, 2 * width)
        self._out = torch.empty_like(self._tokens)
        self._width = width

    def run(self) -> None:
        """Queues the two GEMMs on the current stream."""
        torch.bmm(self._tokens, self._up, out=self._inner)
        torch.bmm(self._inner[:, :, : self._width], self._down, out=self._out)
