"""The loop that waits for jobs of sweeps and of validations."""

from __future__ import annotations

import time
from typing import NamedTuple

import pytest

from launcher.jobs import waiting


class Look(NamedTuple):
    """The state of all jobs at one poll."""

    states: str
    is_over: bool = False
    is_known: bool = True
    line: str = "a line"


def test_pauses_double_while_no_job_changes_its_state(monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    looks = iter([*map(Look, "PPPPPRR"), Look("C", is_over=True)])
    assert waiting.wait(lambda: next(looks), str).states == "C"
    assert pauses == [2, 4, 8, 8, 8, 2, 4]


def test_a_job_that_slurm_does_not_know_is_over_after_five_more_looks(monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    unknown = Look("U", is_over=True, is_known=False)
    looks = iter([Look("P"), *[unknown] * 4, Look("R"), *[unknown] * 6])
    assert waiting.wait(lambda: next(looks), str) == unknown
    assert list(looks) == []
    assert set(pauses) == {2}
