"""The configuration of `python -m launcher.validate`: dataclasses for Hydra, and the frozen Spec of a node's job."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from bench.backends import BACKENDS
from bench.records import Dtype
from bench.workload import Workload
from launcher.config import groups
from launcher.config.schema import BackendConf, Hardware, HardwareConf, Measure, MeasureConf, WorkloadConf
from launcher.errors import UserError
from launcher.validation.reference import Reference


@dataclass
class LimitsConf:
    """How long each phase, and the whole job of a node, may take."""

    preflight_s: float = 60.0  # GPUs, links, counters, other processes; the driver has half of it to respond
    pairs_s: float = 240.0  # copies between each pair of GPUs
    alltoall_s: float = 120.0  # NCCL all-to-all
    correctness_s: float = 240.0  # comparison of every token
    speed_s: float = 240.0  # dispatch, combine and expert GEMMs
    counters_s: float = 60.0  # growth of the counters
    job_min: int = 45  # Slurm's time limit for the job of a node


@dataclass
class ConfigsConf:
    """The configs of the speed phase: a value for each knob, [64,8,256]; []: the default of the validation."""

    dispatch: list[int] = field(default_factory=list)  # num_sms, nvl_chunk, nvl_buffer
    combine: list[int] = field(default_factory=list)  # the same; num_sms must be equal


@dataclass
class ThresholdsConf:
    """When a rate is bad, as shares: [warn, fail]. Fast is never bad."""

    inside: list[float] = field(
        default_factory=lambda: [0.97, 0.93]
    )  # over the median of the node's other GPUs or pairs
    inside_compute: list[float] = field(
        default_factory=lambda: [0.92, 0.85]
    )  # the same for GEMMs: good GPUs differ at the power cap
    reference: list[float] = field(default_factory=lambda: [0.95, 0.90])  # over the median of the stored reference
    reference_compute: list[float] = field(
        default_factory=lambda: [0.90, 0.83]
    )  # the same for GEMMs: a good GPU may reach only 0.91
    variation: float = 0.03  # scatter of the blocks (standard deviation) above which they are extended, then too noisy
    variation_compute: float = 0.08  # the same for GEMMs, which scatter at the power cap
    published: float = 0.93  # over the median of a published reference: below it a rate is WARN, never FAIL
    pair_copy: list[float] = field(
        default_factory=lambda: [0.80, 0.75]
    )  # floor of copies by copy engine, over the links' peak
    pair_sm: list[float] = field(default_factory=lambda: [0.72, 0.66])  # the same for copies by kernel
    all_to_all: list[float] = field(default_factory=lambda: [0.65, 0.59])  # the same for the all-to-all
    dispatch: list[float] = field(default_factory=lambda: [0.55, 0.50])  # the same for dispatch
    combine: list[float] = field(default_factory=lambda: [0.49, 0.44])  # the same for combine
    all_to_all_of_four: list[float] = field(
        default_factory=lambda: [0.69, 0.63]
    )  # floor of the all-to-all of four or more GPUs
    dispatch_of_four: list[float] = field(default_factory=lambda: [0.58, 0.53])  # the same for dispatch
    combine_of_four: list[float] = field(default_factory=lambda: [0.61, 0.55])  # the same for combine


@dataclass
class ValidateConf:
    """A validation of nodes."""

    nodes: str | None = None  # Slurm: a host list, gpu[001-016]
    node_state: str | None = None  # Slurm: the nodes in this state, idle or maint, of hydra.launcher.partition if given
    gpus: int | None = None  # GPUs of a node; null: those of this machine, or of the hardware file
    hardware: HardwareConf = field(default_factory=HardwareConf)
    workload: WorkloadConf = field(default_factory=WorkloadConf)
    measure: MeasureConf = field(default_factory=MeasureConf)
    backend: BackendConf = field(default_factory=BackendConf)
    limits: LimitsConf = field(default_factory=LimitsConf)
    thresholds: ThresholdsConf = field(default_factory=ThresholdsConf)
    configs: ConfigsConf = field(default_factory=ConfigsConf)
    blocks: int = 24  # repetitions of dispatch, combine and compute
    copy_mib: int = 256  # size of a copy; smaller copies have no floor
    alltoall_mib: list[int] = field(
        default_factory=lambda: [64, 256, 1024]
    )  # sizes per rank; all-to-alls have a floor from 1024 on
    reference: str | None = "published"  # published: those that ship with the project; a file of learn=; null: none
    earlier: str | None = None  # the folder of an earlier validation: part of the fleet, and may confirm a slow node
    learn: str | None = None  # write a reference from the good nodes of this run (at least 5)
    confirm: bool = True  # measure a slow, hung or crashed node again, with its GPUs in reverse order
    strict: bool = False  # WARN makes the exit status 1
    max_in_flight: int = 16  # nodes validated at the same time
    deadline_min: int = 120  # skip nodes whose job has not begun by then
    run: str | None = None  # path of the run folder; an existing one is waited for and reported
    report: str | None = None  # a run folder to report again, without measuring or waiting
    outputs: str = "outputs"  # where new run folders are made
    dry_run: bool = False  # print the jobs and stop
    self_test: bool = False  # inject every kind of fault on this machine and check that each is found
    faults: list[str] = field(default_factory=list)  # faults to inject, [NODE/]KIND@GPU:TEXT; for tests


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
    published: float = 0.93
    all_to_all_of_four: Band = (0.69, 0.63)
    dispatch_of_four: Band = (0.58, 0.53)
    combine_of_four: Band = (0.61, 0.55)

    def noise(self, test: str) -> float:
        """The most that the blocks of a test may scatter."""
        return self.variation_compute if test == "compute" else self.variation

    def by_reference(self, test: str) -> Band:
        """The shares of the reference's median below which a test warns and fails."""
        return self.reference_compute if test == "compute" else self.reference

    def floor(self, test: str, *, num_gpus: int) -> Band | None:
        """The shares of the peak below which a test warns and fails; None for a test without a peak.

        More GPUs reach a larger share: the floors of four hold from four on.
        """
        of_four: Band | None = getattr(self, f"{test}_of_four", None) if num_gpus >= _FOUR else None
        band: Band | None = getattr(self, test, None)
        return of_four or band


_FOUR = 4

ON_CPU = {
    "inside": [0.5, 0.33],
    "inside_compute": [0.5, 0.33],
    "reference": [0.5, 0.33],
    "reference_compute": [0.5, 0.33],
    "variation": 9.0,
    "variation_compute": 9.0,
}
"""Thresholds of a dry run: processes that share cores scatter by tens of percent, so only gross faults show."""


DEEPEP_CONFIG = [64, 8, 256]
"""num_sms, nvl_chunk and nvl_buffer of the speed phase: valid for any number of ranks; on H100s and H200s half of the
links' peak or more."""

_FLOOR_ELEMENTS = 4096 * 7168
"""Elements per rank from which the links, and not latency, bound dispatch and combine."""

_FLOOR_PEAK = 500.0
"""GB/s of one GPU's links up to which 64 SMs were shown to reach the floors: 450, or 478 by NVML's signalling rate."""

ALLTOALL_FLOOR_MIB, COPY_FLOOR_MIB = 1024, 256
"""The same sizes of an all-to-all, per rank, and of a copy. Their floors were measured at these."""


class Spec(msgspec.Struct, frozen=True):
    """All that a node's job needs. ``gpus_named``: ``gpus`` was given, or is from the hardware file, not counted."""

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
        """Whether the floors of dispatch and combine hold for the links, config and workload of the speed phase."""
        is_tuned = self.backend == "deepep" and all(config == DEEPEP_CONFIG for config in self.configs.values())
        peak = (self.hardware.num_links or 0) * (self.hardware.link_gb_per_s or 0)
        return is_tuned and peak <= _FLOOR_PEAK and self.workload.num_tokens * self.workload.hidden >= _FLOOR_ELEMENTS

    def has_floor(self, test: str, mib: int) -> bool:
        """Whether the floor of a test holds at this size: below, latency bounds it."""
        if test in ("dispatch", "combine"):
            return self.has_dispatch_floor
        return mib >= (ALLTOALL_FLOOR_MIB if test == "all_to_all" else COPY_FLOOR_MIB)

    @property
    def on_cpu(self) -> bool:
        """Whether ranks run without GPUs: that tests correctness and measures no speed."""
        return self.hardware.name == "cpu"


class Options(msgspec.Struct, frozen=True):
    """Options of the command: nodes, files, and what to do."""

    nodes: str | None
    node_state: str | None
    reference: str | None
    earlier: str | None
    learn: str | None
    strict: bool
    max_in_flight: int
    deadline_min: int
    run: str | None
    report: str | None
    outputs: str
    dry_run: bool
    self_test: bool


def register() -> None:
    """Registers the schema with Hydra."""
    ConfigStore.instance().store(name="validate_schema", node=ValidateConf)


def _to_values(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain values: the backend by its name, ``earlier`` as an absolute path for order.json."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    earlier = None if plain["earlier"] is None else str(Path(plain["earlier"]).resolve())
    return {str(key): value for key, value in plain.items()} | {"backend": plain["backend"]["name"], "earlier": earlier}


def from_config(config: DictConfig) -> tuple[dict[str, Any], Options]:
    """The values of a composed configuration, not yet resolved for a machine. UserError if one is invalid."""
    values = _to_values(config)
    if values["backend"] not in [*groups.EVERY, *BACKENDS]:
        names = ", ".join([*groups.EVERY, *BACKENDS])
        raise UserError(
            f"backend must be one of {names}, got {values['backend']}", hint="a validation measures one library"
        )
    try:
        msgspec.convert(values["thresholds"], Thresholds)
        options = msgspec.convert(values, Options)
        msgspec.convert(values | {"gpus": values["gpus"] or 1}, Spec)
    except msgspec.ValidationError as error:
        raise UserError(f"the configuration has the wrong form: {error}", hint="--help lists the keys") from None
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
        raise UserError(f"gpus must be at least 2, got {values['gpus']}", hint="one GPU has no other GPU to send to")
    if values["workload"]["dtype"] not in list(Dtype):
        raise UserError(f"workload.dtype must be one of {', '.join(Dtype)}, got {values['workload']['dtype']}")
    return values, options
