"""The samples for NHC and HealthCheckProgram."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from pathlib import Path

from launcher.validation import node as node_files
from launcher.validation.config import Spec
from tests.builders import ROOT
from tests.nodes import (
    faulty_node,
    judge_node,
    rates,
    replace,
    suite_run,
)


def sample(name: str) -> str:
    """A shell script of docs/ADMIN.md."""
    match = re.search(rf"```sh {name}\n(.*?)```", (ROOT / "docs" / "ADMIN.md").read_text(), re.DOTALL)
    assert match is not None
    return match[1]


def health(folder: Path) -> subprocess.CompletedProcess[str]:
    script = folder / "deepep-health"
    script.write_text(sample("health"))
    return subprocess.run(
        ["sh", str(script)],
        env={"DEEPEP_RESULTS": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def nhc(folder: Path, *days: str) -> subprocess.CompletedProcess[str]:
    call = shlex.join(["check_deepep_validation", str(folder), *days])
    check = f'die() {{ echo "died: $2"; }}\n{sample("nhc")}\n{call}\n'
    return subprocess.run(["bash", "-c", check], capture_output=True, text=True, check=False)


def test_the_samples_for_nhc_and_healthcheckprogram_read_our_file(spec: Spec, tmp_path: Path):
    name = subprocess.run(["hostname", "-s"], capture_output=True, text=True, check=True).stdout.strip()
    assert (health(tmp_path).returncode, nhc(tmp_path).returncode) == (0, 0)  # never validated
    slow = rates(scale={"compute gpu2": 0.71})
    wrong = suite_run(checks={"correctness: dispatch bf16 gpu1": "token 3 is wrong"})
    for node, status, words in (
        (judge_node(suite_run(), spec=spec), 0, ""),
        (judge_node(suite_run(rates=rates(noise=0.06)), spec=spec), 0, ""),
        (faulty_node("any", spec), 1, "E203:gpu2 0.71x"),
        (judge_node(suite_run(rates=slow), spec=replace(spec, confirm=False)), 0, ""),
        (judge_node(wrong, spec=spec), 1, "E301:gpu1"),
        (judge_node(wrong, spec=spec, faults=["wrong_token@1:"]), 0, ""),
    ):
        node_files.write(tmp_path, node)
        (tmp_path / node_files.FILE_NAME).rename(tmp_path / f"{name}.json")
        for process in (health(tmp_path), nhc(tmp_path)):
            assert process.returncode == status
            assert words in process.stdout
            assert process.stderr == ""


def test_nhc_ignores_a_result_older_than_max_days(spec: Spec, tmp_path: Path):
    name = subprocess.run(["hostname", "-s"], capture_output=True, text=True, check=True).stdout.strip()
    node_files.write(tmp_path, faulty_node("any", spec))
    file = (tmp_path / node_files.FILE_NAME).rename(tmp_path / f"{name}.json")
    for age, days, status in ((31, (), 0), (29, (), 1), (31, ("60",), 1), (3, ("2",), 0)):
        then = time.time() - age * 86400
        os.utime(file, (then, then))
        assert nhc(tmp_path, *days).returncode == status, (age, days)
