"""One run of a comparison: what its RESULTS file measured, and whether two runs measured the same thing."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench.backends import LIBRARY_DEFAULT
from bench.records import Dtype, Op, Point
from bench.workload import Workload
from launcher.errors import UserError
from launcher.store import results_file
from launcher.store.results_file import SavedLibrary, SavedMeasurement, SavedPair, SavedResults
from launcher.text import knobs_text, one_line

_MUST_AGREE = ("ep", "shared_gpus", "dry_run")
_HARDWARE = ("device", "num_devices", "num_sms", "memory_bytes", "num_links", "link_gb_per_s", "topology")
_MEMORY_SLACK = 0.05
"""Drivers differ in the memory that they report of one GPU (A100: 40536 MiB until 470, 40960 MiB from 510 on)."""

_OVERLAPPED = "overlapped"


class Pick(msgspec.Struct, frozen=True):
    """Both configs of a pair in words, their round trip, and for the pick ``overlapped`` its overlapped time.

    ``overlapped_us`` (in JSON ``beside_gemms_us``): until the pair and the GEMMs that it overlaps are done; None for
    other picks, and where it was not measured.
    """

    config: str
    round_trip_us: float
    overlapped_us: float | None = msgspec.field(default=None, name="beside_gemms_us")


class ComparedRun(NamedTuple):
    """A run. ``measured`` and ``failed`` (kind of failure) map labels of points and have none in common.

    ``picks``: default, optimal and overlapped of each library. ``optimal``: labels of the dispatch and the combine that
    the run chose.
    """

    file: Path
    results: SavedResults
    measured: dict[str, SavedMeasurement]
    failed: dict[str, str]
    picks: dict[str, Pick]
    optimal: set[str]

    @property
    def labels(self) -> set[str]:
        """Labels of the points that have a result, a failure included."""
        return self.measured.keys() | self.failed.keys()


def read(path: Path) -> ComparedRun:
    """The run of a folder, or of a RESULTS file. UserError when there is none, or when it cannot be read."""
    file = results_file.locate(path)
    return compared_run(file, results_file.read(file))


def compared_run(file: Path, results: SavedResults) -> ComparedRun:
    """The run in a RESULTS file. A point that failed in any repetition counts as failed."""
    failed: dict[str, str] = {}
    for failure in results.failures:
        failed.setdefault(failure.point.label, failure.kind)
    measured = {measurement.label: measurement for measurement in results.measurements}
    picks: dict[str, Pick] = {}
    for library in results.libraries:
        prefix = f"{library.name} " if len(results.libraries) > 1 else ""
        picks |= {prefix + name: pick for name, pick in _picks(library).items()}
    return ComparedRun(
        file,
        results,
        {label: measurement for label, measurement in measured.items() if label not in failed},
        failed,
        picks,
        {label for library in results.libraries for label in _optimal(library, results.workload)},
    )


def _picks(library: SavedLibrary) -> dict[str, Pick]:
    pairs = {"default": library.default}
    pairs |= {f"default of {name}": pair for name, pair in library.defaults.items() if name != LIBRARY_DEFAULT}
    pairs |= {"optimal": library.optimal, _OVERLAPPED: library.picks.get(_OVERLAPPED)}
    picks = {name: _pick(pair) for name, pair in pairs.items() if pair is not None}
    overlapped = pairs[_OVERLAPPED]
    if overlapped is not None:
        times = [overlap.makespan_us for overlap in library.overlapped if overlap.is_of(overlapped)]
        picks[_OVERLAPPED] = msgspec.structs.replace(picks[_OVERLAPPED], overlapped_us=times[0] if times else None)
    return picks


def _pick(pair: SavedPair) -> Pick:
    shared = knobs_text(pair.shared_knobs)
    texts = [shared] if shared else []
    for name, operation in pair.operations.items():
        others = {knob: value for knob, value in operation.knobs.items() if knob not in pair.shared_knobs}
        texts += [f"{name} {knobs_text(others)}"] if others else []
    return Pick("; ".join(texts), pair.round_trip_us)


def _optimal(library: SavedLibrary, workload: Workload) -> set[str]:
    """Labels of the two points of the optimal pair."""
    if library.optimal is None:
        return set()
    dispatch, combine = library.optimal.dispatch.knobs, library.optimal.combine.knobs
    points = (
        Point(library.name, Op.DISPATCH, workload.dtype, dispatch),
        Point(library.name, Op.COMBINE, Dtype.BF16, combine),
    )
    return {point.label for point in points}


def facts(run: ComparedRun) -> dict[str, str]:
    """All that surrounds the numbers, by name: environment, hosts, hardware, code and command."""
    results, hosts = run.results, run.results.hosts
    environment = {} if results.environment is None else msgspec.to_builtins(results.environment)
    versions = environment.pop("versions", {})
    values = {f"environment.{name}": value for name, value in environment.items() if name not in ("type", "v")}
    values |= {f"environment.versions.{name}": version for name, version in versions.items()}
    values["hosts.hostname"] = ", ".join(sorted({host.hostname for host in hosts}))
    values["hosts.gpu_uuids"] = ", ".join(sorted({uuid for host in hosts for uuid in host.gpu_uuids}))
    values["hosts.python"] = ", ".join(sorted({host.python for host in hosts}))
    hardware = msgspec.to_builtins(results.hardware)
    values |= {f"hardware.{name}": value for name, value in hardware.items() if name != "peak_gb_per_s"}  # derived
    values |= {f"revision.{name}": value for name, value in msgspec.to_builtins(results.revision).items()}
    values |= {"workload.name": results.workload.name, "command": shlex.join(results.command)}
    return {name: "unknown" if value is None else str(value) for name, value in values.items()}


def check_same(a: ComparedRun, b: ComparedRun) -> None:
    """UserError that names why a point of A means something else than the same point of B."""
    differences = _differences(a.results, b.results, _MUST_AGREE)
    libraries = [", ".join(library.name for library in run.results.libraries) for run in (a, b)]
    if libraries[0] != libraries[1]:
        differences.append(_difference("backend", *libraries))
    names = [name for name in Workload.__struct_fields__ if name != "name"]
    differences += [f"workload.{text}" for text in _differences(a.results.workload, b.results.workload, names)]
    if differences:
        raise UserError(
            f"the two runs measured different things: {'; '.join(differences)}", hint="sweep B with the options of A"
        )


def on_same_gpus(a: ComparedRun, b: ComparedRun) -> bool:
    """Whether the same GPUs measured both, by their UUIDs; not where a run does not name them."""
    first, second = ({uuid for host in run.results.hosts for uuid in host.gpu_uuids} for run in (a, b))
    return bool(first) and first == second


def hardware_differences(a: ComparedRun, b: ComparedRun) -> list[str]:
    """How the machines differ, a phrase for each field; empty for machines of one kind."""
    first, second = a.results.environment, b.results.environment
    if first is None or second is None:
        return []
    if _near(first.memory_bytes, second.memory_bytes):
        second = msgspec.structs.replace(second, memory_bytes=first.memory_bytes)
    return _differences(first, second, _HARDWARE)


def _near(first: int | None, second: int | None) -> bool:
    return bool(first and second and abs(math.log(first / second)) < _MEMORY_SLACK)


def _differences(a: msgspec.Struct, b: msgspec.Struct, names: Sequence[str]) -> list[str]:
    pairs = [(name, getattr(a, name), getattr(b, name)) for name in names]
    return [_difference(name, value, other) for name, value, other in pairs if value != other]


def _difference(name: str, a: object, b: object) -> str:
    return f"{name} is {one_line(a)} in A, {one_line(b)} in B"
