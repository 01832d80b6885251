"""From the rates and counters of a node to its verdict."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.records import GpuState
from launcher.validation.codes import NodeVerdict
from launcher.validation.config import Spec
from launcher.validation.judge import fleet
from launcher.validation.judge.fleet import make_row
from launcher.validation.judge.layers import find_certain_faults
from launcher.validation.node import Node, Rate, Trouble
from launcher.validation.run import node_reports
from tests import nodes
from tests.nodes import (
    GIGABYTES,
    PEAK,
    attempt,
    faulty,
    fleet_of,
    grown,
    judged,
    place,
    rates,
    replace,
    row,
    said,
    there,
)


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
