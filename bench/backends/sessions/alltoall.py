"""All-to-all on one rank: dispatch and combine in DeepEP's sense, made of torch.distributed exchanges."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
import torch.distributed as dist

from bench.backends.sessions.session import Context, Dispatched, Inputs, Operation, Payload, Pending
from bench.records import Dtype, Op


class _Slice(NamedTuple):
    """The exchange of tokens ``first`` to ``last`` (exclusive) of this rank.

    ``send_rows``: tokens to send, ordered by destination; ``send_splits`` and ``recv_splits``: how many rows go to and
    come from each rank. ``recv_rows``: the position of each received row among all that the dispatch receives.
    ``returns`` [tokens, ranks]: the packed row that a token became for a rank, one past the end where there is none.
    """

    first: int
    last: int
    send_rows: torch.Tensor
    send_splits: list[int]
    recv_splits: list[int]
    recv_rows: torch.Tensor
    returns: torch.Tensor


class _Handle(NamedTuple):
    """The layout of one dispatch, cut into slices: ``num_tokens`` tokens to send, ``num_received`` rows to receive."""

    slices: list[_Slice]
    num_tokens: int
    num_received: int


class AllToAllSession:
    """Exchanges rows over ``context.device_group``; keeps the last handle of each num_slices. See Session."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._handles: dict[int, _Handle] = {}
        self._sent: list[int] = []

    def dispatch(self, inputs: Inputs, *, dtype: Dtype, knobs: dict[str, int]) -> Dispatched:
        """Exchanges the counts, which size the receive buffers, then tokens, expert indices and weights."""
        experts_per_rank = self._context.workload.num_experts // self._context.num_ranks
        in_rank = _token_in_rank(inputs.topk_idx, experts_per_rank, self._context.num_ranks)
        handle = self._handles[knobs["num_slices"]] = self._plan(in_rank, knobs["num_slices"])
        in_flight = knobs["num_in_flight"]
        tokens, scales = self.cached_dispatch(inputs, dtype=dtype, knobs=knobs)
        idx = self._exchange(handle, inputs.topk_idx, in_flight) - self._context.rank * experts_per_rank
        weights = self._exchange(handle, inputs.topk_weights, in_flight)
        is_remote = (idx < 0) | (idx >= experts_per_rank)
        idx, weights = idx.masked_fill(is_remote, -1), weights.masked_fill(is_remote, 0.0)
        counts = torch.bincount(idx[~is_remote], minlength=experts_per_rank).tolist()
        return Dispatched((tokens, scales), idx, weights, counts)

    def cached_dispatch(self, inputs: Inputs, *, dtype: Dtype, knobs: dict[str, int]) -> Payload:
        """Packs, exchanges and unpacks the payload; FP8 scales take a second exchange."""
        handle, in_flight = self._handles[knobs["num_slices"]], knobs["num_in_flight"]
        tokens, scales = inputs.payload
        received = self._exchange(handle, tokens.view(torch.uint8), in_flight).view(tokens.dtype)
        return received, None if scales is None else self._exchange(handle, scales, in_flight)

    def combine(self, tokens: torch.Tensor, *, knobs: dict[str, int]) -> torch.Tensor:
        """Sends the rows back; each source sums those of a token in FP32 and rounds once to BF16."""
        handle, in_flight = self._handles[knobs["num_slices"]], knobs["num_in_flight"]
        total = tokens.new_empty(handle.num_tokens, tokens.shape[1])
        works: list[tuple[_Slice, torch.Tensor, dist.Work]] = []
        for part in handle.slices:
            packed = tokens.index_select(0, part.recv_rows)
            works.append((part, *self._start(packed, sent=part.recv_splits, received=part.send_splits, num_zeros=1)))
            if len(works) == in_flight:
                _sum(total, *works.pop(0))
        for work in works:
            _sum(total, *work)
        return total

    def start_pair(
        self, inputs: Inputs, tokens: torch.Tensor, *, dtype: Dtype, dispatch: dict[str, int], combine: dict[str, int]
    ) -> Pending:
        """Not supported: packing and summing are kernels of the current stream, where the GEMMs run."""
        raise NotImplementedError("the alltoall backend does not overlap (AllToAll.overlaps is False)")

    def exchange(self, inputs: Inputs) -> Operation:
        """The exchange of one slice. What arrives are the rows of a dispatch, which its own check compares."""
        part = self._handles[1].slices[0]
        packed = inputs.payload[0].view(torch.uint8).index_select(0, part.send_rows)

        def transfer() -> torch.Tensor:
            received, work = self._start(packed, sent=part.send_splits, received=part.recv_splits)
            work.wait()
            return received

        return transfer

    def rows(self, *, knobs: dict[str, int]) -> torch.Tensor | None:
        """None: rows arrive in the oracle's order."""
        return None

    def library_default(self, op: Op) -> dict[str, int] | None:
        """None: there is no library beneath."""
        return None

    def layout(self) -> list[int]:
        """See Session; counted when the last dispatch packed its tokens."""
        return list(self._sent)

    def _exchange(self, handle: _Handle, rows: torch.Tensor, in_flight: int) -> torch.Tensor:
        """Sends ``rows`` [tokens, columns] by the handle; the received rows, ordered by source rank, then by token."""
        if len(handle.slices) == 1:
            part = handle.slices[0]
            packed = rows.index_select(0, part.send_rows)
            received, exchange = self._start(packed, sent=part.send_splits, received=part.recv_splits)
            exchange.wait()
            return received
        result = rows.new_empty(handle.num_received, rows.shape[1])
        works: list[tuple[_Slice, torch.Tensor, dist.Work]] = []
        for part in handle.slices:
            packed = rows.index_select(0, part.send_rows)
            works.append((part, *self._start(packed, sent=part.send_splits, received=part.recv_splits)))
            if len(works) == in_flight:
                _place(result, *works.pop(0))
        for work in works:
            _place(result, *work)
        return result

    def _start(
        self, packed: torch.Tensor, *, sent: list[int], received: list[int], num_zeros: int = 0
    ) -> tuple[torch.Tensor, dist.Work]:
        """Starts an exchange. Its buffer ends with ``num_zeros`` rows of zeros after the received rows."""
        count = sum(received)
        out = packed.new_empty(count + num_zeros, packed.shape[1])
        out[count:].zero_()
        exchange = dist.all_to_all_single(
            out[:count], packed, received, sent, group=self._context.device_group, async_op=True
        )
        return out, exchange

    def _plan(self, in_rank: torch.Tensor, num_slices: int) -> _Handle:
        """Cuts the tokens into equal slices and exchanges how many rows each rank gets of every slice. Collective."""
        num_tokens, num_ranks = in_rank.shape
        edges = [num_tokens * index // num_slices for index in range(num_slices + 1)]
        send_rows = [
            [torch.nonzero(in_rank[low:high, rank])[:, 0] + low for rank in range(num_ranks)]
            for low, high in itertools.pairwise(edges)
        ]
        sent = torch.tensor([[len(rows) for rows in slice_rows] for slice_rows in send_rows], device=in_rank.device)
        self._sent = sent.sum(dim=0).tolist()
        recv_counts = self._exchange_counts(sent)
        source_starts = [0, *itertools.accumulate(sum(counts) for counts in recv_counts)]
        starts, slices = source_starts[:-1], []
        for index, (low, high) in enumerate(itertools.pairwise(edges)):
            recv_splits = [counts[index] for counts in recv_counts]
            ends = [start + count for start, count in zip(starts, recv_splits, strict=True)]
            recv_rows = torch.cat([torch.arange(start, end) for start, end in zip(starts, ends, strict=True)])
            slices.append(
                _Slice(
                    first=low,
                    last=high,
                    send_rows=torch.cat(send_rows[index]),
                    send_splits=[len(rows) for rows in send_rows[index]],
                    recv_splits=recv_splits,
                    recv_rows=recv_rows.to(in_rank.device),
                    returns=_returns(in_rank[low:high]),
                )
            )
            starts = ends
        return _Handle(slices, num_tokens, source_starts[-1])

    def _exchange_counts(self, sent: torch.Tensor) -> list[list[int]]:
        """How many rows each source sends to this rank in each slice, from ``sent`` [slices, ranks]."""
        by_rank = sent.T.contiguous()
        received = torch.empty_like(by_rank)
        dist.all_to_all_single(received, by_rank, group=self._context.device_group)
        counts: list[list[int]] = received.tolist()
        return counts


def _token_in_rank(topk_idx: torch.Tensor, experts_per_rank: int, num_ranks: int) -> torch.Tensor:
    owner = torch.where(topk_idx >= 0, topk_idx // experts_per_rank, -1)
    return (owner[:, :, None] == torch.arange(num_ranks, device=topk_idx.device)).any(dim=1)


def _place(result: torch.Tensor, part: _Slice, received: torch.Tensor, exchange: dist.Work) -> None:
    exchange.wait()
    result.index_copy_(0, part.recv_rows, received)


def _returns(in_rank: torch.Tensor) -> torch.Tensor:
    """The packed row of each token and rank [tokens, ranks], in the order of packing: by rank, then by token."""
    by_rank = in_rank.T.reshape(-1)
    rows = torch.where(by_rank, by_rank.cumsum(0) - 1, by_rank.sum())
    return rows.view(in_rank.shape[1], in_rank.shape[0]).T.contiguous()


def _sum(total: torch.Tensor, part: _Slice, received: torch.Tensor, exchange: dist.Work) -> None:
    exchange.wait()
    total[part.first : part.last] = received[part.returns].sum(dim=1, dtype=torch.float32).to(torch.bfloat16)
