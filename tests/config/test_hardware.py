"""Hardware files and the GPUs that they match."""

from __future__ import annotations

import re

import pytest

from launcher.config import hardware as machine


@pytest.mark.parametrize(
    ("name", "hardware"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA A100-PCIE-40GB", None),
        ("NVIDIA A100 80GB PCIe", None),
        ("NVIDIA A800-SXM4-80GB", "a800"),
        ("NVIDIA A800 80GB PCIe", None),
        ("NVIDIA A800 40GB Active", None),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA H20", "h20"),
        ("NVIDIA H800", "h800"),
        ("NVIDIA H800 PCIe", None),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GB200", "gb200"),
    ],
)
def test_a_hardware_file_matches_its_board_and_not_the_pcie_card(name: str, hardware: str | None):
    matching = [one.name for one in machine.known_hardware() if one.gpu_pattern and re.search(one.gpu_pattern, name)]
    assert matching == ([] if hardware is None else [hardware])
