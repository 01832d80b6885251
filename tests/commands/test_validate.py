"""deepep-validate as administrators start it."""

from __future__ import annotations

import fcntl
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.validation import node as node_files
from launcher.validation import reference
from launcher.validation.codes import NodeVerdict
from launcher.validation.run import summary
from launcher.validation.run.folder import Order, ValidationFolder
from tests import nodes
from tests.builders import ROOT, Command
from tests.nodes import (
    replace,
)


@pytest.fixture(scope="module")
def dry(run_module: Command, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """``python -m launcher.validate`` without arguments."""
    outputs_ = tmp_path_factory.mktemp("validate")
    done = run_module("launcher.validate", f"outputs={outputs_}")
    return done, next(outputs_.glob("*-nodes-*"))


def test_a_machine_without_gpus_is_tested_for_correctness_and_the_skipped_phases_are_reported(dry: tuple[Any, Path]):
    done, folder = dry
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("DEEPEP OK - dry run without GPUs: 1 node passes")
    assert done.stderr.startswith("This is a dry run on CPUs")
    node = node_files.read(folder / "nodes" / socket.gethostname() / "NODE.json")
    phases = {phase.name: phase for phase in node.suite_runs[0].phases}
    assert {name: phase.status for name, phase in phases.items()} == {
        "preflight": "skipped",
        "pairs": "skipped",
        "alltoall": "done",
        "correctness": "done",
        "speed": "done",
        "counters": "skipped",
    }
    assert all(phase.reason for phase in phases.values() if phase.status == "skipped")
    checks = node.suite_runs[0].checks
    assert {name for name in checks if name.startswith("correctness: ") and checks[name] == "ok"} >= {
        "correctness: dispatch bf16",
        "correctness: combine bf16",
        "correctness: dispatch fp8",
        "correctness: combine fp8",
        "correctness: bf16 one_token",
    }
    assert "Dry run" in (folder / "NODES.md").read_text()
    assert "\n* fleet, cpu, 4: absent: " in (folder / "NODES.md").read_text()


def test_the_verdict_is_at_the_top_with_one_value_a_line(dry: tuple[Any, Path]):
    file = dry[1] / "nodes" / socket.gethostname() / "NODE.json"
    assert file.read_text().splitlines()[:3] == ["{", ' "verdict": "PASS",', ' "reason_short": "ok",']


def test_a_finished_run_can_be_reported_again_without_measuring(dry: tuple[Any, Path], run_module: Command):
    process = run_module("launcher.validate", f"report={dry[1]}")
    assert (process.returncode, process.stdout) == (0, dry[0].stdout)
    assert [line.split()[0] for line in process.stderr.splitlines()] == ["report:"]  # no phase ran


def test_a_report_needs_no_working_directory_that_can_be_written_and_a_full_stdout_is_unknown(
    dry: tuple[Any, Path], no_gpus: dict[str, str]
):
    line = [sys.executable, "-m", "launcher.validate", f"report={dry[1]}"]
    environment = no_gpus | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(line, cwd="/proc", env=environment, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout) == (0, dry[0].stdout), process.stderr
    for unbuffered in ("", "1"):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                line,
                env=environment | {"PYTHONUNBUFFERED": unbuffered},
                stdout=full,
                stderr=subprocess.PIPE,
                check=False,
            )
        assert done.returncode == 3


def test_a_running_validation_of_this_machine_is_unfinished_and_not_a_fault(dry: tuple[Any, Path], tmp_path: Path):
    folder = ValidationFolder(Path(shutil.copytree(dry[1], tmp_path / "running")))
    node = socket.gethostname()
    node_files.write(
        folder.node_folder(node), replace(node_files.read(folder.node_folder(node) / "NODE.json"), complete=False)
    )
    with (folder.node_folder(node) / "lines.jsonl").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (running,) = summary.collect(folder).rows
    (ended,) = summary.collect(folder).rows
    assert [(one.verdict.value, one.code) for one in (running, ended)] == [
        ("INCONCLUSIVE", "U916"),
        ("NO_RESULT", "U901"),
    ]


def test_a_missing_run_is_not_measured_when_a_report_is_requested(run_module: Command, tmp_path: Path):
    for more in ([], ["-m", "hydra/launcher=submitit_slurm"]):
        done = run_module("launcher.validate", *more, f"outputs={tmp_path}", f"report={tmp_path / 'gone'}")
        assert (done.returncode, done.stdout) == (64, "")
        assert (
            done.stderr
            == f"error: {tmp_path / 'gone'} is not a validation folder: No such file or directory: order.json\n"
        )
        assert not (tmp_path / "gone").exists()


def test_a_reference_learned_from_five_good_nodes_judges_the_next_node(
    dry: tuple[Any, Path], run_module: Command, tmp_path: Path
):
    """The five are copies of this machine, a hundred times slower, which makes it pass; a sixth node failed."""
    known = node_files.read(dry[1] / "nodes" / socket.gethostname() / "NODE.json")
    (measured,) = known.suite_runs
    slow_rates = [replace(rate, blocks=[block / 100 for block in rate.blocks]) for rate in measured.rates]
    names = [f"gpu{number}" for number in range(1, 7)]
    folder = ValidationFolder.create(tmp_path, tmp_path / "paper")
    folder.note(Order(1, 0.0, ["deepep-validate"], ValidationFolder(dry[1]).order().spec, names))
    for name in names:
        copy = replace(known, node=name, suite_runs=[replace(measured, rates=slow_rates)])
        copy = replace(copy, verdict=NodeVerdict.FAIL, code="E301") if name == "gpu6" else copy
        node_files.write(folder.node_folder(name), copy)
    file = tmp_path / "reference.json"
    done = run_module("launcher.validate", f"report={folder.path}", f"learn={file}")
    assert done.returncode == 2, done.stderr
    learned = reference.read(file)
    assert learned.nodes == names[:5]
    assert f"reference: {file} ({len(learned.entries)} rates of 5 nodes)" in done.stderr

    judged_by_it = run_module("launcher.validate", f"outputs={tmp_path / 'next'}", f"reference={file}")
    assert judged_by_it.returncode == 0, judged_by_it.stderr
    (result,) = (tmp_path / "next").glob("*-nodes-*/nodes/*/NODE.json")
    assert node_files.read(result).layers["reference"] == (
        f"judged: {len(measured.rates)} rates by the reference of 5 good nodes"
    )
    (report,) = (tmp_path / "next").glob("*-nodes-*/NODES.md")
    assert re.search(r"\| dispatch bf16 [^|]*\| [\d.e+]+ \|  \| 1\.00x \| [\d.]+x \|", report.read_text())

    few = run_module("launcher.validate", f"report={dry[1]}", f"learn={tmp_path / 'none.json'}")
    assert few.returncode == 3
    assert "learned from at least 5 good nodes of one kind, got 1" in few.stderr
    assert re.match("DEEPEP UNKNOWN - .*learned from at least 5 good nodes of one kind, got 1", few.stdout)
    assert not (tmp_path / "none.json").exists()


def test_every_fault_that_can_be_injected_is_found(run_module: Command):
    done = run_module("launcher.validate", "self_test=true")
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert len([line for line in lines if line.startswith("ok: ")]) == 13
    assert lines[-1] == "13 of 13 faults were judged right"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["blocks=1"], "blocks must be at least 5"),
        (["nodes=gpu1"], "nodes and node_state choose nodes of Slurm"),
        (["hardware=h200"], "hardware=h200 needs GPUs, this machine has none"),
        (["gpus=1"], "gpus must be at least 2"),
        (["gpus=3"], "3 GPUs are expected; set gpus=N to the number that belongs here"),
        (["blocks=6,1"], "blocks must be at least 5"),
        (["blocs=9"], "blocs"),
        (["hardware=h300"], "h300"),
        (["faults=[slowly@1:x]"], "a fault is written [NODE/]KIND@GPU:TEXT with KIND one of missing_gpu, lost_gpu, "),
        (["faults=['hang@x:dispatch']"], "a fault is written [NODE/]KIND@GPU:TEXT with KIND one of missing_gpu, "),
        (["report=outputs", "run=outputs"], "it cannot use run=outputs"),
        (["report=outputs", "thresholds.fleet_z=0.1"], "it cannot use thresholds.fleet_z=0.1"),
        (["faults=['hang@9:dispatch']"], "is for GPU 9, but the GPUs are 0 to 3"),
        (["faults=['foreign@4:']"], "is for GPU 4, but the GPUs are 0 to 3"),
        (["faults=['die@0:nosuch']"], "names no phase: preflight, pairs, "),
        (["alltoall_mib=[]"], "alltoall_mib must hold sizes of at least 1 MiB"),
        (["limits.job_min=0"], "limits.job_min must be above 0"),
        (["reference=/nowhere.json"], "/nowhere.json cannot be read"),
        (["configs.dispatch=[1]"], "configs.dispatch must hold"),
        (["-q"], ""),
        (["block_iterations=3"], "error: block_iterations is no longer a key (it is fixed at 10)\n"),
        (["++thresholds.dip=0.9"], "error: thresholds.dip is no longer a key (it is fixed at 0.95)\n"),
    ],
)
def test_a_usage_error_is_64_in_one_line_and_leaves_nothing(
    arguments: list[str], words: str, run_module: Command, tmp_path: Path
):
    done = run_module("launcher.validate", f"outputs={tmp_path}", *arguments)
    assert done.returncode == 64, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.glob("*-nodes-*")) == []


@pytest.mark.parametrize("broken", ["junitparser", "pynvml", "msgspec", "hydra"])
def test_an_internal_crash_and_a_broken_installation_give_status_3_and_no_verdict(
    broken: str, no_gpus: dict[str, str], tmp_path: Path
):
    (tmp_path / f"{broken}.py").write_text("raise ZeroDivisionError\n")
    done = subprocess.run(
        [nodes.PYTHON, "-m", "launcher.validate", f"outputs={tmp_path / 'out'}"],
        cwd=ROOT,
        env=no_gpus | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert done.stdout == "DEEPEP UNKNOWN - the validation itself broke | \n"
    assert "ZeroDivisionError" in done.stderr
