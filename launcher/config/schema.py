"""The shape of a configuration: dataclasses for Hydra, and the frozen Spec that the rest of the program sees.

DictConfig stops here: ``spec_from`` is the door.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import msgspec
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from bench.records import Dtype
from bench.workload import Workload
from launcher.errors import UserError


@dataclass
class HardwareConf:
    """One kind of GPU; a rate counts one direction."""

    name: str = "auto"  # auto: read from the GPUs of this machine
    gpu_pattern: str | None = None  # regular expression found in NVML's name of the GPU
    num_sms: int | None = None  # of a GPU; bounds the grid's num_sms
    memory_gb: float | None = None  # of a GPU, 10^9 bytes
    num_links: int | None = None  # NVLinks of a GPU
    link_gb_per_s: float | None = None  # of one link, one direction
    gpus_per_node: int = 0  # no more ranks than this on a node
    cpus_per_gpu: int = 1  # asked of Slurm
    source: str = ""  # where these facts come from


@dataclass
class EpConf:
    """Expert parallelism."""

    size: int = 4  # ranks
    share_gpus: bool = False  # several ranks on one GPU: tests correctness, measures nothing


@dataclass
class WorkloadConf:
    """One MoE layer as the communication sees it."""

    name: str = "custom"  # what reports call it
    num_tokens: int = 4096  # of each rank
    hidden: int = 7168  # elements of a token
    num_experts: int = 256  # on all ranks together
    num_topk: int = 8  # experts that a token chooses
    num_moe_layers: int = 58  # of the model
    moe_intermediate: int = 2048  # width of an expert
    dtype: str = "bf16"  # of dispatch, bf16 or fp8; combine is always BF16
    routing: str = "uniform"  # uniform, zipf, grouped, or the path of a trace (.npy)
    seed: int = 1  # of routing and payload


@dataclass
class MeasureConf:
    """How long a point is measured."""

    warmup: int = 5  # iterations before the first sample
    iterations: int = 30  # samples; once more when they are spread out
    deadline_s: float = 20.0  # a silent rank counts as hung after this, or 20 times the slowest point
    startup_s: float = 180.0  # the same for starting the ranks and the first use of a backend


@dataclass
class SearchConf:
    """How the best config is looked for."""

    method: str = "racing"  # racing drops what is surely slower after each round; exhaustive drops nothing
    rounds: int = 6  # visits of a point, each in a new order
    warmup: int = 2  # of a visit; the final takes those of measure
    iterations: int = 8  # samples of a visit
    final_groups: int = 5  # fresh process groups that measure the finalists; 0 leaves the final out
    objective: Any = "round_trip"  # round_trip, dispatch, combine, training (two of each), or {dispatch: 2, combine: 1}
    candidates: list[list[int]] = field(default_factory=list)  # configs that reach the final, [[24,8,256]]
    own_tuning: bool = True  # also measure the library's own tuning grid, side by side
    overlapped: bool = True  # also measure beside expert GEMMs, where the backend can
    budget_s: float | None = None  # wall time, resumes included: 60 % for each shard (N in a row: N shares), 40 % final


@dataclass
class BackendConf:
    """The library to measure."""

    name: str = "auto"  # deepep, alltoall, or auto: what this machine can run


@dataclass
class ShardConf:
    """How the points are cut into jobs."""

    count: int = 1  # jobs, each with an allocation of its own
    index: int | None = None  # this shard only; null is all of them


@dataclass
class SweepConf:
    """Everything that a sweep can be told."""

    hardware: HardwareConf = field(default_factory=HardwareConf)
    ep: EpConf = field(default_factory=EpConf)
    workload: WorkloadConf = field(default_factory=WorkloadConf)
    grid: dict[str, Any] = field(default_factory=dict)  # values of the knobs, by name
    measure: MeasureConf = field(default_factory=MeasureConf)
    search: SearchConf = field(default_factory=SearchConf)
    backend: BackendConf = field(default_factory=BackendConf)
    shard: ShardConf = field(default_factory=ShardConf)
    seed: int = 1  # of the order of points
    run: str | None = None  # a run folder to complete, or where to make a new one
    outputs: str = "outputs"  # where new run folders are made
    dry_run: bool = False  # print the plan and stop
    strict: bool = False  # failed points make the exit status 3
    allow_mixed: bool = False  # report unlike environments apart instead of refusing
    allow_other_code: bool = False  # resume a run that other code of this program began
    faults: list[str] = field(default_factory=list)  # injected on purpose, KIND@RANK:TEXT; for tests


class Hardware(msgspec.Struct, frozen=True):
    """HardwareConf, frozen."""

    name: str
    gpu_pattern: str | None
    num_sms: int | None
    memory_gb: float | None
    num_links: int | None
    link_gb_per_s: float | None
    gpus_per_node: int
    cpus_per_gpu: int
    source: str

    @property
    def peak_gb_per_s(self) -> float | None:
        """What all links of one GPU carry in one direction; None without links."""
        if self.num_links is None or self.link_gb_per_s is None:
            return None
        return self.num_links * self.link_gb_per_s


class Ep(msgspec.Struct, frozen=True):
    """EpConf, frozen."""

    size: int
    share_gpus: bool


class Measure(msgspec.Struct, frozen=True):
    """MeasureConf, frozen."""

    warmup: int
    iterations: int
    deadline_s: float
    startup_s: float


class Search(msgspec.Struct, frozen=True):
    """SearchConf, frozen."""

    method: str
    rounds: int
    warmup: int
    iterations: int
    final_groups: int
    objective: str | dict[str, float]
    candidates: list[list[int]]
    own_tuning: bool
    overlapped: bool
    budget_s: float | None

    @property
    def weights(self) -> tuple[float, float]:
        """How often a dispatch and a combine count."""
        if isinstance(self.objective, str):
            return OBJECTIVES[self.objective]
        return self.objective.get("dispatch", 0.0), self.objective.get("combine", 0.0)


OBJECTIVES = {"round_trip": (1.0, 1.0), "dispatch": (1.0, 0.0), "combine": (0.0, 1.0), "training": (2.0, 2.0)}
METHODS = ("racing", "exhaustive")

Axis = list[int] | dict[str, list[int]]
"""Values of a knob: one list, or one for each of dispatch and combine."""


class Spec(msgspec.Struct, frozen=True):
    """One sweep, with nothing left to resolve but ``auto``."""

    hardware: Hardware
    ep: Ep
    workload: Workload
    backend: str
    grid: dict[str, Axis]
    measure: Measure
    search: Search
    num_shards: int
    seed: int
    faults: list[str]


class Options(msgspec.Struct, frozen=True):
    """What steers this command without changing what is measured."""

    run: str | None
    outputs: str
    dry_run: bool
    strict: bool
    allow_mixed: bool
    allow_other_code: bool
    shard_index: int | None


def register() -> None:
    """Makes the schema known to Hydra, so that names and types are checked when a config is composed."""
    ConfigStore.instance().store(name="sweep_schema", node=SweepConf)


def spec_from(config: DictConfig) -> tuple[Spec, Options]:
    """The frozen values of a composed config. UserError for a value of the wrong form."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    shard = plain["shard"]
    plain |= {"backend": plain["backend"]["name"], "num_shards": shard["count"], "shard_index": shard["index"]}
    objective = plain["search"]["objective"]
    if not _is_objective(objective):
        raise UserError(
            f"search.objective must be one of {', '.join(OBJECTIVES)}, or weights of dispatch and combine that are not "
            f"negative and not all 0, got {objective}",
            hint="search.objective={dispatch:2,combine:1}",
        )
    if plain["workload"]["dtype"] not in list(Dtype):
        raise UserError(f"workload.dtype must be one of {', '.join(Dtype)}, got {plain['workload']['dtype']}")
    for name, group in plain.items():
        for key, value in group.items() if isinstance(group, dict) else ():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{name!s}.{key} must be a number, got {value}")
    try:
        return msgspec.convert(plain, Spec), msgspec.convert(plain, Options)
    except msgspec.ValidationError as error:
        raise UserError(
            f"the configuration is not of the right form: {error}",
            hint="a knob takes a list, grid.nvl_chunk=[8,16], or one for each operation, "
            "grid.nvl_chunk={dispatch:[8],combine:[16]}",
        ) from None


def _is_objective(value: object) -> bool:
    """Whether it is a name, or says how often a layer waits for each operation; what is left out counts 0."""
    if not isinstance(value, dict):
        return isinstance(value, str) and value in OBJECTIVES
    weights = value.values()
    numbers = all(type(one) in (int, float) and 0 <= one < math.inf for one in weights)
    return value.keys() <= {"dispatch", "combine"} and numbers and any(weights)
