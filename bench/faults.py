"""Faults that tests and ``self_test=true`` inject to show that each one is detected; none by default."""

from __future__ import annotations

import ctypes
import time
from enum import StrEnum

import msgspec

_SLOW_US = 5000.0


class FaultKind(StrEnum):
    """What goes wrong on the rank."""

    HANG = "hang"
    SEGFAULT = "segfault"
    EXCEPTION = "exception"
    WRONG_TOKEN = "wrong_token"  # noqa: S105  (a token of a model)
    SLOW = "slow"


class Fault(msgspec.Struct, frozen=True):
    """A fault at every point whose label contains ``match``.

    ``rank`` is the index of the rank's GPU, which equals the rank unless GroupSpec.devices reorders the GPUs.
    ``slow_us`` is the delay that SLOW adds to each iteration, in microseconds.
    """

    kind: FaultKind
    rank: int
    match: str
    slow_us: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Fault:
        """The fault of a text ``KIND@RANK:TEXT``, such as ``hang@1:num_slices=4`` or ``slow=30000@1:`` (microseconds).

        ValueError for any other text.
        """
        try:
            head, match = text.split(":", 1)
            kind, rank = head.split("@", 1)
            kind, _, delay = kind.partition("=")
            return cls(FaultKind(kind), int(rank), match, float(delay or _SLOW_US) if kind == FaultKind.SLOW else 0.0)
        except ValueError:
            kinds = ", ".join(FaultKind)
            raise ValueError(f"a fault is written KIND@RANK:TEXT with KIND one of {kinds}, got {text!r}") from None


def inject(faults: list[Fault], *, rank: int, label: str) -> None:
    """Hangs, crashes or raises where a fault matches; callers apply WRONG_TOKEN and SLOW through ``find_fault``."""
    for fault in faults:
        if fault.rank != rank or fault.match not in label:
            continue
        if fault.kind is FaultKind.HANG:
            while True:
                time.sleep(1)
        if fault.kind is FaultKind.SEGFAULT:
            ctypes.string_at(0)
        if fault.kind is FaultKind.EXCEPTION:
            raise RuntimeError("injected exception")


def find_fault(faults: list[Fault], kind: FaultKind, *, rank: int, label: str) -> Fault | None:
    """The fault of this kind for this rank and point, None without one."""
    return next((fault for fault in faults if fault.kind is kind and fault.rank == rank and fault.match in label), None)
