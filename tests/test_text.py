"""Texts of machines in Markdown."""

from __future__ import annotations

import html
import re

import pytest
from markdown_it import MarkdownIt

from launcher import text as markdown


@pytest.mark.parametrize("word", ["|", "``", "`a", "a`|`b", "\\|"])
def test_inline_code_ends_where_it_should(word: str) -> None:
    text = markdown.code(word)
    fence = re.match(r"`+", text)
    assert fence is not None
    assert text.endswith(fence[0])
    assert not re.search(rf"(?<!`){fence[0]}(?!`)", text[len(fence[0]) : -len(fence[0])])
    assert "\n".join(markdown.table(("a", "b"), [[text, text]])).count("|") - text.count("|") * 2 == 9


@pytest.mark.parametrize("word", ["a|b", "|", "a`|`b", "x"])
def test_inline_code_shows_its_text_in_a_table_and_out_of_it(word: str) -> None:
    parser = MarkdownIt("commonmark").enable("table")
    for text in (markdown.code(word), "\n".join(markdown.table(("a", "b"), [[markdown.code(word), ""]]))):
        (found,) = re.findall("<code>(.*?)</code>", parser.render(text))
        assert html.unescape(found) == word


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("www.evil.com", r"www\.evil.com"),
        ("see HTTPS://evil.com/a", r"see HTTPS:\//evil.com/a"),
        ("WWW.evil.com", r"WWW\.evil.com"),
        ("node1.site", "node1.site"),
    ],
)
def test_no_name_becomes_a_link(word: str, text: str) -> None:
    assert markdown.text(word) == text
    assert re.sub("<.*?>", "", MarkdownIt("commonmark").render(markdown.text(word))).strip() == word
