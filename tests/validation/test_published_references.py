"""The references that ship with the project."""

from __future__ import annotations

import pytest

from launcher.validation import reference
from launcher.validation.codes import NodeVerdict
from launcher.validation.run import node_reports
from tests import nodes
from tests.nodes import fleet_of, judge_node, replace
from tests.validation import references, simulation

KIND = simulation.read_kind("4 x H200")


@pytest.mark.parametrize("name", references.SOURCES)
def test_each_is_what_make_references_makes_of_the_published_nodes(name: str):
    assert (references.FOLDER / f"{name}.json").read_bytes() == references.encode(references.make(name))


def test_each_has_its_kind_its_number_of_nodes_and_its_day():
    marks = {(one.num_gpus, one.gpu, one.num_nodes, one.published) for one in reference.read_published()}
    assert marks == {(2, "NVIDIA H100 80GB HBM3", 1, "2026-11-24"), (4, "NVIDIA H200", 1, "2026-11-26")}


@pytest.mark.parametrize("name", simulation.KINDS)
def test_the_node_that_a_reference_was_made_of_passes(name: str):
    kind = simulation.read_kind(name)
    assert judge_node(kind.suite_run, spec=kind.spec).verdict is NodeVerdict.PASS


def test_a_published_reference_only_warns_and_the_reports_name_it():
    slower = [
        replace(rate, blocks=[0.9 * block for block in rate.blocks]) if rate.test == "dispatch" else rate
        for rate in KIND.suite_run.rates
    ]
    loose = replace(KIND.spec.thresholds, dispatch_of_four=(0.1, 0.1))
    node = judge_node(replace(KIND.suite_run, rates=slower), spec=replace(KIND.spec, thresholds=loose))
    (finding,) = node.findings
    label = "the published reference of 4 x NVIDIA H200 (n = 1, 2026-11-26)"
    assert (finding.verdict, finding.code) == (NodeVerdict.WARN, "E206")
    assert finding.message.endswith(f"is 0.90x {label}")
    assert node.layers["reference"] == f"judged: 33 rates by {label}"
    report = node_reports.markdown(fleet_of(node), run="r", when="now", references=KIND.spec.references)
    versions = "tokenspeed-deepep 1.2.1.post20251110, NCCL 2.28.9, torch 2.11.0+cu130"
    assert f"{label}, measured with {versions}; it can only warn" in report


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({}, set()),
        ({"deep_ep": "sgl-deep-ep 0.1.2.post1"}, set()),
        ({"nccl": "2.30.7"}, {"all_to_all"}),
        ({"torch": "2.14.1+cu130"}, {"compute"}),
    ],
)
def test_software_counts_where_it_matters(changes: dict[str, str], missing: set[str]):
    environment = KIND.suite_run.environment
    assert environment is not None
    other = replace(environment, versions=environment.versions | changes)
    unknown = {
        rate.test for rate in KIND.suite_run.rates if reference.find(KIND.spec.references, other, rate.key) is None
    }
    assert unknown == missing


def test_another_number_of_gpus_shares_only_the_copies_and_another_gpu_nothing():
    environment = KIND.suite_run.environment
    assert environment is not None
    for other, expected in (
        (replace(environment, num_ranks=8), {"pair_copy", "pair_sm"}),
        (replace(environment, device="NVIDIA H20"), set()),
        (replace(environment, num_links=8), set()),
    ):
        known = {rate.test for rate in KIND.suite_run.rates if reference.find(KIND.spec.references, other, rate.key)}
        assert known == expected


def test_a_file_replaces_them_and_null_switches_them_off():
    options = ("hardware=h200", "backend=deepep", "gpus=4")
    assert {entry.gpu for entry in nodes.spec(*options).references} == {"NVIDIA H200"}
    assert nodes.spec(*options, "reference=null").references == []
    file = references.FOLDER / "h100x2.json"
    assert nodes.spec(*options, f"reference={file}").references == reference.read(file).entries
    assert nodes.spec("hardware=cpu", "backend=alltoall", "gpus=4").references == []


def test_the_floors_lie_7_to_8_percent_below_the_slowest_healthy_published_node():
    """But that of combine on two GPUs: the slowest is a pair of H200s of the published sweeps."""
    for name in simulation.KINDS:
        kind = simulation.read_kind(name)
        shares: dict[str, list[float]] = {}
        for rate in kind.suite_run.rates:
            if rate.peak and rate.per != "64 MiB" and "all_to_all 256" not in rate.key:
                shares.setdefault(rate.test, []).append(rate.median / rate.peak)
        for test, values in shares.items():
            floor = kind.spec.thresholds.floor(test, num_gpus=kind.spec.gpus)
            assert floor is not None
            assert 0.91 < floor[0] / min(values) < 0.94, (name, test)
            assert floor[1] / min(values) < 0.88, (name, test)
