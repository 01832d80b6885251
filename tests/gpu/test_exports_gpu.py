"""Exported files with the real deep_ep: its Config takes them, and a dispatch runs with the shim's."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.backends.deepep import buffer_bytes
from bench.nvml import gpus
from launcher.deploy import exporting, tuned
from tests.builders import ROOT
from tests.published import PUBLISHED

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(len(gpus.inventory()) < 2, reason="needs two GPUs"),
    pytest.mark.skipif(importlib.util.find_spec("deep_ep") is None, reason="needs deep_ep"),
]

RESULTS = PUBLISHED / "h200x2-ep2-bf16" / "RESULTS_EP2.json"
PAIR = tuned.read(RESULTS).picks["fastest"]
HIDDEN_BYTES = 2 * 7168


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All exports of the published run at EP=2."""
    run = tmp_path_factory.mktemp("run")
    shutil.copy(RESULTS, run)
    exporting.export(run / RESULTS.name, names=["sglang", "shim"])
    return run / "exports"


@pytest.fixture(scope="module")
def observations(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Observations of two ranks before and after the import of the shim."""
    meeting = tmp_path_factory.mktemp("meeting") / "ranks"
    script = ROOT / "tests" / "gpu" / "shim_rank.py"
    path = os.pathsep.join(filter(None, [str(exports), os.environ.get("PYTHONPATH")]))
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(meeting), str(rank)],
            env=os.environ | {"PYTHONPATH": path, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=300) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    assert [error.count("deepep_shim: at EP=2") for _, error in outputs] == [1, 0]
    decoded: dict[str, Any] = json.loads(outputs[0][0].splitlines()[-1])
    return decoded


def test_sglang_s_objects_are_arguments_of_the_real_config(exports: Path) -> None:
    code = (
        "import json, sys, torch, deep_ep\n"
        "found = json.load(open(sys.argv[1]))\n"
        "made = [deep_ep.Config(**found[name]) for name in ('normal_dispatch', 'normal_combine')]\n"
        f"print(json.dumps([one.get_nvl_buffer_size_hint({HIDDEN_BYTES}, 2) for one in made]))\n"
    )
    file = exports / "sglang_deepep_config.json"
    process = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    assert msgspec.json.decode(process.stdout) == tuned_hints()


def tuned_hints() -> list[int]:
    return [
        buffer_bytes(operation.knobs, num_ranks=2, hidden_bytes=HIDDEN_BYTES) for operation in PAIR.operations.values()
    ]


def test_the_shim_replaces_the_defaults_of_the_measured_ranks(observations: dict[str, Any]) -> None:
    assert observations["after"]["2"] == tuned_hints()
    assert observations["before"]["2"] != tuned_hints()
    assert observations["num_sms"] == PAIR.dispatch.knobs["num_sms"]
    assert observations["active"] == {"2": tuned.configs(PAIR)}


def test_the_shim_does_not_change_other_numbers_of_ranks(observations: dict[str, Any]) -> None:
    assert [observations["after"][ranks] for ranks in ("4", "8")] == [
        observations["before"][ranks] for ranks in ("4", "8")
    ]


def test_a_dispatch_without_config_runs_on_the_tuned_sms_and_returns_the_right_tokens(
    observations: dict[str, Any],
) -> None:
    assert observations["channels"] == [10, PAIR.dispatch.knobs["num_sms"] // 2]
    assert observations["right"] == [True, True]
