"""What good nodes do, and what it says of others."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from launcher.errors import UserError
from launcher.validation import reference
from launcher.validation.config import Spec
from tests import nodes
from tests.nodes import (
    attempt,
    judged,
    learned,
    rates,
    replace,
    said,
)


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
