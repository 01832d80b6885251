"""Escaping of arbitrary text in Markdown."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
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
        (shown,) = re.findall("<code>(.*?)</code>", parser.render(text))
        assert html.unescape(shown) == word


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


@given(st.one_of(st.text(), st.text(st.sampled_from("_*`~\\|[]()<>&#!.-'\" a1\u00e9\u2460\u0301\u2014"))))
@example("_a_ a_b __c__ d__e f_ _g *_h_* i_*j* (_k_) \u00e9_\u00e9 1_2 _")
@example("num_sms, a_b_c, __init__, _x_y_")
@example("<script>alert(1)</script> \r\n| x | y |\n\n# Title &lt; \u2028| \x85 \v")
def test_any_text_stays_literal(word: str) -> None:
    """In a paragraph, in bold and in a cell; only a null character is replaced, as CommonMark requires."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    shown = " ".join(word.split()).replace("\0", "\ufffd")
    paragraph = parser.render(f"a {markdown.text(word)} b")
    assert html.unescape(paragraph) == f"<p>a {shown} b</p>\n"
    bold = parser.render(f"**a {markdown.text(word)} b**")
    assert html.unescape(bold) == f"<p><strong>a {shown} b</strong></p>\n"
    cells = parser.render("\n".join(markdown.table(("a", "b"), [[markdown.text(word), "x"]])))
    assert html.unescape(cells.split("<tbody>")[1].split("<td>")[1].split("</td>")[0]) == shown


def test_underscores_within_words_need_no_escape() -> None:
    assert markdown.text("num_sms of qwen3_30b_a3b") == "num_sms of qwen3_30b_a3b"
    assert markdown.text("_a __b__ c_ d_-e_f") == r"\_a \_\_b\_\_ c\_ d\_-e_f"
