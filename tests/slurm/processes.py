"""Processes of this machine and its TCP ports, read from /proc."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """A process of /proc; ``start`` is the kernel's start time, which distinguishes it from a recycled id."""

    pid: int
    parent: int
    name: str
    start: int

    @property
    def environment(self) -> dict[str, str]:
        """Its initial environment; empty if it has ended or belongs to another user."""
        try:
            raw = Path(f"/proc/{self.pid}/environ").read_bytes()
        except OSError:
            return {}
        return dict(item.split("=", 1) for item in raw.decode(errors="replace").split("\0") if "=" in item)


def process(pid: int) -> Process | None:
    """The process with this id, unless it is a zombie."""
    try:
        head, tail = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)
    except OSError:
        return None
    fields = tail.split()
    return None if fields[0] == "Z" else Process(pid, int(fields[1]), head.split("(", 1)[1], int(fields[19]))


def processes() -> Iterator[Process]:
    """All processes of this machine."""
    for entry in Path("/proc").iterdir():
        running = process(int(entry.name)) if entry.name.isdigit() else None
        if running is not None:
            yield running


class PortBlock:
    """Consecutive free TCP ports below the ephemeral range; an abstract socket of this process reserves them."""

    def __init__(self, count: int) -> None:
        bases = list(range(20000, 32000, 64))
        random.SystemRandom().shuffle(bases)
        for base in bases:
            self._hold = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            with contextlib.suppress(OSError):
                self._hold.bind(f"\0slurmlab-ports-{base}")
                if all(map(self._is_free, range(base, base + count))):
                    self.base = base
                    return
            self._hold.close()
        raise OSError("no free block of ports")

    @staticmethod
    def _is_free(port: int) -> bool:
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind(("0.0.0.0", port))
            except OSError:
                return False
        return True

    def release(self) -> None:
        """Frees the ports."""
        self._hold.close()


def is_listening(port: int) -> bool:
    """Whether a socket of this machine listens on a TCP port."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_ = line.split()
        if local.endswith(f":{port:04X}") and state == "0A":
            return True
    return False
