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
from launcher.validation.judge.peers import describe_peers
from launcher.validation.node import Rate, Trouble
from launcher.validation.run import node_reports
from tests import nodes
from tests.nodes import (
    GIGABYTES,
    PEAK,
    fleet_of,
    grown_counters,
    judge_node,
    place_of,
    preflight,
    rates,
    replace,
    row,
    suite_run,
    verdict_of,
)


def test_a_healthy_node_passes_and_each_layer_reports_its_result(spec: Spec):
    node = judge_node(suite_run(), spec=spec)
    assert verdict_of(node) == ("PASS", "")
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
    assert node.layers["reference"].startswith(
        "judged: 24 rates by the published reference of 4 x NVIDIA H200 (n = 1, 2026-11-26); none for all_to_all"
    )


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
def test_slowness_in_two_suite_runs_is_a_fault_with_its_place(name: str, spec: Spec):
    scale, code, where = TWICE[name]
    slow = [suite_run(rates=rates(scale=scale, seed=seed), number=seed) for seed in (0, 1)]
    node = judge_node(*slow, spec=spec)
    assert verdict_of(node) == ("FAIL", code)
    assert place_of(node) == where
    assert node.layers["confirmation"].startswith("judged: the second suite run")


@pytest.mark.parametrize("name", TWICE)
def test_slowness_in_only_one_suite_run_is_inconclusive_and_never_a_drain(name: str, spec: Spec):
    slow, well = suite_run(rates=rates(scale=TWICE[name][0])), suite_run(number=1)
    for pair in ((slow, well), (slow,)):
        node = judge_node(*pair, spec=spec)
        assert verdict_of(node) == ("INCONCLUSIVE", "U911")
        assert TWICE[name][1] in node.reason
        assert node_reports.drain_lines(fleet.judge_fleet([row(node)]), run="r", when="") == []


def test_one_wrong_token_is_a_fault_at_once_and_names_the_gpu(spec: Spec):
    node = judge_node(
        suite_run(checks={"speed: dispatch bf16": "gpu3: 2 of 8158 received tokens are wrong"}), spec=spec
    )
    assert verdict_of(node) == ("FAIL", "E301")
    assert place_of(node) == "gpu3"
    assert node.layers["confirmation"] == "not needed"


def test_wrong_bytes_between_two_gpus_name_the_pair(spec: Spec):
    node = judge_node(suite_run(checks={"pairs: copy gpu0>gpu2": "3 of 100 bytes from rank 0 are wrong"}), spec=spec)
    assert (*verdict_of(node), place_of(node)) == ("FAIL", "E302", "gpu0>gpu2")


def test_the_headline_names_the_gpu_and_not_its_consequences(spec: Spec):
    scale = {"pair_copy": 0.7, "dispatch": 0.6, "combine": 0.6, "compute gpu3": 0.7}
    node = judge_node(*(suite_run(rates=rates(scale=scale), number=number) for number in (0, 1)), spec=spec)
    assert (*verdict_of(node), place_of(node)) == ("FAIL", "E203", "gpu3")
    assert {one.code for one in node.findings} >= {"E201", "E206", "E207"}


@pytest.mark.parametrize(("kind", "verdict_", "code"), [("hang", "HANG", "E601"), ("crash", "FAIL", "E602")])
def test_a_hang_or_a_crash_counts_when_it_happens_twice(kind: str, verdict_: str, code: str, spec: Spec):
    troubled = [suite_run(troubles=[Trouble("speed", kind, "gpu1", "no answer")], number=number) for number in (0, 1)]
    assert verdict_of(judge_node(*troubled, spec=spec)) == (verdict_, code)
    assert verdict_of(judge_node(troubled[0], suite_run(number=1), spec=spec)) == ("INCONCLUSIVE", "U911")


def test_a_rate_above_the_link_s_peak_is_our_error_and_not_a_fault_of_the_node(spec: Spec):
    assert verdict_of(judge_node(suite_run(rates=rates(scale={"dispatch": 2.0})), spec=spec)) == (
        "INCONCLUSIVE",
        "U912",
    )


def test_bandwidth_that_falls_with_size_is_a_warning(spec: Spec):
    sizes = {"all_to_all 256 MiB": 340.0, "all_to_all 1024 MiB": 315.0}
    steep = [replace(one, blocks=[sizes[one.key]] * 24) if one.key in sizes else one for one in rates()]
    assert verdict_of(judge_node(suite_run(rates=steep), spec=spec)) == ("WARN", "E205")


def test_noise_is_inconclusive(spec: Spec):
    assert verdict_of(judge_node(suite_run(rates=rates(noise=0.06)), spec=spec)) == ("INCONCLUSIVE", "U910")


def test_slowness_under_thermal_throttling_is_called_that(spec: Spec):
    hot = {"gpu2": ["hardware thermal slowdown"]} | {gpu: ["power cap"] for gpu in ("gpu0", "gpu1", "gpu3")}
    slow = [suite_run(rates=rates(scale={"gpu2": 0.8}), throttled=hot, number=number) for number in (0, 1)]
    node = judge_node(*slow, spec=spec)
    assert (*verdict_of(node), place_of(node)) == ("FAIL", "E501", "gpu2")


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
def test_counters_that_grew_are_judged(grew: dict[str, int], code: str, verdict_: str, spec: Spec):
    node = judge_node(suite_run(after=grown_counters(2, **grew)), spec=spec)
    assert verdict_of(node) == (verdict_, code)
    assert place_of(node) == ("gpu2" if code else "")


def test_an_unsupported_counter_is_neither_a_zero_nor_a_fault(spec: Spec):
    unknown = [replace(one, values=dict.fromkeys(one.values)) for one in grown_counters(0)]
    assert verdict_of(judge_node(suite_run(before=unknown, after=unknown), spec=spec)) == ("PASS", "")


@pytest.mark.parametrize(("number", "verdict_"), [(79, "FAIL"), (48, "FAIL"), (13, "WARN"), (31, "WARN"), (45, "WARN")])
def test_an_xid_is_a_fault_of_its_gpu_unless_programs_cause_it_themselves(number: int, verdict_: str, spec: Spec):
    node = judge_node(suite_run(xids=[f"gpu 1: XID {number}"]), spec=spec)
    assert (*verdict_of(node), place_of(node)) == (verdict_, "E403", "gpu1")


def test_thermal_throttling_without_slowness_is_a_warning_and_a_power_cap_is_none(spec: Spec):
    hot = suite_run(throttled={"gpu1": ["hardware thermal slowdown"], "gpu2": ["power cap"]})
    assert (*verdict_of(judge_node(hot, spec=spec)), place_of(judge_node(hot, spec=spec))) == ("WARN", "E501", "gpu1")
    assert verdict_of(judge_node(suite_run(throttled={gpu: ["power cap"] for gpu in nodes.GPUS}), spec=spec)) == (
        "PASS",
        "",
    )


def test_slowness_that_moves_with_the_order_of_the_ranks_is_not_a_fault_of_a_pair(spec: Spec):
    """Rank 0 to rank 1 is slow in both suite runs: gpu0>gpu1 in the first, gpu3>gpu2 in reversed order."""
    first, second = (
        suite_run(rates=rates(scale={f"pair_sm {pair}": 0.8}), number=number)
        for number, pair in enumerate(("gpu0>gpu1", "gpu1>gpu0"))
    )
    assert verdict_of(judge_node(first, second, spec=spec)) == ("INCONCLUSIVE", "U911")


def test_a_slow_gpu_that_throttles_only_in_the_second_suite_run_is_still_confirmed(spec: Spec):
    slow = {"compute gpu2": 0.8}
    hot = {"gpu2": ["hardware thermal slowdown"]}
    node = judge_node(
        suite_run(rates=rates(scale=slow)), suite_run(rates=rates(scale=slow), throttled=hot, number=1), spec=spec
    )
    assert (*verdict_of(node), place_of(node)) == ("FAIL", "E203", "gpu2")


def test_a_hung_rank_that_cannot_be_killed_is_a_hang_and_not_a_foreign_process(spec: Spec):
    hung = suite_run(troubles=[Trouble("alltoall", "hang", "", "no response within 20 s from rank 1")])
    left = suite_run(
        preflight=preflight(states=[GpuState(1980, 300.0, 40, [], 1), *preflight().states[1:]]), rates=[], number=1
    )
    assert verdict_of(judge_node(hung, left, spec=spec)) == ("HANG", "E601")
    slow = suite_run(rates=rates(scale={"compute gpu2": 0.8}))
    assert verdict_of(judge_node(slow, left, spec=spec)) == (
        "SETUP",
        "U902",
    )  # no rank of ours hung: the process is foreign


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
def test_an_error_of_the_site_or_of_the_program_is_setup_and_never_a_drain(
    kind: str, message: str, code: str, spec: Spec
):
    troubled = [suite_run(troubles=[Trouble("correctness", kind, "gpu1", message)], number=number) for number in (0, 1)]
    node = judge_node(*troubled, spec=spec)
    assert verdict_of(node) == ("SETUP", code)
    assert node_reports.drain_lines(fleet_of(node), run="r", when="") == []


def test_a_job_without_gpus_and_a_wrong_name_for_all_of_them_are_setup(spec: Spec):
    assert verdict_of(judge_node(suite_run(preflight=preflight(gpus=[], states=[], links_up=[])), spec=spec)) == (
        "SETUP",
        "U913",
    )
    others = [replace(gpu, name="NVIDIA H100 80GB HBM3") for gpu in preflight().gpus]
    assert verdict_of(judge_node(suite_run(preflight=preflight(gpus=others)), spec=spec)) == ("SETUP", "U914")


def test_gpus_that_pci_shows_and_nvml_does_not_are_a_warning_where_their_number_is_not_configured(spec: Spec):
    counted = replace(spec, gpus_named=False)
    fewer = judge_node(suite_run(preflight=preflight(pci_gpus=8)), spec=counted)
    assert verdict_of(fewer) == ("WARN", "E101")
    assert fewer.reason == "PCI shows 8 NVIDIA GPUs, NVML 4; set gpus=N to the number that belongs here"
    assert fewer.layers["inventory"] == (
        "absent: the number of GPUs that belong here is not known (4 seen); set gpus=N"
    )
    for settings, number in ((spec, 8), (counted, 4), (counted, None)):
        assert verdict_of(judge_node(suite_run(preflight=preflight(pci_gpus=number)), spec=settings)) == ("PASS", "")
    assert judge_node(suite_run(), spec=spec).layers["inventory"] == "judged: 4 GPUs, 4 expected"


def test_another_number_of_links_on_every_gpu_is_wrong_hardware_config_and_not_a_fault(spec: Spec):
    """Its rates are not judged by the floors of another GPU either."""
    twelve = [replace(gpu, num_links=12) for gpu in preflight().gpus]
    slow = [
        suite_run(
            preflight=preflight(gpus=twelve, links_up=[12] * 4, topology="0-1:NVLINK 0-2:level30"),
            rates=rates(scale=0.6),
            number=number,
        )
        for number in (0, 1)
    ]
    node = judge_node(*slow, spec=spec)
    assert verdict_of(node) == ("SETUP", "U914")
    assert node.reason == "every GPU has 12 NVLinks, h200 has 18"
    assert node_reports.drain_lines(fleet_of(node), run="r", when="") == []
    mixed = [replace(preflight().gpus[0], num_links=12), *preflight().gpus[1:]]
    assert verdict_of(judge_node(suite_run(preflight=preflight(gpus=mixed, links_up=[12, 18, 18, 18])), spec=spec)) == (
        "FAIL",
        "E103",
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"configs": {"dispatch": [20, 24, 256], "combine": [20, 10, 256]}},
        {"backend": "alltoall"},
        {"workload": replace(nodes.spec().workload, num_tokens=64)},
        {"hardware": replace(nodes.spec().hardware, link_gb_per_s=50.0)},
    ],
)
def test_floors_of_dispatch_and_combine_hold_only_for_the_conditions_they_were_measured_in(
    changes: dict[str, Any], spec: Spec
):
    slow = [suite_run(rates=rates(scale={"dispatch": 0.4, "combine": 0.4}), number=number) for number in (0, 1)]
    assert verdict_of(judge_node(*slow, spec=spec)) == ("FAIL", "E206")
    node = judge_node(*slow, spec=replace(spec, **changes))
    assert verdict_of(node) == ("PASS", "")
    assert "dispatch and combine have no floor" in node.layers["physics"]


def test_more_gpus_have_higher_floors(spec: Spec):
    """Two GPUs reach 0.52 of the peak in combine and four 0.65; the seven percent below are a warning."""
    measured = suite_run(rates=rates(scale={"combine": 0.92}))
    assert verdict_of(judge_node(measured, spec=spec)) == ("WARN", "E207")
    assert verdict_of(judge_node(measured, spec=replace(spec, gpus=2))) == ("PASS", "")


@pytest.mark.parametrize("sizes", [["64 MiB"], ["64 MiB", "256 MiB"], ["1024 MiB", "256 MiB", "64 MiB"]])
def test_an_all_to_all_has_a_floor_only_at_the_measured_size_and_dips_are_judged_by_size(sizes: list[str], spec: Spec):
    others = [one for one in rates() if one.test != "all_to_all"]
    reached = {"64 MiB": 0.57, "256 MiB": 0.66, "1024 MiB": 0.75}
    some = [Rate("all_to_all", "", size, "GB/s", [PEAK * reached[size]] * 24, PEAK) for size in sizes]
    sized = replace(spec, alltoall_mib=[int(size.split()[0]) for size in sizes])
    healthy = judge_node(suite_run(rates=[*others, *some]), spec=sized)
    assert verdict_of(healthy) == ("PASS", "")
    assert ("the all-to-all has no floor below 1024 MiB" in healthy.layers["physics"]) == ("1024 MiB" not in sizes)


def test_missing_and_busy_hardware_is_reported_before_any_test_runs(spec: Spec):
    gpus = preflight().gpus
    other = [replace(gpus[0], name="NVIDIA A100"), *gpus[1:]]
    busy = [GpuState(1980, 300.0, 40, [], 2), *preflight().states[1:]]
    for state, expected in (
        (preflight(gpus=gpus[:3]), ("FAIL", "E101")),
        (preflight(gpus=other), ("FAIL", "E102")),
        (preflight(links_up=[18, 17, 18, 18]), ("FAIL", "E103")),
        (preflight(topology="0-1:NVLINK 0-2:level30"), ("FAIL", "E104")),
        (preflight(states=busy), ("SETUP", "U902")),
    ):
        assert verdict_of(judge_node(suite_run(preflight=state), spec=spec)) == expected


@given(
    slow=st.dictionaries(st.sampled_from(list(GIGABYTES)), st.floats(0.3, 1.0), max_size=3),
    faster=st.floats(1.0, 1.15),
    seed=st.integers(0, 100),
)
def test_a_node_is_never_judged_worse_for_being_faster(slow: dict[str, float], faster: float, seed: int):
    spec = nodes.spec()
    order = [NodeVerdict.FAIL, NodeVerdict.HANG, NodeVerdict.INCONCLUSIVE, NodeVerdict.WARN, NodeVerdict.PASS]
    node, faster_node = (
        judge_node(
            *(
                suite_run(
                    rates=rates(scale={test: share * factor for test, share in slow.items()}, seed=seed), number=n
                )
                for n in (0, 1)
            ),
            spec=spec,
        )
        for factor in (1.0, faster)
    )
    assert order.index(node.verdict) <= order.index(faster_node.verdict)


@pytest.mark.parametrize(
    ("kinds", "text"),
    [
        ("gp", "judged: the copies of each pair and the GEMMs of each GPU against the others"),
        ("g", "judged: the GEMMs of each GPU against the others; no copies were measured"),
        ("p", "judged: the copies of each pair against the others; no GEMMs were measured"),
        ("", "absent: no copies and no GEMMs were measured"),
    ],
)
def test_the_layer_inside_the_node_names_only_what_was_measured(kinds: str, text: str) -> None:
    kept = [rate for rate in rates() if not rate.where or ("p" if ">" in rate.where else "g") in kinds]
    assert describe_peers(kept) == text
