"""The expected output of dispatch and combine, computed from the seed without any library that is measured.

Every element of every payload is drawn independently: a token of the wrong source, a wrong token of the right source
or a shifted column does not compare equal. Received tokens must be equal bit for bit. A combined token must lie within
one BF16 rounding of the FP32 sum: |combined - sum| <= 2^-8 |sum| + 1e-5, where the constant allows for other orders of
the FP32 additions. A plain collective that rounds k partial sums may err by k 2^-8 of the sum of absolute values.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch

from bench import workload as layout
from bench.backends.sessions.session import Dispatched, Inputs, Payload
from bench.records import Dtype
from bench.workload import TopK, Workload

_FP8_MAX = 448.0
_SCALE_COLUMNS = 128
_BF16_HALF_ULP = 2.0**-8
_FP32_SLACK = 1e-5
_LAYER_ERROR = 2.0**-5


def edge_routings(workload: Workload, *, num_ranks: int) -> dict[str, list[TopK]]:
    """Small routings at the edges of dispatch kernels, by name; each is one [tokens, top-k] array per rank.

    ``one_token``: a single token on each rank. ``empty_source``: the first rank sends no token. ``empty_destination``:
    no token goes to the last rank. ``all_to_one``: every token goes to the first rank only. ``odd``: numbers of tokens
    that no tile divides, with every fifth choice dropped (-1).
    """
    experts, topk = workload.num_experts, workload.num_topk
    local = experts // num_ranks
    narrow = min(topk, local)

    def draw(rank: int, tokens: int, low: int, high: int, count: int) -> TopK:
        generator = np.random.default_rng([workload.seed, 99, rank])
        picks = np.argsort(generator.random((tokens, high - low)), axis=1)[:, :count] + low
        result = np.full((tokens, topk), -1, dtype=np.int64)
        result[:, : picks.shape[1]] = picks
        return result

    ranks = range(num_ranks)
    odd = [draw(rank, 61 + 6 * rank, 0, experts, topk) for rank in ranks]
    for array in odd:
        array.reshape(-1)[::5] = -1
    return {
        "one_token": [draw(rank, 1, 0, experts, topk) for rank in ranks],
        "empty_source": [draw(rank, 64 if rank else 0, 0, experts, topk) for rank in ranks],
        "empty_destination": [draw(rank, 64, 0, experts - local, topk) for rank in ranks],
        "all_to_one": [draw(rank, 64, 0, local, narrow) for rank in ranks],
        "odd": odd,
    }


class Oracle:
    """Inputs and expected outputs of one dispatch and its combine on one rank."""

    def __init__(
        self, workload: Workload, routings: list[TopK], *, rank: int, dtype: Dtype, device: torch.device
    ) -> None:
        """``routings``: the experts of each rank's tokens, one [tokens, top-k] array per rank.

        Payloads are drawn on ``device``. Every rank draws those of the others too, so all devices must be of one kind.
        """
        self.workload, self.rank, self.dtype, self.device = workload, rank, dtype, device
        self.num_ranks = len(routings)
        self._routings = [torch.from_numpy(array).to(device) for array in routings]
        self._in_rank = [
            torch.from_numpy(
                layout.token_in_rank(array, num_experts=workload.num_experts, num_ranks=self.num_ranks)
            ).to(device)
            for array in routings
        ]
        # for each source, how many tokens go to each destination
        self.tokens = [[int(count) for count in mask.sum(dim=0).tolist()] for mask in self._in_rank]

    @cached_property
    def inputs(self) -> Inputs:
        """What this rank sends."""
        return self._inputs_of(self.rank)

    @cached_property
    def returned(self) -> torch.Tensor:
        """What this rank's experts return: fresh noise in BF16 [received tokens, hidden]."""
        return self._returned_by(self.rank)

    @cached_property
    def expected(self) -> Dispatched:
        """What this rank must receive."""
        local = self.workload.num_experts // self.num_ranks
        parts = []
        for source, mask in enumerate(self._in_rank):
            payload, idx, weights = self._inputs_of(source)
            rows = mask[:, self.rank]
            parts.append((*_rows(payload, rows), idx[rows] - self.rank * local, weights[rows]))
        tokens = torch.cat([part[0] for part in parts])
        scales = torch.cat([part[1] for part in parts if part[1] is not None]) if self.dtype is Dtype.FP8 else None
        idx, weights = torch.cat([part[2] for part in parts]), torch.cat([part[3] for part in parts])
        is_remote = (idx < 0) | (idx >= local)
        counts = torch.bincount(idx[~is_remote], minlength=local).tolist()
        return Dispatched((tokens, scales), idx.masked_fill(is_remote, -1), weights.masked_fill(is_remote, 0.0), counts)

    @cached_property
    def expected_sums(self) -> torch.Tensor:
        """For each token of this rank the FP32 sum over the ranks that it went to [tokens, hidden]."""
        return self.sum_of(self._returned_by)

    @cached_property
    def expected_sizes(self) -> torch.Tensor:
        """The same of the absolute values, which bounds every partial sum."""
        return self.sum_of(lambda rank: self._returned_by(rank).abs())

    def sum_of(self, returned_by: Callable[[int], torch.Tensor]) -> torch.Tensor:
        """For each token of this rank the FP32 sum of the rows [received tokens, hidden] that other ranks return."""
        mask = self._in_rank[self.rank]
        total = torch.zeros(len(mask), self.workload.hidden, dtype=torch.float32, device=self.device)
        for destination in range(self.num_ranks):
            first = sum(self.tokens[source][destination] for source in range(self.rank))
            last = first + self.tokens[self.rank][destination]
            rows = mask[:, destination].nonzero()[:, 0]
            total.index_add_(0, rows, returned_by(destination)[first:last].float())
        return total

    def check_dispatch(self, received: Dispatched) -> str | None:
        """What differs from the expected dispatch, None where nothing does."""
        mismatch = self.check_payload(received.payload)
        if mismatch:
            return mismatch
        expected = self.expected
        own, wanted = (_local_choices(each, len(expected.tokens_per_expert or ())) for each in (received, expected))
        for name, tensor, expected_tensor in zip(("expert indices", "expert weights"), own, wanted, strict=True):
            if not torch.equal(tensor, expected_tensor):
                return f"{name} of received tokens differ"
        if received.tokens_per_expert not in (None, expected.tokens_per_expert):
            return f"tokens per expert are {received.tokens_per_expert}, expected {expected.tokens_per_expert}"
        return None

    def check_payload(self, received: Payload) -> str | None:
        """Which received tokens or scales are not bit for bit those that were sent, None where all are."""
        for name, rows, expected in zip(("token", "scale"), received, self.expected.payload, strict=True):
            if rows is None or expected is None:
                if rows is not expected:
                    return f"{name}s are missing"
                continue
            if rows.shape != expected.shape:
                return f"{name}s have shape {tuple(rows.shape)}, expected {tuple(expected.shape)}"
            if not torch.equal(rows.view(torch.uint8), expected.view(torch.uint8)):
                wrong = (rows.view(torch.uint8) != expected.view(torch.uint8)).any(dim=1).nonzero()[:, 0]
                return f"{len(wrong)} of {len(rows)} received {name}s are wrong, first {self._origin(int(wrong[0]))}"
        return None

    def check_combine(self, combined: torch.Tensor, *, roundings: int = 1) -> str | None:
        """Which combined tokens lie further from the FP32 sum than BF16 rounding explains, None where none does.

        ``roundings``: how many there are on the way. One rounds the sum; each of several rounds a partial sum.
        """
        total = self.expected_sums
        if combined.shape != total.shape or combined.dtype is not torch.bfloat16:
            return (
                f"combined tensor is {combined.dtype} {tuple(combined.shape)}, expected bfloat16 {tuple(total.shape)}"
            )
        size = total.abs() if roundings == 1 else roundings * self.expected_sizes
        outside = (combined.float() - total).abs() > _BF16_HALF_ULP * size + _FP32_SLACK
        outside |= ~torch.isfinite(combined)
        if bool(outside.any()):
            wrong = outside.any(dim=1).nonzero()[:, 0]
            return f"{len(wrong)} of {len(combined)} combined tokens are wrong, first token {int(wrong[0])}"
        return None

    def check_layer(self, output: torch.Tensor, expected: torch.Tensor) -> str | None:
        """Which rows of a layer's output differ from ``expected`` [tokens, hidden] by more than BF16 sums explain.

        Sums of products depend on the order of rows, so a row is compared by its norm.
        """
        if output.shape != expected.shape:
            return f"the layer's output has shape {tuple(output.shape)}, expected {tuple(expected.shape)}"
        errors, sizes = (output.float() - expected).norm(dim=1), expected.norm(dim=1)
        outside = ~(errors <= _LAYER_ERROR * sizes + _FP32_SLACK)
        if bool(outside.any()):
            wrong = outside.nonzero()[:, 0]
            return f"{len(wrong)} of {len(output)} outputs of the layer are wrong, first token {int(wrong[0])}"
        return None

    def _inputs_of(self, rank: int) -> Inputs:
        generator = self._generator(rank)
        idx = self._routings[rank]
        tokens = torch.randn(
            len(idx), self.workload.hidden, generator=generator, device=self.device, dtype=torch.float32
        ).to(torch.bfloat16)
        weights = torch.rand(idx.shape, generator=generator, device=self.device, dtype=torch.float32)
        return Inputs(quantise(tokens) if self.dtype is Dtype.FP8 else (tokens, None), idx, weights)

    def _returned_by(self, rank: int) -> torch.Tensor:
        received = sum(row[rank] for row in self.tokens)
        return torch.randn(
            received,
            self.workload.hidden,
            generator=self._generator(1000 + rank),
            device=self.device,
            dtype=torch.float32,
        ).to(torch.bfloat16)

    def _generator(self, stream: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.workload.seed * 1_000_003 + stream)

    def _origin(self, row: int) -> str:
        for source, mask in enumerate(self._in_rank):
            tokens = mask[:, self.rank].nonzero()[:, 0]
            if row < len(tokens):
                return f"token {int(tokens[row])} of rank {source}"
            row -= len(tokens)
        return f"row {row} past the end"


def quantise(tokens: torch.Tensor) -> Payload:
    """FP8 e4m3 [tokens, hidden] and FP32 scales [tokens, hidden / 128]: amax / 448, as DeepEP's tests do."""
    blocks = tokens.float().view(len(tokens), tokens.shape[1] // _SCALE_COLUMNS, _SCALE_COLUMNS)
    scales = blocks.abs().amax(dim=2).clamp(1e-4) / _FP8_MAX
    return (blocks / scales[:, :, None]).to(torch.float8_e4m3fn).view(tokens.shape), scales


def _local_choices(received: Dispatched, num_local: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices and weights of a row's local experts, ascending; -1 and 0 for the others, which come first."""
    idx = received.topk_idx.to(torch.int64)
    is_remote = (idx < 0) | (idx >= num_local)
    ordered, order = torch.sort(idx.masked_fill(is_remote, -1), dim=1, stable=True)
    return ordered, received.topk_weights.masked_fill(is_remote, 0.0).gather(1, order)


def _rows(payload: Payload, mask: torch.Tensor) -> Payload:
    tokens, scales = payload
    rows = tokens.view(torch.uint8)[mask].view(tokens.dtype)
    return rows, None if scales is None else scales[mask]
