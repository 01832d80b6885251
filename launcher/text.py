"""Markdown that nothing can break: whatever a host name or an error contains stays text."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from typing import overload


def text(value: object) -> str:
    """A value as Markdown text: whatever could open markup, a table cell or a line, or become a link, is escaped."""
    one_line = " ".join(str(value).split())
    escaped = re.sub(r"([\\`*_\[\]|#~])", r"\\\1", one_line)
    escaped = re.sub(r"(?<=www)\.|(?<=:)/(?=/)", r"\\\g<0>", escaped, flags=re.IGNORECASE)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code(value: object) -> str:
    """A value as inline code that cannot end early; ``table`` cares for what would end a cell."""
    one_line = " ".join(str(value).split())
    fence = "`" * (max((len(run) for run in re.findall(r"`+", one_line)), default=0) + 1)
    pad = " " if one_line.startswith("`") or one_line.endswith("`") else ""
    return f"{fence}{pad}{one_line}{pad}{fence}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; columns of numbers are right-aligned, the first never. No cell can end early."""
    rows = [[re.sub(r"(?<!\\)\|", r"\|", cell) for cell in row] for row in rows]
    columns = list(zip(*rows, strict=True)) or [()] * len(header)
    align = ["---"] + ["---:" if any(cells) and all(map(_is_number, cells)) else "---" for cells in columns[1:]]
    return [f"| {' | '.join(cells)} |" for cells in (header, align, *rows)] + [""]


def _is_number(cell: str) -> bool:
    """Also in bold, with a unit, in an interval, or missing; a list of knobs is none."""
    return re.fullmatch(r"[*]*(|-|[-+]?[\d.,]+( ?[%x]| us)?( to [-+]?[\d.,]+)?( \(.*\))?)[*]*", cell) is not None


def knobs_text(knobs: dict[str, int]) -> str:
    """Knob values as a user would write them."""
    return ", ".join(f"{name} {value}" for name, value in knobs.items())


@overload
def utc(seconds: float) -> str: ...
@overload
def utc(seconds: None) -> None: ...
@overload
def utc(seconds: float | None) -> str | None: ...
def utc(seconds: float | None) -> str | None:
    """A Unix time as 2026-11-24T10:00:00Z; None stays None."""
    return None if seconds is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def one_line(value: object) -> str:
    """A value as text that stays on its line and cannot steer a terminal: what cannot be printed is escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(value))
