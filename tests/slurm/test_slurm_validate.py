"""Node validation on a real Slurm: faulty, healthy, busy and nonexistent nodes."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest

from tests.slurm import sweeps
from tests.slurm.slurmlab import SlurmLab
from tests.slurm.sweeps import Done

FAULTS = {
    "gpu2": "slow=60000@1:",
    "gpu3": "wrong_token@0:combine",
    "gpu4": "hang@2:exchange",
    "gpu5": "die@0:speed",
}
HANGS = ("faults=['hang@1:exchange']", "measure.deadline_s=100", "measure.startup_s=100")
SMALL = (
    "hardware=cpu",
    "backend=alltoall",
    "workload=small",
    "measure=quick",
    "measure.deadline_s=5",
    "measure.startup_s=30",
    "blocks=5",
    "gpus=4",
    "hydra.launcher.gpus_per_node=4",
)
SLURM = ("-m", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=low")


class Validation(NamedTuple):
    """A finished validation and its summary."""

    done: Done
    folder: Path
    nodes: dict[str, dict[str, Any]]

    def verdict(self, node: str) -> tuple[str, str]:
        return self.nodes[node]["verdict"], self.nodes[node]["code"]


@pytest.fixture(scope="module")
def eleven(has_slurm: None) -> Iterator[SlurmLab]:
    with SlurmLab(num_nodes=11, accounting=False, auth="none") as lab:
        yield lab


def begin(lab: SlurmLab, outputs: Path, *arguments: str) -> subprocess.Popen[str]:
    return sweeps.start(lab, "launcher.validate", *SLURM, *SMALL, f"outputs={outputs}", *arguments)


def folder_of(outputs: Path) -> Path:
    order = sweeps.wait_until(lambda: next(iter(outputs.glob("*-nodes-*/order.json")), None))
    assert order is not None
    return order.parent


def running(file: Path) -> str | None:
    """The running phase in a NODE.json, if any."""
    phases = json.loads(file.read_bytes())["attempts"][-1]["phases"]
    return next((phase["name"] for phase in phases if phase["status"] == "running"), None)


def end(process: subprocess.Popen[str], outputs: Path) -> Validation:
    try:
        stdout, stderr = process.communicate(timeout=500)
    finally:
        process.kill()
    done = Done(process.returncode, stdout, stderr)
    folder = folder_of(outputs)
    summary = json.loads((folder / "NODES.json").read_bytes())
    assert summary["exit_status"] == done.status, done.stderr
    return Validation(done, folder, {node["node"]: node for node in summary["nodes"]})


class Both(NamedTuple):
    """Two concurrent validations."""

    faulty: Validation
    busy: Validation


@pytest.fixture(scope="module")
def both(eleven: SlurmLab, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """gpu6 is drained, gpu7's job is preempted, gpu12 does not exist, gpu1 and gpu8 are healthy.

    Meanwhile gpu9, gpu10 and gpu11 are validated one at a time; gpu10 becomes busy once gpu9 has started, and is set
    to drain.
    """
    faulty, busy = tmp_path_factory.mktemp("faulty"), tmp_path_factory.mktemp("busy")
    eleven.command("scontrol", "update", "nodename=gpu6", "state=drain", "reason=EPV-TEST")
    one_by_one = ("max_in_flight=1", "deadline_min=2", "limits.job_min=2")  # skipped if not started within two minutes
    waits = begin(eleven, busy, "nodes=gpu[9-11]", *one_by_one)
    sweeps.wait_until((folder_of(busy) / "nodes" / "gpu9" / "NODE.json").is_file)
    eleven.command("sbatch", "-p", "main", "-w", "gpu10", "--exclusive", "--wrap", "sleep 600", "-o", "/dev/null")
    eleven.command("scontrol", "update", "nodename=gpu10", "state=drain", "reason=BAD-DIMM")
    faults = ",".join(f"'{node}/{fault}'" for node, fault in FAULTS.items())
    process = begin(eleven, faulty, "nodes=gpu[1-8],gpu12", f"faults=[{faults}]", "max_in_flight=2")
    folder = folder_of(faulty)
    sweeps.wait_until((folder / "nodes" / "gpu7" / "NODE.json").is_file, seconds=300)
    eleven.command("sbatch", "-p", "main", "-w", "gpu7", "--exclusive", "--wrap", "sleep 1", "-o", "/dev/null")
    return Both(end(process, faulty), end(waits, busy))


@pytest.fixture
def validation(both: Both) -> Validation:
    return both.faulty


def test_each_node_gets_its_verdict_and_code(validation: Validation):
    assert {node: validation.verdict(node) for node in validation.nodes} == {
        "gpu1": ("PASS", ""),
        "gpu2": ("FAIL", "E203"),
        "gpu3": ("FAIL", "E301"),
        "gpu4": ("HANG", "E601"),
        "gpu5": ("NO_RESULT", "U901"),
        "gpu6": ("SKIPPED", "U908"),
        "gpu7": ("SKIPPED", "U906"),
        "gpu8": ("PASS", ""),
        "gpu12": ("NO_RESULT", "U909"),
    }


def test_the_exit_status_and_the_line_follow_the_nagios_plugin_interface(validation: Validation):
    assert validation.done.status == 2
    assert "Faults were injected on purpose." in validation.done.stderr
    assert "scontrol update" not in (validation.folder / "NODES.md").read_text()
    line = validation.done.stdout.strip()
    assert line.startswith("DEEPEP CRITICAL - gpu2 FAIL E203:gpu1 ")
    assert line.endswith("| fail=2 hang=1 no_result=2 setup=0 inconclusive=0 warn=0 skipped=2 pass=2")


def test_the_slow_gpu_is_named_by_both_suite_runs_and_by_the_fleet(validation: Validation):
    findings = validation.nodes["gpu2"]["findings"]
    assert {(one["code"], one["where"]) for one in findings} >= {("E203", "gpu1"), ("E210", "")}
    node = json.loads((validation.folder / "nodes" / "gpu2" / "NODE.json").read_bytes())
    assert [attempt["order"] for attempt in node["attempts"]] == [[0, 1, 2, 3], [3, 2, 1, 0]]
    assert "reproduced" in node["layers"]["confirmation"]


def test_a_rank_that_died_is_reported_with_its_phase(validation: Validation):
    assert "in phase speed" in validation.nodes["gpu5"]["reason"]
    node = json.loads((validation.folder / "nodes" / "gpu5" / "NODE.json").read_bytes())
    assert node["attempts"][0]["checks"]["correctness: dispatch bf16"] == "ok"


def test_a_drained_node_keeps_its_reason_and_gets_no_job(validation: Validation):
    assert "EPV-TEST" in validation.nodes["gpu6"]["reason"]
    assert validation.nodes["gpu6"]["job_id"] is None


def test_every_file_keeps_the_schema(validation: Validation):
    schema = json.loads((sweeps.ROOT / "docs" / "node.schema.json").read_bytes())
    files = list(validation.folder.glob("nodes/*/NODE.json"))
    assert len(files) == 7
    for file in files:
        jsonschema.validate(json.loads(file.read_bytes()), schema)


def test_how_each_job_ended_is_kept_for_when_slurm_has_forgotten_it(validation: Validation):
    order = json.loads((validation.folder / "order.json").read_bytes())
    assert set(order["states"]) == set(order["jobs"].values())
    assert order["states"][order["jobs"]["gpu1"]] == "COMPLETED"
    assert order["states"][order["jobs"]["gpu7"]] == "PREEMPTED"


def test_nothing_is_left_behind(validation: Validation, eleven: SlurmLab):
    assert sweeps.stray_ranks(eleven) == []


def test_a_busy_node_is_skipped_at_the_deadline_with_its_reason_and_does_not_delay_the_nodes_behind_it(both: Both):
    assert {node: both.busy.verdict(node) for node in both.busy.nodes} == {
        "gpu9": ("PASS", ""),
        "gpu10": ("SKIPPED", "U908"),
        "gpu11": ("PASS", ""),
    }
    assert both.busy.done.status == 0
    assert "gpu10 is busy and goes behind the other nodes of its lane" in both.busy.done.stderr
    order = json.loads((both.busy.folder / "order.json").read_bytes())
    assert [one["why"] for one in order["skipped"]] in (
        [f"its state in Slurm is {state}: BAD-DIMM"] for state in ("draining", "drained")
    )
    (new, old) = re.findall(r"the other nodes of its lane: job (\d+) replaces (\d+)", both.busy.done.stderr)[0]
    assert int(new) > int(order["jobs"]["gpu11"]) > int(old)
    assert set(order["states"]) == set(order["jobs"].values())


@pytest.mark.parametrize(("name", "most"), [("faulty", 2), ("busy", 1)])
def test_never_more_nodes_than_max_in_flight_are_validated_at_once(both: Both, name: str, most: int):
    folder = getattr(both, name).folder
    documents = [json.loads(file.read_bytes()) for file in folder.glob("nodes/*/NODE.json")]
    spans = [[datetime.fromisoformat(one[key]) for key in ("started", "ended")] for one in documents]
    at_once = [sum(began <= start < ended for began, ended in spans) for start, _ in spans]
    assert max(at_once) == most
    scripts = [file.read_text() for file in (folder / "slurm").glob("*.sh")]
    assert scripts
    assert all("#SBATCH --dependency=singleton" in script for script in scripts)


def test_a_job_that_slurm_refuses_skips_only_its_own_node(eleven: SlurmLab, tmp_path: Path):
    """Only gpu6 is in the partition of the jobs; a validation without any accepted job leaves no folder."""
    eleven.reset()
    eleven.command("scontrol", "create", "partitionname=some", "nodes=gpu6")
    arguments = (*SLURM, *SMALL, "hydra.launcher.partition=null", "hydra.launcher.detach=true")

    def submit(name: str, hosts: str) -> Done:
        overrides = (*arguments, f"outputs={tmp_path / name}", f"nodes={hosts}")
        return sweeps.run(eleven, "launcher.validate", *overrides, SBATCH_PARTITION="some")

    try:
        partly, not_at_all = submit("partly", "gpu[1-6]"), submit("all", "gpu[1-5]")
    finally:
        eleven.reset()
        eleven.command("scontrol", "delete", "partitionname=some")
    assert partly.status == 0, partly.stderr
    order = json.loads((Path(partly.stdout.strip()) / "order.json").read_bytes())
    assert list(order["jobs"]) == order["nodes"] == ["gpu6"]
    assert [(one["node"], one["code"]) for one in order["skipped"]] == [(f"gpu{n}", "U917") for n in range(1, 6)]
    assert "Slurm refused the jobs: " in order["skipped"][0]["why"]
    assert not_at_all.status == 64
    assert not_at_all.stderr.count("\nerror: Slurm refused the jobs: ") == 1
    assert list((tmp_path / "all").glob("*-nodes-*")) == []


def test_a_detached_validation_continues_and_is_reported_later_even_while_the_controller_is_down(
    eleven: SlurmLab, tmp_path: Path
):
    eleven.reset()
    detached = ("hydra.launcher.detach=true", "max_in_flight=2", *HANGS)
    done = sweeps.end(begin(eleven, tmp_path, "node_state=idle", *detached))
    assert done.status == 0, done.stderr
    folder = Path(done.stdout.strip())
    with eleven.without_controller():
        process = sweeps.start(eleven, "launcher.validate", *SLURM, f"run={folder}")
        assert process.stderr is not None
        assert process.stderr.readline() == "11 nodes: 11 unknown; Slurm does not answer\n"
        assert process.poll() is None
    eleven.command("scancel", *json.loads((folder / "order.json").read_bytes())["jobs"].values())
    later = sweeps.end(process)
    assert later.status == 3
    summary = json.loads((folder / "NODES.json").read_bytes())
    assert {(node["verdict"], node["code"]) for node in summary["nodes"]} == {("SKIPPED", "U905")}


@contextlib.contextmanager
def reserved(lab: SlurmLab, nodes: str) -> Iterator[str]:
    """The argument that selects the nodes of a reservation."""
    what = ("users=root", "starttime=now", "duration=60", f"nodes={nodes}")
    lab.command("scontrol", "create", "reservation", "reservationname=new", *what)
    try:
        yield "hydra.launcher.reservation=new"
    finally:
        lab.command("scontrol", "delete", "reservationname=new")


def test_an_interrupt_in_a_reservation_ends_the_jobs_and_reports_the_known_results(eleven: SlurmLab, tmp_path: Path):
    eleven.reset()
    with reserved(eleven, "gpu[1-2]") as reservation:
        process = begin(eleven, tmp_path, reservation, *HANGS, "hydra.launcher.on_interrupt=cancel")
        folder = folder_of(tmp_path)
        sweeps.wait_until(lambda: [running(file) for file in folder.glob("nodes/*/NODE.json")] == ["alltoall"] * 2)
        process.send_signal(signal.SIGINT)
        done = sweeps.end(process)
    assert done.status == 3, done.stderr
    assert "cancelled; all results so far are kept" in done.stderr
    summary = json.loads((folder / "NODES.json").read_bytes())
    assert {(node["verdict"], node["code"]) for node in summary["nodes"]} == {("SKIPPED", "U905")}
    assert {node["reason"].partition("; ")[2] for node in summary["nodes"]} == {
        "the validation ended in phase alltoall"
    }
    sweeps.wait_until(lambda: sweeps.stray_ranks(eleven) == [])


def test_a_reservation_selects_its_nodes_and_a_dry_run_shows_their_script(eleven: SlurmLab, tmp_path: Path):
    eleven.reset()
    with reserved(eleven, "gpu[1-3]") as reservation:
        done = sweeps.end(begin(eleven, tmp_path, "dry_run=true", reservation))
    assert done.status == 0, done.stderr
    assert done.stdout.startswith("3 nodes: gpu[1-3]; 4 GPUs each, alltoall")
    for option in ("--reservation=new", "--exclusive", "--deadline=now+9900seconds", "--nodelist=gpu1", "--mem=0"):
        assert f"#SBATCH {option}" in done.stdout
    assert list(tmp_path.glob("*-nodes-*")) == []


def test_a_job_that_cannot_start_validating_is_setup_and_not_a_fault_of_its_node(eleven: SlurmLab, tmp_path: Path):
    done = sweeps.end(begin(eleven, tmp_path, "nodes=gpu1", "hydra.launcher.python=/nonexistent/python"))
    assert done.status == 3, done.stderr
    (summary,) = tmp_path.glob("*-nodes-*/NODES.json")
    (row,) = json.loads(summary.read_bytes())["nodes"]
    assert (row["verdict"], row["code"]) == ("SETUP", "U918")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nodes='gpu[1-'",), "is not a host list"),
        ((), "no nodes are named"),
        (("node_state=maint",), "no node is maint"),
        (("nodes='gpo[1-2]'",), "has none of these nodes: gpo[1-2]"),
        (("nodes=gpu1", "blocks=6,1"), "blocks must be at least 5"),
        (("nodes=@nosuch:x",), "is not a host list"),
        (("nodes=gpu1", "hydra.launcher.partition=nowhere"), "nowhere"),
        (
            ("nodes=gpu1", "gpus=8", "hardware=h200", "backend=deepep"),
            "hydra.launcher.gpus_per_node must be at least 8",
        ),
        (("nodes=gpu1", "hydra.launcher.on_interrupt=maybe"), "on_interrupt must be one of"),
        (("hydra.launcher.reservation=nobody",), "no nodes are reserved as nobody"),
    ],
)
def test_a_selection_without_nodes_is_a_usage_error(
    eleven: SlurmLab, tmp_path: Path, arguments: tuple[str, ...], words: str
):
    done = sweeps.end(begin(eleven, tmp_path, *arguments))
    assert done.status == 64, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.glob("*-nodes-*")) == []
