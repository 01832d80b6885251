"""The ranks of one process group: every request has a deadline, and no rank survives its group; imports no torch."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from bench import forkserver, protocol
from bench.backends import preload_of, settings_of
from bench.records import Failed, FailureKind

_STACK_FRAMES = 5
_DUMP_GRACE_S = 0.3
_TERM_GRACE_S = 0.5
_DEATH_GRACE_S = 0.5
_READ_BYTES = 1 << 20
T = TypeVar("T")
_response_decoder: msgspec.json.Decoder[protocol.Response] = msgspec.json.Decoder(protocol.Response)


class RankError(Exception):
    """The group cannot be used any more; ``failed`` is the outcome to record."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed


class Rank:
    """One process, its partial response, and the log that its stderr goes to."""

    def __init__(
        self, index: int, log: Path, *, startup_s: float, preload: Sequence[str], settings: Mapping[str, str]
    ) -> None:
        self.index, self.log = index, log
        self._log_start = log.stat().st_size if log.exists() else 0
        self.process = forkserver.fork(f"rank {index}", log, timeout_s=startup_s, preload=preload, settings=settings)
        self._partial = b""

    def send(self, line: bytes) -> None:
        """Sends one line. A dead rank raises nothing here; ``read`` notices it."""
        with contextlib.suppress(BrokenPipeError):
            self.process.requests.write(line)
            self.process.requests.flush()

    def read(self) -> bytes | None:
        """The next complete line, None if it has not arrived yet; EOFError when the process has closed its end."""
        data = os.read(self.process.responses.fileno(), _READ_BYTES)
        if not data:
            raise EOFError
        self._partial += data
        line, newline, rest = self._partial.partition(b"\n")
        if not newline:
            return None
        self._partial = rest
        return line

    def last_stack(self) -> str:
        """The innermost frames of the latest stack dump in the log."""
        dump = self.log_tail().rpartition("(most recent call first):")[2].splitlines()
        return " < ".join(line.strip() for line in dump[:_STACK_FRAMES] if line.strip())

    def log_tail(self) -> str:
        """The end of what this process wrote to its log, at most 2000 bytes."""
        with self.log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(self._log_start, file.tell() - forkserver.LOG_TAIL_BYTES))
            return file.read().decode(errors="replace").strip()


class Group:
    """The ranks of one process group, from setup to their end."""

    def __init__(self, spec: protocol.GroupSpec, *, log_folder: Path, startup_s: float) -> None:
        """Starts every rank and joins them into one process group.

        ``settings``: the variables that are set for its libraries.

        RankError if they have not joined within ``startup_s``; then no rank is left running.
        """
        began = time.monotonic()

        def left_s() -> float:
            """Seconds left of ``startup_s``, which all steps of the start share."""
            return max(began + startup_s - time.monotonic(), 0.0)

        log_folder.mkdir(parents=True, exist_ok=True)
        self._scratch = Path(tempfile.mkdtemp(prefix="deepep-sweep-"))
        self._ranks: list[Rank] = []
        preload, self.settings = preload_of(spec.points), settings_of(spec.points)
        try:
            for index in range(spec.num_ranks):
                log = log_folder / f"rank{index}.log"
                self._ranks.append(Rank(index, log, startup_s=left_s(), preload=preload, settings=self.settings))
            self.ready = self._join(spec, deadline_s=left_s())
        except forkserver.ForkserverError as failure:
            self.kill()
            raise RankError(Failed(FailureKind.CRASH, str(failure), "startup")) from None
        except BaseException:
            self.kill()
            raise
        self.startup_s = time.monotonic() - began

    def _join(self, spec: protocol.GroupSpec, *, deadline_s: float) -> list[protocol.Ready]:
        store = str(self._scratch / "store")
        setups = [protocol.Setup(spec, rank.index, store) for rank in self._ranks]
        responses = self._request_each(setups, deadline_s=deadline_s, phase="startup")
        return [msgspec.convert(response, protocol.Ready) for response in responses]

    @property
    def pids(self) -> set[int]:
        """Process ids of the ranks."""
        return {rank.process.pid for rank in self._ranks}

    def check(self, request: protocol.Check, *, deadline_s: float) -> list[protocol.Checked]:
        """Every rank's comparison of one run of the point with the oracle."""
        return self._request(request, protocol.Checked, deadline_s=deadline_s, phase="check")

    def time(self, request: protocol.Time, *, deadline_s: float) -> list[protocol.Timed]:
        """Every rank's samples of the point."""
        return self._request(request, protocol.Timed, deadline_s=deadline_s, phase="time")

    def warm(self, request: protocol.Warm, *, deadline_s: float) -> None:
        """Runs the point once on every rank."""
        self._request(request, protocol.Warmed, deadline_s=deadline_s, phase="warm")

    def self_test(self, request: protocol.SelfTest, *, deadline_s: float) -> list[protocol.SelfTested]:
        """Every rank's results of the edge routings and readings of an empty operation."""
        return self._request(request, protocol.SelfTested, deadline_s=deadline_s, phase="self_test")

    def align(self, request: protocol.Align, *, deadline_s: float) -> list[protocol.Aligned]:
        """Every rank's times of the signals that show how far apart the ranks start."""
        return self._request(request, protocol.Aligned, deadline_s=deadline_s, phase="align")

    def move(self, request: protocol.Copy | protocol.Exchange, *, deadline_s: float) -> list[protocol.Moved]:
        """Every rank's samples of a copy or an exchange."""
        return self._request(request, protocol.Moved, deadline_s=deadline_s, phase=request.label)

    def kill(self) -> None:
        """Ends every rank: SIGTERM to the session of each, and SIGKILL to those that still run half a second later."""
        for number, grace_s in ((signal.SIGTERM, _TERM_GRACE_S), (signal.SIGKILL, 5.0)):
            for rank in self._ranks:
                rank.process.send_signal(number, whole_session=True)
            deadline = time.monotonic() + grace_s
            for rank in self._ranks:
                rank.process.wait(timeout_s=max(0.0, deadline - time.monotonic()))
        for rank in self._ranks:
            rank.process.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _request(self, request: protocol.Request, kind: type[T], *, deadline_s: float, phase: str) -> list[T]:
        responses = self._request_each([request] * len(self._ranks), deadline_s=deadline_s, phase=phase)
        return [msgspec.convert(response, kind) for response in responses]

    def _request_each(
        self, requests: Sequence[protocol.Request], *, deadline_s: float, phase: str
    ) -> list[protocol.Response]:
        """One response per rank, in order of rank; RankError when a rank dies, raises or misses the deadline."""
        for rank, request in zip(self._ranks, requests, strict=True):
            rank.send(msgspec.json.encode(request) + b"\n")
        responses: dict[int, protocol.Response] = {}
        deadline = time.monotonic() + deadline_s
        with selectors.DefaultSelector() as selector:
            for rank in self._ranks:
                selector.register(rank.process.responses, selectors.EVENT_READ, rank)
            while len(responses) < len(self._ranks):
                ready = selector.select(timeout=max(0.0, deadline - time.monotonic()))
                if not ready:
                    missing = [rank for rank in self._ranks if rank.index not in responses]
                    raise RankError(_describe_hang(missing, deadline_s=deadline_s, phase=phase))
                for key, _ in ready:
                    response = self._read_response(key.data, phase=phase)
                    if response is not None:
                        responses[key.data.index] = response
        return [responses[index] for index in range(len(self._ranks))]

    def _read_response(self, rank: Rank, *, phase: str) -> protocol.Response | None:
        try:
            line = rank.read()
        except EOFError:
            raise RankError(_describe_crash(rank, phase=phase)) from None
        if line is None:
            return None
        response = _response_decoder.decode(line)
        if isinstance(response, protocol.Raised):
            dead_peer = self._dead_peer(rank)
            if dead_peer is not None:
                raise RankError(_describe_crash(dead_peer, phase=phase))
            raise RankError(
                Failed(
                    failure=FailureKind.CUDA if response.cuda else FailureKind.ERROR,
                    message=response.message,
                    phase=phase,
                    rank=rank.index,
                    last_words=response.traceback[-forkserver.LOG_TAIL_BYTES :],
                )
            )
        return response

    def _dead_peer(self, rank: Rank) -> Rank | None:
        """Another rank that died: its closed connections raise exceptions in the ranks that live."""
        peers = [peer for peer in self._ranks if peer is not rank]
        deadline = time.monotonic() + _DEATH_GRACE_S
        while time.monotonic() < deadline:
            for peer in peers:
                if peer.process.poll() is not None:
                    return peer
            time.sleep(0.005)
        return None


def _describe_hang(missing: list[Rank], *, deadline_s: float, phase: str) -> Failed:
    """The failure of silent ranks, with the stacks that they dump on SIGUSR1."""
    for rank in missing:
        rank.process.send_signal(signal.SIGUSR1, whole_session=False)
    time.sleep(_DUMP_GRACE_S)
    names = ", ".join(str(rank.index) for rank in missing)
    return Failed(
        failure=FailureKind.HANG,
        message=f"no response within {deadline_s:.0f} s from rank {names}",
        phase=phase,
        rank=missing[0].index,
        last_words="\n".join(f"rank {rank.index}: {rank.last_stack()}" for rank in missing),
    )


def _describe_crash(rank: Rank, *, phase: str) -> Failed:
    status = rank.process.wait(timeout_s=5)
    if status is None or status not in range(-signal.NSIG, 256):
        end = "closed its output"
    elif status < 0:
        end = f"was killed by {signal.Signals(-status).name}"
    else:
        end = f"exited with status {status}"
    return Failed(
        failure=FailureKind.CRASH,
        message=f"rank {rank.index} {end}",
        phase=phase,
        rank=rank.index,
        last_words=rank.log_tail(),
    )
