"""The command that completes a run: python -m launcher.resume RUN; see --help."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from launcher import errors

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

Exit status
  0    every planned point has a result
  1    any other failure
  2    usage: refused, nothing was started
  3    points are missing, or a search is incomplete
  130  interrupted

Examples
  python -m launcher.resume outputs/20261123-000120-a1b2c3
  python -m launcher.resume outputs/20261123-000120-a1b2c3 search.budget_s=120
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
    command = RunFolder.open(Path(run)).manifest().command
    kept = [argument for argument in drop_removed(command[1:]) if not argument.startswith(("run=", "outputs="))]
    outputs = Path(run).resolve().parent  # of Hydra's own files too
    return sweep([*kept, f"run={quote(run)}", f"outputs={quote(outputs)}", *more])


if __name__ == "__main__":
    sys.exit(main())
