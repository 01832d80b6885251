"""The command that compares two runs: python -m launcher.compare A B; see --help."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher import errors

MANUAL = """\
deepep-compare - compare two runs point by point, and fail if the second is worse: for CI, or after an upgrade

Usage
  python -m launcher.compare A B [--tolerance SHARE] [--allow-missing] [--unlike-hardware] [--json | --markdown]
  deepep-compare               the same, where the package is installed

Arguments
  A                  the run before: a run folder, or a RESULTS_EP<n>.json
  B                  the run after

Options
  --tolerance SHARE  differences up to this share of the time are accepted; 0.02 without this option, and at least that
                     for runs without a common final
  --allow-missing    judge B by the points that it has
  --unlike-hardware  compare runs of different hardware, which is refused otherwise
  --json             print JSON
  --markdown         print Markdown, as for $GITHUB_STEP_SUMMARY
  -h, --help         print this page
  --version          print the version

Description
  Prints the facts in which the runs differ, each point (worst first) with both medians and their ratio B/A with its
  95 % CI, and the picks of both runs. The verdict on a point is one of

  slower, faster     significantly, by more than the tolerance. The 5 % level holds for all points that gate together:
                     of 100 comparisons of like runs, at most 5 call any of them slower or faster, at any tolerance
  same               no significant difference
  unstable           in A or B the samples scatter too much, and no final of three or more groups measured the point
  failed in B        the point failed in B at least once, and never in A; `failed in A` is the reverse
  missing in B       B has neither a time nor a failure for a point that it must have: every dispatch and combine of A's
                     final, or of all of A if A has no final. Points that come only with the choice of a final are
                     `only in A`

  Runs of one sweep scatter by more than their own intervals, and on other GPUs by more than on the same ones. Intervals
  and verdicts allow for what published runs show; docs/METHODOLOGY.md has the numbers. The points of A's optimal pair,
  which is deployed, are tested first, with half of the 5 %.

  B is worse if a point is slower in B, or failed in B. If both runs have a final, a slower point counts only if both
  finals measured it in fresh process groups, or if one run chose it as optimal. The other points (the sweep and the
  overlapped passes, each from one set of processes) are shown and do not count: a single disturbance can double one,
  and GPUs of one kind differ by up to 6 % in some. If A has a final, B needs a complete one. Missing points do not
  pass: a slower point could hide there.

  Runs that differ in EP, workload, backend or shared GPUs, or of which only one is a dry run, are refused: their points
  mean different things. Two dry runs are compared, with a note that they do not measure DeepEP.

Exit status
  0  nothing that gates is worse
  1  B is worse
  2  usage: refused, nothing was compared; or the output could not be written
  3  nothing that gates is worse, but B lacks points or a final
  130  interrupted

Examples
  python -m launcher.compare outputs/before outputs/after
  python -m launcher.compare outputs/before outputs/after --markdown >> "$GITHUB_STEP_SUMMARY"
  python -m launcher.compare h100/RESULTS_EP4.json h200/RESULTS_EP4.json --unlike-hardware --json

See also
  docs/METHODOLOGY.md; api.compare in docs/API.md
"""

_TOLERANCE = 0.02
_STATUSES = errors.Statuses(unwritten=errors.USAGE)
"""1 means that B is worse, which an output that cannot be written must not say."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status."""
    return errors.run(lambda: MANUAL, _compare, arguments, needs_arguments=True, statuses=_STATUSES)


def _compare(given: list[str]) -> int:
    options = _parse(given)

    import msgspec

    from launcher.comparison import render, run
    from launcher.comparison.compare import compare

    a, b = run.read(options.a), run.read(options.b)
    comparison = compare(a, b, tolerance=options.tolerance, unlike_hardware=options.unlike_hardware)
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(comparison), indent=1).decode())
    else:
        print(render.github(comparison) if options.markdown else render.plain(comparison), end="")
    if comparison.worse:
        return errors.FAILURE
    return errors.MISSING if comparison.missing and not options.allow_missing else errors.OK


def _parse(given: list[str]) -> argparse.Namespace:
    parser = errors.Parser("launcher.compare")
    parser.add_argument("a", metavar="A", type=Path)
    parser.add_argument("b", metavar="B", type=Path)
    parser.add_argument("--tolerance", metavar="SHARE", type=float, default=_TOLERANCE)
    parser.add_argument("--allow-missing", action="store_true")
    parser.add_argument("--unlike-hardware", action="store_true")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true")
    form.add_argument("--markdown", action="store_true")
    options = parser.parse_args(given)
    if not 0 <= options.tolerance < 1:
        raise errors.UserError(
            f"--tolerance must be at least 0 and below 1, got {options.tolerance:g}", hint="0.02 is two percent"
        )
    return options


if __name__ == "__main__":
    sys.exit(main())
