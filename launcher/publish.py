"""The command that files a tuned config in a library: python -m launcher.publish RUN; see --help."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from launcher import errors

MANUAL = """\
deepep-publish - file the tuned config of a run in a library, where frameworks find it at start-up

Usage
  python -m launcher.publish RUN [--library DIR]
  deepep-publish               the same, where the package is installed

Arguments
  RUN            a run folder, or a RESULTS_EP<n>.json

Options
  --library DIR  the library, made if there is none; outputs/library without this option
  -h, --help     print this page
  --version      print the version

Description
  The library is a folder with one JSON file per key: GPU, EP, hidden, experts, top-k, tokens, dtype and version of
  deep_ep; each routing has a file of its own. Prints the path of the file. The outcome for each pick goes to stderr.
  Only DeepEP V1 (backend=deepep) is filed, also of a run of several libraries.

  If the library has the key already, each pick is compared by what it is for: `fastest` and `default_sms` by the round
  trip (of the final, with the sum of the two operations' intervals), `overlapped` by the time overlapped with GEMMs.
  The run's pick replaces the one on file if it is faster and the 95 % CIs do not overlap; `knee` follows `fastest`.
  Otherwise the pick on file stays, also if the run has no such pick. Several commands may publish into one library at
  once.

Exit status
  0    filed, or the picks on file stay
  1    the output cannot be written, or any other failure
  2    refused: a dry run, shared GPUs, an incomplete run, another objective than the round trip
  130  interrupted

Files
  DIR/<key>.json   an entry (docs/library.schema.json)

Examples
  python -m launcher.publish outputs/20261123-000120-a1b2c3
  python -m launcher.publish RESULTS_EP4.json --library /shared/deepep-library

  In the framework (docs/APPLY.md):
  from launcher.library import load_tuned_config

See also
  python -m launcher.export RUN writes files for one framework; docs/APPLY.md
"""

DEFAULT_LIBRARY = Path("outputs/library")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status."""
    return errors.run(lambda: MANUAL, _publish, arguments, needs_arguments=True)


def _publish(given: list[str]) -> int:
    parser = errors.Parser("launcher.publish")
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("--library", type=Path, default=DEFAULT_LIBRARY)
    options = parser.parse_args(given)

    from launcher.deploy import tuned
    from launcher.deploy.publishing import publish

    file, outcomes = publish(tuned.read(options.run), options.library)
    for pick, outcome in outcomes.items():
        print(f"{pick}: {outcome}", file=sys.stderr)
    print(file)
    return errors.OK


if __name__ == "__main__":
    sys.exit(main())
