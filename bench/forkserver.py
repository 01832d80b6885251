"""A process that has imported torch once and forks the ranks, so that a fresh rank costs milliseconds; no CUDA in it.

A process may fork as long as it has not touched a GPU: each rank makes a CUDA context of its own.
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
_LAST_WORDS_BYTES = 2000
_MAX_MESSAGE_BYTES = 1 << 18
_KILL_GRACE_S = 5.0
_UNKNOWN_STATUS = 256
"""Stands for the status of a child whose nursery died before it could tell."""


class ForkRequest(msgspec.Struct, frozen=True, tag="birth"):
    """A wish for a rank; its requests, responses and log come along as file descriptors."""

    name: str
    environment: dict[str, str]


class Forked(msgspec.Struct, frozen=True, tag="born"):
    """The rank's process id."""

    pid: int


class Exited(msgspec.Struct, frozen=True, tag="died"):
    """How a rank ended, as subprocess counts: the exit status, or minus the signal."""

    pid: int
    status: int


_notice: msgspec.json.Decoder[Forked | Exited] = msgspec.json.Decoder(Forked | Exited)


class ForkserverError(Exception):
    """The process that shall fork the ranks is gone, or says nothing."""


class RankProcess:
    """One forked process: what is written to ``requests`` it reads, what it writes can be read from ``responses``."""

    def __init__(self, nursery: Forkserver, pid: int, requests: IO[bytes], responses: IO[bytes]) -> None:
        self._nursery, self.pid, self.requests, self.responses = nursery, pid, requests, responses

    def poll(self) -> int | None:
        """How it ended, None while it runs; 256 where nobody saw it."""
        return self._nursery.status(self.pid)

    def wait(self, *, timeout_s: float) -> int | None:
        """The same, up to ``timeout_s`` later."""
        deadline = time.monotonic() + timeout_s
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        return self.poll()

    def signal(self, number: signal.Signals, *, everyone: bool) -> None:
        """Sends it to the process, or to ``everyone`` in its session. Nothing happens if it has ended."""
        if self.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if everyone else os.kill)(self.pid, number)

    def close(self) -> None:
        """Gives the pipes back."""
        for pipe in (self.requests, self.responses):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


class Forkserver:
    """The supervisor's end."""

    def __init__(self) -> None:
        """Starts the process, which imports what ranks need, and returns at once."""
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._died: dict[int, int] = {}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (as long as this object)
        self._gone = False
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "bench.forkserver", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=_environment(),
            )

    @property
    def is_alive(self) -> bool:
        """Whether it can still fork."""
        return not self._gone and self._process.poll() is None

    def close(self) -> None:
        """Ends the process, and with it every rank that is left."""
        self._kill()
        self._control.close()
        self._log.close()

    def _kill(self) -> None:
        """Ends the process; until it has ended, a rank that it forked meanwhile lives on.

        One that imports torch from a file system that hangs does not even end by SIGKILL: it is not waited for.
        """
        self._gone = True
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_KILL_GRACE_S)

    def fork(self, name: str, log: Path, *, timeout_s: float) -> RankProcess:
        """A new rank that writes its stderr to ``log``. ForkserverError when none comes within ``timeout_s``."""
        requests_read, requests_write = os.pipe()
        responses_read, responses_write = os.pipe()
        theirs = [requests_read, responses_write, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)]
        try:
            pid = self._forked(ForkRequest(name, _environment()), theirs, timeout_s=timeout_s)
        except BaseException:
            os.close(requests_write)
            os.close(responses_read)
            raise
        finally:
            for one in theirs:
                os.close(one)
        return RankProcess(self, pid, os.fdopen(requests_write, "wb"), os.fdopen(responses_read, "rb", buffering=0))

    def status(self, pid: int) -> int | None:
        """How a child ended, None while it runs; 256 where nobody saw it."""
        while pid not in self._died and not self._gone and self._receive(timeout_s=0):
            pass
        if self._gone:
            return self._died.get(pid, _UNKNOWN_STATUS)
        return self._died.get(pid)

    def _forked(self, birth: ForkRequest, descriptors: list[int], *, timeout_s: float) -> int:
        deadline = time.monotonic() + timeout_s
        try:
            socket.send_fds(self._control, [msgspec.json.encode(birth)], descriptors)
        except OSError:
            self._gone = True
        while not self._gone:
            left_s = deadline - time.monotonic()
            notice = self._receive(timeout_s=left_s) if left_s > 0 else None
            if isinstance(notice, Forked):
                self._died.pop(notice.pid, None)  # of an earlier process with this number
                return notice.pid
            if notice is None and not self._gone:
                self._kill()  # a late response must not be taken for that of another question
                raise ForkserverError(f"torch was not imported within {timeout_s:.0f} s")
        raise ForkserverError(f"the process that forks the ranks has ended: {self._last_words()}")

    def _receive(self, *, timeout_s: float) -> Forked | Exited | None:
        """The next notice, None where none comes in time."""
        self._control.settimeout(timeout_s)
        try:
            message = self._control.recv(_MAX_MESSAGE_BYTES)
        except (TimeoutError, BlockingIOError):
            return None
        except OSError:
            message = b""
        if not message:
            self._gone = True
            return None
        notice = _notice.decode(message)
        if isinstance(notice, Exited):
            self._died[notice.pid] = notice.status
        return notice

    def _last_words(self) -> str:
        self._process.wait(timeout=5)
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
        return self._log.read().decode(errors="replace").strip() or f"exit status {self._process.returncode}"


def _environment() -> dict[str, str]:
    """What ranks see: they response on this machine alone, and find this package wherever they start."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # NVML's order
    package_root = str(Path(__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    return environment


_of_this_process: list[Forkserver] = []


def shared() -> Forkserver:
    """The one nursery of this process, started on first use and anew when it has died; it ends with this process."""
    if _of_this_process and not _of_this_process[0].is_alive:
        _of_this_process.pop().close()
    if not _of_this_process:
        _of_this_process.append(Forkserver())
        atexit.register(_of_this_process[0].close)
    return _of_this_process[0]


class _Server:
    """The other end: forks on request, and tells who died."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._wakeup, self._alarm = socket.socketpair()
        for one in (self._wakeup, self._alarm):
            one.setblocking(False)
        signal.set_wakeup_fd(self._alarm.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Until the supervisor closes its end."""
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
        birth = msgspec.json.decode(message, type=ForkRequest)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._run_rank(birth, descriptors, parent=parent)
        for one in descriptors:
            os.close(one)
        self._control.send(msgspec.json.encode(Forked(pid)))
        return True

    def _run_rank(self, birth: ForkRequest, descriptors: list[int], *, parent: int) -> NoReturn:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        _die_with(parent)
        ctypes.CDLL(None).prctl(_PR_SET_NAME, birth.name.encode())
        for one in (self._control, self._wakeup, self._alarm):
            one.close()
        requests, responses, log = descriptors
        os.dup2(log, 1)  # stdout too: whatever a library prints must not mix with responses
        os.dup2(log, 2)
        os.close(log)
        os.environ.clear()
        os.environ.update(birth.environment)
        from bench.rank import worker

        worker.run(os.fdopen(requests, "rb"), os.fdopen(responses, "wb"))

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
    """The kernel kills this process when its parent dies, however it dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent is gone")


def main() -> None:
    """The process: imports, then forks until nobody requests any more."""
    _die_with(os.getppid())
    from bench.rank import worker  # noqa: F401  (what every rank needs)

    _Server(socket.socket(fileno=int(sys.argv[1]))).serve()


if __name__ == "__main__":
    main()
