"""The documents as text: where claims stand in them, and which of their numbers look measured; pure."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from tests.builders import ROOT

README, PUBLISHED, METHODOLOGY = "README.md", "outputs/published/README.md", "docs/METHODOLOGY.md"

GENERATED = {"docs/CONFIGS.md"}
"""Written by `make docs` from the schema: it holds configuration only."""

DOCUMENTS = sorted(
    {README, PUBLISHED, *(str(file.relative_to(ROOT)) for file in ROOT.glob("docs/*.md"))} - GENERATED,
)


class Claim(NamedTuple):
    """A phrase of a document with the numbers that the records give.

    ``phrase``: as it stands there, on one line, with a format for each number. ``numbers``: derives them.
    """

    document: str
    phrase: str
    numbers: Callable[[], Sequence[object]]

    @property
    def text(self) -> str:
        """The phrase with its numbers."""
        return self.phrase.format(*self.numbers())


class Text(NamedTuple):
    """A document on one line: ``prose`` for people, ``numbers`` of the same length without code and links."""

    prose: str
    numbers: str

    def spans(self, phrase: str) -> list[range]:
        """Where a phrase stands, without digits or decimals running on at its ends; # in it is any number."""
        exact = re.escape(phrase).replace(r"\#", r"[\d.]+")
        pattern = rf"(?<![\d.]){exact}(?!\d|\.\d)"
        return [range(*match.span()) for match in re.finditer(pattern, self.prose)]


@functools.cache
def read(document: str) -> Text:
    return one_line((ROOT / document).read_text())


def one_line(markdown: str) -> Text:
    """Every run of white space becomes one blank; code and the targets of links become ~ in ``numbers``."""
    masked = markdown
    for pattern in (r"^```.*?^```", r"`[^`]*`", r"\]\([^)]*\)"):
        masked = re.sub(pattern, lambda code: "~" * len(code[0]), masked, flags=re.DOTALL | re.MULTILINE)
    kept = [at for at, char in enumerate(markdown) if not char.isspace() or not markdown[at - 1 : at].isspace()]
    blank = [" " if markdown[at].isspace() else None for at in kept]
    return Text(
        "".join(char or markdown[at] for char, at in zip(blank, kept, strict=True)),
        "".join(char or masked[at] for char, at in zip(blank, kept, strict=True)),
    )


_DIGITS = r"(?<![\w.=/-])\d+(?:,\d{3})*(?:\.\d+)?"
_NUMBER = rf"{_DIGITS}(?![\w=]|[.,]\d)"
_UNIT = r"(?: ?(?:us|ms|s|min|minutes|hours|%|x|GB/s|GB|MB|GiB|MiB|MHz|W|points|times|in \d+)(?![\w]))"
_JOINED = rf"(?:(?:,? (?:to|and|or)|,) \**{_NUMBER}\**)"
_WITH_UNIT = re.compile(rf"{_NUMBER}(?=\**{_JOINED}*{_UNIT})|{_DIGITS}(?={_UNIT})")
_RATIO = re.compile(rf"{_NUMBER}(?= of (?:the )?\d)|(?<=\d of ){_NUMBER}")
_PRECISE = re.compile(r"(?<![\w.=/-])\d+(?:,\d{3})*(?:\.\d+|,\d{3})(?![\w=]|[.,]\d)")
_CELL = re.compile(rf"(?<=\| )\**{_NUMBER}\**(?= \|)")


def measured(text: Text) -> Iterator[range]:
    """Numbers that look measured: with a unit or decimals, of thousands, `3 of 16`, alone in a cell of a table."""
    found = {match.span() for one in (_WITH_UNIT, _RATIO, _PRECISE, _CELL) for match in one.finditer(text.numbers)}
    yield from (range(*span) for span in sorted(found))


def unbound(text: Text, phrases: Sequence[str]) -> list[str]:
    """The numbers that look measured outside of these phrases, each with what stands around it."""
    bound = {at for phrase in phrases for span in text.spans(phrase) for at in span}
    return [
        f"{text.prose[span.start : span.stop]}: ...{text.prose[max(span.start - 60, 0) : span.stop + 40]}..."
        for span in measured(text)
        if not bound.issuperset(span)
    ]
