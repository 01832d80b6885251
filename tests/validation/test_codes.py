"""Codes, their meanings, and exit statuses."""

from __future__ import annotations

import re

import pytest

from launcher.validation import codes
from launcher.validation.codes import MEANINGS, NodeVerdict, Status, combine_statuses, exit_status
from tests.builders import ROOT


@pytest.mark.parametrize(
    ("verdicts", "strict", "status"),
    [
        (["PASS", "WARN", "SKIPPED"], False, 0),
        (["PASS", "WARN"], True, 1),
        (["FAIL", "SETUP"], False, 2),
        (["HANG"], False, 2),
        (["NO_RESULT", "PASS"], False, 2),
        (["SETUP", "PASS"], False, 3),
        (["INCONCLUSIVE", "WARN"], True, 3),
        (["SKIPPED"], False, 3),
        ([], False, 3),
    ],
)
def test_the_exit_status_follows_the_nagios_plugin_interface(verdicts: list[str], *, strict: bool, status: int):
    assert exit_status([NodeVerdict(one) for one in verdicts], strict=strict) == status


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([0, 3, 2], 2),
        ([1, 3, 0], 3),
        ([0, 1], 1),
        ([0, 0], 0),
        ([64, 64], 64),
        ([0, 64], 3),
        ([2, 64], 2),
        ([], 0),
    ],
)
def test_the_worst_known_status_of_several_validations_outranks_the_unknown_ones(statuses: list[int], expected: int):
    assert combine_statuses([Status(one) for one in statuses]) == expected


def test_every_code_of_the_program_has_a_meaning_and_is_listed_in_the_guide():
    sources = " ".join(file.read_text() for file in (ROOT / "launcher" / "validation").rglob("*.py"))
    assert set(re.findall(r"\b[EU]\d{3}\b", sources)) == set(MEANINGS)
    guide = (ROOT / "docs" / "ADMIN.md").read_text()
    assert codes.codes_table() in guide
