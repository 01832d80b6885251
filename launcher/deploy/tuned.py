"""What a RESULTS file says to deploy: the parts that exports and the library need, refused where they mean nothing."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

import msgspec

from bench.backends.deepep import config_arguments
from bench.workload import Workload
from launcher.errors import UserError
from launcher.store.results_file import Points, Search, parsed, unfinished

PICKS = ("fastest", "overlapped", "default_sms", "knee")


Configs = dict[str, dict[str, int]]
"""Keyword arguments of ``deep_ep.Config`` for ``dispatch`` and ``combine``."""


class Operation(msgspec.Struct, frozen=True):
    """One direction of a pair."""

    nvl_chunk: int
    nvl_buffer: int
    median_us: float
    ci95_us: tuple[float, float]
    stage: Literal["sweep", "final"]


class Pair(msgspec.Struct, frozen=True):
    """A dispatch and a combine that can be deployed together."""

    num_sms: int
    dispatch: Operation
    combine: Operation
    round_trip_us: float

    @property
    def round_trip_ci95_us(self) -> tuple[float, float]:
        """Sums of the two intervals' ends: at least as wide as the interval of the sum."""
        (low, high), (other_low, other_high) = self.dispatch.ci95_us, self.combine.ci95_us
        return round(low + other_low, 2), round(high + other_high, 2)

    @property
    def is_final(self) -> bool:
        """Whether both were measured in the final."""
        return self.dispatch.stage == self.combine.stage == "final"

    @property
    def knobs(self) -> Configs:
        """num_sms, nvl_chunk and nvl_buffer of each operation."""
        return {
            name: {"num_sms": self.num_sms, "nvl_chunk": one.nvl_chunk, "nvl_buffer": one.nvl_buffer}
            for name, one in (("dispatch", self.dispatch), ("combine", self.combine))
        }

    @property
    def configs(self) -> Configs:
        """What ``deep_ep.Config(**...)`` takes."""
        return {name: config_arguments(knobs) for name, knobs in self.knobs.items()}


class Chunks(msgspec.Struct, frozen=True):
    """The knobs of one direction that are its own."""

    nvl_chunk: int
    nvl_buffer: int


class Beside(msgspec.Struct, frozen=True):
    """A pair beside one layer's expert GEMMs, in microseconds until all are done."""

    num_sms: int
    dispatch: Chunks
    combine: Chunks
    makespan_us: float
    ci95_us: tuple[float, float]

    def is_of(self, pair: Pair) -> bool:
        """Whether it ran just these two configs."""
        return self.num_sms == pair.num_sms and all(
            (own.nvl_chunk, own.nvl_buffer) == (one.nvl_chunk, one.nvl_buffer)
            for own, one in ((self.dispatch, pair.dispatch), (self.combine, pair.combine))
        )


class Verdict(msgspec.Struct, frozen=True):
    """Whether the fastest pair beats the library's default, by the ratio default / fastest."""

    kind: Literal["tuned", "default_is_optimal", "inconclusive"]
    ratio: float
    ci95: tuple[float, float]
    meaning: str


class Environment(msgspec.Struct, frozen=True):
    """Where it was measured."""

    device: str
    num_devices: int
    versions: dict[str, str]


class Host(msgspec.Struct, frozen=True):
    """A machine."""

    hostname: str


class TunedResults(msgspec.Struct, frozen=True):
    """One sweep's answer, of real GPUs that no two ranks shared."""

    command: list[str]
    ended: str | None
    ep: int
    workload: Workload
    environment: Environment
    hosts: list[Host]
    points: Points
    search: Search
    verdict: Verdict
    picks: dict[str, Pair]
    overlapped: list[Beside] = []
    timing: int = 1

    def __post_init__(self) -> None:
        """ValueError without the pick that the verdict is about."""
        if "fastest" not in self.picks:
            raise ValueError("picks has no fastest")

    @property
    def deep_ep(self) -> str:
        """Distribution and version that were measured."""
        return self.environment.versions.get("deep_ep", "unknown")

    @property
    def missing_parts(self) -> list[str]:
        """What keeps this from being a whole result, a phrase each."""
        found = unfinished(self.points, self.search)
        if not self.picks["fastest"].is_final:
            found.append("it was not measured again in a final")
        return found

    def pair(self, pick: str) -> Pair:
        """The pair of a pick; UserError names those that there are."""
        if pick not in self.picks:
            raise UserError(f"pick must be one of {', '.join(self.picks)} here, got {pick}", hint="--pick fastest")
        return self.picks[pick]

    def beside(self, pair: Pair) -> Beside | None:
        """What this pair took beside GEMMs; None where that was not measured."""
        return next((one for one in self.overlapped if one.is_of(pair)), None)


class _Head(msgspec.Struct, frozen=True):
    """What decides whether the rest means anything."""

    dry_run: bool
    shared_gpus: bool
    backend: str
    optimal: msgspec.Raw
    verdict: msgspec.Raw


def read(file: Path) -> TunedResults:
    """The answer in a RESULTS file. UserError when it is none, of another schema, or not to be deployed."""

    def decode(content: bytes) -> TunedResults:
        _check_meaning(file, msgspec.json.decode(content, type=_Head))
        return msgspec.json.decode(content, type=TunedResults)

    return parsed(file, decode)


def _check_meaning(file: Path, head: _Head) -> None:
    if head.dry_run:
        raise UserError(f"{file} is a dry run: it measured no DeepEP", hint="sweep on a machine with GPUs and deep_ep")
    if head.shared_gpus:
        raise UserError(
            f"{file} has ranks that shared a GPU: its times mean nothing", hint="sweep with a GPU for each rank"
        )
    if head.backend != "deepep":
        raise UserError(f"{file} measured backend {head.backend}, not deepep", hint="sweep with backend=deepep")
    for name, value in (("optimal pair", head.optimal), ("verdict on the default", head.verdict)):
        if bytes(value) == b"null":
            raise UserError(f"{file} has no {name}: too little was measured", hint="python -m launcher.resume RUN")


def provenance(answer: TunedResults, pick: str) -> dict[str, str]:
    """Where a pick comes from, in words; a value may hold anything that a host or a command may be named."""
    workload, pair, verdict = answer.workload, answer.pair(pick), answer.verdict
    found = {
        "machine": f"{answer.environment.num_devices} x {answer.environment.device}, EP={answer.ep}",
        "hosts": ", ".join(sorted({host.hostname for host in answer.hosts})),
        "workload": (
            f"{workload.name}: {workload.num_tokens} tokens a rank, hidden {workload.hidden}, "
            f"{workload.num_experts} experts, top-{workload.num_topk}, {workload.dtype} dispatch, "
            f"routing {workload.routing}"
        ),
        "deep_ep": answer.deep_ep,
        "measured": answer.ended or "unknown",
        "command": shlex.join(answer.command),
        "verdict": (
            f"{verdict.kind}: {verdict.meaning}; default / fastest = {verdict.ratio:.3f}, "
            f"95 % interval {verdict.ci95[0]:.3f} to {verdict.ci95[1]:.3f}"
        ),
        "pick": pick,
    }
    for name, one in (("dispatch", pair.dispatch), ("combine", pair.combine)):
        found[name] = (
            f"(num_sms, nvl_chunk, nvl_buffer) = {tuple(pair.knobs[name].values())}: median {one.median_us:.2f} us, "
            f"95 % interval {one.ci95_us[0]:.2f} to {one.ci95_us[1]:.2f}"
        )
    beside = answer.beside(pair)
    if beside is not None:
        low, high = beside.ci95_us
        found["beside_gemms"] = (
            f"{beside.makespan_us:.1f} us, 95 % interval {low:.1f} to {high:.1f}, until both are done"
        )
    return found | {"notes": "; ".join(answer.missing_parts)} if answer.missing_parts else found
