"""The expert GEMMs of one MoE layer, isolated or together with communication."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bench.rank import scaled
from bench.rank.scaled import Multiply, Scaled
from bench.records import Dtype
from bench.workload import Workload


class ExpertGemms:
    """The gate-and-up and the down projection of every local expert: two GEMMs, each of all experts.

    The experts are balanced: each gets ceil(total / experts) rows, which keeps the floating-point operations of the
    received tokens. Shapes: [experts, rows, hidden] x [experts, hidden, 2 * moe_intermediate], then [experts, rows,
    moe_intermediate] x [experts, moe_intermediate, hidden]: 6 * rows * hidden * moe_intermediate floating-point
    operations per expert. The activation between them is left out, in FP8 with its conversion to FP8.
    """

    def __init__(
        self, workload: Workload, tokens_per_expert: Sequence[int], *, dtype: Dtype, device: torch.device
    ) -> None:
        """``tokens_per_expert``: for each local expert; a token counts once for each of its experts on this rank.

        ``dtype``: of the factors; FP8 becomes BF16 where FP8 GEMMs cannot run.
        """
        experts, width = len(tokens_per_expert), workload.moe_intermediate
        rows = max(1, -(-sum(tokens_per_expert) // experts))
        multiply = scaled.find_multiply(device) if dtype is Dtype.FP8 else None
        self.dtype = Dtype.BF16 if multiply is None else Dtype.FP8
        shapes = (experts, rows, workload.hidden, width)
        self._gemms = _Bf16(*shapes, device=device) if multiply is None else _Fp8(multiply, *shapes, device=device)

    def run(self) -> None:
        """Queues the two GEMMs on the current stream."""
        self._gemms.run()


class _Bf16:
    """Two batched GEMMs."""

    def __init__(self, experts: int, rows: int, hidden: int, width: int, *, device: torch.device) -> None:
        self._tokens = _noise(experts, rows, hidden, device=device)
        self._up = _noise(experts, hidden, 2 * width, device=device)
        self._down = _noise(experts, width, hidden, device=device)
        self._inner = self._tokens.new_empty(experts, rows, 2 * width)
        self._out = torch.empty_like(self._tokens)
        self._width = width

    def run(self) -> None:
        """Queues them on the current stream."""
        torch.bmm(self._tokens, self._up, out=self._inner)
        torch.bmm(self._inner[:, :, : self._width], self._down, out=self._out)


class _Fp8:
    """Two grouped GEMMs with BF16 products; the second multiplies numbers of its own."""

    def __init__(
        self, multiply: Multiply, experts: int, rows: int, hidden: int, width: int, *, device: torch.device
    ) -> None:
        self._multiply = multiply
        self._tokens = scaled.scale_rows(_noise(experts * rows, hidden, device=device))
        self._inner = scaled.scale_rows(_noise(experts * rows, width, device=device))
        self._up, self._down = (
            _right_factors(experts, *shape, device=device) for shape in ((hidden, 2 * width), (width, hidden))
        )
        self._counts = [rows] * experts
        self._ends = torch.arange(rows, experts * rows + 1, rows, device=device, dtype=torch.int32)

    def run(self) -> None:
        """Queues them on the current stream."""
        self._multiply(self._tokens, self._up, self._ends, self._counts)
        self._multiply(self._inner, self._down, self._ends, self._counts)


def _right_factors(experts: int, inner: int, columns: int, *, device: torch.device) -> Scaled:
    values = torch.empty(experts, columns, inner, device=device, dtype=torch.float8_e4m3fn)
    for expert in range(experts):  # one at a time, to save memory
        values[expert] = _noise(columns, inner, device=device).to(values.dtype)
    return Scaled(values.transpose(1, 2), torch.ones(experts, columns, device=device))


def _noise(*shape: int, device: torch.device) -> torch.Tensor:
    return torch.randn(shape, device=device, dtype=torch.bfloat16)
