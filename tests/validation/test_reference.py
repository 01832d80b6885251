"""References learned from good nodes, and judgements by them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from launcher.errors import UserError
from launcher.validation import reference
from launcher.validation.config import Spec
from tests import nodes
from tests.nodes import (
    judge_node,
    learn_reference,
    rates,
    replace,
    suite_run,
    verdict_of,
)


@pytest.mark.parametrize(("factor", "expected"), [(1.0, "PASS"), (0.93, "WARN"), (0.88, "FAIL"), (1.1, "PASS")])
def test_a_reference_finds_slowness_above_every_floor(factor: float, expected: str, spec: Spec):
    known = replace(spec, references=learn_reference().entries)
    measured = rates(scale={"dispatch": factor}, seed=99)
    node = judge_node(suite_run(rates=measured), suite_run(rates=measured, number=1), spec=known)
    assert node.verdict == expected
    assert node.layers["reference"].startswith("judged: 10 rates") or "judged" in node.layers["reference"]


@pytest.mark.parametrize(("factor", "expected"), [(0.91, "PASS"), (0.88, "WARN"), (0.81, "FAIL")])
def test_gemms_of_a_good_gpu_may_differ_more_from_the_reference(factor: float, expected: str, spec: Spec):
    known = replace(spec, references=learn_reference().entries)
    measured = rates(scale={"compute gpu0": factor, "compute gpu1": 0.99 * factor**0.5}, seed=99)
    suite_runs = [suite_run(rates=measured), suite_run(rates=measured, number=1)]
    findings = judge_node(*suite_runs, spec=known).findings
    of_gpu = [one.verdict for one in findings if (one.layer, one.where) == ("reference", "gpu0")]
    assert of_gpu == ([] if expected == "PASS" else [expected])


def test_gemms_of_all_gpus_together_may_differ_less(spec: Spec):
    """Each GPU alone is within its limit of 0.90."""
    known = replace(spec, references=learn_reference().entries)
    node = judge_node(suite_run(rates=rates(scale={"compute": 0.92}, seed=99)), spec=known)
    assert verdict_of(node) == ("WARN", "E209")
    assert "4 GPUs together reach 0.92x the reference of 5 good nodes" in node.reason


def test_a_tail_of_slow_blocks_is_seen_where_the_median_is_right(spec: Spec):
    known = replace(spec, references=learn_reference().entries, thresholds=replace(spec.thresholds, variation=1.0))
    tailed = [
        replace(rate, blocks=[block * (0.7 if at % 3 == 0 else 1.0) for at, block in enumerate(rate.blocks)])
        if rate.test == "combine"
        else rate
        for rate in rates(seed=99)
    ]
    node = judge_node(suite_run(rates=tailed), suite_run(rates=tailed, number=1), spec=known)
    assert verdict_of(node) == ("FAIL", "E207")
    assert "slow blocks" in node.reason


def test_a_reference_names_the_nodes_it_was_learned_from_and_reads_back(tmp_path: Path):
    file = tmp_path / "reference.json"
    file.write_bytes(msgspec.json.encode(learn_reference()))
    learned_reference = reference.read(file)
    assert learned_reference == learn_reference()
    assert learned_reference.nodes == [f"node{number}" for number in range(5)]
    assert {entry.num_nodes for entry in learned_reference.entries} == {5}
    assert (learned_reference.revisions, learned_reference.drivers) == (["0" * 16], ["580.65"])


def test_a_reference_names_only_the_nodes_that_contributed_an_entry():
    other = replace(nodes.ENVIRONMENT, device="NVIDIA H20", driver="999")
    odd = judge_node(suite_run(environment=other), spec=nodes.spec(), name="odd")
    learned_reference = reference.learn([*nodes.good_nodes(5), odd], learned="2026-11-24", program="0.1.0")
    assert learned_reference == learn_reference()


def test_nothing_is_learned_from_four_nodes_or_from_rates_above_the_physical_bound():
    with pytest.raises(UserError, match="at least 5 good nodes"):
        learn_reference(4)
    with pytest.raises(UserError, match="above the physical bound"):
        learn_reference(5, factor=1.5)


def test_another_version_of_the_libraries_has_no_reference(spec: Spec):
    known = replace(spec, references=learn_reference().entries)
    other = replace(nodes.ENVIRONMENT, versions={"torch": "2.11.0", "deep_ep": "another 2.0"})
    node = judge_node(suite_run(environment=other), spec=known)
    assert node.layers["reference"].startswith("absent: no reference applies to NVIDIA H200")
