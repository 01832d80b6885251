"""Markdown that nothing can break: whatever a host name or an error contains stays text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def text(value: object) -> str:
    """A value as Markdown text: whatever could open markup, a table cell or a line is escaped."""
    one_line = " ".join(str(value).split())
    escaped = re.sub(r"([\\`*_\[\]|#~])", r"\\\1", one_line)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code(value: object) -> str:
    """A value as inline code that cannot end early, in a table or out of it."""
    one_line = " ".join(str(value).split()).replace("|", "\\|")
    fence = "`" * (max((len(run) for run in re.findall(r"`+", one_line)), default=0) + 1)
    pad = " " if one_line.startswith("`") or one_line.endswith("`") else ""
    return f"{fence}{pad}{one_line}{pad}{fence}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; the first column is left-aligned, the others are numbers."""
    align = ["---"] + ["---:"] * (len(header) - 1)
    return [f"| {' | '.join(cells)} |" for cells in (header, align, *rows)] + [""]
