"""All-to-all dispatch and combine on one rank, with the meaning that DeepEP gives the two words."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
import torch.distributed as dist

from bench.backends.sessions.session import Context, Dispatched, Inputs, Payload, Pending
from bench.records import Dtype


class _Slice(NamedTuple):
    """One exchange of the tokens ``first`` to ``last``: rows to send, by destination, and where received rows belong.

    ``returns[token, rank]`` is the row of the packed tokens that went to that rank, one past the end if none did.
    """

    first: int
    last: int
    send_rows: torch.Tensor
    send_splits: list[int]
    recv_splits: list[int]
    recv_rows: torch.Tensor
    returns: torch.Tensor


class _Handle(NamedTuple):
    """The layout of one dispatch, cut into slices. ``num_tokens`` were sent, ``num_received`` came."""

    slices: list[_Slice]
    num_tokens: int
    num_received: int


class AllToAllSession:
    """Exchanges over ``context.device_group``; keeps one handle for each num_slices."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._handles: dict[int, _Handle] = {}
        self._sent: list[int] = []

    def dispatch(self, inputs: Inputs, *, dtype: Dtype, knobs: dict[str, int]) -> Dispatched:
        """Counts first (they size the receive buffer), then tokens, expert indices and weights."""
        experts_per_rank = self._context.workload.num_experts // self._context.num_ranks
        in_rank = _token_in_rank(inputs.topk_idx, experts_per_rank, self._context.num_ranks)
        handle = self._handles[knobs["num_slices"]] = self._plan(in_rank, knobs["num_slices"])
        in_flight = knobs["num_in_flight"]
        tokens, scales = self.cached_dispatch(inputs, dtype=dtype, knobs=knobs)
        idx = self._exchange(handle, inputs.topk_idx, in_flight) - self._context.rank * experts_per_rank
        weights = self._exchange(handle, inputs.topk_weights, in_flight)
        elsewhere = (idx < 0) | (idx >= experts_per_rank)
        idx, weights = idx.masked_fill(elsewhere, -1), weights.masked_fill(elsewhere, 0.0)
        counts = torch.bincount(idx[~elsewhere], minlength=experts_per_rank).tolist()
        return Dispatched((tokens, scales), idx, weights, counts)

    def cached_dispatch(self, inputs: Inputs, *, dtype: Dtype, knobs: dict[str, int]) -> Payload:
        """Pack, exchange and unpack the payload; FP8 scales are a second exchange."""
        handle, in_flight = self._handles[knobs["num_slices"]], knobs["num_in_flight"]
        tokens, scales = inputs.payload
        received = self._exchange(handle, tokens.view(torch.uint8), in_flight).view(tokens.dtype)
        return received, None if scales is None else self._exchange(handle, scales, in_flight)

    def combine(self, tokens: torch.Tensor, *, knobs: dict[str, int]) -> torch.Tensor:
        """The way back: each source sums what its tokens became, in FP32, and rounds once to BF16."""
        handle, in_flight = self._handles[knobs["num_slices"]], knobs["num_in_flight"]
        total = tokens.new_empty(handle.num_tokens, tokens.shape[1])
        works: list[tuple[_Slice, torch.Tensor, dist.Work]] = []
        for part in handle.slices:
            packed = tokens.index_select(0, part.recv_rows)
            works.append((part, *self._start(packed, sent=part.recv_splits, received=part.send_splits, spare=1)))
            if len(works) == in_flight:
                _sum(total, *works.pop(0))
        for rest in works:
            _sum(total, *rest)
        return total

    def start_pair(
        self, inputs: Inputs, tokens: torch.Tensor, *, dtype: Dtype, dispatch: dict[str, int], combine: dict[str, int]
    ) -> Pending:
        """Packing and summing are kernels of the current stream: there is nothing to overlap."""
        raise NotImplementedError("the alltoall backend does not overlap (AllToAll.overlaps is False)")

    def layout(self) -> list[int]:
        """Tokens for each rank, from the mask of the last dispatch."""
        return list(self._sent)

    def close(self) -> None:
        """Nothing to give back."""

    def _exchange(self, handle: _Handle, rows: torch.Tensor, in_flight: int) -> torch.Tensor:
        """Every received row in its place: by source rank, then by the source's token."""
        if len(handle.slices) == 1:
            part = handle.slices[0]
            packed = rows.index_select(0, part.send_rows)
            received, work = self._start(packed, sent=part.send_splits, received=part.recv_splits)
            work.wait()
            return received
        result = rows.new_empty(handle.num_received, rows.shape[1])
        works: list[tuple[_Slice, torch.Tensor, dist.Work]] = []
        for part in handle.slices:
            packed = rows.index_select(0, part.send_rows)
            works.append((part, *self._start(packed, sent=part.send_splits, received=part.recv_splits)))
            if len(works) == in_flight:
                _place(result, *works.pop(0))
        for rest in works:
            _place(result, *rest)
        return result

    def _start(
        self, packed: torch.Tensor, *, sent: list[int], received: list[int], spare: int = 0
    ) -> tuple[torch.Tensor, dist.Work]:
        """Begins an exchange; ``spare`` rows of zeros follow the received ones."""
        count = sum(received)
        out = packed.new_empty(count + spare, packed.shape[1])
        out[count:].zero_()
        work = dist.all_to_all_single(
            out[:count], packed, received, sent, group=self._context.device_group, async_op=True
        )
        return out, work

    def _plan(self, in_rank: torch.Tensor, num_slices: int) -> _Handle:
        """Cuts the tokens into equal slices; every rank learns how many rows it gets of each slice and source."""
        num_tokens, num_ranks = in_rank.shape
        edges = [num_tokens * index // num_slices for index in range(num_slices + 1)]
        rows = [
            [torch.nonzero(in_rank[low:high, rank])[:, 0] + low for rank in range(num_ranks)]
            for low, high in itertools.pairwise(edges)
        ]
        sent = torch.tensor([[len(part) for part in row] for row in rows], device=in_rank.device)
        self._sent = sent.sum(dim=0).tolist()
        received = torch.empty_like(sent.T.contiguous())
        dist.all_to_all_single(received, sent.T.contiguous(), group=self._context.device_group)
        per_source = received.tolist()
        first = [0]
        for counts in per_source:
            first.append(first[-1] + sum(counts))
        slices, done = [], list(first[:-1])
        for index in range(num_slices):
            counts = [per_source[source][index] for source in range(num_ranks)]
            places = [torch.arange(done[source], done[source] + counts[source]) for source in range(num_ranks)]
            done = [begin + count for begin, count in zip(done, counts, strict=True)]
            slices.append(
                _Slice(
                    first=edges[index],
                    last=edges[index + 1],
                    send_rows=torch.cat(rows[index]),
                    send_splits=[len(part) for part in rows[index]],
                    recv_splits=counts,
                    recv_rows=torch.cat(places).to(in_rank.device),
                    returns=_returns(in_rank[edges[index] : edges[index + 1]]),
                )
            )
        return _Handle(slices, num_tokens, first[-1])


def _token_in_rank(topk_idx: torch.Tensor, experts_per_rank: int, num_ranks: int) -> torch.Tensor:
    owner = torch.where(topk_idx >= 0, topk_idx // experts_per_rank, -1)
    return (owner[:, :, None] == torch.arange(num_ranks, device=topk_idx.device)).any(dim=1)


def _place(result: torch.Tensor, part: _Slice, received: torch.Tensor, work: dist.Work) -> None:
    work.wait()
    result.index_copy_(0, part.recv_rows, received)


def _returns(in_rank: torch.Tensor) -> torch.Tensor:
    """For each token and rank the row that comes back: rows are packed by rank, then by token."""
    by_rank = in_rank.T.reshape(-1)
    row = torch.where(by_rank, by_rank.cumsum(0) - 1, by_rank.sum())
    return row.view(in_rank.shape[1], in_rank.shape[0]).T.contiguous()


def _sum(total: torch.Tensor, part: _Slice, received: torch.Tensor, work: dist.Work) -> None:
    work.wait()
    total[part.first : part.last] = received[part.returns].sum(dim=1, dtype=torch.float32).to(torch.bfloat16)
