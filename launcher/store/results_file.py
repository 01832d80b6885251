"""RESULTS_EP{n}.json on the disk: where it lies, and what makes it readable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from launcher.errors import UserError
from launcher.store.run_folder import RunFolder

SCHEMA = "deepep-sweep/results/1"


T = TypeVar("T")


class Points(msgspec.Struct, frozen=True):
    """How much of the plan was done."""

    planned: int
    missing: int


class Search(msgspec.Struct, frozen=True):
    """How much of the final was done, and what was minimised."""

    final_groups: int
    final_groups_measured: int
    objective: str | dict[str, float] = "round_trip"

    @property
    def is_round_trip(self) -> bool:
        """Whether dispatch and combine count alike."""
        if isinstance(self.objective, str):
            return self.objective in ("round_trip", "training")
        return self.objective.get("dispatch") == self.objective.get("combine")


def unfinished(points: Points, search: Search) -> list[str]:
    """What of the plan was not done, a phrase each."""
    found = []
    if points.missing:
        found.append(f"{points.missing} of {points.planned} points are missing")
    if search.final_groups_measured < search.final_groups:
        found.append(f"{search.final_groups_measured} of {search.final_groups} groups of the final are there")
    return found


class _Versioned(msgspec.Struct, frozen=True):
    schema: str = ""


def locate(path: Path) -> Path:
    """The RESULTS file that is meant by a run folder, or by the file itself. UserError when there is none."""
    return path if path.is_file() else RunFolder.open(path).written_results()


def parsed(file: Path, decode: Callable[[bytes], T]) -> T:
    """What ``decode`` takes from a RESULTS file of this schema. UserError when it is none, or of another schema.

    ``decode`` may raise what msgspec raises for JSON of the wrong form.
    """
    try:
        content = file.read_bytes()
        _check_schema(file, msgspec.json.decode(content, type=_Versioned).schema)
        return decode(content)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no RESULTS file: {error}", hint="python -m launcher.aggregate RUN") from None


def _check_schema(file: Path, schema: str) -> None:
    if schema == SCHEMA:
        return
    if schema.startswith(SCHEMA.rpartition("/")[0]):
        raise UserError(
            f"{file} has schema {schema}, this program reads {SCHEMA}",
            hint="use the version of the program that wrote it, or aggregate the run again with this one",
        )
    raise UserError(f"{file} is no RESULTS file: its schema is not {SCHEMA}", hint="RUN/RESULTS_EP4.json is one")
