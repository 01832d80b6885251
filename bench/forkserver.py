"""Forks ranks from a process that has imported torch once: a fresh rank costs milliseconds instead of seconds.

The process never touches a GPU, since a CUDA context does not survive a fork: each rank creates its own.

``multiprocessing.forkserver`` with ``set_forkserver_preload`` does the same in general. Ranks need more:

* A deadline for the fork. The first one waits for the import of torch, which a file system that hangs never ends.
* A session for each rank, to signal all processes that a rank has started, and no others.
* A log for each rank, which holds stdout and stderr from the first byte, also those of C libraries.
* An unambiguous exit status: ``multiprocessing`` reports 255 where its server died, which a rank can return too.
* PR_SET_PDEATHSIG: ranks die with the forkserver and the forkserver with its parent, also by SIGKILL.
* An environment for each rank, the parent's at the time of the fork.
* No import of ``__main__`` in the ranks: it may be Hydra, pytest or a user's script without a guard.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, NoReturn

import msgspec

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
LOG_TAIL_BYTES = 2000
_MAX_MESSAGE_BYTES = 1 << 18
_KILL_GRACE_S = 5.0
_UNKNOWN_STATUS = 256
"""The status of a rank whose forkserver died before it reported one."""


class ForkRequest(msgspec.Struct, frozen=True, tag="fork"):
    """Asks for one rank; the descriptors of its requests, responses and log travel with the message."""

    name: str
    environment: dict[str, str]


class Forked(msgspec.Struct, frozen=True, tag="forked"):
    """The rank's process id."""

    pid: int


class Exited(msgspec.Struct, frozen=True, tag="exited"):
    """How a rank ended, as in subprocess: its exit status, or the negative number of the signal."""

    pid: int
    status: int


Event = Forked | Exited
_event_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


class ForkserverError(Exception):
    """The forkserver has ended, or did not fork in time."""


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
        with server_end:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "bench.forkserver", str(server_end.fileno())],  # -P: see _environment
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[server_end.fileno()],
                start_new_session=True,
                env=_environment(),
            )

    @property
    def is_alive(self) -> bool:
        """Whether it can still fork."""
        return not self._has_ended and self._process.poll() is None

    def close(self) -> None:
        """Ends the process, and with it every rank that still runs."""
        self._kill()
        self._control.close()
        self._log.close()

    def _kill(self) -> None:
        """Ends the process and waits for it: a rank that it forked a moment ago dies only with it.

        The wait is bounded. A process that imports torch from a file system that hangs ignores even SIGKILL.
        """
        self._has_ended = True
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_KILL_GRACE_S)

    def fork(self, name: str, log: Path, *, timeout_s: float) -> RankProcess:
        """A new rank that appends its stdout and stderr to ``log``.

        ForkserverError when the forkserver has ended or does not fork within ``timeout_s``.
        """
        requests_read, requests_write = os.pipe()
        responses_read, responses_write = os.pipe()
        descriptors = [requests_read, responses_write, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)]
        try:
            pid = self._request_fork(ForkRequest(name, _environment()), descriptors, timeout_s=timeout_s)
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
        while pid not in self._exit_statuses and not self._has_ended and self._receive(timeout_s=0):
            pass
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
            if event is None and not self._has_ended:
                self._kill()  # a late event would be taken for the response to the next request
                raise ForkserverError(f"torch was not imported within {timeout_s:.0f} s")
        raise ForkserverError(f"the forkserver has ended: {self._log_tail()}")

    def _receive(self, *, timeout_s: float) -> Event | None:
        """The next event, None if there is none within ``timeout_s`` or the forkserver has ended."""
        self._control.settimeout(timeout_s)
        try:
            message = self._control.recv(_MAX_MESSAGE_BYTES)
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


def _environment() -> dict[str, str]:
    """The environment of the forkserver and its ranks, which communicate over the loopback interface.

    Their search path leaves out the working directory, where a folder ``bench`` or a file ``torch.py`` would hide ours:
    PYTHONSAFEPATH removes it, and we drop empty entries of PYTHONPATH, which stand for it.
    """
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # NVML's order
    package_root = str(Path(__file__).resolve().parents[1])
    search_path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    environment["PYTHONPATH"] = os.pathsep.join([package_root, *filter(None, search_path)])
    return environment


_running: list[Forkserver] = []


def ensure_running() -> Forkserver:
    """The forkserver of this process, started on first use and again after it died; it ends with this process."""
    if _running and not _running[0].is_alive:
        _running.pop().close()
    if not _running:
        _running.append(Forkserver())
        atexit.register(_running[0].close)
    return _running[0]


class _Server:
    """The forkserver's own end: forks on request and reports every exit."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._wakeup, self._wakeup_write = socket.socketpair()
        for end in (self._wakeup, self._wakeup_write):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wakeup_write.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Serves until the supervisor closes its end."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(self._wakeup, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if self._wakeup in ready:
                    self._wakeup.recv(4096)
                    self._report_exits()
                if self._control in ready and not self._fork():
                    return

    def _fork(self) -> bool:
        message, descriptors, _, _ = socket.recv_fds(self._control, _MAX_MESSAGE_BYTES, 3)
        if not message:
            return False
        request = msgspec.json.decode(message, type=ForkRequest)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._run_rank(request, descriptors, parent=parent)
        for descriptor in descriptors:
            os.close(descriptor)
        self._control.send(msgspec.json.encode(Forked(pid)))
        return True

    def _run_rank(self, request: ForkRequest, descriptors: list[int], *, parent: int) -> NoReturn:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        _die_with(parent)
        ctypes.CDLL(None).prctl(_PR_SET_NAME, request.name.encode())
        for end in (self._control, self._wakeup, self._wakeup_write):
            end.close()
        requests, responses, log = descriptors
        os.dup2(log, 1)  # stdout too: libraries print
        os.dup2(log, 2)
        os.close(log)
        os.environ.clear()
        os.environ.update(request.environment)
        from bench.rank import process

        process.run(os.fdopen(requests, "rb"), os.fdopen(responses, "wb"))

    def _report_exits(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            with contextlib.suppress(BrokenPipeError):
                self._control.send(msgspec.json.encode(Exited(pid, os.waitstatus_to_exitcode(status))))


def _die_with(parent: int) -> None:
    """Makes the kernel kill this process when its parent dies, for whatever reason."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent is gone")


def main() -> None:
    """Imports torch, then serves the supervisor on the socket whose descriptor is the only argument."""
    _die_with(os.getppid())
    from bench.rank import process  # noqa: F401  (what every rank needs)

    _Server(socket.socket(fileno=int(sys.argv[1]))).serve()


if __name__ == "__main__":
    main()
