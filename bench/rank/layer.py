"""One MoE layer on one rank as an engine runs it: full dispatch, expert GEMMs of the received tokens, combine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as nnf

from bench.backends import split_pair
from bench.backends.sessions.session import Context, Dispatched, Inputs, Payload, Session
from bench.rank import scaled
from bench.rank.oracle import Oracle
from bench.rank.scaled import Scaled
from bench.rank.timing import Mark, Operation
from bench.records import Dtype, Op, Point
from bench.workload import Workload

_SCALE_COLUMNS = 128
_PRIME = 1_000_003
_UP, _DOWN = 0, 1


class Saved(NamedTuple):
    """What a backward pass needs of the forward pass; rows are ordered by expert.

    ``rows`` [pairs]: the received row of each pair of a token and a local expert; ``weights`` [pairs, 1]: its weight;
    ``ends`` [experts]: where the pairs of each expert end. ``tokens`` [pairs, hidden], ``inner`` [pairs, 2 * width] and
    ``active`` [pairs, width]: inputs of the two GEMMs, and the output of the first; tokens as the first GEMM took them.
    """

    rows: torch.Tensor
    weights: torch.Tensor
    ends: torch.Tensor
    tokens: torch.Tensor | Scaled
    inner: torch.Tensor
    active: torch.Tensor


class Experts:
    """The local experts: gate and up in one grouped GEMM, SiLU, down in another, with random weights.

    Weights [experts, hidden, 2 * width] and [experts, width, hidden]. FP8 tokens are multiplied in FP8 where that can
    run, with one scale for each row and each column instead of one for each 128 elements; else they become BF16.
    Gradients are BF16, and so are the GEMMs of the backward pass.
    """

    def __init__(self, workload: Workload, num_local: int, *, rank: int, device: torch.device) -> None:
        """``rank``: each rank's experts have weights of their own, so that a token on the wrong rank shows."""
        hidden, width = workload.hidden, workload.moe_intermediate
        generator = torch.Generator(device).manual_seed(workload.seed + _PRIME * rank)

        def draw(rows: int, columns: int) -> torch.Tensor:
            weights = torch.empty(num_local, rows, columns, device=device, dtype=torch.bfloat16)
            return weights.normal_(std=rows**-0.5, generator=generator)

        self._up, self._down = draw(hidden, 2 * width), draw(width, hidden)
        self._multiply = scaled.find_multiply(device)
        self._in_fp8: tuple[Scaled, Scaled] | None = None

    def dtype(self, tokens: Dtype) -> Dtype:
        """What the GEMMs of the forward pass multiply where these tokens arrive."""
        return Dtype.BF16 if self._multiply is None else tokens

    def forward(self, received: Dispatched) -> tuple[torch.Tensor, Saved]:
        """The sum over its local experts of every received row, weighted [rows, hidden], and what backward needs."""
        counts = received.tokens_per_expert
        assert counts is not None
        rows, weights, ends = _by_expert(received, sum(counts), len(self._up))
        tokens = self._take(received.payload, rows)
        inner = self._project(tokens, _UP, ends, counts)
        gate, up = inner.chunk(2, dim=1)
        active = nnf.silu(gate) * up
        factor = scaled.scale_rows(active) if isinstance(tokens, Scaled) else active
        outputs = self._project(factor, _DOWN, ends, counts)
        saved = Saved(rows, weights, ends, tokens, inner, active)
        return _gather_back(outputs * weights, rows, len(received.topk_idx)), saved

    def _take(self, payload: Payload, rows: torch.Tensor) -> torch.Tensor | Scaled:
        """The received rows of all pairs, in FP8 where they are multiplied in it."""
        tokens = _in_bf16(payload)
        if payload[1] is None or self._multiply is None:
            return tokens.index_select(0, rows)
        return scaled.scale_rows(tokens).rows(rows)

    def _project(
        self, left: torch.Tensor | Scaled, projection: int, ends: torch.Tensor, counts: Sequence[int]
    ) -> torch.Tensor:
        """The rows of each expert by its weights of one projection, as rows of BF16."""
        if not isinstance(left, Scaled):
            return _grouped(left, (self._up, self._down)[projection], ends)
        assert self._multiply is not None
        self._in_fp8 = self._in_fp8 or (scaled.scale_columns(self._up), scaled.scale_columns(self._down))
        return self._multiply(left, self._in_fp8[projection], ends, counts)

    def backward(self, gradients: torch.Tensor, saved: Saved) -> torch.Tensor:
        """The gradients of the received rows by those of the outputs, both [rows, hidden].

        Those of the weights are computed and dropped.
        """
        outer = gradients.index_select(0, saved.rows) * saved.weights
        _grouped(saved.active.t(), outer, saved.ends)
        active = _grouped(outer, self._down.transpose(1, 2), saved.ends)
        gate, up = saved.inner.chunk(2, dim=1)
        share = torch.sigmoid(gate)
        inner = torch.cat([active * up * share * (1 + gate * (1 - share)), active * gate * share], dim=1)
        tokens = saved.tokens.in_bf16() if isinstance(saved.tokens, Scaled) else saved.tokens
        _grouped(tokens.t(), inner, saved.ends)
        return _gather_back(_grouped(inner, self._up.transpose(1, 2), saved.ends), saved.rows, len(gradients))


class Layers:
    """The layers of a rank: the experts, which all share, and what they must return."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._experts: Experts | None = None
        self._expected: dict[Dtype, torch.Tensor] = {}

    def operation(self, point: Point, session: Session, oracle: Oracle, gradients: Inputs) -> Operation:
        """A layer, or a layer with its backward pass, for the pair of configs of the point. Collective at first use."""
        self._expect(oracle)
        layer = _Layer(session, self.experts(), *split_pair(point))
        inputs, dtype = oracle.inputs, oracle.dtype
        if point.op is Op.LAYER:
            return lambda mark: layer.forward(inputs, dtype, mark)[0]
        return lambda mark: layer.train(inputs, dtype, gradients, mark)

    def experts(self) -> Experts:
        """The experts, made at first use."""
        if self._experts is None:
            workload = self._context.workload
            num_local = workload.num_experts // self._context.num_ranks
            self._experts = Experts(workload, num_local, rank=self._context.rank, device=self._context.device)
        return self._experts

    def expected(self, oracle: Oracle) -> torch.Tensor:
        """What a layer of ``operation`` returns [tokens, hidden]."""
        return self._expected[oracle.dtype]

    def _expect(self, oracle: Oracle) -> None:
        """Computes what each rank's experts make of the tokens that it must receive, and exchanges it."""
        if oracle.dtype not in self._expected:
            own, _ = self.experts().forward(oracle.expected)
            most = max(sum(column) for column in zip(*oracle.tokens, strict=True))
            padded = own.new_zeros(most, own.shape[1])
            padded[: len(own)] = own
            everyone = own.new_empty(self._context.num_ranks * most, own.shape[1])
            dist.all_gather_into_tensor(everyone, padded, group=self._context.device_group)
            parts = everyone.view(self._context.num_ranks, most, -1)
            self._expected[oracle.dtype] = oracle.sum_of(lambda rank: parts[rank])


class _Layer(NamedTuple):
    """A layer with one pair of configs."""

    session: Session
    experts: Experts
    dispatch: dict[str, int]
    combine: dict[str, int]

    def forward(self, inputs: Inputs, dtype: Dtype, mark: Mark) -> tuple[torch.Tensor, Saved]:
        """The output of the layer [tokens, hidden], and what backward needs; marks the end of the GEMMs."""
        received = self.session.dispatch(inputs, dtype=dtype, knobs=self.dispatch)
        outputs, saved = self.experts.forward(received)
        mark()
        return self.session.combine(outputs, knobs=self.combine), saved

    def train(self, inputs: Inputs, dtype: Dtype, gradients: Inputs, mark: Mark) -> torch.Tensor:
        """Forward, then backward: a cached dispatch of the gradients, the GEMMs of both passes, a combine.

        Returns the output of the forward pass.
        """
        output, saved = self.forward(inputs, dtype, mark)
        received, _ = self.session.cached_dispatch(gradients, dtype=Dtype.BF16, knobs=self.dispatch)
        self.session.combine(self.experts.backward(received, saved), knobs=self.combine)
        return output


def _by_expert(received: Dispatched, count: int, num_local: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, weights and ends of Saved, for ``count`` pairs."""
    idx = received.topk_idx.to(torch.int64)
    expert = torch.where((idx >= 0) & (idx < num_local), idx, num_local).view(-1)
    ordered, order = torch.sort(expert, stable=True)
    order = order[:count]
    experts = torch.arange(1, num_local + 1, device=idx.device)
    ends = torch.searchsorted(ordered, experts).to(torch.int32)
    weights = received.topk_weights.reshape(-1).index_select(0, order).to(torch.bfloat16)
    return order // idx.shape[1], weights[:, None], ends


def _in_bf16(payload: Payload) -> torch.Tensor:
    tokens, scales = payload
    if scales is None:
        return tokens
    blocks = tokens.to(torch.bfloat16).view(len(tokens), -1, _SCALE_COLUMNS)
    return (blocks * scales[:, :, None].to(torch.bfloat16)).view(len(tokens), -1)


def _gather_back(pairs: torch.Tensor, rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    return pairs.new_zeros(num_rows, pairs.shape[1]).index_add_(0, rows, pairs)


def _grouped(left: torch.Tensor, right: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """One GEMM for each expert: its rows by its weights, or its columns by its rows for the gradients of weights."""
    multiply = getattr(nnf, "grouped_mm", None) or torch._grouped_mm  # noqa: SLF001  (public since torch 2.10)
    product: torch.Tensor = multiply(left, right, offs=ends)
    return product
