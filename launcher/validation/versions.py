"""Versions of the files that validation reads: a newer major version is refused by name.

RESULTS files have the same rule in launcher.store.results_file, which imports scipy; a node's job does not need that.
"""

from __future__ import annotations

import msgspec

from launcher.errors import UserError


class _Versioned(msgspec.Struct, frozen=True):
    schema: str = ""


def refuse_newer(name: str, content: bytes, *, known: str) -> None:
    """UserError where the content, JSON, has a newer major version than ``known``. ``name`` is that of the file."""
    schema = msgspec.json.decode(content, type=_Versioned).schema
    written_format, _, written = schema.rpartition("/")
    known_format, _, newest = known.rpartition("/")
    if written_format == known_format and written.isdecimal() and int(written) > int(newest):
        raise UserError(
            f"{name} has schema {schema}, this program reads up to {known}",
            hint="use the version of the program that wrote it",
        )
