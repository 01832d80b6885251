"""Compares two runs point by point, and fails when the second is worse: for CI, or after an upgrade.

  python -m launcher.compare A B [--tolerance SHARE] [--allow-missing] [--unlike-hardware] [--json | --markdown]

A (before) and B (after) are run folders, or RESULTS_EP<n>.json. Shown are the facts in which they differ, worst first
each point with both medians and their ratio B/A with its 95 % interval, and what both runs picked.

  slower, faster    by significantly more than the tolerance, 0.02 unless given. Tested at 5 % for all points together:
                    of 100 comparisons of equal runs at most 5 say so of any point, however many points there are.
  same              neither could be shown
  unstable          the samples scatter too much to say anything, on one side at least, and no final measured it again
  failed in B       the point failed in B, be it in one of its visits, and never in A; `failed in A` is the reverse
  missing in B      A measured it, B has neither a time nor a failure, and it must have: each dispatch and combine of
                    A's final, or of all of A where A has no final. What only a final's choice brings is `only in A`.

B is worse when a point is slower in it, or failed in it. Where both runs measured points in the fresh process groups of
a final, only these, and the pair that each run chose, make B worse by being slower. What else one set of processes
measured (the sweep, the passes beside GEMMs) is shown. Where A has a final, B needs a whole one. What is missing does
not pass, since a slower point could hide there; --allow-missing judges by what is there.

Runs that differ in EP, workload, backend, shared GPUs or in being dry are not compared, since their points mean
different things. Unlike hardware is refused without --unlike-hardware. Two dry runs are compared: no measurements of
DeepEP, which is said.

For example:
  python -m launcher.compare outputs/before outputs/after
  python -m launcher.compare outputs/before outputs/after --markdown >> "$GITHUB_STEP_SUMMARY"
  python -m launcher.compare h100/RESULTS_EP4.json h200/RESULTS_EP4.json --unlike-hardware --json

Exit status: 0 nothing is worse; 1 B is worse; 2 refused, nothing compared; 3 nothing is worse, but B lacks points or a
final.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from launcher.comparison import render, run
from launcher.comparison.compare import compare
from launcher.errors import FAILURE, MISSING, OK, USAGE, Parser, UserError

_TOLERANCE = 0.02


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or "-h" in given or "--help" in given:
        print(__doc__)
        return OK if given else USAGE
    try:
        options = _parsed(given)
        a, b = run.read(options.a), run.read(options.b)
        found = compare(a, b, tolerance=options.tolerance, unlike_hardware=options.unlike_hardware)
    except UserError as error:
        error.show()
        return USAGE
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
    else:
        print(render.github(found) if options.markdown else render.plain(found), end="")
    if found.worse:
        return FAILURE
    return MISSING if found.missing and not options.allow_missing else OK


def _parsed(given: list[str]) -> argparse.Namespace:
    parser = Parser("launcher.compare")
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument("--tolerance", type=float, default=_TOLERANCE)
    parser.add_argument("--allow-missing", action="store_true")
    parser.add_argument("--unlike-hardware", action="store_true")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true")
    form.add_argument("--markdown", action="store_true")
    found = parser.parse_args(given)
    if not 0 <= found.tolerance < 1:
        raise UserError(
            f"--tolerance must be at least 0 and below 1, got {found.tolerance:g}", hint="0.02 is two percent"
        )
    return found


def command() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    command()
