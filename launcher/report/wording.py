"""Words that several sections of a report put together; pure."""

from __future__ import annotations

from collections.abc import Sequence


def join_words(parts: Sequence[str], *, last: str = "and") -> str:
    """``a``, ``a and b``, or ``a, b and c``; empty for nothing. ``last``: the word before the last one."""
    return f" {last} ".join(part for part in (", ".join(parts[:-1]), *parts[-1:]) if part)
