"""What a RESULTS file says to deploy: DeepEP's tuned pairs, refused where they mean nothing."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NamedTuple

from bench.backends import BACKENDS
from bench.backends.deepep import config_arguments
from bench.workload import Workload
from launcher.errors import UserError
from launcher.store import results_file
from launcher.store.results_file import SavedLibrary, SavedPair, SavedResults, SavedVerdict
from launcher.store.saved_passes import SavedOverlap

PICKS = ("fastest", "overlapped", "default_sms", "knee")

LIBRARY = "deepep"
"""The library that exports and the library of published configs are about."""

Configs = dict[str, dict[str, int]]
"""Keyword arguments of ``deep_ep.Config`` for ``dispatch`` and ``combine``."""


class TunedResults(NamedTuple):
    """One sweep's results for DeepEP, of real GPUs that no two ranks shared. ``picks`` always has ``fastest``."""

    results: SavedResults
    library: SavedLibrary
    verdict: SavedVerdict
    device: str
    num_devices: int

    @property
    def ep(self) -> int:
        """Number of ranks."""
        return self.results.ep

    @property
    def workload(self) -> Workload:
        """The MoE layer that was measured."""
        return self.results.workload

    @property
    def deep_ep(self) -> str:
        """Distribution and version of deep_ep that were measured."""
        return self.library.version or "unknown"

    @property
    def picks(self) -> dict[str, SavedPair]:
        """The pairs to choose from."""
        return self.library.picks

    @property
    def missing_parts(self) -> list[str]:
        """The parts that a complete run has and this one lacks, a phrase each."""
        phrases = self.results.unfinished
        return phrases if self.picks["fastest"].is_final else [*phrases, "it was not measured again in a final"]

    def pair(self, pick: str) -> SavedPair:
        """The pair of a pick. UserError names those that there are."""
        if pick not in self.picks:
            raise UserError(f"pick must be one of {', '.join(self.picks)} here, got {pick}", hint="--pick fastest")
        return self.picks[pick]

    def overlap_of(self, pair: SavedPair) -> SavedOverlap | None:
        """The same two configs overlapped with GEMMs; None where that was not measured."""
        return next((overlap for overlap in self.library.overlapped if overlap.is_of(pair)), None)


def configs(pair: SavedPair) -> Configs:
    """What ``deep_ep.Config(**...)`` takes for each operation of a pair."""
    return {name: config_arguments(operation.knobs) for name, operation in pair.operations.items()}


def read(path: Path) -> TunedResults:
    """What a run folder or a RESULTS file has to deploy. UserError when it cannot be read, or must not be deployed."""
    file = results_file.locate(path)
    results = results_file.read(file)
    if results.dry_run:
        raise UserError(f"{file} is a dry run: it measured no DeepEP", hint="sweep on a machine with GPUs and deep_ep")
    if results.shared_gpus:
        raise UserError(
            f"{file} has ranks that shared a GPU: its times mean nothing", hint="sweep with a GPU for each rank"
        )
    library = results.library(LIBRARY)
    if library is None:
        names = ", ".join(measured.name for measured in results.libraries) or "no backend"
        raise UserError(f"{file} measured backend {names}, not {LIBRARY}", hint=f"sweep with backend={LIBRARY}")
    for name, value in (("optimal pair", library.optimal), ("verdict on the default", library.verdict)):
        if value is None:
            raise UserError(f"{file} has no {name}: too little was measured", hint="python -m launcher.resume RUN")
    if results.environment is None:
        raise UserError(f"{file} names no environment: nothing was measured", hint="python -m launcher.resume RUN")
    _check_picks(file, library)
    assert library.verdict is not None
    environment = results.environment
    return TunedResults(results, library, library.verdict, environment.device, environment.num_devices)


def _check_picks(file: Path, library: SavedLibrary) -> None:
    """UserError for a file without the pick that the verdict is about, or with a pick that lacks a knob."""
    if "fastest" not in library.picks:
        raise UserError(f"{file} is not a RESULTS file: picks has no fastest", hint="python -m launcher.aggregate RUN")
    for pick, pair in library.picks.items():
        for name, operation in pair.operations.items():
            for knob in BACKENDS[LIBRARY].knobs:
                if knob.name not in operation.knobs:
                    raise UserError(
                        f"{file} is not a RESULTS file: picks.{pick}.{name} has no knob {knob.name}",
                        hint="python -m launcher.aggregate RUN",
                    )


def provenance(tuned: TunedResults, pick: str) -> dict[str, str]:
    """Where a pick comes from, in words; a value may hold anything that a host or a command may be named."""
    workload, pair, verdict = tuned.workload, tuned.pair(pick), tuned.verdict
    facts = {
        "machine": f"{tuned.num_devices} x {tuned.device}, EP={tuned.ep}",
        "hosts": ", ".join(sorted({host.hostname for host in tuned.results.hosts})),
        "workload": (
            f"{workload.name}: {workload.num_tokens} tokens a rank, hidden {workload.hidden}, "
            f"{workload.num_experts} experts, top-{workload.num_topk}, {workload.dtype} dispatch, "
            f"routing {workload.routing}"
        ),
        "deep_ep": tuned.deep_ep,
        "measured": tuned.results.ended or "unknown",
        "command": shlex.join(tuned.results.command),
        "verdict": (
            f"{verdict.kind}: {verdict.meaning}; default / fastest = {verdict.ratio:.3f}, "
            f"95 % CI {verdict.ci95[0]:.3f} to {verdict.ci95[1]:.3f}"
        ),
        "pick": pick,
    }
    for name, operation in pair.operations.items():
        names, values = ", ".join(operation.knobs), tuple(operation.knobs.values())
        low, high = operation.ci95_us
        facts[name] = f"({names}) = {values}: median {operation.median_us:.2f} us, 95 % CI {low:.2f} to {high:.2f}"
    overlap = tuned.overlap_of(pair)
    if overlap is not None:
        low, high = overlap.ci95_us
        facts["overlapped"] = (
            f"{overlap.makespan_us:.1f} us, 95 % CI {low:.1f} to {high:.1f}, until it and one layer's GEMMs are done"
        )
    return facts | {"notes": "; ".join(tuned.missing_parts)} if tuned.missing_parts else facts
