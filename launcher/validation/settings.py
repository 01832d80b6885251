"""What `python -m launcher.validate` can be told: the dataclasses for Hydra, and the frozen Spec that a job gets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from bench.records import Dtype
from bench.workload import Workload
from launcher.errors import UserError
from launcher.schema import BackendConf, Hardware, HardwareConf, Measure, MeasureConf, WorkloadConf
from launcher.validation.reference import Reference


@dataclass
class LimitsConf:
    """How long each phase, and a node's whole job, may take."""

    preflight_s: float = 60.0
    pairs_s: float = 240.0
    alltoall_s: float = 120.0
    correctness_s: float = 240.0
    speed_s: float = 240.0
    counters_s: float = 60.0
    job_min: int = 20  # Slurm's time limit of a node's job


@dataclass
class ThresholdsConf:
    """When a rate is bad, as shares; one-sided, since fast is never bad. Of two numbers the first warns."""

    inside: list[float] = field(default_factory=lambda: [0.97, 0.93])  # over the median of the node's other GPUs
    reference: list[float] = field(default_factory=lambda: [0.95, 0.90])  # over the stored reference's median
    shape: list[float] = field(default_factory=lambda: [0.03, 0.05])  # how far slow blocks lie below the reference's
    variation: float = 0.03  # standard deviation over mean of the blocks: measured longer, then too noisy
    dip: float = 0.95  # bandwidth of an all-to-all over that of the next smaller one
    fleet_z: float = 3.5  # robust deviations below the fleet's median
    fleet_floor: float = 0.01  # least deviation, as a share of the median
    pair_copy: list[float] = field(default_factory=lambda: [0.80, 0.75])  # floors, shares of the link's peak
    pair_sm: list[float] = field(default_factory=lambda: [0.68, 0.62])
    all_to_all: list[float] = field(default_factory=lambda: [0.68, 0.60])
    dispatch: list[float] = field(default_factory=lambda: [0.50, 0.42])
    combine: list[float] = field(default_factory=lambda: [0.45, 0.38])


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
    configs: dict[str, list[int]] = field(default_factory=dict)  # knobs of dispatch and combine; {}: the suite's own
    blocks: int = 24  # visits of dispatch, combine and compute
    block_iterations: int = 10  # samples of a visit
    copy_mib: int = 256  # of a pair
    alltoall_mib: list[int] = field(default_factory=lambda: [64, 256, 1024])  # of a rank
    reference: str | None = None  # a file that learn= wrote
    learn: str | None = None  # write a reference from this run's good nodes (5 at least)
    confirm: bool = True  # a slow, hung or crashed node is measured again, its GPUs in another order
    strict: bool = False  # WARN makes the exit status 1
    max_in_flight: int = 16  # nodes that are validated at once
    deadline_min: int = 120  # nodes that are busy for so long are skipped
    run: str | None = None  # where to make the run folder, or one to report again
    outputs: str = "outputs"  # where new run folders are made
    dry_run: bool = False  # print what would be submitted, and stop
    self_test: bool = False  # inject every fault on this machine and check that each is found
    seed: int = 1
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
    reference: Band
    shape: Band
    variation: float
    dip: float
    fleet_z: float
    fleet_floor: float
    pair_copy: Band
    pair_sm: Band
    all_to_all: Band
    dispatch: Band
    combine: Band

    def floor(self, test: str) -> Band | None:
        """Shares of the peak below which a test warns, and fails; None for tests without a peak."""
        found: Band | None = getattr(self, test, None)
        return found


ON_CPU = {
    "inside": [0.5, 0.33],
    "reference": [0.5, 0.33],
    "shape": [9.0, 9.0],
    "variation": 9.0,
    "dip": 0.0,
    "fleet_floor": 0.25,
}
"""Thresholds of a dry run: processes that share cores scatter by tens of percent, and only gross faults can be seen."""


class Spec(msgspec.Struct, frozen=True):
    """What a node's job is told."""

    gpus: int
    hardware: Hardware
    workload: Workload
    measure: Measure
    backend: str
    limits: Limits
    thresholds: Thresholds
    configs: dict[str, list[int]]
    blocks: int
    block_iterations: int
    copy_mib: int
    alltoall_mib: list[int]
    confirm: bool
    faults: list[str]
    references: list[Reference] = []

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
    outputs: str
    dry_run: bool
    self_test: bool


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
        ("block_iterations", 3),
        ("copy_mib", 1),
        ("max_in_flight", 1),
        ("deadline_min", 1),
    ):
        if values[key] < least:
            raise UserError(f"{key} must be at least {least}, got {values[key]}")
    if values["gpus"] is not None and values["gpus"] < 2:
        raise UserError(f"gpus must be at least 2, got {values['gpus']}", hint="one GPU has nobody to send to")
    if values["workload"]["dtype"] not in list(Dtype):
        raise UserError(f"workload.dtype must be one of {', '.join(Dtype)}, got {values['workload']['dtype']}")
    return values, options
