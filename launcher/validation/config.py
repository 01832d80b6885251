"""What `python -m launcher.validate` can be told: the dataclasses for Hydra, and the frozen Spec that a job gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from bench.records import Dtype
from bench.workload import Workload
from launcher.config.schema import BackendConf, Hardware, HardwareConf, Measure, MeasureConf, WorkloadConf
from launcher.errors import UserError
from launcher.validation.reference import Reference


@dataclass
class LimitsConf:
    """How long each phase, and a node's whole job, may take."""

    preflight_s: float = 60.0  # GPUs, links, counters, other processes; half of it for one answer of the driver
    pairs_s: float = 240.0  # copies between each pair of GPUs
    alltoall_s: float = 120.0  # NCCL all-to-all
    correctness_s: float = 240.0  # every token compared
    speed_s: float = 240.0  # dispatch, combine and expert GEMMs
    counters_s: float = 60.0  # what grew meanwhile
    job_min: int = 45  # Slurm's time limit of a node's job


@dataclass
class ConfigsConf:
    """What the speed phase runs with: a value for each knob, [64,8,256]; []: the suite's own."""

    dispatch: list[int] = field(default_factory=list)  # num_sms, nvl_chunk, nvl_buffer
    combine: list[int] = field(default_factory=list)  # the same; num_sms has to agree


@dataclass
class ThresholdsConf:
    """When a rate is bad, as shares; one-sided, since fast is never bad. Of two numbers the first warns."""

    inside: list[float] = field(default_factory=lambda: [0.97, 0.93])  # over the median of the node's other GPUs
    inside_compute: list[float] = field(
        default_factory=lambda: [0.92, 0.85]
    )  # of GEMMs: good GPUs differ, power-capped
    reference: list[float] = field(default_factory=lambda: [0.95, 0.90])  # over the stored reference's median
    reference_compute: list[float] = field(default_factory=lambda: [0.90, 0.83])  # of GEMMs: good GPUs reach 0.91
    variation: float = 0.03  # scatter of the blocks, a standard deviation: measured longer, then too noisy
    variation_compute: float = 0.08  # the same of GEMMs, which scatter at the power cap
    pair_copy: list[float] = field(default_factory=lambda: [0.80, 0.75])  # floors, shares of the link's peak
    pair_sm: list[float] = field(default_factory=lambda: [0.68, 0.62])  # the same floors of copies by kernel
    all_to_all: list[float] = field(default_factory=lambda: [0.68, 0.60])  # the same floors of the all-to-all
    dispatch: list[float] = field(default_factory=lambda: [0.50, 0.42])  # the same floors of a dispatch
    combine: list[float] = field(default_factory=lambda: [0.45, 0.38])  # the same floors of a combine


@dataclass
class ValidateConf:
    """Everything that a validation can be told."""

    nodes: str | None = None  # host list, gpu[001-016]; under Slurm
    node_state: str | None = None  # or the nodes in this state, idle or maint, of hydra.launcher.partition if named
    gpus: int | None = None  # GPUs of a node; null: of this machine, or of the hardware file
    hardware: HardwareConf = field(default_factory=HardwareConf)
    workload: WorkloadConf = field(default_factory=WorkloadConf)
    measure: MeasureConf = field(default_factory=MeasureConf)
    backend: BackendConf = field(default_factory=BackendConf)
    limits: LimitsConf = field(default_factory=LimitsConf)
    thresholds: ThresholdsConf = field(default_factory=ThresholdsConf)
    configs: ConfigsConf = field(default_factory=ConfigsConf)
    blocks: int = 24  # visits of dispatch, combine and compute
    copy_mib: int = 256  # of a pair; below it copies have no floor
    alltoall_mib: list[int] = field(default_factory=lambda: [64, 256, 1024])  # of a rank; from 1024 on it has a floor
    reference: str | None = None  # a file that learn= wrote
    learn: str | None = None  # write a reference from this run's good nodes (5 at least)
    confirm: bool = True  # a slow, hung or crashed node is measured again, its GPUs in another order
    strict: bool = False  # WARN makes the exit status 1
    max_in_flight: int = 16  # nodes that are validated at once
    deadline_min: int = 120  # nodes whose job has not begun by then are skipped
    run: str | None = None  # where to make the run folder; one that is there is waited for and reported
    report: str | None = None  # a run folder to report again: nothing is measured or waited for
    outputs: str = "outputs"  # where new run folders are made
    dry_run: bool = False  # print what would be submitted, and stop
    self_test: bool = False  # inject every fault on this machine and check that each is found
    faults: list[str] = field(default_factory=list)  # injected on purpose, [NODE/]KIND@GPU:TEXT; for tests


class Limits(msgspec.Struct, frozen=True):
    """LimitsConf, frozen."""

    preflight_s: float
    pairs_s: float
    alltoall_s: float
    correctness_s: float
    speed_s: float
    counters_s: float
    job_min: int


Band = tuple[float, float]
"""(warn, fail)."""


class Thresholds(msgspec.Struct, frozen=True):
    """ThresholdsConf, frozen."""

    inside: Band
    inside_compute: Band
    reference: Band
    variation: float
    variation_compute: float
    pair_copy: Band
    pair_sm: Band
    all_to_all: Band
    dispatch: Band
    combine: Band
    reference_compute: Band = (0.90, 0.83)

    def noise(self, test: str) -> float:
        """How much the blocks of a test may scatter."""
        return self.variation_compute if test == "compute" else self.variation

    def by_reference(self, test: str) -> Band:
        """Shares of the reference's median below which a test warns, and fails."""
        return self.reference_compute if test == "compute" else self.reference

    def floor(self, test: str) -> Band | None:
        """Shares of the peak below which a test warns, and fails; None for tests without a peak."""
        band: Band | None = getattr(self, test, None)
        return band


ON_CPU = {
    "inside": [0.5, 0.33],
    "inside_compute": [0.5, 0.33],
    "reference": [0.5, 0.33],
    "reference_compute": [0.5, 0.33],
    "variation": 9.0,
    "variation_compute": 9.0,
}
"""Thresholds of a dry run: processes that share cores scatter by tens of percent, and only gross faults can be seen."""


REMOVED_KEYS = {
    "block_iterations": "10",
    "thresholds.dip": "0.95",
    "thresholds.fleet_floor": "0.01",
    "thresholds.fleet_z": "3.5",
    "thresholds.shape": "[0.03,0.05]",
}
"""Keys of earlier versions, with the values that are constants now."""


DEEPEP_CONFIG = [64, 8, 256]
"""num_sms, nvl_chunk and nvl_buffer of the speed phase: half of the link's peak and more on H100s and H200s, and within
the rules of every number of ranks."""

_FLOOR_ELEMENTS = 4096 * 7168
"""Elements a rank from which dispatch and combine are bound by the links and not by latency."""

ALLTOALL_FLOOR_MIB, COPY_FLOOR_MIB = 1024, 256
"""The same of an all-to-all, a rank, and of a copy: the sizes at which their floors were seen."""


class Spec(msgspec.Struct, frozen=True):
    """What a node's job is told. ``gpus_named``: whether somebody said how many belong there, or they were counted."""

    gpus: int
    hardware: Hardware
    workload: Workload
    measure: Measure
    backend: str
    limits: Limits
    thresholds: Thresholds
    configs: dict[str, list[int]]
    blocks: int
    copy_mib: int
    alltoall_mib: list[int]
    confirm: bool
    faults: list[str]
    references: list[Reference] = []
    gpus_named: bool = True

    @property
    def has_dispatch_floor(self) -> bool:
        """Whether the floors of dispatch and combine are meant for what the speed phase runs."""
        is_tuned = self.backend == "deepep" and all(config == DEEPEP_CONFIG for config in self.configs.values())
        return is_tuned and self.workload.num_tokens * self.workload.hidden >= _FLOOR_ELEMENTS

    def has_floor(self, test: str, mib: int) -> bool:
        """Whether the floor of a test holds: what latency holds back has none."""
        if test in ("dispatch", "combine"):
            return self.has_dispatch_floor
        return mib >= (ALLTOALL_FLOOR_MIB if test == "all_to_all" else COPY_FLOOR_MIB)

    @property
    def on_cpu(self) -> bool:
        """Whether ranks run without GPUs: correctness is tested, speed is not measured."""
        return self.hardware.name == "cpu"


class Options(msgspec.Struct, frozen=True):
    """What steers the command, or the choice of nodes."""

    nodes: str | None
    node_state: str | None
    reference: str | None
    learn: str | None
    strict: bool
    max_in_flight: int
    deadline_min: int
    run: str | None
    report: str | None
    outputs: str
    dry_run: bool
    self_test: bool


def refuse_removed(given: Sequence[str]) -> None:
    """UserError for a key that was an option in an earlier version."""
    for argument in given:
        key = argument.partition("=")[0].lstrip("+~")
        if key in REMOVED_KEYS:
            raise UserError(f"{key} is no longer an option (it is fixed at {REMOVED_KEYS[key]})")


def register() -> None:
    """Makes the schema known to Hydra."""
    ConfigStore.instance().store(name="validate_schema", node=ValidateConf)


def from_config(config: DictConfig) -> tuple[dict[str, Any], Options]:
    """The values of a composed configuration, not yet resolved for a machine. UserError for one of the wrong form."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    values: dict[str, Any] = {str(key): value for key, value in plain.items()} | {"backend": plain["backend"]["name"]}
    try:
        msgspec.convert(values["thresholds"], Thresholds)
        options = msgspec.convert(values, Options)
        msgspec.convert(values | {"gpus": values["gpus"] or 1}, Spec)
    except msgspec.ValidationError as error:
        raise UserError(f"the configuration is not of the right form: {error}", hint="see --help") from None
    for key, least in (
        ("blocks", 5),
        ("copy_mib", 1),
        ("max_in_flight", 1),
        ("deadline_min", 1),
    ):
        if values[key] < least:
            raise UserError(f"{key} must be at least {least}, got {values[key]}")
    sizes = values["alltoall_mib"]
    if not sizes or min(sizes) < 1:
        raise UserError(f"alltoall_mib must hold sizes of at least 1 MiB, got {sizes}", hint="alltoall_mib=[64,1024]")
    values["alltoall_mib"] = sorted(set(sizes))
    for name, value in values["limits"].items():
        if value <= 0:
            raise UserError(f"limits.{name} must be above 0, got {value}")
    if values["gpus"] is not None and values["gpus"] < 2:
        raise UserError(f"gpus must be at least 2, got {values['gpus']}", hint="one GPU has nobody to send to")
    if values["workload"]["dtype"] not in list(Dtype):
        raise UserError(f"workload.dtype must be one of {', '.join(Dtype)}, got {values['workload']['dtype']}")
    return values, options
