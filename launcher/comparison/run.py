"""One side of a comparison: what is taken from its RESULTS file, and whether two sides measured the same thing."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec

from bench.records import Dtype, Environment, Host, Op, Point, Role, Stage
from bench.workload import Workload
from launcher.config.schema import Hardware
from launcher.errors import UserError
from launcher.store import results_file
from launcher.store.results_file import Points, Search
from launcher.store.revision import Revision
from launcher.text import knobs_text

_MUST_AGREE = ("ep", "backend", "shared_gpus", "dry_run")
_HARDWARE = ("device", "num_devices", "num_sms", "memory_bytes", "num_links", "link_gb_per_s", "topology")
_MEMORY_SLACK = 0.05
"""Drivers differ in the memory that they report of one GPU (A100: 40536 MiB until 470, 40960 MiB from 510 on)."""

_BESIDE_GEMMS = (Op.COMPUTE, Op.OVERLAPPED)
_OVERLAPPED = "overlapped"

Positive = Annotated[float, msgspec.Meta(gt=0)]


class Numbers(msgspec.Struct, frozen=True):
    """What RESULTS says of one operation; its other members are knobs."""

    median_us: Positive
    ci95_us: tuple[Positive, Positive]
    spread: float
    num_samples: int
    stage: Stage
    unstable: bool
    logical_gb_per_s: float | None
    wire_gb_per_s: float | None
    peak_fraction: float | None


class SavedMeasurement(Numbers, frozen=True):
    """The numbers of one point."""

    backend: str
    op: Op
    dtype: Dtype
    role: Role

    @property
    def is_fresh(self) -> bool:
        """Whether the final's fresh process groups measured it; the passes beside GEMMs are all in one of them."""
        return self.stage is Stage.FINAL and self.op not in _BESIDE_GEMMS


class Pair(msgspec.Struct, frozen=True):
    """A dispatch and a combine; its other members are the knobs that both share."""

    dispatch: msgspec.Raw
    combine: msgspec.Raw
    round_trip_us: Positive
    dispatch_full: msgspec.Raw = msgspec.Raw(b"null")


class Failure(msgspec.Struct, frozen=True):
    """A point that failed, be it in one of several visits."""

    point: Point
    kind: str


class Document(msgspec.Struct, frozen=True):
    """The parts of RESULTS that are compared."""

    command: list[str]
    started: str | None
    ended: str | None
    revision: Revision
    hardware: Hardware
    ep: int
    shared_gpus: bool
    dry_run: bool
    backend: str
    workload: Workload
    search: Search
    environment: Environment | None
    hosts: list[Host]
    points: Points
    default: msgspec.Raw
    optimal: msgspec.Raw
    picks: dict[str, msgspec.Raw]
    overlapped: list[dict[str, Any]]
    measurements: list[msgspec.Raw]
    failures: list[Failure]
    timing: int = 1


class Pick(msgspec.Struct, frozen=True):
    """Both configs of a pair in words, how long they take together, and how long until GEMMs beside them are done too.

    The time beside GEMMs stands at `overlapped` alone, which was picked by it; None also where nothing was measured.
    """

    config: str
    round_trip_us: float
    beside_gemms_us: float | None = None


class ComparedRun(NamedTuple):
    """A run. ``measured`` and ``failed`` (the kind of failure) go by the label of the point and share none.

    ``optimal``: the labels of the dispatch and the combine that the run chose.
    """

    file: Path
    document: Document
    measured: dict[str, SavedMeasurement]
    failed: dict[str, str]
    picks: dict[str, Pick]
    optimal: set[str]

    @property
    def seen(self) -> set[str]:
        """Labels of the points that have a result, be it a failure."""
        return self.measured.keys() | self.failed.keys()


def read(path: Path) -> ComparedRun:
    """The run of a folder, or of a RESULTS file. UserError when there is none, or of another schema."""
    file = results_file.locate(path)
    return results_file.parsed(file, lambda content: decode(file, content))


def decode(file: Path, content: bytes) -> ComparedRun:
    """The run in the content of a file. msgspec.DecodeError when it is not of the right form.

    A point that failed in any visit counts as failed, though others gave it a time.
    """
    document = msgspec.json.decode(content, type=Document)
    failed: dict[str, str] = {}
    for failure in document.failures:
        failed.setdefault(failure.point.label, failure.kind)
    measured = dict(_measurement(raw) for raw in document.measurements)
    raws = {"default": document.default, "optimal": document.optimal}
    raws |= {name: raw for name, raw in document.picks.items() if name == _OVERLAPPED}
    picks = {name: _pick(raw) for name, raw in raws.items() if bytes(raw) != b"null"}
    if _OVERLAPPED in picks:
        beside_us = _beside_gemms_us(document, raws[_OVERLAPPED])
        picks[_OVERLAPPED] = msgspec.structs.replace(picks[_OVERLAPPED], beside_gemms_us=beside_us)
    return ComparedRun(
        file,
        document,
        {label: one for label, one in measured.items() if label not in failed},
        failed,
        picks,
        set() if bytes(document.optimal) == b"null" else _labels(document, document.optimal),
    )


def _labels(document: Document, raw: msgspec.Raw) -> set[str]:
    """The two points of a pair."""
    pair, shared = msgspec.json.decode(raw, type=Pair), _knobs(raw, Pair)
    operations = (
        (Op.DISPATCH, document.workload.dtype, pair.dispatch),
        (Op.COMBINE, Dtype.BF16, pair.combine),
    )
    return {
        Point(document.backend, op, dtype, shared | _knobs(numbers, Numbers)).label for op, dtype, numbers in operations
    }


def _measurement(raw: msgspec.Raw) -> tuple[str, SavedMeasurement]:
    one = msgspec.json.decode(raw, type=SavedMeasurement)
    return Point(one.backend, one.op, one.dtype, _knobs(raw, SavedMeasurement)).label, one


def _beside_gemms_us(document: Document, raw: msgspec.Raw) -> float | None:
    """What a pair took beside GEMMs."""
    pair = msgspec.json.decode(raw, type=Pair)
    configs = _knobs(raw, Pair) | {name: _knobs(getattr(pair, name), Numbers) for name in ("dispatch", "combine")}
    found = [one["makespan_us"] for one in document.overlapped if configs.items() <= one.items()]
    return found[0] if found else None


def _pick(raw: msgspec.Raw) -> Pick:
    pair = msgspec.json.decode(raw, type=Pair)
    shared = knobs_text(_knobs(raw, Pair))
    own = [f"{name} {knobs_text(_knobs(getattr(pair, name), Numbers))}" for name in ("dispatch", "combine")]
    return Pick("; ".join([*([shared] if shared else []), *own]), pair.round_trip_us)


def _knobs(raw: msgspec.Raw, known: type[msgspec.Struct]) -> dict[str, int]:
    """The members that ``known`` does not name: integers, by the schema of RESULTS."""
    members = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    names = [name for name in members if name not in known.__struct_fields__]
    return {name: msgspec.json.decode(members[name], type=int) for name in names}


def facts(side: ComparedRun) -> dict[str, str]:
    """All that surrounds the numbers, by name: environment, hosts, hardware, code and command."""
    document = side.document
    environment = {} if document.environment is None else msgspec.to_builtins(document.environment)
    versions = environment.pop("versions", {})
    found = {f"environment.{name}": value for name, value in environment.items() if name not in ("type", "v")}
    found |= {f"environment.versions.{name}": version for name, version in versions.items()}
    hosts = document.hosts
    found["hosts.hostname"] = ", ".join(sorted({host.hostname for host in hosts}))
    found["hosts.gpu_uuids"] = ", ".join(sorted({uuid for host in hosts for uuid in host.gpu_uuids}))
    found["hosts.python"] = ", ".join(sorted({host.python for host in hosts}))
    found |= {f"hardware.{name}": value for name, value in msgspec.to_builtins(document.hardware).items()}
    found |= {f"revision.{name}": value for name, value in msgspec.to_builtins(document.revision).items()}
    found |= {"workload.name": document.workload.name, "command": shlex.join(document.command)}
    return {name: "unknown" if value is None else str(value) for name, value in found.items()}


def check_same(a: ComparedRun, b: ComparedRun) -> None:
    """UserError naming what makes a point of A mean something else than the same point of B."""
    unlike = _unlike(a.document, b.document, _MUST_AGREE)
    names = [name for name in Workload.__struct_fields__ if name != "name"]
    unlike += [f"workload.{one}" for one in _unlike(a.document.workload, b.document.workload, names)]
    if unlike:
        raise UserError(
            f"the two runs measured different things: {'; '.join(unlike)}", hint="sweep B with the options of A"
        )


def hardware_differences(a: ComparedRun, b: ComparedRun) -> list[str]:
    """How the machines differ, a phrase for each field; empty for machines of one kind."""
    first, second = a.document.environment, b.document.environment
    if first is None or second is None:
        return []
    if _near(first.memory_bytes, second.memory_bytes):
        second = msgspec.structs.replace(second, memory_bytes=first.memory_bytes)
    return _unlike(first, second, _HARDWARE)


def _near(first: int | None, second: int | None) -> bool:
    return bool(first and second and abs(math.log(first / second)) < _MEMORY_SLACK)


def _unlike(a: msgspec.Struct, b: msgspec.Struct, names: Sequence[str]) -> list[str]:
    pairs = [(name, getattr(a, name), getattr(b, name)) for name in names]
    return [f"{name} is {one_line(one)} in A, {one_line(other)} in B" for name, one, other in pairs if one != other]


def one_line(value: object) -> str:
    """A value as text that stays on its line and cannot steer a terminal."""
    return " ".join("".join(char if char.isprintable() else " " for char in str(value)).split())
