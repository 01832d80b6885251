"""Shows how a run stands, from its files and from Slurm: python -m launcher.status RUN [--json].

Works at any time, on any machine that sees the folder; without Slurm the states come from the files alone.
Exit status: 0 shown, 2 usage.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from launcher.errors import OK, USAGE, UserError
from launcher.jobs import run_status
from launcher.store.records_file import refuse_packed
from launcher.store.run_folder import RunFolder


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    paths = [argument for argument in given if not argument.startswith("-")]
    if "-h" in given or "--help" in given or len(paths) != 1:
        print(__doc__)
        return OK if paths or "--help" in given or "-h" in given else USAGE
    try:
        folder = RunFolder.open(Path(paths[0]))
        refuse_packed(folder)
        now = run_status.run_status(folder, folder.plan())
    except UserError as error:
        error.show()
        return USAGE
    if "--json" in given:
        print(msgspec.json.format(msgspec.json.encode(now), indent=1).decode())
    else:
        Console(highlight=False).print(run_status.table(now))
    return OK


def command() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    command()
