"""The command that shows how a run stands: python -m launcher.status RUN; see --help."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from launcher import errors

MANUAL = """\
deepep-status - show how a run stands, from its files and from Slurm

Usage
  python -m launcher.status RUN [--json]
  deepep-status                the same, where the package is installed

Arguments
  RUN         a run folder, outputs/<time>-<id>

Options
  --json      print the status as JSON
  -h, --help  print this page
  --version   print the version

Description
  Shows each shard with its state, job, node and points, and what is left. Works at any time, on any machine that sees
  the folder; without Slurm, the states come only from the files.

Exit status
  0    the status was printed
  1    the output cannot be written, or any other failure
  2    usage: the arguments are wrong, or RUN cannot be read
  130  interrupted

Examples
  python -m launcher.status outputs/20261123-000120-a1b2c3
  python -m launcher.status outputs/20261123-000120-a1b2c3 --json

See also
  python -m launcher.resume RUN completes a run, python -m launcher.aggregate RUN writes its report
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status."""
    return errors.run(lambda: MANUAL, _show, arguments, needs_arguments=True)


def _show(given: list[str]) -> int:
    parser = errors.Parser("launcher.status")
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(given)

    import msgspec
    from rich.console import Console

    from launcher.jobs import run_status

    status = run_status.read(options.run)
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(status), indent=1).decode())
    else:
        console = Console(highlight=False)
        with console.capture() as capture:  # rich itself would exit with 1 where nobody reads
            console.print(run_status.table(status))
        print(capture.get(), end="")
    return errors.OK


if __name__ == "__main__":
    sys.exit(main())
