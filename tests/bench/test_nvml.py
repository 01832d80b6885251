"""Readings of GPUs and links from NVML and the PCI bus."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.nvml import counters
from bench.nvml import gpus as telemetry


@pytest.mark.parametrize(
    ("states", "number"),
    [
        ([1] * 18, 18),
        ([1] * 17 + [2], 18),  # asleep
        ([1] * 17 + [3], 17),  # its traffic is disabled
        ([0, 2, 3, 1], 2),
        ([1, None], None),
        ([], None),
    ],
)
def test_links_that_are_active_or_asleep_are_up_and_counted_by_link(states: list[int | None], number: int | None):
    assert counters.count_links_up(states) == number


def test_gpus_are_counted_on_the_pci_bus_without_the_driver(tmp_path: Path):
    for name, vendor, kind in (
        ("0000:01:00.0", "0x10de", "0x030200"),
        ("0000:02:00.0", "0x10de", "0x030000"),
        ("0000:03:00.0", "0x10de", "0x068000"),  # an NVSwitch
        ("0000:04:00.0", "0x1af4", "0x030000"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")
    (tmp_path / "0000:05:00.0").mkdir()
    assert telemetry.pci_gpus(tmp_path) == 2
    assert telemetry.pci_gpus(tmp_path / "nowhere") == 0
