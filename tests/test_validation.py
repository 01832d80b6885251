"""The judgement of one node: every layer finds its fault, none flags a healthy node, and one attempt is no proof."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import nodes
import pytest
from builders import ROOT
from hypothesis import given
from hypothesis import strategies as st
from nodes import (
    GIGABYTES,
    PEAK,
    attempt,
    faulty,
    fleet_of,
    grown,
    judged,
    learned,
    place,
    rates,
    replace,
    row,
    said,
    there,
)

from bench.nvml import counters
from bench.nvml import gpus as telemetry
from bench.records import GpuState
from launcher.config import hardware as machine
from launcher.errors import UserError
from launcher.validation import node as node_files
from launcher.validation import reference
from launcher.validation.codes import NodeVerdict
from launcher.validation.config import Spec
from launcher.validation.judge import fleet
from launcher.validation.judge.fleet import make_row
from launcher.validation.judge.layers import find_certain_faults
from launcher.validation.node import Node, Rate, Trouble
from launcher.validation.run import node_reports


@pytest.fixture(scope="session")
def spec() -> Spec:
    return nodes.spec()


# ---- one node


def test_a_healthy_node_passes_and_each_layer_says_what_it_did(spec: Spec):
    node = judged(attempt(), of=spec)
    assert said(node) == ("PASS", "")
    assert list(node.layers) == [
        "inventory",
        "correctness",
        "physics",
        "reference",
        "inside",
        "fleet",
        "stability",
        "context",
        "confirmation",
    ]
    assert node.layers["reference"].startswith("absent: no stored reference")


TWICE = {
    "a GPU whose GEMMs are slow": ({"compute gpu2": 0.8}, "E203", "gpu2"),
    "one slow pair": ({"pair_copy gpu1>gpu3": 0.85}, "E201", "gpu1>gpu3"),
    "a GPU all of whose pairs are slow": ({f"pair_sm {p}": 0.9 for p in nodes.PAIRS if "gpu0" in p}, "E203", "gpu0"),
    "every pair below the floor": ({"pair_sm": 0.7}, "E201", "gpu0>gpu1"),
    "a slow all-to-all": ({"all_to_all": 0.8}, "E204", ""),
    "a slow dispatch": ({"dispatch": 0.6}, "E206", ""),
    "a slow combine": ({"combine": 0.6}, "E207", ""),
}


@pytest.mark.parametrize("name", TWICE)
def test_slowness_that_two_attempts_see_is_a_fault_in_its_place(name: str, spec: Spec):
    scale, code, where = TWICE[name]
    slow = [attempt(rates=rates(scale=scale, seed=seed), number=seed) for seed in (0, 1)]
    node = judged(*slow, of=spec)
    assert said(node) == ("FAIL", code)
    assert place(node) == where
    assert node.layers["confirmation"].startswith("judged: the second suite run")


@pytest.mark.parametrize("name", TWICE)
def test_slowness_that_only_one_attempt_saw_is_inconclusive_and_never_a_drain(name: str, spec: Spec):
    slow, well = attempt(rates=rates(scale=TWICE[name][0])), attempt(number=1)
    for pair in ((slow, well), (slow,)):
        node = judged(*pair, of=spec)
        assert said(node) == ("INCONCLUSIVE", "U911")
        assert TWICE[name][1] in node.reason
        assert node_reports.drain_lines(fleet.judge_fleet([row(node)]), run="r", when="") == []


def test_one_wrong_token_is_a_fault_at_once_and_names_the_gpu(spec: Spec):
    node = judged(attempt(checks={"speed: dispatch bf16": "gpu3: 2 of 8158 received tokens are wrong"}), of=spec)
    assert said(node) == ("FAIL", "E301")
    assert place(node) == "gpu3"
    assert node.layers["confirmation"] == "not needed"


def test_wrong_bytes_between_two_gpus_name_the_pair(spec: Spec):
    node = judged(attempt(checks={"pairs: copy gpu0>gpu2": "3 of 100 bytes from rank 0 are wrong"}), of=spec)
    assert (*said(node), place(node)) == ("FAIL", "E302", "gpu0>gpu2")


def test_the_headline_names_the_gpu_and_not_what_follows_from_it(spec: Spec):
    scale = {"pair_copy": 0.7, "dispatch": 0.6, "combine": 0.6, "compute gpu3": 0.7}
    node = judged(*(attempt(rates=rates(scale=scale), number=number) for number in (0, 1)), of=spec)
    assert (*said(node), place(node)) == ("FAIL", "E203", "gpu3")
    assert {one.code for one in node.findings} >= {"E201", "E206", "E207"}


@pytest.mark.parametrize(("kind", "verdict_", "code"), [("hang", "HANG", "E601"), ("crash", "FAIL", "E602")])
def test_a_hang_or_a_crash_counts_when_it_happens_twice(kind: str, verdict_: str, code: str, spec: Spec):
    troubled = [attempt(troubles=[Trouble("speed", kind, "gpu1", "no answer")], number=number) for number in (0, 1)]
    assert said(judged(*troubled, of=spec)) == (verdict_, code)
    assert said(judged(troubled[0], attempt(number=1), of=spec)) == ("INCONCLUSIVE", "U911")


def test_faster_than_the_link_is_our_own_mistake_and_no_fault_of_the_node(spec: Spec):
    assert said(judged(attempt(rates=rates(scale={"dispatch": 2.0})), of=spec)) == ("INCONCLUSIVE", "U912")


def test_bandwidth_that_falls_with_size_is_a_warning(spec: Spec):
    sizes = {"all_to_all 256 MiB": 340.0, "all_to_all 1024 MiB": 315.0}
    steep = [replace(one, blocks=[sizes[one.key]] * 24) if one.key in sizes else one for one in rates()]
    assert said(judged(attempt(rates=steep), of=spec)) == ("WARN", "E205")


def test_noise_is_inconclusive(spec: Spec):
    assert said(judged(attempt(rates=rates(noise=0.06)), of=spec)) == ("INCONCLUSIVE", "U910")


def test_slowness_under_thermal_throttling_is_called_that(spec: Spec):
    hot = {"gpu2": ["hardware thermal slowdown"]} | {gpu: ["power cap"] for gpu in ("gpu0", "gpu1", "gpu3")}
    slow = [attempt(rates=rates(scale={"gpu2": 0.8}), throttled=hot, number=number) for number in (0, 1)]
    node = judged(*slow, of=spec)
    assert (*said(node), place(node)) == ("FAIL", "E501", "gpu2")


@pytest.mark.parametrize(
    ("grew", "code", "verdict_"),
    [
        ({"ecc_uncorrectable": 1}, "E401", "FAIL"),
        ({"remap_pending": 1}, "E402", "FAIL"),
        ({"remap_failure": 1}, "E402", "FAIL"),
        ({"nvlink_recovery": 1}, "E404", "FAIL"),
        ({"nvlink_crc": 100_000}, "E405", "FAIL"),
        ({"nvlink_crc": 100}, "", "PASS"),
        ({"nvlink_replay": 1}, "E406", "WARN"),
        ({"links_up": 17}, "E103", "FAIL"),
        ({"recovery_action": 2}, "E407", "FAIL"),
    ],
)
def test_what_grew_in_the_counters_is_judged(grew: dict[str, int], code: str, verdict_: str, spec: Spec):
    node = judged(attempt(after=grown(2, **grew)), of=spec)
    assert said(node) == (verdict_, code)
    assert place(node) == ("gpu2" if code else "")


def test_an_unsupported_counter_is_no_zero_and_no_fault(spec: Spec):
    unknown = [replace(one, values=dict.fromkeys(one.values)) for one in grown(0)]
    assert said(judged(attempt(before=unknown, after=unknown), of=spec)) == ("PASS", "")


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
    assert counters.up(states) == number


@pytest.mark.parametrize(("number", "verdict_"), [(79, "FAIL"), (48, "FAIL"), (13, "WARN"), (31, "WARN"), (45, "WARN")])
def test_an_xid_is_a_fault_of_its_gpu_unless_programs_cause_it_themselves(number: int, verdict_: str, spec: Spec):
    node = judged(attempt(xids=[f"gpu 1: XID {number}"]), of=spec)
    assert (*said(node), place(node)) == (verdict_, "E403", "gpu1")


def test_thermal_throttling_without_slowness_is_a_warning_and_a_power_cap_is_none(spec: Spec):
    hot = attempt(throttled={"gpu1": ["hardware thermal slowdown"], "gpu2": ["power cap"]})
    assert (*said(judged(hot, of=spec)), place(judged(hot, of=spec))) == ("WARN", "E501", "gpu1")
    assert said(judged(attempt(throttled={gpu: ["power cap"] for gpu in nodes.GPUS}), of=spec)) == ("PASS", "")


def test_what_moves_with_the_order_of_the_ranks_is_no_fault_of_a_pair(spec: Spec):
    """Rank 0 to rank 1 is slow in both attempts: once that is gpu0>gpu1, in reversed order gpu3>gpu2."""
    first, second = (
        attempt(rates=rates(scale={f"pair_sm {pair}": 0.8}), number=number)
        for number, pair in enumerate(("gpu0>gpu1", "gpu1>gpu0"))
    )
    assert said(judged(first, second, of=spec)) == ("INCONCLUSIVE", "U911")


def test_a_gpu_that_throttles_only_in_the_second_attempt_is_still_seen_twice(spec: Spec):
    slow = {"compute gpu2": 0.8}
    hot = {"gpu2": ["hardware thermal slowdown"]}
    node = judged(attempt(rates=rates(scale=slow)), attempt(rates=rates(scale=slow), throttled=hot, number=1), of=spec)
    assert (*said(node), place(node)) == ("FAIL", "E203", "gpu2")


def test_a_rank_that_hangs_and_cannot_even_be_killed_is_a_hang_and_not_somebody_elses_process(spec: Spec):
    hung = attempt(troubles=[Trouble("alltoall", "hang", "", "no answer within 20 s from rank 1")])
    left = attempt(preflight=there(states=[GpuState(1980, 300.0, 40, [], 1), *there().states[1:]]), rates=[], number=1)
    assert said(judged(hung, left, of=spec)) == ("HANG", "E601")
    slow = attempt(rates=rates(scale={"compute gpu2": 0.8}))
    assert said(judged(slow, left, of=spec)) == ("SETUP", "U902")  # nothing of ours hung: somebody else came


@pytest.mark.parametrize(
    ("kind", "message", "code"),
    [
        ("error", "ImportError: libdeep_ep.so: undefined symbol: _ZN3c10", "U903"),
        ("start", "the ranks did not start: ModuleNotFoundError: No module named 'torch'", "U903"),
        ("cuda", "OutOfMemoryError: CUDA out of memory", "U904"),
        ("cuda", "AcceleratorError: CUDA error: no kernel image is available for execution on the device", "U903"),
        ("cuda", "RuntimeError: CUDA driver version is insufficient for CUDA runtime version", "U903"),
        ("cuda", "Failed: CUDA error csrc/kernels/intranode.cu:107 'invalid device function'", "U903"),
        ("error", "KeyError: 7", "U901"),
    ],
)
def test_what_the_site_or_we_did_wrong_is_setup_and_never_a_drain(kind: str, message: str, code: str, spec: Spec):
    troubled = [attempt(troubles=[Trouble("correctness", kind, "gpu1", message)], number=number) for number in (0, 1)]
    node = judged(*troubled, of=spec)
    assert said(node) == ("SETUP", code)
    assert node_reports.drain_lines(fleet_of(node), run="r", when="") == []


def test_a_job_without_gpus_and_a_wrong_name_for_all_of_them_are_setup(spec: Spec):
    assert said(judged(attempt(preflight=there(gpus=[], states=[], links_up=[])), of=spec)) == ("SETUP", "U913")
    others = [replace(gpu, name="NVIDIA H100 80GB HBM3") for gpu in there().gpus]
    assert said(judged(attempt(preflight=there(gpus=others)), of=spec)) == ("SETUP", "U914")


def test_gpus_that_pci_shows_and_nvml_does_not_are_a_warning_where_nobody_said_how_many_belong_there(spec: Spec):
    counted = replace(spec, gpus_named=False)
    fewer = judged(attempt(preflight=there(pci_gpus=8)), of=counted)
    assert said(fewer) == ("WARN", "E101")
    assert fewer.reason == "PCI shows 8 NVIDIA GPUs, NVML 4; set gpus=N to the number that belongs here"
    assert fewer.layers["inventory"] == (
        "absent: the number of GPUs that belong here is not known (4 seen); set gpus=N"
    )
    for of, number in ((spec, 8), (counted, 4), (counted, None)):
        assert said(judged(attempt(preflight=there(pci_gpus=number)), of=of)) == ("PASS", "")
    assert judged(attempt(), of=spec).layers["inventory"] == "judged: 4 GPUs, 4 expected"


def test_gpus_are_counted_on_the_pci_bus_whatever_the_driver_says(tmp_path: Path):
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


def test_every_gpu_with_another_number_of_links_is_another_machine_than_was_named_and_no_fault(spec: Spec):
    """Nor are its rates judged, by floors that are another GPU's."""
    twelve = [replace(gpu, num_links=12) for gpu in there().gpus]
    slow = [
        attempt(
            preflight=there(gpus=twelve, links_up=[12] * 4, topology="0-1:NVLINK 0-2:level30"),
            rates=rates(scale=0.6),
            number=number,
        )
        for number in (0, 1)
    ]
    node = judged(*slow, of=spec)
    assert said(node) == ("SETUP", "U914")
    assert node.reason == "every GPU has 12 NVLinks, h200 has 18"
    assert node_reports.drain_lines(fleet_of(node), run="r", when="") == []
    one = [replace(there().gpus[0], num_links=12), *there().gpus[1:]]
    assert said(judged(attempt(preflight=there(gpus=one, links_up=[12, 18, 18, 18])), of=spec)) == ("FAIL", "E103")


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
def test_a_hardware_file_is_that_of_one_board_and_not_of_its_pcie_card(name: str, hardware: str | None):
    matching = [one.name for one in machine.known_hardware() if one.gpu_pattern and re.search(one.gpu_pattern, name)]
    assert matching == ([] if hardware is None else [hardware])


@pytest.mark.parametrize(
    "changes",
    [
        {"configs": {"dispatch": [20, 24, 256], "combine": [20, 10, 256]}},
        {"backend": "alltoall"},
        {"workload": replace(nodes.spec().workload, num_tokens=64)},
    ],
)
def test_floors_of_dispatch_and_combine_are_for_what_they_were_seen_on(changes: dict[str, Any], spec: Spec):
    slow = [attempt(rates=rates(scale={"dispatch": 0.4, "combine": 0.4}), number=number) for number in (0, 1)]
    assert said(judged(*slow, of=spec)) == ("FAIL", "E206")
    node = judged(*slow, of=replace(spec, **changes))
    assert said(node) == ("PASS", "")
    assert "dispatch and combine have no floor" in node.layers["physics"]


@pytest.mark.parametrize("sizes", [["64 MiB"], ["64 MiB", "256 MiB"], ["1024 MiB", "256 MiB", "64 MiB"]])
def test_an_all_to_all_has_a_floor_at_the_size_at_which_it_was_seen_and_dips_by_size(sizes: list[str], spec: Spec):
    others = [one for one in rates() if one.test != "all_to_all"]
    reached = {"64 MiB": 0.57, "256 MiB": 0.66, "1024 MiB": 0.75}
    some = [Rate("all_to_all", "", size, "GB/s", [PEAK * reached[size]] * 24, PEAK) for size in sizes]
    of = replace(spec, alltoall_mib=[int(size.split()[0]) for size in sizes])
    healthy = judged(attempt(rates=[*others, *some]), of=of)
    assert said(healthy) == ("PASS", "")
    assert ("the all-to-all has no floor below 1024 MiB" in healthy.layers["physics"]) == ("1024 MiB" not in sizes)


def test_a_node_that_was_cut_off_before_its_second_look_is_never_a_drain(spec: Spec):
    cut = replace(faulty("gpu1", spec), complete=False, reason="the validation ended in phase pairs")
    found = fleet.judge_fleet([make_row("gpu1", "7", "TIMEOUT", cut)])
    assert (found.rows[0].verdict, found.rows[0].code) == (NodeVerdict.HANG, "E603")
    assert node_reports.drain_lines(found, run="r", when="") == []


def cut_off(**changes: Any) -> Node:
    """The file of a job that ended in its first attempt, as the last checkpoint left it."""
    made = judged(attempt(**changes), of=nodes.spec(), name="gpu1")
    sure = find_certain_faults(made.suite_runs[0], nodes.spec())
    return replace(made, complete=False, findings=sure, reason="the validation ended in phase speed")


@pytest.mark.parametrize("state", ["PREEMPTED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "RUNNING", None])
def test_a_fault_that_needs_no_second_look_stands_however_the_job_ended(state: str | None, spec: Spec):
    wrong = cut_off(checks={"correctness: combine bf16": "gpu3: 2 of 8158 received tokens are wrong"})
    found = fleet.judge_fleet([make_row("gpu1", "7", state, wrong)])
    (one,) = found.rows
    assert (one.verdict, one.code, one.where) == (NodeVerdict.FAIL, "E301", "gpu3")
    assert "tokens are wrong; " in one.reason
    ((drain, _),) = node_reports.drain_lines(found, run="r", when="2026-11-24")
    assert "Reason='EPV:E301:gpu3 [" in drain


@pytest.mark.parametrize(
    "changes",
    [
        {"rates": rates(scale={"compute gpu2": 0.71})},
        {"troubles": [Trouble("speed", "crash", "gpu1", "rank 1 was killed by SIGTERM")]},
        {"troubles": [Trouble("speed", "hang", "", "no answer")]},
    ],
)
def test_a_doubtful_fault_of_a_job_that_was_cut_off_is_none(changes: dict[str, Any], spec: Spec):
    found = fleet.judge_fleet([make_row("gpu1", "7", "PREEMPTED", cut_off(**changes))])
    assert (found.rows[0].verdict, found.rows[0].code) == (NodeVerdict.SKIPPED, "U906")
    assert node_reports.drain_lines(found, run="r", when="") == []


def test_what_nobody_looked_at_twice_and_what_was_injected_is_never_a_drain(spec: Spec):
    slow = attempt(rates=rates(scale={"compute gpu2": 0.71}))
    once = judged(slow, of=replace(spec, confirm=False), name="gpu1")
    assert said(once) == ("FAIL", "E203")
    injected = replace(faulty("gpu1", spec), faults=["slow=9000@2:compute"])
    for node in (once, injected):
        assert node_reports.drain_lines(fleet_of(node), run="r", when="") == []
    found = fleet_of(injected, faulty("gpu2", spec))
    assert [drain.split()[2] for drain, _ in node_reports.drain_lines(found, run="r", when="")] == ["NodeName=gpu2"]
    assert "Faults were injected on purpose." in node_reports.markdown(found, run="r", when="")
    written = node_reports.to_json(found, run="r", when="", status=2)
    assert written["note"] == "Faults were injected on purpose."
    assert {one["node"]: one["faults"] for one in written["nodes"]} == {"gpu1": ["slow=9000@2:compute"], "gpu2": []}
    assert node_reports.to_json(fleet_of(once), run="r", when="", status=2)["note"] == ""


def test_a_certain_fault_beside_an_unconfirmed_one_is_the_reason_to_drain(spec: Spec):
    both = attempt(rates=rates(scale={"compute gpu2": 0.71}), after=grown(3, ecc_uncorrectable=1))
    found = fleet_of(judged(both, of=replace(spec, confirm=False), name="gpu1"))
    ((drain, _),) = node_reports.drain_lines(found, run="r", when="2026-11-24")
    assert "Reason='EPV:E401:gpu3 [" in drain


def test_out_of_memory_is_setup_whatever_the_ranks_that_were_killed_made_of_it(spec: Spec):
    found = make_row("gpu1", "7", "OUT_OF_MEMORY", faulty("gpu1", spec))
    assert (found.verdict, found.code) == (NodeVerdict.SETUP, "U904")


def test_what_is_not_there_is_said_before_anything_runs(spec: Spec):
    gpus = there().gpus
    other = [replace(gpus[0], name="NVIDIA A100"), *gpus[1:]]
    busy = [GpuState(1980, 300.0, 40, [], 2), *there().states[1:]]
    for found, expected in (
        (there(gpus=gpus[:3]), ("FAIL", "E101")),
        (there(gpus=other), ("FAIL", "E102")),
        (there(links_up=[18, 17, 18, 18]), ("FAIL", "E103")),
        (there(topology="0-1:NVLINK 0-2:level30"), ("FAIL", "E104")),
        (there(states=busy), ("SETUP", "U902")),
    ):
        assert said(judged(attempt(preflight=found), of=spec)) == expected


@given(
    slow=st.dictionaries(st.sampled_from(list(GIGABYTES)), st.floats(0.3, 1.0), max_size=3),
    faster=st.floats(1.0, 1.15),
    seed=st.integers(0, 100),
)
def test_a_node_is_never_judged_worse_for_being_faster(slow: dict[str, float], faster: float, seed: int):
    spec = nodes.spec()
    order = [NodeVerdict.FAIL, NodeVerdict.HANG, NodeVerdict.INCONCLUSIVE, NodeVerdict.WARN, NodeVerdict.PASS]
    one, other = (
        judged(
            *(
                attempt(rates=rates(scale={test: share * factor for test, share in slow.items()}, seed=seed), number=n)
                for n in (0, 1)
            ),
            of=spec,
        )
        for factor in (1.0, faster)
    )
    assert order.index(one.verdict) <= order.index(other.verdict)


# ---- reference


@pytest.mark.parametrize(("factor", "expected"), [(1.0, "PASS"), (0.93, "WARN"), (0.88, "FAIL"), (1.1, "PASS")])
def test_a_reference_judges_what_no_floor_can_see(factor: float, expected: str, spec: Spec):
    known = replace(spec, references=learned().entries)
    own = rates(scale={"dispatch": factor}, seed=99)
    node = judged(attempt(rates=own), attempt(rates=own, number=1), of=known)
    assert node.verdict == expected
    assert node.layers["reference"].startswith("judged: 10 rates") or "judged" in node.layers["reference"]


@pytest.mark.parametrize(("factor", "expected"), [(0.91, "PASS"), (0.88, "WARN"), (0.81, "FAIL")])
def test_gemms_of_good_gpus_may_differ_more_from_the_reference(factor: float, expected: str, spec: Spec):
    known = replace(spec, references=learned().entries)
    own = rates(scale={"compute": factor}, seed=99)
    assert judged(attempt(rates=own), attempt(rates=own, number=1), of=known).verdict == expected


def test_a_tail_of_slow_blocks_is_seen_where_the_median_is_right(spec: Spec):
    known = replace(spec, references=learned().entries, thresholds=replace(spec.thresholds, variation=1.0))
    tailed = [
        replace(one, blocks=[block * (0.7 if at % 3 == 0 else 1.0) for at, block in enumerate(one.blocks)])
        if one.test == "combine"
        else one
        for one in rates(seed=99)
    ]
    node = judged(attempt(rates=tailed), attempt(rates=tailed, number=1), of=known)
    assert said(node) == ("FAIL", "E207")
    assert "slow blocks" in node.reason


def test_a_reference_names_who_taught_it_and_reads_back(tmp_path: Path):
    file = tmp_path / "reference.json"
    file.write_bytes(msgspec.json.encode(learned()))
    found = reference.read(file)
    assert found == learned()
    assert found.nodes == [f"node{number}" for number in range(5)]
    assert {entry.num_nodes for entry in found.entries} == {5}
    assert (found.revisions, found.drivers) == (["0" * 16], ["580.65"])


def test_a_reference_names_only_nodes_of_which_it_has_learned_something():
    other = replace(nodes.ENVIRONMENT, device="NVIDIA H20", driver="999")
    odd = judged(attempt(environment=other), of=nodes.spec(), name="odd")
    found = reference.learn([*nodes.good(5), odd], learned="2026-11-24", program="0.1.0")
    assert found == learned()


def test_nothing_is_learned_from_four_nodes_or_from_rates_above_the_physical_bound():
    with pytest.raises(UserError, match="at least 5 good nodes"):
        learned(4)
    with pytest.raises(UserError, match="above the physical bound"):
        learned(5, factor=1.5)


def test_another_version_of_the_libraries_has_no_reference(spec: Spec):
    known = replace(spec, references=learned().entries)
    other = replace(nodes.ENVIRONMENT, versions={"torch": "2.11.0", "deep_ep": "another 2.0"})
    node = judged(attempt(environment=other), of=known)
    assert node.layers["reference"].startswith("absent: the reference has no entry")


# ---- files of other versions


def common(value: Any, pattern: Any) -> Any:
    """The value without the members that the pattern does not have: those of later versions."""
    if isinstance(pattern, dict):
        return {name: common(value[name], member) for name, member in pattern.items()}
    if isinstance(pattern, list):
        return [common(*pair) for pair in zip(value, pattern, strict=True)]
    return value


PUBLISHED = sorted((ROOT / "outputs" / "published").rglob("NODE.json"))


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: str(file.relative_to(ROOT / "outputs" / "published")))
def test_every_published_node_file_loads_and_keeps_its_members(file: Path):
    members = json.loads(file.read_bytes())
    assert common(json.loads(msgspec.json.encode(node_files.read(file))), members) == members


def test_members_that_are_not_known_are_ignored(tmp_path: Path):
    node_files.write(tmp_path, judged(attempt(), of=nodes.spec()))
    file = tmp_path / node_files.FILE_NAME
    node, members = node_files.read(file), json.loads(file.read_bytes())
    (suite_run,) = members["attempts"]
    places = [members, members["revision"], suite_run, suite_run["preflight"], suite_run["environment"]]
    for member in (*places, suite_run["rates"][0], suite_run["phases"][0], suite_run["before"][0]):
        member["from_a_later_version"] = {"any": [1]}
    file.write_text(json.dumps(members))
    assert node_files.read(file) == node

    file = tmp_path / "reference.json"
    members = json.loads(msgspec.json.encode(learned()))
    members["from_a_later_version"] = members["entries"][0]["from_a_later_version"] = 1
    file.write_text(json.dumps(members))
    assert reference.read(file) == learned()


def test_a_newer_major_version_is_refused_by_name(tmp_path: Path):
    file = tmp_path / "NODE.json"
    file.write_text('{"schema": "deepep-sweep/node/2"}')
    with pytest.raises(UserError) as refusal:
        node_files.read(file)
    assert str(refusal.value) == (
        f"{file} has schema deepep-sweep/node/2, this program reads up to deepep-sweep/node/1"
    )
    file.write_text('{"schema": "deepep-sweep/reference/12"}')
    with pytest.raises(UserError) as refusal:
        reference.read(file)
    assert str(refusal.value) == (
        f"reference={file} has schema deepep-sweep/reference/12, this program reads up to deepep-sweep/reference/1"
    )


@pytest.mark.parametrize("schema", ["deepep-sweep/reference/1", "deepep-sweep/node/0", "deepep-sweep/results/9", ""])
def test_another_kind_of_file_is_not_taken_for_a_node_or_a_reference(schema: str, tmp_path: Path):
    file = tmp_path / "NODE.json"
    file.write_text(json.dumps({"schema": schema}))
    for read in (node_files.read, reference.read):
        with pytest.raises(UserError, match=re.escape(str(file))):
            read(file)
