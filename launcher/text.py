"""Texts that nothing can break: whatever a host name or an error contains stays text in Markdown."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from typing import overload

_MARKUP = re.compile(r"[\\`*\[\]|#~]|(?<!\w)_++|_++(?![^\W_])")
"""Whatever could open markup; underscores only at the edges of words, since CommonMark takes those within literally."""


def text(value: object) -> str:
    """A value as one line of literal Markdown text: no markup, no table cell and no link can begin in it."""
    line = " ".join(str(value).split())
    escaped = _MARKUP.sub(lambda match: re.sub(".", r"\\\g<0>", match[0]), line)
    escaped = re.sub(r"(?<=www)\.|(?<=:)/(?=/)", r"\\\g<0>", escaped, flags=re.IGNORECASE)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code(value: object) -> str:
    """A value as inline code that cannot end early; ``table`` escapes pipes."""
    line = " ".join(str(value).split())
    fence = "`" * (max((len(run) for run in re.findall(r"`+", line)), default=0) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table. Columns of numbers are right-aligned, except the first; no cell can end early."""
    rows = [[re.sub(r"(?<!\\)\|", r"\|", cell) for cell in row] for row in rows]
    columns = list(zip(*rows, strict=True)) or [()] * len(header)
    align = ["---"] + ["---:" if any(cells) and all(map(_is_number, cells)) else "---" for cells in columns[1:]]
    return [f"| {' | '.join(cells)} |" for cells in (header, align, *rows)] + [""]


def _is_number(cell: str) -> bool:
    """Whether a cell is a number: plain or bold, with a unit or an interval, or missing. A list of knobs is not."""
    return re.fullmatch(r"[*]*(|-|[-+]?[\d.,]+( ?[%x]| us)?( to [-+]?[\d.,]+)?( \(.*\))?)[*]*", cell) is not None


def knobs_text(knobs: dict[str, int]) -> str:
    """``num_sms 24, nvl_chunk 8``."""
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
