"""Requests of the supervisor and responses of a rank, one JSON line each; imports no torch."""

from __future__ import annotations

import msgspec

from bench.faults import Fault
from bench.records import Dtype, Point
from bench.workload import Workload


class GroupSpec(msgspec.Struct, frozen=True):
    """One process group: its ranks, their devices, the workload and the configs that it may measure.

    ``device`` is "cuda" or "cpu". ``shared_gpus``: several ranks use one GPU, for tests on fewer GPUs. ``points``: a
    dispatch or a combine with each config that may be requested; libraries size their buffers by them. ``devices``:
    the index of each rank's GPU, in order of rank; empty where rank r has GPU r.
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
    """Join the process group. ``store`` is the path of the rendezvous file, which does not exist yet."""

    spec: GroupSpec
    rank: int
    store: str


class SelfTest(msgspec.Struct, frozen=True, tag="self_test", tag_field="request"):
    """Run the edge routings with the config of the first point, and time an empty operation.

    ``points``: of one library, a dispatch first, each with what the plan takes for the library's default.
    """

    points: list[Point]
    iterations: int


class Align(msgspec.Struct, frozen=True, tag="align", tag_field="request"):
    """Send signals between rank 0 and each other rank, in both directions; see bench.records.Alignment."""

    warmup: int
    iterations: int


class Warm(msgspec.Struct, frozen=True, tag="warm", tag_field="request"):
    """Run the point once on one token from each rank, unchecked: its kernels are compiled then."""

    point: Point


class Check(msgspec.Struct, frozen=True, tag="check", tag_field="request"):
    """Run the point once and compare every token with the oracle."""

    point: Point


class Time(msgspec.Struct, frozen=True, tag="time", tag_field="request"):
    """Time the point after ``warmup`` untimed runs, then run it once more and compare that output with the oracle."""

    point: Point
    warmup: int
    iterations: int


class Copy(msgspec.Struct, frozen=True, tag="copy", tag_field="request"):
    """Copy bytes from the GPU of rank ``source`` to that of ``target`` while the others are idle, and check them.

    ``engine``: "copy" for the copy engines (peer memcpy), "sm" for kernels (send and receive of the device group).
    """

    source: int
    target: int
    engine: str
    num_bytes: int
    warmup: int
    iterations: int

    @property
    def label(self) -> str:
        """What faults match and failures name: ``copy/sm/0>1``, by rank."""
        return f"copy/{self.engine}/{self.source}>{self.target}"


class Exchange(msgspec.Struct, frozen=True, tag="exchange", tag_field="request"):
    """An all-to-all of the device group: each rank splits ``num_bytes`` evenly over all ranks, itself included."""

    num_bytes: int
    warmup: int
    iterations: int

    @property
    def label(self) -> str:
        """What faults match and failures name: ``exchange/67108864``."""
        return f"exchange/{self.num_bytes}"


Request = Setup | SelfTest | Align | Warm | Check | Time | Copy | Exchange


class Ready(msgspec.Struct, frozen=True, tag="ready", tag_field="response"):
    """The rank has joined the group. ``versions``: of torch, CUDA and NCCL in its process; ``python``: its own."""

    device_name: str
    versions: dict[str, str]
    python: str


class SelfTested(msgspec.Struct, frozen=True, tag="self_tested", tag_field="response"):
    """``edge_routings``: "ok" or the mismatch, by name, all on rank 0. ``empty_us``: what an empty operation reads."""

    edge_routings: dict[str, str]
    empty_us: list[float]


class Aligned(msgspec.Struct, frozen=True, tag="aligned", tag_field="response"):
    """This rank's times of each operation, one for each iteration: signals from rank 0, then those from each other."""

    samples_us: list[list[float]]


class Warmed(msgspec.Struct, frozen=True, tag="warmed", tag_field="response"):
    """The point has run on this rank."""


class Checked(msgspec.Struct, frozen=True, tag="checked", tag_field="response"):
    """The comparison of one run with the oracle.

    ``wrong``: the first mismatch, None when every token is right. ``sent``: how many tokens went to each rank, as the
    library counts them; empty for GEMMs.
    """

    wrong: str | None
    sent: list[int]


class Timed(msgspec.Struct, frozen=True, tag="timed", tag_field="response"):
    """This rank's samples of a point, one for each iteration.

    ``compute_us``: when the GEMMs of an iteration had ended, counted from its start; empty for points without GEMMs.
    ``busy_s``: seconds in warm-up and timed runs. ``wrong``: the first mismatch of the output afterwards, or None.
    ``gemms``: what the GEMMs multiplied, None without any.
    """

    samples_us: list[float]
    compute_us: list[float]
    busy_s: float
    wrong: str | None
    gemms: Dtype | None = None


class Moved(msgspec.Struct, frozen=True, tag="moved", tag_field="response"):
    """This rank's samples, empty where it had nothing to time, and the first mismatch of the bytes that it checked."""

    samples_us: list[float]
    wrong: str | None


class Raised(msgspec.Struct, frozen=True, tag="raised", tag_field="response"):
    """A Python exception. ``cuda``: CUDA raised it, after which the context may be lost."""

    message: str
    cuda: bool
    traceback: str


Response = Ready | SelfTested | Aligned | Warmed | Checked | Timed | Moved | Raised
