"""A library that ranks find, written by a test."""

from __future__ import annotations

from pathlib import Path


class Library:
    """A module ``deep_ep`` on the search path of ranks; its code notes what it sees."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._notes = folder, folder / "notes"

    def write(self, code: str) -> None:
        note = f"import os, sys, time\ndef note(text): print(text, file=open({str(self._notes)!r}, 'a'), flush=True)\n"
        (self._folder / "deep_ep.py").write_text(note + code)

    def notes(self) -> list[str]:
        return self._notes.read_text().splitlines() if self._notes.exists() else []
