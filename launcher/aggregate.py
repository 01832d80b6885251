"""Makes the report of a run folder from its records: python -m launcher.aggregate RUN [strict=true] [allow_mixed=true].

Can be run by hand at any time, again and again, on a half-finished run. Prints the path of the report.

Exit status: 0 nothing is missing; 3 points are missing or a search was not ended (strict=true: or points failed);
2 usage; 1 anything else.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.errors import FAILURE, OK, USAGE, UserError
from launcher.report.writer import UnlikeEnvironmentsError, aggregate
from launcher.store.records_file import refuse_packed
from launcher.store.run_folder import RunFolder

_FLAGS = ("strict", "allow_mixed")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or "-h" in given or "--help" in given:
        print(__doc__)
        return OK if given else USAGE
    try:
        path, flags = _parsed(given)
        folder = RunFolder.open(path)
        refuse_packed(folder)
        status = aggregate(folder, **flags)
    except UnlikeEnvironmentsError as error:
        error.show()
        return FAILURE
    except PermissionError as error:
        UserError(f"{error.filename} cannot be written: {error.strerror}").show()
        return USAGE
    except UserError as error:
        error.show()
        return USAGE
    print(folder.report_file)
    return status


def _parsed(given: list[str]) -> tuple[Path, dict[str, bool]]:
    flags = {}
    paths = []
    for argument in given:
        key, _, value = argument.partition("=")
        if key in _FLAGS and value in ("true", "false"):
            flags[key] = value == "true"
        elif argument.startswith("-") or (key in _FLAGS):
            raise UserError(f"unknown argument {argument}", hint=f"flags are {', '.join(f'{f}=true' for f in _FLAGS)}")
        else:
            paths.append(Path(argument))
    if len(paths) != 1:
        raise UserError(f"one run folder is wanted, got {len(paths)}", hint="python -m launcher.aggregate outputs/RUN")
    return paths[0], flags


def command() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    command()
