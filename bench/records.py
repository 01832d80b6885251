"""The vocabulary that crosses process and file borders: frozen values and their JSON lines; no I/O here."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Any

import msgspec

FORMAT_VERSION = 1
"""Version of the record lines. History in docs/RECORDS.md; a reader refuses newer versions by name."""


class Op(StrEnum):
    """What is timed. ``dispatch`` reuses a handle (cached); ``dispatch_full`` adds layout, notify and CPU sync.

    ``compute``: one layer's expert GEMMs alone. ``overlapped``: the same beside one dispatch and one combine.
    """

    DISPATCH = "dispatch"
    DISPATCH_FULL = "dispatch_full"
    COMBINE = "combine"
    COMPUTE = "compute"
    OVERLAPPED = "overlapped"


class Dtype(StrEnum):
    """Element type of the payload: ``fp8`` is e4m3 with one FP32 scale for each 128 columns of a token."""

    BF16 = "bf16"
    FP8 = "fp8"


class FailureKind(StrEnum):
    """Why a point has no time.

    ``incorrect``: a token was wrong. ``hang``: no answer by the deadline. ``crash``: a rank died.
    ``cuda``: a CUDA error, after which the context is lost. ``error``: any other Python exception.
    """

    INCORRECT = "incorrect"
    HANG = "hang"
    CRASH = "crash"
    CUDA = "cuda"
    ERROR = "error"


class Role(StrEnum):
    """Why a point is measured.

    A cell of the grid, the library's default, the all-to-all, a user's wish, or a cell of the library's own tuning.
    """

    GRID = "grid"
    ANCHOR = "anchor"
    BASELINE = "baseline"
    CANDIDATE = "candidate"
    UPSTREAM = "upstream"


class Stage(StrEnum):
    """Which step of the run measured: the search over the grid, or the final comparison of the best."""

    SWEEP = "sweep"
    FINAL = "final"


class Point(msgspec.Struct, frozen=True):
    """One thing to measure: an operation of one backend with one value for each of its knobs."""

    backend: str
    op: Op
    dtype: Dtype
    knobs: dict[str, int]

    @property
    def label(self) -> str:
        """A readable id, unique within a plan: ``deepep/dispatch/bf16/num_sms=24,nvl_chunk=8,nvl_buffer=256``."""
        knobs = ",".join(f"{name}={value}" for name, value in self.knobs.items())
        return f"{self.backend}/{self.op}/{self.dtype}/{knobs}"

    @property
    def key(self) -> tuple[object, ...]:
        """Hashable, and equal for equal points; a point itself holds a dict. Sooner made than the label."""
        return (self.backend, self.op, self.dtype, *self.knobs.items())


class Measured(msgspec.Struct, frozen=True, tag="measured", tag_field="kind"):
    """Raw samples of one point.

    ``samples_us``: for each iteration the maximum over the ranks, in microseconds.
    ``rank_median_us``: each rank's own median. ``extended``: the spread was high, so more samples were taken.
    ``compute_us``: of an overlapped point, when its GEMMs were done, the maximum over the ranks again.
    """

    samples_us: list[float]
    rank_median_us: list[float]
    extended: bool = False
    compute_us: list[float] = []


class Failed(msgspec.Struct, frozen=True, tag="failed", tag_field="kind"):
    """A point without a time: what went wrong, where, and the last words of the ranks concerned."""

    failure: FailureKind
    message: str
    phase: str
    rank: int | None = None
    last_words: str = ""


class Record(msgspec.Struct, frozen=True, tag="record", tag_field="type"):
    """One measurement or failure. ``environment`` names the Environment line that it was taken in.

    ``group`` counts the process groups of the shard: two records of one group shared their processes.
    ``started`` is Unix time in seconds, ``wall_s`` the whole time that the point took, checks included,
    ``busy_s`` the part of it spent in warm-up and timed iterations.
    """

    point: Point
    point_id: str
    outcome: Measured | Failed
    environment: str
    started: float
    wall_s: float
    busy_s: float = 0.0
    role: Role = Role.GRID
    stage: Stage = Stage.SWEEP
    round: int = 0
    sequence: int = 0
    group: int = 0
    shard: int = 0
    v: int = FORMAT_VERSION


class Gpu(msgspec.Struct, frozen=True):
    """What one GPU is, as NVML names it; None where it does not say."""

    name: str
    memory_bytes: int
    num_sms: int | None = None
    num_links: int | None = None
    link_gb_per_s: float | None = None


TIMING = 2
"""How times are taken. 1: communication and the GEMMs beside it begin at once, the host has 0.1 ms to queue anything.
2: communication begins 20 us ahead, and the host has 1.2 ms for several kernels (bench.timing). The rest is alike."""


class Environment(msgspec.Struct, frozen=True, tag="environment", tag_field="type"):
    """All that must be equal for two records to stand in one ranking. ``versions`` maps a package to its version.

    CUDA_DEVICE_MAX_CONNECTIONS stands among the versions where it is set.
    """

    device: str
    num_devices: int
    num_ranks: int
    shared_gpus: bool
    num_sms: int | None
    memory_bytes: int | None
    num_links: int | None
    link_gb_per_s: float | None
    driver: str | None
    topology: str | None
    versions: dict[str, str]
    v: int = FORMAT_VERSION

    @property
    def id(self) -> str:
        """A hash of every field."""
        return digest(self)


class Host(msgspec.Struct, frozen=True, tag="host", tag_field="type"):
    """Where a process group ran: provenance, free to differ between shards.

    ``startup_s`` is how long measuring waited for it to join.
    """

    hostname: str
    group: int
    started: float
    startup_s: float
    gpu_uuids: list[str]
    python: str
    shard: int = 0
    job_id: str | None = None
    v: int = FORMAT_VERSION


class Traffic(msgspec.Struct, frozen=True, tag="traffic", tag_field="type"):
    """The layout that was really exchanged: ``tokens[source][destination]``, counted by the library's own layout."""

    tokens: list[list[int]]
    v: int = FORMAT_VERSION


class SelfCheck(msgspec.Struct, frozen=True, tag="self_check", tag_field="type"):
    """The timer's own proof: what an empty operation reads (rank maximum), and the edge routings that passed.

    ``edge_routings`` maps the name of a routing to "ok" or to what was wrong.
    """

    empty_op_us: list[float]
    edge_routings: dict[str, str]
    group: int
    shard: int = 0
    v: int = FORMAT_VERSION


class GpuState(msgspec.Struct, frozen=True):
    """One GPU at one moment; None where NVML does not say. ``throttle`` lists reasons other than idle."""

    sm_clock_mhz: int | None
    power_w: float | None
    temperature_c: int | None
    throttle: list[str]
    foreign_processes: int | None


class Telemetry(msgspec.Struct, frozen=True, tag="telemetry", tag_field="type"):
    """The state of every GPU of the group right after the record of number ``sequence``, which timed ``op``."""

    at: float
    sequence: int
    op: Op
    gpus: list[GpuState]
    shard: int = 0
    v: int = FORMAT_VERSION


Line = Record | Environment | Host | Traffic | SelfCheck | Telemetry
"""Everything that may stand on a line of a records file."""

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line, strict=True)
_version = msgspec.json.Decoder(dict[str, Any])


class NewerFormatError(ValueError):
    """A line or file was written by a newer version of this program."""


def encode(line: Line) -> bytes:
    """One JSON object without a line break."""
    return _encoder.encode(line)


def decode(text: bytes) -> Line:
    """The value of one line. NewerFormatError for a newer version, else ValueError for what is wrong with it."""
    try:
        line = _decoder.decode(text)
    except msgspec.DecodeError as error:
        version = _claimed_version(text)
        if version > FORMAT_VERSION:
            raise NewerFormatError(f"record version {version}, this program reads up to {FORMAT_VERSION}") from None
        raise ValueError(str(error)) from None
    if line.v > FORMAT_VERSION:
        raise NewerFormatError(f"record version {line.v}, this program reads up to {FORMAT_VERSION}")
    return line


def decode_all(text: bytes) -> list[Line] | None:
    """Every line at once, several times as fast; None when there is one that ``decode`` must explain."""
    try:
        lines = _decoder.decode_lines(text)
    except msgspec.DecodeError:
        return None
    return None if any(line.v > FORMAT_VERSION for line in lines) else lines


def _claimed_version(text: bytes) -> int:
    try:
        version = _version.decode(text).get("v", 0)
    except msgspec.DecodeError:
        return 0
    return version if isinstance(version, int) else 0


def digest(value: object, *more: object) -> str:
    """A stable 16-digit hash of values that msgspec can encode; the identity of points, plans and environments."""
    encoder = msgspec.json.Encoder(order="deterministic")
    text = b"\n".join(encoder.encode(part) for part in (value, *more))
    return hashlib.sha256(text).hexdigest()[:16]
