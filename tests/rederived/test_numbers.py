"""Every number in README, docs and outputs/published/README.md follows from the tracked records.

CONTRIBUTING.md, "A measured number in a document", says how to add one.
"""

from __future__ import annotations

import functools

import pytest

from tests.rederived import documents, not_measured
from tests.rederived.claims import admin, another_run, docs, published_ep2, published_ep4, published_tables, readme
from tests.rederived.documents import DOCUMENTS, METHODOLOGY, PUBLISHED, README, Claim

CLAIMS = [
    *readme.CLAIMS,
    *published_tables.CLAIMS,
    *published_ep4.CLAIMS,
    *published_ep2.CLAIMS,
    *docs.CLAIMS,
    *another_run.CLAIMS,
    *admin.CLAIMS,
]


@functools.cache
def phrases_of(document: str) -> list[str]:
    """Every phrase of a document whose numbers are accounted for."""
    derived = [claim.text for claim in CLAIMS if claim.document == document]
    return derived + [phrase for of, phrase in not_measured.PHRASES if of == document]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.document}: {claim.phrase[:60]}")
def test_a_phrase_has_the_numbers_that_follow_from_the_records(claim: Claim) -> None:
    assert documents.read(claim.document).spans(claim.text), f"{claim.document} should say: {claim.text}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_number_that_looks_measured_is_derived_or_listed_as_not_measured(document: str) -> None:
    assert documents.unbound(documents.read(document), phrases_of(document)) == []


@pytest.mark.parametrize(("document", "phrase"), not_measured.PHRASES)
def test_a_number_that_is_listed_as_not_measured_stands_in_its_document(document: str, phrase: str) -> None:
    assert documents.read(document).spans(phrase)


@pytest.mark.parametrize(
    ("document", "before", "after"),
    [
        (README, "**418.8** (488.2)", "**418.9** (488.2)"),
        (README, "1.287 times as fast", "1.288 times as fast"),
        (README, "| 40 SMs, 13.0 % |", "| 24 SMs, 13.0 % |"),
        (PUBLISHED, "84 differ by more than 2 %", "6 differ by more than 2 %"),
        (PUBLISHED, "| 1168 | 1033 |", "| 1168 | 1034 |"),
        (METHODOLOGY, "464.0 and 467.2 us", "464.0 and 467 us"),
    ],
)
def test_a_changed_number_is_noticed(document: str, before: str, after: str) -> None:
    changed = documents.one_line((documents.ROOT / document).read_text().replace(before, after))
    missing = [phrase for phrase in phrases_of(document) if not changed.spans(phrase)]
    assert len(missing) == 1
    assert documents.unbound(changed, phrases_of(document)) != []


@pytest.mark.parametrize(
    "sentence",
    [
        "The dispatch takes 412 us.",
        "It is 3 % slower.",
        "It takes 1.287 times as long.",
        "It takes **2x** as long.",
        "The link moves 290 to 300 GB/s.",
        "It takes 4, 5 or 6 ms.",
        "In 6 of 1,355 points it is slower.",
        "6 of the 16 pairs are slower.",
        "It takes 90 s on four GPUs.",
        "The ratio is 2.305.",
        "| four H200s | 1009 |",
        "It took 118 s\non two.",
        "1,336 points were measured.",
        "The buffer takes 320 MiB.",
    ],
)
def test_a_new_number_is_noticed(sentence: str) -> None:
    document = (documents.ROOT / README).read_text() + sentence
    assert documents.unbound(documents.one_line(document), phrases_of(README)) != []


@pytest.mark.parametrize(
    "sentence",
    [
        "EP=4 with (24, 8, 256) at 20 SMs, 4096 tokens, top-8, V2, H200, 2026-11-24, torch 2.14.1, qwen3_30b_a3b.",
        "The key `shard.timeout=20 s`, and [a link](file-2.5.md).",
        "```\nfor 90 s\n```",
    ],
)
def test_configs_names_dates_and_code_are_not_taken_for_measured_numbers(sentence: str) -> None:
    assert documents.unbound(documents.one_line(sentence), []) == []
