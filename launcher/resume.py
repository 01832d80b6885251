"""Completes a run with the command that began it: python -m launcher.resume RUN [key=value ...].

Measures only what has no record. Further arguments are added to the command, hydra.launcher.partition=other for one.
"""

from __future__ import annotations

import sys
from pathlib import Path

from launcher.config.arguments import drop_removed
from launcher.errors import OK, USAGE, UserError
from launcher.store.run_folder import RunFolder


def main() -> None:
    """Replaces the command line by the run's own and hands over to launcher.sweep."""
    given = sys.argv[1:]
    if not given or given[0] in ("-h", "--help"):
        print(__doc__)
        sys.exit(OK if given else USAGE)
    try:
        command = RunFolder.open(Path(given[0])).manifest().command
    except UserError as error:
        error.show()
        sys.exit(USAGE)
    kept = [argument for argument in drop_removed(command[1:]) if not argument.startswith(("run=", "outputs="))]
    escaped = given[0].replace("\\", "\\\\").replace("'", "\\'")
    sys.argv[1:] = [*kept, f"run='{escaped}'", *given[1:]]
    from launcher import sweep

    sweep.main()


if __name__ == "__main__":
    main()
