"""Faults that are injected into a node on purpose: how they are written, and for which node."""

from __future__ import annotations

from bench.faults import Fault, FaultKind
from launcher.validation.node import PHASES

MACHINE_FAULTS = ("missing_gpu", "lost_gpu", "throttle", "foreign", "ecc", "remap", "xid")
"""Faults that are injected into the readings: KIND@GPU:any text."""


DIE = "die"
"""A fault of the job: it is killed when the phase named in the fault's text begins."""


def select_faults(texts: list[str], node: str) -> list[str]:
    """The faults, ``[NODE/]KIND@GPU:TEXT``, that are for this node, without its name."""
    faults = []
    for text in texts:
        head, _, _ = text.partition("@")
        name, slash, kind = head.rpartition("/")
        if not slash or name == node:
            faults.append(kind + text[len(head) :])
    return faults


def check_faults(texts: list[str], *, gpus: int) -> None:
    """ValueError for a fault that cannot be injected into a node with so many GPUs."""
    for text in texts:
        fault = text[len(text.partition("@")[0].rpartition("/")[0]) :].removeprefix("/")
        kind = parse_kind(fault)
        try:
            gpu = parse_gpu(fault) if kind in (*MACHINE_FAULTS, DIE) else Fault.parse(fault).rank
        except ValueError:
            kinds = ", ".join([*MACHINE_FAULTS, DIE, *FaultKind])
            message = f"a fault is written [NODE/]KIND@GPU:TEXT with KIND one of {kinds}, got {text!r}"
            raise ValueError(message) from None
        if not 0 <= gpu < gpus:
            raise ValueError(f"{text!r} is for GPU {gpu}, but the GPUs are 0 to {gpus - 1}")
        phase = fault.split(":", 1)[1]
        if kind == DIE and phase not in PHASES:
            raise ValueError(f"{text!r} names no phase: {', '.join(PHASES)}")


def parse_kind(fault: str) -> str:
    """The kind of a fault without a node's name: the part before @."""
    return fault.partition("@")[0]


def parse_gpu(fault: str) -> int:
    """The GPU of a fault: the number after @. ValueError if there is none."""
    number = fault.partition("@")[2].partition(":")[0]
    if not number.isdigit() or ":" not in fault:
        raise ValueError(f"a fault is written [NODE/]KIND@GPU:TEXT, got {fault!r}")
    return int(number)
