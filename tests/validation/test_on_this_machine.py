"""The validation of this machine without Slurm."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.nvml import gpus
from launcher.validation.run import on_this_machine


def test_gpus_without_a_driver_are_no_reason_for_a_dry_run_unless_they_are_hidden_on_purpose(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if gpus.inventory():
        pytest.skip("the GPUs of this machine have a driver")
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "vendor").write_text("0x10de\n")
    (tmp_path / "gpu" / "class").write_text("0x030200\n")
    assert on_this_machine.has_silent_gpus(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not on_this_machine.has_silent_gpus(tmp_path)
