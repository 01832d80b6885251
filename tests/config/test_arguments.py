"""Command lines that repeat a sweep."""

from __future__ import annotations

import sys

import pytest

from launcher.config import arguments


def test_one_of_several_sweeps_is_resumed_by_a_command_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["sweep", "-m", "ep='2','4'", "hydra/launcher=submitit_slurm"])
    given = arguments.command_line(["ep='4'"], ["hydra.mode=MULTIRUN", "hydra/launcher=submitit_slurm"])
    assert given == ["deepep-sweep", "-m", "hydra/launcher=submitit_slurm", "ep='4'"]
    monkeypatch.setattr(sys, "argv", ["sweep", "-m", "ep='4'"])
    assert arguments.command_line(["ep='4'"], ["hydra.mode=MULTIRUN"]) == ["deepep-sweep", "-m", "ep='4'"]
