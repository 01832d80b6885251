"""The schema of a configuration: dataclasses for Hydra, and the frozen Spec for the rest of the program.

``spec_from`` turns one into the other; no DictConfig passes it.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import msgspec
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from bench.faults import Fault
from bench.records import Dtype
from bench.rules import GridAxis
from bench.workload import Workload
from launcher.config import groups
from launcher.errors import UserError


@dataclass
class HardwareConf:
    """One kind of GPU; a rate counts one direction."""

    name: str = "auto"  # auto: read from the GPUs of this machine
    gpu_pattern: str | None = None  # regular expression found in NVML's name of the GPU
    num_sms: int | None = None  # of a GPU; limits the grid's num_sms
    memory_gb: float | None = None  # of a GPU, 10^9 bytes
    num_links: int | None = None  # NVLinks of a GPU
    link_gb_per_s: float | None = None  # of one link, one direction
    gpus_per_node: int = 0  # the most ranks of a node
    cpus_per_gpu: int = 1  # what a job requests
    source: str = ""  # where these facts come from


@dataclass
class EpConf:
    """Expert parallelism."""

    size: int = 4  # ranks
    share_gpus: bool = False  # several ranks on one GPU: tests correctness, the times mean nothing


@dataclass
class WorkloadConf:
    """One MoE layer, as far as the communication depends on it."""

    name: str = "custom"  # its name in reports
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
    iterations: int = 30  # samples; as many again if they scatter
    deadline_s: float = 20.0  # a silent rank counts as hung after this, or 20 times the slowest point
    startup_s: float = 180.0  # the same for starting the ranks and the first use of a backend


@dataclass
class SearchConf:
    """The search for the best config."""

    method: str = "racing"  # racing drops significantly slower configs after each round; exhaustive drops none
    rounds: int = 6  # repetitions of a point, each round in a new order
    warmup: int = 2  # of a repetition; the final takes that of measure
    iterations: int = 8  # samples of a repetition
    final_groups: int = 5  # fresh process groups that measure the finalists; 0 skips the final
    objective: Any = "round_trip"  # or forward, dispatch, combine, training (two of each), {dispatch: 2, combine: 1}
    candidates: Any = None  # configs that reach the final in any case, [[24,8,256]] or {deepep: [[24,8,256]]}
    own_tuning: bool = True  # also measure the library's own tuning grid
    overlapped: bool = True  # also measure overlapped with expert GEMMs, if the backend can
    max_buffer_mib: float | None = 2047  # larger NVLink buffers are refused; null: none. 2048 fail with RDMA buffers
    budget_s: float | None = None  # wall time, resumes included: 60 % per shard (N in a row: N times), 40 % final


@dataclass
class BackendConf:
    """The libraries to measure."""

    name: Any = "all"  # one, a list, or all: every library that this machine can run; without GPUs the all-to-all


@dataclass
class ShardConf:
    """The division of the points into jobs."""

    count: int = 1  # jobs, each with an allocation of its own
    index: int | None = None  # only this shard; null: all shards


@dataclass
class SweepConf:
    """All keys of a sweep."""

    hardware: HardwareConf = field(default_factory=HardwareConf)
    ep: EpConf = field(default_factory=EpConf)
    workload: WorkloadConf = field(default_factory=WorkloadConf)
    grid: dict[str, Any] = field(default_factory=dict)  # values of the knobs, by name; null: those of grid.own
    measure: MeasureConf = field(default_factory=MeasureConf)
    search: SearchConf = field(default_factory=SearchConf)
    backend: BackendConf = field(default_factory=BackendConf)
    shard: ShardConf = field(default_factory=ShardConf)
    seed: int = 1  # of the order of points
    repeat: int | None = None  # short finals to append, which show how much runs scatter; budget_s does not count them
    run: str | None = None  # a run folder to complete, or the path of a new one
    outputs: str = "outputs"  # where new run folders are made
    dry_run: bool = False  # print the plan and stop
    strict: bool = False  # failed points make the exit status 3
    allow_mixed: bool = False  # report different environments separately instead of refusing them
    allow_other_code: bool = False  # complete a run that other code began; its jobs then run this code
    faults: list[str] = field(default_factory=list)  # faults to inject, KIND@RANK:TEXT; for tests


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
        """The rate of all links of one GPU in one direction; None without links."""
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


Candidates = list[list[int]] | dict[str, list[list[int]]]
"""Configs as values of all knobs: a list for any library, or one for each library; launcher.config.candidates."""


class Search(msgspec.Struct, frozen=True):
    """SearchConf, frozen."""

    method: str
    rounds: int
    warmup: int
    iterations: int
    final_groups: int
    objective: str | dict[str, float]
    candidates: Candidates
    own_tuning: bool
    overlapped: bool
    budget_s: float | None
    max_buffer_mib: float | None = 2047.0

    @property
    def counts_full(self) -> bool:
        """Whether the objective counts the full dispatch in place of the cached one."""
        return self.objective == FORWARD

    @property
    def weights(self) -> tuple[float, float]:
        """The weights of dispatch and combine."""
        if isinstance(self.objective, str):
            return OBJECTIVES[self.objective]
        return self.objective.get("dispatch", 0.0), self.objective.get("combine", 0.0)


FORWARD = "forward"
"""The objective of a forward pass: a full dispatch and a combine."""

OBJECTIVES = {
    "round_trip": (1.0, 1.0),
    FORWARD: (1.0, 1.0),
    "dispatch": (1.0, 0.0),
    "combine": (0.0, 1.0),
    "training": (2.0, 2.0),
}
METHODS = ("racing", "exhaustive")


class Spec(msgspec.Struct, frozen=True):
    """One sweep, checked; only ``auto`` is left to resolve."""

    hardware: Hardware
    ep: Ep
    workload: Workload
    backend: str | list[str]
    grid: dict[str, GridAxis]
    measure: Measure
    search: Search
    num_shards: int
    seed: int
    faults: list[str]

    @property
    def backends(self) -> list[str]:
        """The libraries to measure, the one that the report begins with first."""
        return [self.backend] if isinstance(self.backend, str) else self.backend


class Options(msgspec.Struct, frozen=True):
    """Keys that steer the command and change no measurement."""

    run: str | None
    outputs: str
    dry_run: bool
    strict: bool
    allow_mixed: bool
    allow_other_code: bool
    shard_index: int | None
    repeat: int | None = None


@functools.cache
def register() -> None:
    """Registers the schema with Hydra, which then checks names and types, and the groups of the libraries; once."""
    schema = OmegaConf.structured(SweepConf)
    OmegaConf.set_struct(schema.grid, value=False)  # grid.num_sms.deepep=[8] adds a key; the plan refuses unknown ones
    store = ConfigStore.instance()
    store.store(name="sweep_schema", node=schema, provider="deepep-sweep")
    for group in groups.GROUPS:
        for name, node in groups.nodes(group).items():
            store.store(group=group, name=name, node=node, provider="deepep-sweep")


def spec_from(config: DictConfig) -> tuple[Spec, Options]:
    """The frozen values of a composed config. UserError for a malformed value."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    shard = plain["shard"]
    plain |= {"num_shards": shard["count"], "shard_index": shard["index"]}
    plain["backend"] = _backend(plain["backend"]["name"])
    plain["search"]["candidates"] = plain["search"]["candidates"] or []
    _check_values(plain)
    try:
        plain["grid"] = groups.axes(plain["grid"])
        return msgspec.convert(plain, Spec), msgspec.convert(plain, Options)
    except msgspec.ValidationError as error:
        raise UserError(
            f"the configuration is not of the right form: {error}",
            hint="a knob takes a list, grid.nvl_chunk=[8,16], or one for each operation or library, "
            "grid.nvl_chunk={dispatch:[8],combine:[16]}, grid.num_sms={deepep:[8],nccl_ep:[16]}",
        ) from None


def _backend(name: object) -> str | list[str]:
    """The name of a library, or several names without duplicates. UserError for anything else."""
    if isinstance(name, str):
        return name
    if not isinstance(name, list) or not name or not all(isinstance(each, str) for each in name):
        raise UserError(f"backend must name a library or list several, got {name}", hint="backend=[deepep,nccl_ep]")
    general = [each for each in name if each in groups.EVERY]
    if general:
        raise UserError(f"backend={general[0]} cannot be one of a list, got {', '.join(name)}", hint="backend=all")
    names = list(dict.fromkeys(name))
    return names[0] if len(names) == 1 else names


def _check_values(plain: dict[str, Any]) -> None:
    """UserError for a value that has the right type and no meaning."""
    objective, dtype = plain["search"]["objective"], plain["workload"]["dtype"]
    if not _is_objective(objective):
        raise UserError(
            f"search.objective must be one of {', '.join(OBJECTIVES)}, or weights of dispatch and combine that are not "
            f"negative and not all 0, got {objective}",
            hint="search.objective={dispatch:2,combine:1}",
        )
    try:
        msgspec.convert(plain["search"]["candidates"], Candidates)
    except msgspec.ValidationError as error:
        raise UserError(
            f"search.candidates must list configs, or configs by library, each a list of numbers: {error}",
            hint="search.candidates=[[24,8,256]], search.candidates={deepep:[[24,8,256]],deepep_v2:[[24]]}",
        ) from None
    if dtype not in list(Dtype):
        raise UserError(f"workload.dtype must be one of {', '.join(Dtype)}, got {dtype}")
    if plain["repeat"] is not None and plain["repeat"] < 1:
        raise UserError(
            f"repeat must be at least 1, got {plain['repeat']}",
            hint="repeat=5 appends five short finals; leave it out to append none",
        )
    for name, group in plain.items():
        for key, value in group.items() if isinstance(group, dict) else ():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{name!s}.{key} must be a number, got {value}")
    for text in plain["faults"]:
        try:
            Fault.parse(text)
        except ValueError as error:
            raise UserError(f"faults: {error}") from None


def _is_objective(value: object) -> bool:
    """Whether it is a name, or weights of the operations; a missing one counts 0."""
    if not isinstance(value, dict):
        return isinstance(value, str) and value in OBJECTIVES
    weights = value.values()
    are_weights = all(type(weight) in (int, float) and 0 <= weight < math.inf for weight in weights)
    return value.keys() <= {"dispatch", "combine"} and are_weights and any(weights)
