"""What a user gets instead of a traceback: one line that says what is wrong, one that says what to do."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

OK, FAILURE, USAGE, MISSING = 0, 1, 2, 3
"""Exit statuses: nothing is missing; anything else; refused before it began; points are missing."""


class UserError(Exception):
    """The user can mend this. ``hint`` says how."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def show(self) -> None:
        """Prints the one or two lines to stderr."""
        print(f"error: {self}", file=sys.stderr)
        if self.hint:
            print(f"hint: {self.hint}", file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """A command's arguments; what argparse would refuse with its usage is a UserError."""

    def __init__(self, module: str) -> None:
        """``module`` as in ``python -m module``, whose docstring is the manual page."""
        super().__init__(prog=f"python -m {module}", add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(message, hint=f"{self.prog} --help")
