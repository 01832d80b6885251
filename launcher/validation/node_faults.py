"""Faults of a node that are injected on purpose: how they are written, and whom they are meant for."""

from __future__ import annotations

from bench.faults import Fault
from launcher.validation.node import PHASES

MACHINE_FAULTS = ("missing_gpu", "lost_gpu", "throttle", "foreign", "ecc", "remap", "xid")
"""Faults that are injected into the readings: KIND@GPU:any text."""


DIE = "die"
"""A fault of the job itself: it is killed when the phase begins that the fault's text names."""


def own_faults(texts: list[str], node: str) -> list[str]:
    """The faults, ``[NODE/]KIND@GPU:TEXT``, that are meant for this node."""
    own = []
    for text in texts:
        head, _, _ = text.partition("@")
        name, slash, kind = head.rpartition("/")
        if not slash or name == node:
            own.append(kind + text[len(head) :])
    return own


def check_faults(texts: list[str], *, gpus: int) -> None:
    """ValueError for a fault that could not be injected into a node with so many GPUs."""
    for text in texts:
        plain = text[len(text.partition("@")[0].rpartition("/")[0]) :].removeprefix("/")
        on_machine = kind_of(plain) in (*MACHINE_FAULTS, DIE)
        place = gpu_of(plain) if on_machine else Fault.parse(plain).rank
        if not 0 <= place < gpus:
            raise ValueError(f"{text!r} is for GPU {place}, and there are {gpus}, from 0 on")
        phase = plain.split(":", 1)[1]
        if kind_of(plain) == DIE and phase not in PHASES:
            raise ValueError(f"{text!r} names no phase: {', '.join(PHASES)}")


def kind_of(text: str) -> str:
    """The part before @."""
    return text.partition("@")[0]


def gpu_of(text: str) -> int:
    """The number behind @. ValueError where there is none."""
    number = text.partition("@")[2].partition(":")[0]
    if not number.isdigit() or ":" not in text:
        raise ValueError(f"a fault is written [NODE/]KIND@GPU:TEXT, got {text!r}")
    return int(number)
