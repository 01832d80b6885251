"""Faults to inject on purpose, so that tests and ``self_test`` can show that each one is noticed; off by default."""

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
    """A fault of one rank at every point whose label contains ``match``; ``slow_us`` is the delay of SLOW."""

    kind: FaultKind
    rank: int
    match: str
    slow_us: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Fault:
        """``KIND@RANK:TEXT``, as in ``hang@1:num_slices=4``; ``slow=30000@1:`` in microseconds. Else ValueError."""
        try:
            head, match = text.split(":", 1)
            kind, rank = head.split("@", 1)
            kind, _, delay = kind.partition("=")
            return cls(FaultKind(kind), int(rank), match, float(delay or _SLOW_US) if kind == FaultKind.SLOW else 0.0)
        except ValueError:
            kinds = ", ".join(FaultKind)
            raise ValueError(f"a fault is written KIND@RANK:TEXT with KIND one of {kinds}, got {text!r}") from None


def inject(faults: list[Fault], *, rank: int, label: str) -> None:
    """Does what the faults for this rank and point say, WRONG_TOKEN and SLOW excepted (their callers do them)."""
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


def matching(faults: list[Fault], kind: FaultKind, *, rank: int, label: str) -> Fault | None:
    """The fault of this kind for this rank and point, if any."""
    return next((f for f in faults if f.kind is kind and f.rank == rank and f.match in label), None)
