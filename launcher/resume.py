"""The command that completes a run: python -m launcher.resume RUN; see --help."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher import errors

if TYPE_CHECKING:
    from launcher.store.run_folder import RunFolder

MANUAL = """\
deepep-resume - complete a run with the command that started it

Usage
  python -m launcher.resume RUN [key=value ...]
  deepep-resume                the same, where the package is installed

Arguments
  RUN         a run folder, outputs/<time>-<id>
  key=value   added to the command of the run, as for launcher.sweep

Options
  -h, --help  print this page
  --version   print the version

Description
  Measures only what has no record yet, then writes the report. The command comes from RUN/run.json. What a key changes
  must not change the plan: a larger search.budget_s and all of hydra.launcher.* are fine, another grid is refused.

  repeat=N appends N short finals of the best configs, also on another machine of the same kind: the report then shows
  how much results scatter between runs and machines. Repeats that were interrupted are completed first, and count.

Exit status
  0    every planned point has a result
  1    any other failure
  2    usage: refused, nothing was started
  3    points are missing, or a search is incomplete
  130  interrupted

Examples
  python -m launcher.resume outputs/20261123-000120-a1b2c3
  python -m launcher.resume outputs/20261123-000120-a1b2c3 search.budget_s=120
  python -m launcher.resume outputs/20261123-000120-a1b2c3 repeat=12
  python -m launcher.resume outputs/20261123-000120-a1b2c3 hydra.launcher.partition=other

See also
  python -m launcher.sweep --help, python -m launcher.status RUN, docs/SLURM.md
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status."""
    return errors.run(lambda: MANUAL, _resume, arguments, needs_arguments=True)


def _resume(given: list[str]) -> int:
    from launcher.config.arguments import drop_removed, quote
    from launcher.store.run_folder import RunFolder
    from launcher.sweep import sweep

    run, *more = given
    if run.startswith("-"):
        errors.Parser("launcher.resume").error(f"unrecognized arguments: {run}")
    folder = RunFolder.open(Path(run))
    own = ("run=", "outputs=", "repeat=")
    kept = [argument for argument in drop_removed(folder.manifest().command[1:]) if not argument.startswith(own)]
    _refuse_other_kind(folder, [*kept, *more])
    outputs = Path(run).resolve().parent  # of Hydra's own files too
    return sweep([*kept, f"run={quote(run)}", f"outputs={quote(outputs)}", *more])


def _refuse_other_kind(folder: RunFolder, arguments: Sequence[str]) -> None:
    """UserError where this machine would measure, and has not the kind of GPU of the run."""
    from launcher.config.hardware import kind_of_this_machine

    if not folder.plan_file.is_file():  # a published report without records
        return
    launchers = [argument.partition("=")[2] for argument in arguments if argument.startswith("hydra/launcher=")]
    measured_on, here = folder.plan().spec.hardware.name, kind_of_this_machine()
    if launchers[-1:] in ([], ["submitit_local"]) and measured_on not in ("cpu", here):
        raise errors.UserError(
            f"{folder.path} was measured on {measured_on}, and this machine is {here}: their times do not mix",
            hint="resume it on a machine of that kind; hydra/launcher=submitit_slurm gets one from Slurm",
        )


if __name__ == "__main__":
    sys.exit(main())
