"""The suite of a node, on two CPU ranks."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest

from bench.faults import Fault
from bench.group import Group
from bench.nvml import gpus
from bench.nvml.counters import Counters
from bench.protocol import GroupSpec
from bench.records import Dtype, Gpu, Op, Point
from launcher.validation import node as node_files
from launcher.validation.measure import link_bytes
from launcher.validation.measure.readings import Nvml
from launcher.validation.measure.suite import Suite
from launcher.validation.node import PHASES, Preflight
from launcher.validation.run import node_reports
from tests import nodes
from tests.nodes import (
    fleet_of,
    phases,
    preflight,
    replace,
    verdict_of,
)

pytestmark = pytest.mark.slow  # two ranks

SMALL = (
    *("hardware=cpu", "backend=alltoall", "workload=small", "measure=quick", "gpus=2", "blocks=5"),
    *("measure.deadline_s=100", "measure.startup_s=100"),
)


class Faked:
    """Readings of two healthy GPUs with link counters; each reading of the counters calls ``look``."""

    def __init__(self, look: Callable[[], object] = lambda: None) -> None:
        self._look = look

    def preflight(self) -> Preflight:
        return Preflight([Gpu("fake", 0, None, None, None)] * 2, [preflight().states[0]] * 2, [None] * 2, None, None)

    def counters(self) -> list[Counters]:
        self._look()
        return [Counters(f"GPU-{number}", {"nvlink_tx_kib": 0, "nvlink_rx_kib": 0}) for number in range(2)]

    def xids(self) -> list[str]:
        return []

    def pair_links(self, gpu: int, other: int) -> int | None:
        return None


class Silent(Faked):
    """A driver that never answers."""

    def preflight(self) -> Preflight:
        threading.Event().wait()
        raise AssertionError


class Breaks(Faked):
    """A program error in the second suite run."""

    has_looked = False

    def preflight(self) -> Preflight:
        if self.has_looked:
            raise ZeroDivisionError
        self.has_looked = True
        return super().preflight()


def ranks() -> list[int]:
    """The ranks that run for this process; their parent is its fork server."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, _, rest = (folder / "stat").read_text().partition(") ")
            state, parent = rest.split()[:2]
            grandparent = Path(f"/proc/{parent}/stat").read_text().rpartition(") ")[2].split()[1]
            if "(rank " in name and state != "Z" and int(grandparent) == os.getpid():
                pids.append(int(folder.name))
    return pids


def test_a_phase_that_reaches_its_limit_is_inconclusive_and_not_a_hang(tmp_path: Path):
    """The hung rank would have had 100 s; within the limit it cannot be distinguished from a slow one."""
    limits = ("limits.alltoall_s=0.001", "limits.correctness_s=4", "limits.speed_s=4")
    node = Suite(nodes.spec(*SMALL, "faults=['hang@1:combine']", *limits), tmp_path, node="gpu1").run()
    assert verdict_of(node) == ("INCONCLUSIVE", "U915")
    assert {(one.code, one.message) for one in node.findings} == {
        ("U915", "alltoall: not finished within its limit of 0.001 s"),
        ("U915", "correctness: not finished within its limit of 4 s"),
        ("U915", "speed: not finished within its limit of 4 s"),
    }
    assert len(node.suite_runs) == 1
    assert ranks() == []


def test_the_driver_is_not_queried_before_the_preflight_with_its_limit(monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []

    def init() -> None:
        calls.append("nvmlInit")
        raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)

    monkeypatch.setattr(pynvml, "nvmlInit", init)
    gpus._has_nvml.cache_clear()
    try:
        readings = Nvml()
        assert calls == []
        assert readings.preflight().gpus == []
        assert calls != []
    finally:
        gpus._has_nvml.cache_clear()


def test_a_driver_that_does_not_answer_is_a_hang_that_a_second_suite_run_must_confirm(tmp_path: Path):
    quick = nodes.spec(*SMALL, "limits.preflight_s=0.2")
    node = Suite(quick, tmp_path / "twice", node="gpu1", readings=Silent()).run()
    assert verdict_of(node) == ("HANG", "E605")
    assert len(node.suite_runs) == 2
    assert phases(node) == {"preflight": "failed"} | dict.fromkeys(PHASES[1:], "skipped")
    once = Suite(replace(quick, confirm=False), tmp_path / "once", node="gpu1", readings=Silent()).run()
    assert node_reports.drain_lines(fleet_of(once), run="r", when="") == []


def test_a_rank_that_dies_while_the_links_are_counted_is_a_crash(tmp_path: Path):
    """Only that step reads the counters while ranks run."""

    def kill() -> None:
        for rank in ranks()[:1]:
            os.kill(rank, signal.SIGKILL)

    node = Suite(nodes.spec(*SMALL, "confirm=false"), tmp_path, node="gpu1", readings=Faked(kill)).run()
    assert verdict_of(node) == ("FAIL", "E602")
    assert "speed: rank" in node.reason
    assert phases(node)["speed"] == "failed"


def test_wrong_tokens_while_the_links_are_counted_are_seen_and_a_healthy_node_has_its_check(tmp_path: Path):
    node = Suite(nodes.spec(*SMALL), tmp_path, node="gpu1", readings=Faked()).run()
    assert verdict_of(node) == ("PASS", "")
    checks = node.suite_runs[0].checks
    assert [checks[f"speed: {op} bf16 while links are counted"] for op in ("dispatch", "combine")] == ["ok", "ok"]
    assert {one.where for one in node.suite_runs[0].link_bytes} == {"gpu0", "gpu1"}

    point = Point("alltoall", Op.DISPATCH, Dtype.BF16, {"num_slices": 1, "num_in_flight": 1})
    workload = nodes.spec(*SMALL).workload
    wrong = [Fault.parse("wrong_token@1:dispatch")]
    group = Group(GroupSpec(2, "cpu", False, workload, [point], wrong), log_folder=tmp_path, startup_s=100)
    try:
        counted = link_bytes.count_bytes(
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


def test_a_certain_fault_of_the_first_suite_run_survives_a_crash_of_the_second(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The first suite run has wrong tokens and a hang that needs confirmation; the second crashes."""
    begun = nodes.spec(*SMALL, "faults=['wrong_token@1:dispatch','hang@1:exchange']", "measure.startup_s=10")
    written: list[node_files.Node] = []

    def look(_: str) -> None:
        written.append(node_files.read(tmp_path / "NODE.json"))

    node = Suite(begun, tmp_path, node="gpu1", readings=Breaks(), say=look).run()
    known = [one for one in written if verdict_of(one) == ("FAIL", "E301")]
    assert known  # long before the end
    assert not any(one.complete for one in known)
    assert all("; the validation ended " in one.reason for one in known)
    assert verdict_of(node) == ("FAIL", "E301")
    assert node.reason.endswith("; then the validation broke: ZeroDivisionError: ")
    assert node.complete
    assert node.faults == ["wrong_token@1:dispatch", "hang@1:exchange"]
    assert {one.code for one in node.findings} == {"E301", "U901"}
    assert "Traceback" in capsys.readouterr().err


def test_an_internal_error_in_a_job_is_setup_with_its_message_and_not_a_fault_of_the_node(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """An unreadable routing passes all checks if the Spec is constructed without them."""
    overrides = ["hardware=cpu", "backend=alltoall", "workload=small", "measure=quick", "gpus=2"]
    broken = nodes.spec(*overrides)
    broken = replace(broken, workload=replace(broken.workload, routing="/nowhere.npy"))
    node = Suite(broken, tmp_path, node="gpu1").run()
    assert verdict_of(node) == ("SETUP", "U901")
    assert "FileNotFoundError" in node.reason
    assert "Traceback" in capsys.readouterr().err
    assert node_files.read(tmp_path / "NODE.json") == node


def test_a_node_that_lacks_what_the_library_needs_is_a_fault_of_its_setup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NCCL_CUMEM_ENABLE", "0")  # where nothing else is missing
    spec = nodes.spec("hardware=h200", "backend=nccl_ep", "gpus=2", "confirm=false")
    node = Suite(spec, tmp_path, node="gpu1", readings=Faked()).run()
    (finding,) = [one for one in node.findings if one.code == "U903"]
    assert "nccl_ep cannot run on" in finding.message
    assert {one.status for one in node.suite_runs[0].phases} == {"failed", "skipped", "done"}
    assert not node.suite_runs[0].rates
