"""The values that processes and files exchange, as frozen structs and JSON lines; does no I/O."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Any

import msgspec

FORMAT_VERSION = 3
"""Version of the record lines; docs/RECORDS.md has its history. A reader refuses newer versions by name."""


class Op(StrEnum):
    """The operation that a point times.

    ``dispatch``: a cached dispatch, which reuses a handle. ``dispatch_full``: a full dispatch, with layout, exchange of
    counts and host wait. ``combine``: the way back. ``compute``: the expert GEMMs of one layer, isolated.
    ``overlapped``: the same GEMMs overlapped with one cached dispatch and one combine. ``layer``: a full dispatch, the
    GEMMs of the received tokens and a combine, one after the other. ``layer_training``: the same with the operations of
    its backward pass. ``exchange``: the transfer of a dispatch whose tokens are packed already, without a library.
    ``serial``: what ``overlapped`` runs, one after the other: a cached dispatch, the same GEMMs, a combine.
    """

    DISPATCH = "dispatch"
    DISPATCH_FULL = "dispatch_full"
    COMBINE = "combine"
    COMPUTE = "compute"
    OVERLAPPED = "overlapped"
    LAYER = "layer"
    LAYER_TRAINING = "layer_training"
    EXCHANGE = "exchange"
    SERIAL = "serial"


class Dtype(StrEnum):
    """Element type of the payload: ``fp8`` is e4m3 with one FP32 scale for each 128 columns of a token."""

    BF16 = "bf16"
    FP8 = "fp8"


class FailureKind(StrEnum):
    """Why a point has no time.

    ``incorrect``: a token was wrong. ``hang``: no response by the deadline. ``crash``: a rank died. ``cuda``: a CUDA
    error, after which the context is lost. ``error``: any other Python exception.
    """

    INCORRECT = "incorrect"
    HANG = "hang"
    CRASH = "crash"
    CUDA = "cuda"
    ERROR = "error"


HEAD_START_US = 20.0
"""Overlapped communication occupies its SMs before the GEMMs start, as where a framework launches it first."""


class Role(StrEnum):
    """Why a point is measured.

    ``grid``: a cell of the grid. ``anchor``: the library's default. ``default``: what an engine takes instead of it.
    ``baseline``: a plain collective. ``candidate``: a config of the user. ``upstream``: a config that the library's own
    tuning script tries. ``again``: a repetition of the final that was off, once more. ``control``: the library's
    default once more, as if it were another config.
    """

    GRID = "grid"
    ANCHOR = "anchor"
    DEFAULT = "default"
    BASELINE = "baseline"
    CANDIDATE = "candidate"
    UPSTREAM = "upstream"
    AGAIN = "again"
    CONTROL = "control"


class Stage(StrEnum):
    """Which step of a run measures: the search over the grid, the final comparison of the best, or a repeat of that."""

    SWEEP = "sweep"
    FINAL = "final"
    REPEAT = "repeat"


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
        """Hashable, and equal for equal points; a point itself holds a dict. Cheaper than the label."""
        return (self.backend, self.op, self.dtype, *self.knobs.items())


class Measured(msgspec.Struct, frozen=True, tag="measured", tag_field="kind"):
    """Raw samples of one point, in microseconds.

    ``samples_us``: the maximum over the ranks, for each iteration. ``rank_median_us``: the median of each rank.
    ``extended``: the samples varied, and as many again were taken. ``compute_us``: when the GEMMs of each iteration had
    ended, the maximum over the ranks; empty for points without GEMMs. ``gemms``: what the GEMMs multiply; None for
    points without GEMMs, and in older lines, where it was BF16.
    """

    samples_us: list[float]
    rank_median_us: list[float]
    extended: bool = False
    compute_us: list[float] = []
    gemms: Dtype | None = None


class Failed(msgspec.Struct, frozen=True, tag="failed", tag_field="kind"):
    """A point without a time: the cause, the phase and rank where it occurred, and the end of the ranks' logs."""

    failure: FailureKind
    message: str
    phase: str
    rank: int | None = None
    last_words: str = ""


class Record(msgspec.Struct, frozen=True, tag="record", tag_field="type"):
    """One measurement or failure.

    ``environment``: the id of the Environment line that it belongs to. ``started``: Unix time in seconds. ``wall_s``:
    seconds that the point took, checks included; ``busy_s``: those in warm-up and timed iterations. ``sequence``
    counts the records of the shard, ``group`` its process groups: records of one group come from the same processes.
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
    """One GPU as NVML describes it; None for what NVML does not know. ``link_gb_per_s``: of one link, one direction."""

    name: str
    memory_bytes: int
    num_sms: int | None = None
    num_links: int | None = None
    link_gb_per_s: float | None = None


TIMING = 3
"""Version of how times are taken; only times of one version compare (bench.rank.timing, bench.rank.operations).

1: communication and the GEMMs overlapped with it start at once; the host has 0.1 ms to queue any operation.
2: communication starts 20 us ahead of the GEMMs; the host has 1.2 ms to queue operations of several kernels.
3: the GEMMs beside an FP8 dispatch are FP8 GEMMs where they can run.
"""


class Environment(msgspec.Struct, frozen=True, tag="environment", tag_field="type"):
    """What must be equal for two records to be ranked together; hardware fields are None on CPUs.

    ``num_links``, ``link_gb_per_s``: NVLinks of one GPU, and GB/s of one link in one direction. ``versions`` maps a
    package to its version, and CUDA_DEVICE_MAX_CONNECTIONS to its value where it is set.
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
        """A hash of all fields but the version of the line: it was 1 when ids were introduced."""
        return digest(msgspec.structs.replace(self, v=1))


class Host(msgspec.Struct, frozen=True, tag="host", tag_field="type"):
    """Where a process group ran: provenance, which may differ between shards.

    ``started``: Unix time in seconds. ``startup_s``: seconds until every rank had joined. ``settings``: the variables
    that its ranks set for the libraries; the user had set none of them. ``compile_s``: seconds in which kernels were
    compiled before; 0 in all groups of an attempt but the first.
    """

    hostname: str
    group: int
    started: float
    startup_s: float
    gpu_uuids: list[str]
    python: str
    shard: int = 0
    job_id: str | None = None
    settings: dict[str, str] = {}
    compile_s: float = 0.0
    v: int = FORMAT_VERSION


class Traffic(msgspec.Struct, frozen=True, tag="traffic", tag_field="type"):
    """The layout of a shard's exchanges as the library counts it: ``tokens[source][destination]``."""

    tokens: list[list[int]]
    v: int = FORMAT_VERSION


class SelfCheck(msgspec.Struct, frozen=True, tag="self_check", tag_field="type"):
    """The self test of a shard: what the timer reads for an empty operation, and the result of each edge routing.

    ``empty_op_us``: the maximum over the ranks for each iteration, in microseconds. ``edge_routings`` maps the name of
    a routing to "ok" or its mismatch, "library_default" to whether the library takes by itself what the plan calls its
    default, or "self_test" to the failure that ended the test. ``backend``: empty in older runs, of one library.
    """

    empty_op_us: list[float]
    edge_routings: dict[str, str]
    group: int
    shard: int = 0
    backend: str = ""
    v: int = FORMAT_VERSION


class Alignment(msgspec.Struct, frozen=True, tag="alignment", tag_field="type"):
    """How far apart the ranks of a process group start: signals between the first rank and each other one.

    Microseconds from the receiver's start to the arrival of a signal that the sender sends a fixed time after its own
    start, one for each iteration. ``from_first_us[r - 1]``: from rank 0 to rank r, to all in the same iteration;
    ``to_first_us[r - 1]``: back. ``failure``: why there are none, else empty.
    """

    from_first_us: list[list[float]]
    to_first_us: list[list[float]]
    group: int
    shard: int = 0
    failure: str = ""
    v: int = FORMAT_VERSION


class GpuState(msgspec.Struct, frozen=True):
    """One GPU at one moment; None for what NVML does not know. ``throttle``: why its clock is low, except idling."""

    sm_clock_mhz: int | None
    power_w: float | None
    temperature_c: int | None
    throttle: list[str]
    foreign_processes: int | None


class Telemetry(msgspec.Struct, frozen=True, tag="telemetry", tag_field="type"):
    """The state of every GPU right after record ``sequence`` timed ``op``. ``at``: Unix time in seconds."""

    at: float
    sequence: int
    op: Op
    gpus: list[GpuState]
    shard: int = 0
    v: int = FORMAT_VERSION


Line = Record | Environment | Host | Traffic | SelfCheck | Alignment | Telemetry
"""Every type of line in a records file."""

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line, strict=True)
_version = msgspec.json.Decoder(dict[str, Any])


class NewerFormatError(ValueError):
    """A line or file was written by a newer version of this program."""


def encode(line: Line) -> bytes:
    """One JSON object without a line break."""
    return _encoder.encode(line)


def decode(text: bytes) -> Line:
    """The value of one line. NewerFormatError for a newer version; ValueError, with the reason, for any other text."""
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
    """The values of all lines, several times as fast as ``decode``; None if a line is invalid or of a newer version."""
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
    """A stable hash of values that msgspec can encode, as 16 hex digits: the id of points, plans and environments."""
    encoder = msgspec.json.Encoder(order="deterministic")
    text = b"\n".join(encoder.encode(part) for part in (value, *more))
    return hashlib.sha256(text).hexdigest()[:16]
