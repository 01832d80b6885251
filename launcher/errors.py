"""What a user gets instead of a traceback: one line that says what is wrong, one that says what to do."""

from __future__ import annotations

import sys

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
