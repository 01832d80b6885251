"""Copies between two GPUs and exchanges between all of them, to measure the links without any library."""

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
    """What this rank times, and what it checks afterwards.

    ``operation`` is None where this rank has nothing to time and must leave its GPU idle. ``check`` compares the bytes
    that arrived and returns what differs, None where nothing does. ``collective``: all ranks start together.
    """

    operation: Operation | None
    check: Callable[[], str | None]
    collective: bool = True


class Links:
    """One rank's end of every transfer. ``devices``: the index of each rank's GPU."""

    def __init__(self, context: Context, devices: list[int]) -> None:
        self._context, self._devices = context, devices

    def prepare(self, request: protocol.Copy | protocol.Exchange) -> Transfer:
        """A transfer with its buffers allocated and filled. Collective: every rank calls it with the same request."""
        if isinstance(request, protocol.Exchange):
            return self._exchange(request)
        return self._copy_by_engine(request) if request.engine == "copy" else self._copy_by_kernel(request)

    def _copy_by_engine(self, request: protocol.Copy) -> Transfer:
        """A peer copy: the process of the source writes into the target's memory, without SMs.

        The process of the target stays idle. With a kernel of its own, for instance one that waits for its peers, both
        processes would take turns on the target GPU, which cut the speed of the copy to a third.
        """
        if self._context.rank != request.source:
            return Transfer(None, lambda: None, collective=False)
        sent = self._noise(request.num_bytes, stream=request.source)
        received = torch.empty_like(sent, device=torch.device("cuda", self._devices[request.target]))

        def write(_: Mark) -> None:
            received.copy_(sent, non_blocking=True)

        return Transfer(
            write, lambda: _compare(received.to(sent.device), sent, f"rank {request.source}"), collective=False
        )

    def _copy_by_kernel(self, request: protocol.Copy) -> Transfer:
        """A send and a receive of the device group: on GPUs, kernels that read and write over the link."""
        group, rank = self._context.device_group, self._context.rank
        if rank not in (request.source, request.target):
            return Transfer(lambda _: None, lambda: None)
        sent = self._noise(request.num_bytes, stream=request.source)
        if rank == request.source:

            def send(_: Mark) -> None:
                _run_and_wait(dist.P2POp(dist.isend, sent, request.target, group))

            return Transfer(send, lambda: None)
        received = torch.empty_like(sent)

        def receive(_: Mark) -> None:
            _run_and_wait(dist.P2POp(dist.irecv, received, request.source, group))

        return Transfer(receive, lambda: _compare(received, sent, f"rank {request.source}"))

    def _exchange(self, request: protocol.Exchange) -> Transfer:
        ranks, rank = self._context.num_ranks, self._context.rank
        part = request.num_bytes // ranks
        sent = torch.cat([self._noise(part, stream=rank * ranks + target) for target in range(ranks)])
        received = torch.empty_like(sent)

        def exchange(_: Mark) -> None:
            dist.all_to_all_single(received, sent, group=self._context.device_group)

        def check() -> str | None:
            for source, data in enumerate(torch.split(received, part)):
                mismatch = _compare(data, self._noise(part, stream=source * ranks + rank), f"rank {source}")
                if mismatch:
                    return mismatch
            return None

        return Transfer(exchange, check)

    def _noise(self, num_bytes: int, *, stream: int) -> torch.Tensor:
        """Random bytes that every rank can draw again [num_bytes]."""
        device = self._context.device
        generator = torch.Generator(device).manual_seed(self._context.workload.seed * _PRIME + stream)
        return torch.randint(0, 256, (num_bytes,), generator=generator, device=device, dtype=torch.uint8)


def _run_and_wait(operation: dist.P2POp) -> None:
    for work in dist.batch_isend_irecv([operation]):
        work.wait()


def _compare(received: torch.Tensor, expected: torch.Tensor, source: str) -> str | None:
    if torch.equal(received, expected):
        return None
    return f"{int((received != expected).sum())} of {len(received)} bytes from {source} are wrong"
