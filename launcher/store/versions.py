"""Versions of JSON files that carry a ``schema`` member: a newer major version is refused by name."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from launcher.errors import UserError


class Version(NamedTuple):
    """What a ``schema`` member names: ``deepep-sweep/results/2`` is major version 2 of deepep-sweep/results."""

    format: str
    major: int

    @classmethod
    def parse(cls, schema: str) -> Version | None:
        """The version in the text; None for another form."""
        name, slash, major = schema.rpartition("/")
        return cls(name, int(major)) if slash and major.isdecimal() else None


class _Versioned(msgspec.Struct, frozen=True):
    schema: str = ""


def read_schema(content: bytes) -> tuple[str, Version | None]:
    """The ``schema`` member of a JSON object, as text and parsed. msgspec.DecodeError when there is no object."""
    schema = msgspec.json.decode(content, type=_Versioned).schema
    return schema, Version.parse(schema)


def refuse_newer(name: str, content: bytes, *, known: str) -> None:
    """UserError where ``content`` has a newer major version than ``known``. ``name`` is that of the file."""
    schema, written = read_schema(content)
    newest = Version.parse(known)
    if written is not None and newest is not None and written.format == newest.format and written > newest:
        raise UserError(
            f"{name} has schema {schema}, this program reads up to {known}",
            hint="use the version of the program that wrote it, or make the file again with this one",
        )
