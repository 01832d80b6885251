"""Bytes between two GPUs, and between all of them, without any library's dispatch: what the links themselves give."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist

from bench import protocol
from bench.backends.sessions.session import Context
from bench.rank.timing import Mark, Operation

_PRIME = 1_000_003


class Transfer(NamedTuple):
    """What is timed on this rank, and a look afterwards at the bytes that it is responsible for.

    ``alone``: only one rank has anything to time, and the others must leave their GPUs idle meanwhile. Their
    ``operation`` is None.
    """

    operation: Operation | None
    wrong: Callable[[], str | None]
    alone: bool = False


class Links:
    """One rank's end. ``devices`` is the GPU of each rank."""

    def __init__(self, context: Context, devices: list[int]) -> None:
        self._context, self._devices = context, devices

    def transfer(self, ask: protocol.Copy | protocol.Exchange) -> Transfer:
        """Ready to be timed. Collective."""
        if isinstance(ask, protocol.Exchange):
            return self._exchange(ask)
        return self._by_engine(ask) if ask.engine == "copy" else self._by_kernel(ask)

    def _by_engine(self, ask: protocol.Copy) -> Transfer:
        """The source's process writes into the target's memory: a peer copy, which no SM takes part in.

        A kernel of the target's own process that waits for its peers would share the target GPU with this process by
        time slices: seen to cut the copy to a third of its speed.
        """
        if self._context.rank != ask.source:
            return Transfer(None, lambda: None, alone=True)
        sent = self._noise(ask.num_bytes, stream=ask.source)
        received = torch.empty_like(sent, device=torch.device("cuda", self._devices[ask.target]))

        def write(_: Mark) -> None:
            received.copy_(sent, non_blocking=True)

        return Transfer(write, lambda: _difference(received.to(sent.device), sent, f"rank {ask.source}"), alone=True)

    def _by_kernel(self, ask: protocol.Copy) -> Transfer:
        """A send and a receive, which on GPUs are kernels that read and write over the link."""
        group, rank = self._context.device_group, self._context.rank
        if rank not in (ask.source, ask.target):
            return Transfer(lambda _: None, lambda: None)
        sent = self._noise(ask.num_bytes, stream=ask.source)
        if rank == ask.source:

            def send(_: Mark) -> None:
                _done(dist.P2POp(dist.isend, sent, ask.target, group))

            return Transfer(send, lambda: None)
        received = torch.empty_like(sent)

        def receive(_: Mark) -> None:
            _done(dist.P2POp(dist.irecv, received, ask.source, group))

        return Transfer(receive, lambda: _difference(received, sent, f"rank {ask.source}"))

    def _exchange(self, ask: protocol.Exchange) -> Transfer:
        ranks, rank = self._context.num_ranks, self._context.rank
        part = ask.num_bytes // ranks
        sent = torch.cat([self._noise(part, stream=rank * ranks + target) for target in range(ranks)])
        received = torch.empty_like(sent)

        def exchange(_: Mark) -> None:
            dist.all_to_all_single(received, sent, group=self._context.device_group)

        def wrong() -> str | None:
            for source, got in enumerate(torch.split(received, part)):
                found = _difference(got, self._noise(part, stream=source * ranks + rank), f"rank {source}")
                if found:
                    return found
            return None

        return Transfer(exchange, wrong)

    def _noise(self, num_bytes: int, *, stream: int) -> torch.Tensor:
        """Bytes that every rank can draw again."""
        device = self._context.device
        generator = torch.Generator(device).manual_seed(self._context.workload.seed * _PRIME + stream)
        return torch.randint(0, 256, (num_bytes,), generator=generator, device=device, dtype=torch.uint8)


def _done(operation: dist.P2POp) -> None:
    for work in dist.batch_isend_irecv([operation]):
        work.wait()


def _difference(got: torch.Tensor, wanted: torch.Tensor, source: str) -> str | None:
    if torch.equal(got, wanted):
        return None
    return f"{int((got != wanted).sum())} of {len(got)} bytes from {source} are wrong"
