"""RESULTS_EP{n}.json: one set of Structs that writes it, reads it and describes it (docs/results.schema.json).

Format history. ``deepep-sweep/results/2``: knobs stand under ``knobs``; a run may hold several libraries, each with
several named defaults. ``deepep-sweep/results/1`` (until November 2026): one library, its knobs flat among the numbers;
``launcher.store.results_v1`` reads it. Readers ignore members that they do not know.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from bench.backends import LIBRARY_DEFAULT, PAIR_OPS
from bench.records import Dtype, Environment, Host, Op, Point, Role, SelfCheck, Stage
from bench.stats import Interval
from bench.workload import Workload
from launcher.config.schema import Candidates
from launcher.errors import UserError
from launcher.store import results_v1
from launcher.store.accounting import Accounting
from launcher.store.records_file import Damaged
from launcher.store.revision import Revision
from launcher.store.run_folder import RunFolder
from launcher.store.saved_components import SavedComponents
from launcher.store.saved_passes import Knobs, Positive, SavedLayer, SavedOverlap
from launcher.store.versions import Version, read_schema, refuse_newer

SCHEMA: Final = "deepep-sweep/results/2"
Count = Annotated[int, msgspec.Meta(ge=0)]


class SavedHardware(msgspec.Struct, frozen=True):
    """The kind of GPU, from conf/hardware and NVML.

    ``link_gb_per_s`` is of one NVLink, ``peak_gb_per_s`` of all NVLinks of one GPU, each in one direction.
    """

    name: str
    gpu_pattern: str | None = None
    num_sms: int | None = None
    memory_gb: float | None = None
    num_links: int | None = None
    link_gb_per_s: float | None = None
    gpus_per_node: int = 0
    cpus_per_gpu: int = 1
    source: str = ""
    peak_gb_per_s: float | None = None


class SavedSearch(msgspec.Struct, frozen=True):
    """How the best config was looked for, and how many groups of the final were measured."""

    final_groups: Count
    final_groups_measured: Count
    method: str = "racing"
    rounds: Count = 0
    warmup: Count = 0
    iterations: Count = 0
    objective: str | dict[str, float] = "round_trip"
    candidates: Candidates = []
    own_tuning: bool = False
    overlapped: bool = False
    budget_s: float | None = None
    max_buffer_mib: float | None = None

    @property
    def is_round_trip(self) -> bool:
        """Whether dispatch and combine count alike."""
        if isinstance(self.objective, str):
            return self.objective in ("round_trip", "training")
        return self.objective.get("dispatch") == self.objective.get("combine")


class Cost(msgspec.Struct, frozen=True):
    """Seconds that the run took.

    ``wall_s``: from the first start of ranks to the last record, summed over shards. ``busy_s``: the part of it in
    warm-up and timed iterations. ``startup_s``: the part before the ranks were ready. ``accounting``: what
    Slurm's accounting says; None without it.
    """

    wall_s: float
    busy_s: float
    startup_s: float
    accounting: Accounting | None = None


class Counts(msgspec.Struct, frozen=True):
    """Points: planned == measured + failed + missing."""

    planned: Count
    missing: Count
    measured: Count = 0
    failed: Count = 0


class SavedOperation(msgspec.Struct, frozen=True):
    """One operation with one config. ``knobs`` holds all of its knobs.

    ``spread`` is interquartile range over median. ``stage`` is ``final`` where fresh process groups measured it. GB/s
    are 10^9 bytes of the busiest rank, one direction, over the median; ``wire`` leaves out tokens that stay on their
    rank, ``peak_fraction`` is wire over the links' peak. All three are null where GEMMs are part of the time.
    """

    knobs: Knobs
    median_us: Positive
    ci95_us: tuple[Positive, Positive]
    spread: float
    num_samples: Count
    stage: Stage
    unstable: bool
    logical_gb_per_s: float | None
    wire_gb_per_s: float | None
    peak_fraction: float | None


class SavedMeasurement(SavedOperation, frozen=True):
    """The numbers of one point, with what the point is and why it was measured."""

    backend: str
    op: Op
    dtype: Dtype
    role: Role

    @property
    def label(self) -> str:
        """The label of its point."""
        return Point(self.backend, self.op, self.dtype, self.knobs).label

    @property
    def is_fresh(self) -> bool:
        """Whether the final's fresh process groups measured it. One group measures all that has GEMMs."""
        return self.stage is Stage.FINAL and self.op not in (Op.COMPUTE, *PAIR_OPS)


class SavedPair(msgspec.Struct, frozen=True):
    """A dispatch and a combine that can be deployed together. ``dispatch_full`` has the config of ``dispatch``.

    ``shared_knobs``: those of one value for both operations.
    """

    shared_knobs: Knobs
    dispatch: SavedOperation
    combine: SavedOperation
    round_trip_us: Positive
    dispatch_full: SavedOperation | None = None

    @property
    def operations(self) -> dict[str, SavedOperation]:
        """Dispatch and combine by name."""
        return {"dispatch": self.dispatch, "combine": self.combine}

    @property
    def is_final(self) -> bool:
        """Whether fresh process groups of the final measured both."""
        return self.dispatch.stage is Stage.FINAL and self.combine.stage is Stage.FINAL

    @property
    def round_trip_ci95_us(self) -> tuple[float, float]:
        """Sums of the ends of the two intervals: at least as wide as the interval of the sum."""
        (low, high), (other_low, other_high) = self.dispatch.ci95_us, self.combine.ci95_us
        return round(low + other_low, 2), round(high + other_high, 2)


class SavedVerdict(msgspec.Struct, frozen=True):
    """Whether a default should be changed, by the ratio default / ``over``.

    ``over``, the pair that the sweep found fastest, is ``optimal`` as a rule, else ``sweep's best pair``, or ``best
    other pair`` where the default is optimal itself. ``default`` names which one. Earlier versions wrote
    ``default_is_optimal`` for ``within_margin``. ``forward``: the ratio of the same pairs with full dispatches.
    ``another_run``: the 95 % interval for the ratio that a run on other GPUs of the kind would report.
    """

    kind: Literal["tuned", "within_margin", "default_is_optimal", "inconclusive"]
    ratio: float
    ci95: tuple[float, float]
    meaning: str
    margin: float = 0.02
    basis: str = "final"
    over: str = "optimal"
    default: str = LIBRARY_DEFAULT
    forward: float | None = None
    forward_ci95: tuple[float, float] | None = None
    another_run: tuple[float, float] | None = None


class SavedLibrary(msgspec.Struct, frozen=True):
    """The answer for one library.

    ``defaults``: by who takes it, ``library`` first. ``verdict`` is about one of them. ``version``: distribution and
    version, null where nothing names it.
    """

    name: str
    version: str | None
    defaults: dict[str, SavedPair]
    optimal: SavedPair | None
    worst: SavedPair | None
    tied: list[SavedPair]
    verdict: SavedVerdict | None
    speedup_over_default: float | None
    pareto: list[SavedPair]
    best_per_shared: list[SavedPair]
    picks: dict[str, SavedPair]
    own_tuning: SavedPair | None
    overlapped: list[SavedOverlap]
    layers: list[SavedLayer] = []
    control: SavedControl | None = None

    @property
    def default(self) -> SavedPair | None:
        """What the library itself takes; None where that has no result."""
        return self.defaults.get(LIBRARY_DEFAULT)


class SavedControl(msgspec.Struct, frozen=True):
    """A/A: the round trip of the default, measured once more as another config, over its own, in so many groups."""

    ratio: float
    ci95: tuple[float, float]
    groups: int


class SavedStartSkew(msgspec.Struct, frozen=True):
    """Last start less first start of the ranks, over so many iterations of so many process groups; an upper limit."""

    median_us: float
    p95_us: float
    iterations: int
    groups: int


class SavedLibraryComparison(msgspec.Struct, frozen=True):
    """One pick of two libraries, measured in the same process groups: ``ratio`` is ``a`` / ``b`` in time.

    ``b`` may be a plain collective. ``full``: with full dispatches in place of cached ones.
    """

    a: str
    b: str
    pick: str
    ratio: float
    ci95: tuple[float, float]
    verdict: Literal["a_is_faster", "b_is_faster", "cannot_be_told_apart"]
    full: bool = False
    another_run: tuple[float, float] | None = None


class SavedFailure(msgspec.Struct, frozen=True):
    """A point that failed in one of its repetitions, or whose time physics forbids (kind ``impossible``)."""

    point: Point
    kind: str
    message: str = ""
    phase: str = ""
    rank: int | None = None
    last_words: str = ""
    shard: int = 0


class SavedResults(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of one sweep in one environment. Times are microseconds, dates UTC.

    ``dry_run``: it ran on CPUs and measures nothing about GPUs. ``shared_gpus``: several ranks shared a GPU, so the
    times mean nothing. ``timing``: how overlapped times were taken, see bench.records.TIMING. ``traffic_tokens``:
    tokens[source][destination], own rank included. ``libraries``: the answer for each; ``comparisons``: what compares
    them. ``refused``: cells of the grid that no plan may hold. ``rank_ratio``: slowest over fastest rank in the default
    dispatch. ``start_skew``: how far apart the ranks start.
    """

    schema: Literal["deepep-sweep/results/2"] = SCHEMA
    program: str | None = None
    command: list[str]
    started: str | None
    ended: str | None
    revision: Revision
    timing: int = 1
    hardware: SavedHardware
    ep: Annotated[int, msgspec.Meta(ge=1)]
    shared_gpus: bool
    dry_run: bool
    workload: Workload
    search: SavedSearch
    environment: Environment | None
    hosts: list[Host]
    cost: Cost
    traffic_tokens: list[list[int]]
    points: Counts
    libraries: list[SavedLibrary]
    comparisons: list[SavedLibraryComparison] = []
    baselines: list[SavedMeasurement]
    measurements: list[SavedMeasurement]
    failures: list[SavedFailure]
    missing: list[str]
    refused: Count = 0
    measured_again: Count = 0
    self_checks: list[SelfCheck] = []
    rank_ratio: float | None = None
    start_skew: SavedStartSkew | None = None
    flags: list[str] = []
    damaged_lines: list[Damaged] = []
    components: SavedComponents | None = None

    @property
    def unfinished(self) -> list[str]:
        """What of the plan was not done, a phrase each."""
        phrases = []
        if self.points.missing:
            phrases.append(f"{self.points.missing} of {self.points.planned} points are missing")
        if self.search.final_groups_measured < self.search.final_groups:
            measured, planned = self.search.final_groups_measured, self.search.final_groups
            phrases.append(f"{measured} of {planned} groups of the final are there")
        return phrases

    def library(self, name: str) -> SavedLibrary | None:
        """The answer for the library of this name; None where it was not measured."""
        return next((library for library in self.libraries if library.name == name), None)


def encode(results: SavedResults) -> bytes:
    """The content of the file."""
    return msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n"


def locate(path: Path) -> Path:
    """The RESULTS file that a run folder, or the file itself, stands for. UserError when there is none."""
    return path if path.is_file() else RunFolder.open(path).written_results()


def read(file: Path) -> SavedResults:
    """The document in a RESULTS file of this format, or of ``results/1``. UserError for anything else."""
    try:
        return decode(file, file.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None


def decode(file: Path, content: bytes) -> SavedResults:
    """The document in the content of ``file``. UserError as in ``read``."""
    try:
        _check_format(file, content)
        refuse_newer(str(file), content, known=SCHEMA)
        if read_schema(content)[1] == Version.parse(SCHEMA):
            return msgspec.json.decode(content, type=SavedResults)
        upgraded = results_v1.upgrade(msgspec.json.decode(content, type=dict[str, Any])) | {"schema": SCHEMA}
        return msgspec.convert(upgraded, SavedResults)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not a RESULTS file: {error}", hint="python -m launcher.aggregate RUN") from None


def _check_format(file: Path, content: bytes) -> None:
    """UserError for JSON of another format."""
    written, known = read_schema(content)[1], Version.parse(SCHEMA)
    if written is None or known is None or written.format != known.format or written.major < 1:
        raise UserError(f"{file} is not a RESULTS file: its schema is not {SCHEMA}", hint="RUN/RESULTS_EP4.json is one")


def schema() -> bytes:
    """The JSON Schema of the file, docs/results.schema.json."""
    description = msgspec.json.schema(SavedResults)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA, "title": "RESULTS_EP<n>.json"}
    return msgspec.json.format(msgspec.json.encode(head | description), indent=1) + b"\n"


def interval(ends: Interval, *, digits: int) -> tuple[float, float]:
    """The two ends, rounded."""
    return round(ends.low, digits), round(ends.high, digits)
