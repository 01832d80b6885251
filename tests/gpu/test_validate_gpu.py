"""Node validation with real GPUs: a healthy pair passes, and injected faults are named."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

import pytest

from bench.nvml import counters, gpus
from launcher.validation import node as node_files
from launcher.validation.node import Node
from tests.builders import command

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(len(gpus.inventory()) < 2, reason="needs two GPUs"),
    pytest.mark.skipif(importlib.util.find_spec("deep_ep") is None, reason="needs deep_ep"),
]

QUICK = ("gpus=2", "blocks=6", "measure=quick")


class Validation(NamedTuple):
    """The exit status, the node's file, and NODES.md."""

    status: int
    node: Node
    report: str

    @property
    def verdict(self) -> tuple[str, str]:
        return self.node.verdict.value, self.node.code

    @property
    def where(self) -> str:
        return next((one.where for one in self.node.findings if one.code == self.node.code), "")


def validate(folder: Path, *arguments: str) -> Validation:
    done = command("launcher.validate", *QUICK, f"outputs={folder}", *arguments, environment=dict(os.environ))
    (file,) = folder.glob("*-nodes-*/nodes/*/NODE.json")
    (report,) = folder.glob("*-nodes-*/NODES.md")
    return Validation(done.returncode, node_files.read(file), report.read_text())


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Validation:
    return validate(tmp_path_factory.mktemp("healthy"))


def test_a_healthy_pair_passes_every_phase(healthy: Validation) -> None:
    assert (healthy.status, *healthy.verdict) == (0, "PASS", ""), healthy.node.reason
    (attempt,) = healthy.node.suite_runs
    assert {phase.status for phase in attempt.phases} == {"done"}
    assert set(attempt.checks.values()) == {"ok"}
    assert healthy.node.layers["inventory"] == f"judged: {len(gpus.inventory())} GPUs, 2 expected"


def test_the_links_that_are_up_are_all_that_a_gpu_has() -> None:
    """A sum of link states would be larger where some links sleep."""
    for gpu, read in zip(gpus.inventory(), counters.read(), strict=True):
        assert read.values["links_up"] in (gpu.num_links, None)


def test_the_pci_bus_shows_no_fewer_gpus_than_the_driver() -> None:
    assert gpus.pci_gpus() >= len(gpus.inventory())


def test_nvml_counts_the_bytes_of_the_tokens_on_the_links_within_a_tenth(healthy: Validation) -> None:
    (attempt,) = healthy.node.suite_runs
    assert {(one.where, one.direction) for one in attempt.link_bytes if one.test == "dispatch"} == {
        (gpu, direction) for gpu in ("gpu0", "gpu1") for direction in ("in", "out")
    }
    assert all(0.9 < one.ratio < 1.1 for one in attempt.link_bytes), attempt.link_bytes


def test_a_gpu_that_is_slowed_is_named_and_never_drained_since_it_was_on_purpose(tmp_path: Path) -> None:
    validation = validate(tmp_path, "faults=['slow=1500@1:']")
    assert (validation.status, *validation.verdict, validation.where) == (2, "FAIL", "E203", "gpu1")
    assert len(validation.node.suite_runs) == 2
    assert "Faults were injected on purpose." in validation.report
    assert "scontrol" not in validation.report


def test_a_wrong_token_is_named_at_once(tmp_path: Path) -> None:
    validation = validate(tmp_path, "faults=['wrong_token@1:combine']")
    assert (validation.status, *validation.verdict) == (2, "FAIL", "E301")
    assert validation.where in ("gpu0", "gpu1")
