"""Files the tuned config of a run in a library, where frameworks find it at start-up.

  python -m launcher.publish RUN [--library DIR]

RUN is a run folder, or a RESULTS_EP<n>.json. DIR is a folder of JSON files, one for each key: GPU, EP, hidden, experts,
top-k, tokens, dtype, version of deep_ep. It is made when there is none; without --library it is outputs/library.

Each routing has a file of its own. Where the key is on file already, each pick is judged by what it is for: `fastest`
and `default_sms` by the round trip (final stage, sums of the ends of the two operations' intervals), `overlapped` by
the time beside GEMMs. A pick gives way to the run's if that is faster and the 95 % intervals do not overlap, `knee`
with `fastest`; else it stays, also one that the run does not have. Several commands may publish into one folder at
once. The path of the key's file is printed, what was done with each pick goes to stderr.

For example:
  python -m launcher.publish outputs/20261123-000120-a1b2c3
  python -m launcher.publish RESULTS_EP4.json --library /shared/deepep-library

  from launcher.library import load_tuned_config       # in the framework, see docs/APPLY.md

Exit status: 0 filed, or what is on file stays; 2 refused: a dry run, shared GPUs, a run that is not whole, another
objective than the round trip.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.deploy import tuned
from launcher.deploy.publishing import publish
from launcher.errors import OK, USAGE, Parser, UserError
from launcher.store import results_file

DEFAULT_LIBRARY = Path("outputs/library")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or "-h" in given or "--help" in given:
        print(__doc__)
        return OK if given else USAGE
    parser = Parser("launcher.publish")
    parser.add_argument("run", type=Path)
    parser.add_argument("--library", type=Path, default=DEFAULT_LIBRARY)
    try:
        found = parser.parse_args(given)
        file, done = publish(tuned.read(results_file.locate(found.run)), found.library)
    except UserError as error:
        error.show()
        return USAGE
    for name, what in done.items():
        print(f"{name}: {what}", file=sys.stderr)
    print(file)
    return OK


def command() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    command()
