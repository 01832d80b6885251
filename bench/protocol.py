"""What the supervisor asks the ranks and what they answer: one JSON line each way; no torch here."""

from __future__ import annotations

import msgspec

from bench.faults import Fault
from bench.records import Point
from bench.workload import Workload


class GroupSpec(msgspec.Struct, frozen=True):
    """One process group: what it moves, on what, and with which libraries.

    ``device`` is "cuda" or "cpu". ``points`` is everything that may be asked for (buffers are sized by it).
    ``devices`` is the GPU of each rank, in order of rank; empty: rank r has GPU r.
    """

    num_ranks: int
    device: str
    shared_gpus: bool
    workload: Workload
    points: list[Point]
    faults: list[Fault] = []
    devices: list[int] = []

    @property
    def has_own_gpus(self) -> bool:
        """Whether each rank has a GPU of its own."""
        return self.device == "cuda" and not self.shared_gpus


class Setup(msgspec.Struct, frozen=True, tag="setup", tag_field="request"):
    """Join the group. ``store`` is the path of a fresh rendezvous file."""

    spec: GroupSpec
    rank: int
    store: str


class SelfTest(msgspec.Struct, frozen=True, tag="self_test", tag_field="request"):
    """Run the edge routings on this config, and time an empty operation."""

    point: Point
    iterations: int


class Check(msgspec.Struct, frozen=True, tag="check", tag_field="request"):
    """Run the point once and compare every token with the oracle."""

    point: Point


class Time(msgspec.Struct, frozen=True, tag="time", tag_field="request"):
    """Time the point, then compare its last output with the oracle again."""

    point: Point
    warmup: int
    iterations: int


class Copy(msgspec.Struct, frozen=True, tag="copy", tag_field="request"):
    """Move bytes from one rank's GPU to another's while the other ranks are idle, and check them.

    ``engine``: "copy" for the copy engines (peer memcpy), "sm" for a kernel (send and receive of the device's group).
    """

    source: int
    target: int
    engine: str
    num_bytes: int
    warmup: int
    iterations: int

    @property
    def label(self) -> str:
        """``copy/sm/0>1``, by rank."""
        return f"copy/{self.engine}/{self.source}>{self.target}"


class Exchange(msgspec.Struct, frozen=True, tag="exchange", tag_field="request"):
    """An all-to-all of the device's group in which each rank sends ``num_bytes`` in all, its own part included."""

    num_bytes: int
    warmup: int
    iterations: int

    @property
    def label(self) -> str:
        """``exchange/67108864``."""
        return f"exchange/{self.num_bytes}"


Request = Setup | SelfTest | Check | Time | Copy | Exchange


class Ready(msgspec.Struct, frozen=True, tag="ready", tag_field="response"):
    """The rank is in the group. ``layout`` is how many tokens it sends to each rank."""

    device_name: str
    versions: dict[str, str]
    python: str


class SelfTested(msgspec.Struct, frozen=True, tag="self_tested", tag_field="response"):
    """``edge_routings``: "ok" or what was wrong, by name. ``empty_us``: readings of an empty operation."""

    edge_routings: dict[str, str]
    empty_us: list[float]


class Checked(msgspec.Struct, frozen=True, tag="checked", tag_field="response"):
    """``wrong`` says what was, None when every token was right. ``sent``: tokens to each rank, by the library."""

    wrong: str | None
    sent: list[int]


class Timed(msgspec.Struct, frozen=True, tag="timed", tag_field="response"):
    """This rank's samples, when GEMMs ended in them, the seconds spent, and what was wrong afterwards if anything."""

    samples_us: list[float]
    compute_us: list[float]
    busy_s: float
    wrong: str | None


class Moved(msgspec.Struct, frozen=True, tag="moved", tag_field="response"):
    """This rank's samples, none where it had nothing to do, and what was wrong with the bytes that it received."""

    samples_us: list[float]
    wrong: str | None


class Raised(msgspec.Struct, frozen=True, tag="raised", tag_field="response"):
    """A Python exception; ``cuda`` when it came from CUDA, so that the context may be lost."""

    message: str
    cuda: bool
    traceback: str


Response = Ready | SelfTested | Checked | Timed | Moved | Raised
