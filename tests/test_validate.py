"""``python -m launcher.validate`` on a machine without GPUs, and the samples of docs/ADMIN.md that read its file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nodes
import pynvml
import pytest
from builders import ROOT, Command
from nodes import (
    attempt,
    faulty,
    fleet_of,
    judged,
    rates,
    replace,
    said,
    there,
)

from bench.faults import Fault
from bench.group import Group
from bench.nvml import gpus
from bench.nvml.counters import Counters
from bench.protocol import GroupSpec
from bench.records import Dtype, Gpu, Op, Point
from launcher.errors import UserError
from launcher.validation import node as node_files
from launcher.validation import reference
from launcher.validation.codes import NodeVerdict
from launcher.validation.config import Spec
from launcher.validation.measure import link_bytes
from launcher.validation.measure.readings import Nvml
from launcher.validation.measure.suite import Suite
from launcher.validation.node import PHASES, Preflight
from launcher.validation.run import node_reports, on_slurm, on_this_machine, summary
from launcher.validation.run.folder import Order, ValidationFolder


@pytest.fixture(scope="session")
def spec() -> Spec:
    return nodes.spec()


# ---- what sites do with it


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
    assert (health(tmp_path).returncode, nhc(tmp_path).returncode) == (0, 0)  # never validated: nothing is known
    slow = rates(scale={"compute gpu2": 0.71})
    wrong = attempt(checks={"correctness: dispatch bf16 gpu1": "token 3 is wrong"})
    for node, status, words in (
        (judged(attempt(), of=spec), 0, ""),
        (judged(attempt(rates=rates(noise=0.06)), of=spec), 0, ""),
        (faulty("any", spec), 1, "E203:gpu2 0.71x"),
        (judged(attempt(rates=slow), of=replace(spec, confirm=False)), 0, ""),
        (judged(wrong, of=spec), 1, "E301:gpu1"),
        (judged(wrong, of=spec, faults=["wrong_token@1:"]), 0, ""),
    ):
        node_files.write(tmp_path, node)
        (tmp_path / node_files.FILE_NAME).rename(tmp_path / f"{name}.json")
        for found in (health(tmp_path), nhc(tmp_path)):
            assert found.returncode == status
            assert words in found.stdout
            assert found.stderr == ""


def test_nhc_takes_a_result_that_is_older_than_max_days_for_none(spec: Spec, tmp_path: Path):
    name = subprocess.run(["hostname", "-s"], capture_output=True, text=True, check=True).stdout.strip()
    node_files.write(tmp_path, faulty("any", spec))
    file = (tmp_path / node_files.FILE_NAME).rename(tmp_path / f"{name}.json")
    for age, days, status in ((31, (), 0), (29, (), 1), (31, ("60",), 1), (3, ("2",), 0)):
        then = time.time() - age * 86400
        os.utime(file, (then, then))
        assert nhc(tmp_path, *days).returncode == status, (age, days)


# ---- the command, on this machine without GPUs


@pytest.fixture(scope="module")
def dry(run_module: Command, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """``python -m launcher.validate`` as it is."""
    outputs_ = tmp_path_factory.mktemp("validate")
    done = run_module("launcher.validate", f"outputs={outputs_}")
    return done, next(outputs_.glob("*-nodes-*"))


def test_on_a_machine_without_gpus_it_tests_correctness_and_says_what_it_skipped(dry: tuple[Any, Path]):
    done, folder = dry
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("DEEPEP OK - dry run without GPUs: 1 node passes")
    assert done.stderr.startswith("This is a dry run on CPUs")
    node = node_files.read(folder / "nodes" / socket.gethostname() / "NODE.json")
    phases = {phase.name: phase for phase in node.attempts[0].phases}
    assert {name: phase.status for name, phase in phases.items()} == {
        "preflight": "skipped",
        "pairs": "skipped",
        "alltoall": "done",
        "correctness": "done",
        "speed": "done",
        "counters": "skipped",
    }
    assert all(phase.reason for phase in phases.values() if phase.status == "skipped")
    checks = node.attempts[0].checks
    assert {name for name in checks if name.startswith("correctness: ") and checks[name] == "ok"} >= {
        "correctness: dispatch bf16",
        "correctness: combine bf16",
        "correctness: dispatch fp8",
        "correctness: combine fp8",
        "correctness: bf16 one_token",
    }
    assert "Dry run" in (folder / "NODES.md").read_text()


def test_the_verdict_stands_at_the_top_a_value_a_line(dry: tuple[Any, Path]):
    file = dry[1] / "nodes" / socket.gethostname() / "NODE.json"
    assert file.read_text().splitlines()[:3] == ["{", ' "verdict": "PASS",', ' "reason_short": "ok",']


def test_a_finished_run_can_be_reported_again_without_measuring(dry: tuple[Any, Path], run_module: Command):
    again = run_module("launcher.validate", f"report={dry[1]}")
    assert (again.returncode, again.stdout) == (0, dry[0].stdout)
    assert [line.split()[0] for line in again.stderr.splitlines()] == ["report:"]  # no phase of a measurement


def test_a_report_needs_no_working_directory_that_can_be_written_and_a_full_stdout_is_unknown(
    dry: tuple[Any, Path], no_gpus: dict[str, str]
):
    line = [sys.executable, "-m", "launcher.validate", f"report={dry[1]}"]
    environment = no_gpus | {"PYTHONPATH": str(ROOT)}
    again = subprocess.run(line, cwd="/proc", env=environment, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout) == (0, dry[0].stdout), again.stderr
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


def test_a_validation_of_this_machine_that_runs_is_not_over_and_no_fault(dry: tuple[Any, Path], tmp_path: Path):
    folder = ValidationFolder(Path(shutil.copytree(dry[1], tmp_path / "running")))
    node = socket.gethostname()
    node_files.write(folder.of(node), replace(node_files.read(folder.of(node) / "NODE.json"), complete=False))
    with (folder.of(node) / "lines.jsonl").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (running,) = summary.collect(folder).rows
    (ended,) = summary.collect(folder).rows
    assert [(one.verdict.value, one.code) for one in (running, ended)] == [
        ("INCONCLUSIVE", "U916"),
        ("NO_RESULT", "U901"),
    ]


def test_a_run_that_is_not_there_is_not_measured_when_a_report_is_wanted(run_module: Command, tmp_path: Path):
    for more in ([], ["-m", "hydra/launcher=submitit_slurm"]):
        done = run_module("launcher.validate", *more, f"outputs={tmp_path}", f"report={tmp_path / 'gone'}")
        assert (done.returncode, done.stdout) == (64, "")
        assert done.stderr == f"error: {tmp_path / 'gone'} is no validation: No such file or directory: order.json\n"
        assert not (tmp_path / "gone").exists()


def test_what_five_good_nodes_do_is_learned_from_their_files_and_judges_the_next_node(
    dry: tuple[Any, Path], run_module: Command, tmp_path: Path
):
    """They are this machine, a hundred times slower, so that it passes whatever else it does; and a sixth failed."""
    known = node_files.read(dry[1] / "nodes" / socket.gethostname() / "NODE.json")
    (measured,) = known.attempts
    slowly = [replace(rate, blocks=[block / 100 for block in rate.blocks]) for rate in measured.rates]
    names = [f"gpu{number}" for number in range(1, 7)]
    folder = ValidationFolder.create(tmp_path, tmp_path / "paper")
    folder.note(Order(1, 0.0, ["deepep-validate"], ValidationFolder(dry[1]).order().spec, names))
    for name in names:
        made = replace(known, node=name, attempts=[replace(measured, rates=slowly)])
        made = replace(made, verdict=NodeVerdict.FAIL, code="E301") if name == "gpu6" else made
        node_files.write(folder.of(name), made)
    file = tmp_path / "reference.json"
    done = run_module("launcher.validate", f"report={folder.path}", f"learn={file}")
    assert done.returncode == 2, done.stderr
    found = reference.read(file)
    assert found.nodes == names[:5]
    assert f"reference: {file} ({len(found.entries)} rates of 5 nodes)" in done.stderr

    judged_by_it = run_module("launcher.validate", f"outputs={tmp_path / 'next'}", f"reference={file}")
    assert judged_by_it.returncode == 0, judged_by_it.stderr
    (result,) = (tmp_path / "next").glob("*-nodes-*/nodes/*/NODE.json")
    assert node_files.read(result).layers["reference"] == f"judged: {len(measured.rates)} rates"
    (report,) = (tmp_path / "next").glob("*-nodes-*/NODES.md")
    assert re.search(r"\| dispatch bf16 [^|]*\| [\d.e+]+ \|  \| 1\.00x \| [\d.]+x \|", report.read_text())

    few = run_module("launcher.validate", f"report={dry[1]}", f"learn={tmp_path / 'none.json'}")
    assert few.returncode == 3
    assert "learned from at least 5 good nodes of one kind, got 1" in few.stderr
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
        (["gpus=3"], "3 GPUs are meant; gpus=N says how many belong here"),
        (["blocks=6,1"], "blocks must be at least 5"),
        (["blocs=9"], "blocs"),
        (["hardware=h300"], "h300"),
        (["faults=[slowly@1:x]"], "KIND@RANK:TEXT"),
        (["report=outputs", "run=outputs"], "it cannot use run=outputs"),
        (["report=outputs", "thresholds.fleet_z=0.1"], "it cannot use thresholds.fleet_z=0.1"),
        (["faults=['hang@9:dispatch']"], "is for GPU 9, and there are 4, from 0 on"),
        (["faults=['foreign@4:']"], "is for GPU 4, and there are 4, from 0 on"),
        (["faults=['die@0:nosuch']"], "names no phase: preflight, pairs, "),
        (["alltoall_mib=[]"], "alltoall_mib must hold sizes of at least 1 MiB"),
        (["limits.job_min=0"], "limits.job_min must be above 0"),
        (["reference=/nowhere.json"], "/nowhere.json cannot be read"),
        (["configs.dispatch=[1]"], "configs.dispatch must hold"),
        (["-q"], ""),
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
def test_a_crash_of_our_own_and_a_broken_installation_are_3_and_no_verdict(
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


def test_a_fault_for_one_node_is_none_for_another():
    from launcher.validation.node_faults import own_faults

    texts = ["gpu1/slow@0:", "gpu2/hang@1:combine", "segfault@3:"]
    assert own_faults(texts, "gpu2") == ["hang@1:combine", "segfault@3:"]
    assert [Fault.parse(text).rank for text in own_faults(texts, "gpu2")] == [1, 3]


def test_host_lists_are_those_of_clustershell():
    assert on_slurm.expanded("gpu[1-3],gpu9") == ["gpu1", "gpu2", "gpu3", "gpu9"]
    assert on_slurm.expanded("gpu[001-003]") == ["gpu001", "gpu002", "gpu003"]
    for bad in ("gpu[1-", "", "@nosuch:x", "@nosuch", "gpu[3-1]", "gpu[1-5/0]"):
        with pytest.raises(UserError, match="nodes="):
            on_slurm.expanded(bad)


# ---- one node's suite, on two CPU ranks


SMALL = (
    *("hardware=cpu", "backend=alltoall", "workload=small", "measure=quick", "gpus=2", "blocks=5"),
    *("block_iterations=3", "measure.deadline_s=100", "measure.startup_s=100"),
)


class Faked:
    """Readings of two healthy GPUs, whose links count bytes; ``look`` strikes at every look at the counters."""

    def __init__(self, look: Callable[[], object] = lambda: None) -> None:
        self._look = look

    def preflight(self) -> Preflight:
        return Preflight([Gpu("fake", 0, None, None, None)] * 2, [there().states[0]] * 2, [None] * 2, None, None)

    def counters(self) -> list[Counters]:
        self._look()
        return [Counters(f"GPU-{number}", {"nvlink_tx_kib": 0, "nvlink_rx_kib": 0}) for number in range(2)]

    def xids(self) -> list[str]:
        return []

    def pair_links(self, one: int, other: int) -> int | None:
        return None


class Silent(Faked):
    """A driver that does not come back."""

    def preflight(self) -> Preflight:
        threading.Event().wait()
        raise AssertionError


class Breaks(Faked):
    """Our own mistake, in the second attempt."""

    has_looked = False

    def preflight(self) -> Preflight:
        if self.has_looked:
            raise ZeroDivisionError
        self.has_looked = True
        return super().preflight()


def ranks() -> list[int]:
    """The ranks that run for this process, whose parent is the nursery that it started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, _, rest = (folder / "stat").read_text().partition(") ")
            state, parent = rest.split()[:2]
            grandparent = Path(f"/proc/{parent}/stat").read_text().rpartition(") ")[2].split()[1]
            if "(rank " in name and state != "Z" and int(grandparent) == os.getpid():
                found.append(int(folder.name))
    return found


def phases(node: node_files.Node) -> dict[str, str]:
    return {phase.name: phase.status for phase in node.attempts[0].phases}


def test_a_phase_that_its_limit_ends_is_no_hang_and_nothing_is_known(tmp_path: Path):
    """The rank that hangs would have had 100 s: who says that it was not merely slow?"""
    limits = ("limits.alltoall_s=0.001", "limits.correctness_s=4", "limits.speed_s=4")
    made = Suite(nodes.spec(*SMALL, "faults=['hang@1:combine']", *limits), tmp_path, node="gpu1").run()
    assert said(made) == ("INCONCLUSIVE", "U915")
    assert {(one.code, one.message) for one in made.findings} == {
        ("U915", "alltoall: not done within its 0.001 s"),
        ("U915", "correctness: not done within its 4 s"),
        ("U915", "speed: not done within its 4 s"),
    }
    assert len(made.attempts) == 1
    assert ranks() == []


def test_the_driver_is_not_asked_before_the_preflight_whose_limit_holds_for_it(monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def init() -> None:
        asked.append("nvmlInit")
        raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)

    monkeypatch.setattr(pynvml, "nvmlInit", init)
    gpus._nvml.cache_clear()
    try:
        readings = Nvml()
        assert asked == []
        assert readings.preflight().gpus == []
        assert asked != []
    finally:
        gpus._nvml.cache_clear()


def test_a_driver_that_does_not_answer_is_a_hang_that_a_second_attempt_has_to_see(tmp_path: Path):
    quick = nodes.spec(*SMALL, "limits.preflight_s=0.2")
    made = Suite(quick, tmp_path / "twice", node="gpu1", readings=Silent()).run()
    assert said(made) == ("HANG", "E605")
    assert len(made.attempts) == 2
    assert phases(made) == {"preflight": "failed"} | dict.fromkeys(PHASES[1:], "skipped")
    once = Suite(replace(quick, confirm=False), tmp_path / "once", node="gpu1", readings=Silent()).run()
    assert node_reports.drain_lines(fleet_of(once, spec=quick), run="r", when="") == []


def test_a_rank_that_dies_while_the_links_are_counted_is_a_crash(tmp_path: Path):
    """Nothing but that step looks at the counters while there are ranks."""

    def kill() -> None:
        for rank in ranks()[:1]:
            os.kill(rank, signal.SIGKILL)

    made = Suite(nodes.spec(*SMALL, "confirm=false"), tmp_path, node="gpu1", readings=Faked(kill)).run()
    assert said(made) == ("FAIL", "E602")
    assert "speed: rank" in made.reason
    assert phases(made)["speed"] == "failed"


def test_wrong_tokens_while_the_links_are_counted_are_seen_and_a_healthy_node_has_its_check(tmp_path: Path):
    made = Suite(nodes.spec(*SMALL), tmp_path, node="gpu1", readings=Faked()).run()
    assert said(made) == ("PASS", "")
    checks = made.attempts[0].checks
    assert [checks[f"speed: {op} bf16 while links are counted"] for op in ("dispatch", "combine")] == ["ok", "ok"]
    assert {one.where for one in made.attempts[0].link_bytes} == {"gpu0", "gpu1"}

    point = Point("alltoall", Op.DISPATCH, Dtype.BF16, {"num_slices": 1, "num_in_flight": 1})
    workload = nodes.spec(*SMALL).workload
    wrong = [Fault.parse("wrong_token@1:dispatch")]
    group = Group(GroupSpec(2, "cpu", False, workload, [point], wrong), log_folder=tmp_path, startup_s=100)
    try:
        counted = link_bytes.count(
            group,
            point,
            order=[1, 0],
            tokens=[[1, 1], [1, 1]],
            bytes_per_token=2,
            counters=Faked().counters,
            deadline_s=100,
        )
    finally:
        group.kill()
    assert counted.wrong is not None
    assert counted.wrong.startswith("gpu")


def test_a_certain_fault_of_the_first_attempt_outlives_a_break_in_the_second(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Wrong tokens, and a hang that asks for a second look, at which our own program breaks."""
    begun = nodes.spec(*SMALL, "faults=['wrong_token@1:dispatch','hang@1:exchange']", "measure.startup_s=10")
    written: list[node_files.Node] = []

    def look(_: str) -> None:
        written.append(node_files.read(tmp_path / "NODE.json"))

    made = Suite(begun, tmp_path, node="gpu1", readings=Breaks(), say=look).run()
    known = [one for one in written if said(one) == ("FAIL", "E301")]
    assert known  # long before the end
    assert not any(one.complete for one in known)
    assert all("; the validation ended " in one.reason for one in known)
    assert said(made) == ("FAIL", "E301")
    assert made.reason.endswith("; then the validation broke: ZeroDivisionError: ")
    assert made.complete
    assert made.faults == ["wrong_token@1:dispatch", "hang@1:exchange"]
    assert {one.code for one in made.findings} == {"E301", "U901"}
    assert "Traceback" in capsys.readouterr().err


def test_a_mistake_of_our_own_in_a_job_is_setup_with_its_words_and_no_fault_of_the_node(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """A routing that nobody can read gets past every check when the Spec was made without them."""
    overrides = ["hardware=cpu", "backend=alltoall", "workload=small", "measure=quick", "gpus=2"]
    broken = nodes.spec(*overrides)
    broken = replace(broken, workload=replace(broken.workload, routing="/nowhere.npy"))
    made = Suite(broken, tmp_path, node="gpu1").run()
    assert said(made) == ("SETUP", "U901")
    assert "FileNotFoundError" in made.reason
    assert "Traceback" in capsys.readouterr().err
    assert node_files.read(tmp_path / "NODE.json") == made
