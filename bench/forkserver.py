"""Forks ranks from a process that has imported torch and the libraries once: a rank costs milliseconds, not seconds.

The process never touches a GPU, since a CUDA context does not survive a fork: each rank creates its own. A library
whose import raises or touches one is left to the ranks, in a new process (bench.preload).

``multiprocessing.forkserver`` with ``set_forkserver_preload`` does the same in general. Ranks need more:

* A deadline for the fork. The first one waits for the imports, which a file system that hangs never ends.
* A session for each rank, to signal all processes that a rank has started, and no others.
* A log for each rank, which holds stdout and stderr from the first byte, also those of C libraries.
* An unambiguous exit status: ``multiprocessing`` reports 255 where its server died, which a rank can return too.
* PR_SET_PDEATHSIG: ranks die with the forkserver and the forkserver with its parent, also by SIGKILL.
* An environment for each rank, the parent's at the time of the fork. Libraries read it at their import: another one
  needs a new process.
* No import of ``__main__`` in the ranks: it may be Hydra, pytest or a user's script without a guard.

Threads may fork at once: they take turns.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec

from bench.preload import Unfit

LOG_TAIL_BYTES = 2000
MAX_MESSAGE_BYTES = 1 << 18
_KILL_GRACE_S = 5.0
_UNKNOWN_STATUS = 256
"""The status of a rank whose forkserver died before it reported one."""


class ForkRequest(msgspec.Struct, frozen=True, tag="fork"):
    """Asks for one rank; the descriptors of its requests, responses and log travel with the message.

    ``preload``: modules to import before.
    """

    name: str
    environment: dict[str, str]
    preload: list[str]


class Forked(msgspec.Struct, frozen=True, tag="forked"):
    """The rank's process id."""

    pid: int


class Exited(msgspec.Struct, frozen=True, tag="exited"):
    """How a rank ended, as in subprocess: its exit status, or the negative number of the signal."""

    pid: int
    status: int


Event = Forked | Unfit | Exited
_event_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


class ForkserverError(Exception):
    """The forkserver has ended, or did not fork in time."""


class UnfitError(Exception):
    """The forkserver cannot fork any more: ``unfit`` is the module that it imported."""

    def __init__(self, unfit: Unfit) -> None:
        super().__init__(f"the import of {unfit.module} {unfit.reason}")
        self.unfit = unfit


class RankProcess:
    """One forked process: it reads from ``requests`` and writes to ``responses``."""

    def __init__(self, server: Forkserver, pid: int, requests: IO[bytes], responses: IO[bytes]) -> None:
        self._server, self.pid, self.requests, self.responses = server, pid, requests, responses

    def poll(self) -> int | None:
        """The exit status as in subprocess, None while it runs, 256 where the forkserver died first."""
        return self._server.status(self.pid)

    def wait(self, *, timeout_s: float) -> int | None:
        """The same as ``poll``, after waiting up to ``timeout_s`` for the process to end."""
        deadline = time.monotonic() + timeout_s
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        return self.poll()

    def send_signal(self, number: signal.Signals, *, whole_session: bool) -> None:
        """Signals the process, or every process of its session; does nothing if the rank has ended."""
        if self.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if whole_session else os.kill)(self.pid, number)

    def close(self) -> None:
        """Closes the pipes."""
        for pipe in (self.requests, self.responses):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


class Forkserver:
    """The supervisor's end: forks ranks on request and keeps their exit statuses."""

    def __init__(self) -> None:
        """Starts the process and returns at once, while the process imports torch."""
        self._control, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._exit_statuses: dict[int, int] = {}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (as long as this object)
        self._has_ended = False
        self._preloaded_in: dict[str, str] | None = None
        with server_end:
            self._process = _lasting_thread.submit(
                subprocess.Popen,
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "bench.forkserver_process",
                    str(server_end.fileno()),
                ],  # -P: see _environment
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[server_end.fileno()],
                start_new_session=True,
                env=_environment({}),
            ).result()

    @property
    def is_alive(self) -> bool:
        """Whether it can still fork."""
        return not self._has_ended and self._process.poll() is None

    def close(self) -> None:
        """Ends the process, and with it every rank that still runs."""
        self.kill()
        self._control.close()
        self._log.close()

    def kill(self) -> None:
        """Ends the process and waits for it: a rank that it forked a moment ago dies only with it.

        The wait is bounded. A process that imports torch from a file system that hangs ignores even SIGKILL.
        """
        self._has_ended = True
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_KILL_GRACE_S)

    def suits(self, environment: dict[str, str]) -> bool:
        """Whether the modules that it has imported saw this environment."""
        return self._preloaded_in in (None, environment)

    def fork(
        self, name: str, log: Path, *, environment: dict[str, str], preload: list[str], timeout_s: float
    ) -> RankProcess:
        """See ``fork`` below. UnfitError where the import of a module in ``preload`` has spoilt the process."""
        if preload:
            self._preloaded_in = environment
        requests_read, requests_write = os.pipe()
        responses_read, responses_write = os.pipe()
        descriptors = [requests_read, responses_write, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)]
        try:
            pid = self._request_fork(ForkRequest(name, environment, preload), descriptors, timeout_s=timeout_s)
        except BaseException:
            os.close(requests_write)
            os.close(responses_read)
            raise
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return RankProcess(self, pid, os.fdopen(requests_write, "wb"), os.fdopen(responses_read, "rb", buffering=0))

    def status(self, pid: int) -> int | None:
        """The exit status of a rank, None while it runs, 256 where the forkserver died first."""
        if _lock.acquire(blocking=False):  # else another thread forks, and receives the statuses as well
            try:
                while pid not in self._exit_statuses and not self._has_ended and self._receive(timeout_s=0):
                    pass
            finally:
                _lock.release()
        if self._has_ended:
            return self._exit_statuses.get(pid, _UNKNOWN_STATUS)
        return self._exit_statuses.get(pid)

    def _request_fork(self, request: ForkRequest, descriptors: list[int], *, timeout_s: float) -> int:
        deadline = time.monotonic() + timeout_s
        try:
            socket.send_fds(self._control, [msgspec.json.encode(request)], descriptors)
        except OSError:
            self._has_ended = True
        while not self._has_ended:
            left_s = deadline - time.monotonic()
            event = self._receive(timeout_s=left_s) if left_s > 0 else None
            if isinstance(event, Forked):
                self._exit_statuses.pop(event.pid, None)  # of an earlier process with this number
                return event.pid
            if isinstance(event, Unfit):
                raise UnfitError(event)
            if event is None and not self._has_ended:
                self.kill()  # a late event would be taken for the response to the next request
                imports = " and ".join(["torch", *request.preload])
                raise ForkserverError(f"the import of {imports} took longer than {timeout_s:.0f} s")
        raise ForkserverError(f"the forkserver has ended: {self._log_tail()}")

    def _receive(self, *, timeout_s: float) -> Event | None:
        """The next event, None if there is none within ``timeout_s`` or the forkserver has ended."""
        self._control.settimeout(timeout_s)
        try:
            message = self._control.recv(MAX_MESSAGE_BYTES)
        except (TimeoutError, BlockingIOError):
            return None
        except OSError:
            message = b""
        if not message:
            self._has_ended = True
            return None
        event = _event_decoder.decode(message)
        if isinstance(event, Exited):
            self._exit_statuses[event.pid] = event.status
        return event

    def _log_tail(self) -> str:
        self._process.wait(timeout=5)
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
        return self._log.read().decode(errors="replace").strip() or f"exit status {self._process.returncode}"


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The environment of the forkserver and its ranks, which communicate over the loopback interface.

    The user's variables go before ``settings``. Their search path leaves out the working directory, where a folder
    ``bench`` or a file ``torch.py`` would hide ours: PYTHONSAFEPATH removes it, and we drop empty entries of
    PYTHONPATH, which stand for it.
    """
    environment = {**settings, **os.environ, "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
    environment["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # NVML's order
    package_root = str(Path(__file__).resolve().parents[1])
    search_path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    environment["PYTHONPATH"] = os.pathsep.join([package_root, *filter(None, search_path)])
    return environment


_lasting_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="forkserver")
"""Starts forkservers: the kernel ends a process with the thread that started it, and this one lasts."""

_lock = threading.Lock()
"""Held by the thread that talks to the forkserver."""


@dataclass
class _Current:
    """The forkserver of this process, the modules that it leaves to the ranks, and how often ``end`` was called."""

    server: Forkserver | None = None
    unfit: set[str] = field(default_factory=set)
    num_ends: int = 0


_current = _Current()


def fork(name: str, log: Path, *, preload: Sequence[str], settings: Mapping[str, str], timeout_s: float) -> RankProcess:
    """A new rank that appends its stdout and stderr to ``log``, with the modules of ``preload`` imported.

    Imports and rank have the variables of ``settings`` besides the user's.

    The forkserver starts on first use, and again after it died; it ends with this process. A module that it cannot
    import for its forks is left to the ranks from then on, with those after it, which may depend on its being loaded
    first; one line on stderr says so.

    ForkserverError when the forkserver has ended or does not fork within ``timeout_s``, imports included.
    """
    deadline, num_ends = time.monotonic() + timeout_s, _current.num_ends
    if not _lock.acquire(timeout=timeout_s):
        raise ForkserverError(f"other ranks were not forked within {timeout_s:.0f} s")
    try:
        while _current.num_ends == num_ends:
            environment = _environment(settings)
            modules = list(itertools.takewhile(lambda module: module not in _current.unfit, preload))
            server = _ensure_running(environment if modules else None)
            left_s = max(0.0, deadline - time.monotonic())
            try:
                return server.fork(name, log, environment=environment, preload=modules, timeout_s=left_s)
            except UnfitError as error:
                _current.unfit.add(error.unfit.module)
                server.kill()
                print(f"note: {error}: every rank imports it by itself", file=sys.stderr, flush=True)
        raise ForkserverError("the forkserver was ended")
    finally:
        _lock.release()


def end() -> None:
    """Ends the forkserver and every rank, also what other threads wait for. The next fork starts and tries anew."""
    _current.num_ends += 1
    _current.unfit.clear()
    if _current.server is not None:
        _current.server.kill()


def _ensure_running(environment: dict[str, str] | None) -> Forkserver:
    """The forkserver of this process; a new one if it has ended, or has imported modules in another environment."""
    server = _current.server
    if server is not None and not (server.is_alive and (environment is None or server.suits(environment))):
        server.close()
        server = None
    if server is None:
        server = Forkserver()
        atexit.register(server.close)
    _current.server = server
    return server
