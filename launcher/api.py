"""The Python interface: plan, sweep, load, compare and load_tuned_config return values and print nothing.

    from launcher import api

    run = api.sweep("ep=4")
    run.configs("fastest")  # keyword arguments of deep_ep.Config for dispatch and combine

Overrides are the arguments of ``python -m launcher.sweep``, KEY=VALUE or GROUP=CHOICE. ``api.Error`` is raised for
whatever a user can fix; its ``hint`` says how. Importing this module is fast: each function imports what it needs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.errors import UserError as Error
from launcher.library import load_tuned_config

if TYPE_CHECKING:
    from launcher.comparison.compare import Comparison
    from launcher.config.plan import Plan
    from launcher.config.schema import Options, Spec
    from launcher.deploy.tuned import Configs
    from launcher.jobs.run_status import RunStatus
    from launcher.store.results_file import SavedResults

__all__ = ["Error", "Run", "compare", "load", "load_tuned_config", "plan", "sweep"]


@dataclass(frozen=True)
class Run:
    """A run folder. Every answer comes from its files as they are now, also while the run goes on."""

    folder: Path

    @property
    def results(self) -> SavedResults:
        """The content of its RESULTS file. Error if there is none yet."""
        from launcher.store import results_file

        return results_file.read(results_file.locate(self.folder))

    def configs(self, pick: str = "fastest") -> Configs:
        """Keyword arguments of ``deep_ep.Config`` for dispatch and combine. Error if there is nothing to deploy."""
        from launcher.deploy import tuned

        return tuned.configs(tuned.read(self.folder).pair(pick))

    @property
    def report(self) -> Path:
        """The file of its report in Markdown."""
        from launcher.store.run_folder import RunFolder

        return RunFolder(self.folder).report_file

    def status(self) -> RunStatus:
        """How far each shard is. Error if its records are packed."""
        from launcher.jobs import run_status

        return run_status.read(self.folder)


def plan(*overrides: str) -> Plan:
    """What a sweep with these overrides would measure on this machine; nothing is started or written."""
    from msgspec.structs import replace

    from launcher.config import planning

    spec, options, _ = _compose(overrides)
    return planning.plan_sweep(spec, replace(options, dry_run=True), local=True)


def sweep(*overrides: str, outputs: str | os.PathLike[str] | None = None) -> Run:
    """Measures a sweep on this machine, in this process and the ranks that it starts, and writes its report.

    ``outputs`` is the folder for new run folders, ``"outputs"`` unless given here or as an override. ``run=FOLDER``
    completes a run. Failed points are results. Error if the plan is refused, or if ranks do not start; then what was
    measured is in the run folder that ``hint`` names.
    """
    from launcher.config import planning
    from launcher.config.arguments import quote
    from launcher.jobs import inline, prepare

    given = [*overrides, *([] if outputs is None else [f"outputs={quote(os.fspath(outputs))}"])]
    spec, options, command = _compose(given)
    if options.dry_run:
        raise Error("dry_run=true measures nothing", hint="api.plan gives the plan")
    planned = planning.plan_sweep(spec, options, local=True)
    folder = prepare.prepare(planned, options, command=command, quiet=True)
    failures = inline.measure_and_report(planned, folder, options)
    if failures:
        raise Error("; ".join(failures), hint=f"the run folder is {folder.path}")
    return Run(folder.path)


def load(path: str | os.PathLike[str]) -> Run:
    """The run of a run folder. Error if the folder is not a run folder, or was written by a newer version."""
    from launcher.store.run_folder import RunFolder

    return Run(RunFolder.open(Path(path)).path)


def compare(
    a: Run | str | os.PathLike[str],
    b: Run | str | os.PathLike[str],
    *,
    tolerance: float = 0.02,
    unlike_hardware: bool = False,
) -> Comparison:
    """Run B (after) against run A (before), point by point; ``worse`` names the points that are slower or fail in B.

    A path is that of a run folder or of a RESULTS file. ``missing`` lists what B must have and lacks: a slower
    point could hide there. Error for runs of different things, and for different hardware unless that is allowed.
    """
    from launcher.comparison import compare as comparison
    from launcher.comparison import run

    before, after = (run.read(side.folder if isinstance(side, Run) else Path(side)) for side in (a, b))
    return comparison.compare(before, after, tolerance=tolerance, unlike_hardware=unlike_hardware)


def _compose(overrides: list[str] | tuple[str, ...]) -> tuple[Spec, Options, list[str]]:
    """The configuration of these overrides, and the command that would give the same."""
    from launcher.config import arguments, compose, schema

    for override in overrides:
        if override.lstrip("+~").startswith(("-", "hydra")):
            raise Error(
                f"{override} is for the command line: this interface runs in its own process",
                hint=f"python -m launcher.sweep {override}",
            )
    completed = arguments.complete_arguments(overrides)
    spec, options = schema.spec_from(compose.compose("sweep", completed))
    return spec, options, ["deepep-sweep", *completed]
