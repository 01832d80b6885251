"""The command that writes the report of a run: python -m launcher.aggregate RUN; see --help."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher import errors
from launcher.errors import UserError

MANUAL = """\
deepep-aggregate - write the report of a run from its records

Usage
  python -m launcher.aggregate RUN [--strict] [--allow-mixed]
  deepep-aggregate             the same, where the package is installed

Arguments
  RUN            a run folder, outputs/<time>-<id>

Options
  --strict       exit with 3 if a point failed; also written strict=true
  --allow-mixed  report different environments separately instead of refusing them; also written allow_mixed=true
  -h, --help     print this page
  --version      print the version

Description
  Can be run at any time and any number of times, also on a run that has not finished. Prints the path of the report.

Exit status
  0    nothing is missing
  1    the records were measured in different environments, or any other failure
  2    usage: the arguments are wrong, or RUN cannot be read or written
  3    points are missing, or a search is incomplete; with --strict, also if a point failed
  130  interrupted

Files
  RUN/OPTIMAL_CONFIGS.md, report.html, SUMMARY.md, *.svg   the report
  RUN/RESULTS_EP<n>.json                                   the same for programs (docs/results.schema.json)

Examples
  python -m launcher.aggregate outputs/20261123-000120-a1b2c3
  python -m launcher.aggregate outputs/20261123-000120-a1b2c3 --strict

See also
  python -m launcher.resume RUN completes a run; docs/METHODOLOGY.md
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status."""
    return errors.run(lambda: MANUAL, _aggregate, arguments, needs_arguments=True)


def _aggregate(given: list[str]) -> int:
    options = _parse(given)

    from launcher.report.writer import UnlikeEnvironmentsError, aggregate
    from launcher.store.records_file import refuse_packed
    from launcher.store.run_folder import RunFolder

    folder = RunFolder.open(options.run)
    refuse_packed(folder)
    try:
        status = aggregate(folder, strict=options.strict, allow_mixed=options.allow_mixed)
    except UnlikeEnvironmentsError as error:
        error.show()
        return errors.FAILURE
    except PermissionError as error:
        raise UserError(f"{error.filename} cannot be written: {error.strerror}") from None
    print(folder.report_file)
    return status


def _parse(given: list[str]) -> argparse.Namespace:
    parser = errors.Parser("launcher.aggregate")
    parser.add_argument("run", metavar="RUN", type=Path)
    as_flag: dict[str, str] = {}
    for key in ("strict", "allow_mixed"):
        flag = key.replace("_", "-")
        parser.add_argument(f"--{flag}", action=argparse.BooleanOptionalAction, default=False)
        as_flag |= {f"{key}=true": f"--{flag}", f"{key}=false": f"--no-{flag}"}
    return parser.parse_args([as_flag.get(argument, argument) for argument in given])


if __name__ == "__main__":
    sys.exit(main())
