"""The process of the forkserver, which forks every rank; bench.forkserver, which starts it, says why."""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import socket
import sys
from typing import NoReturn

import msgspec

from bench.forkserver import MAX_MESSAGE_BYTES, Event, Exited, Forked, ForkRequest
from bench.preload import Preload

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15


class _Server:
    """Forks on request and reports every exit."""

    def __init__(self, control: socket.socket) -> None:
        self._control, self._preload = control, Preload()
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
        message, descriptors, _, _ = socket.recv_fds(self._control, MAX_MESSAGE_BYTES, 3)
        if not message:
            return False
        request = msgspec.json.decode(message, type=ForkRequest)
        event: Event | None = self._preload.add(request.preload, request.environment)
        if event is None:
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                self._run_rank(request, descriptors, parent=parent)
            event = Forked(pid)
        for descriptor in descriptors:
            os.close(descriptor)
        self._control.send(msgspec.json.encode(event))
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
        os.environ.update(request.environment | (self._preload.variables if request.preload else {}))
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
