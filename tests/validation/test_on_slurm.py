"""The selection of nodes and their injected faults."""

from __future__ import annotations

import time

import msgspec
import pytest

from bench.faults import Fault
from launcher.errors import UserError
from launcher.validation.run import node_jobs, selection
from launcher.validation.run.folder import Order
from tests import nodes


def test_a_fault_for_one_node_is_none_for_another():
    from launcher.validation.node_faults import select_faults

    texts = ["gpu1/slow@0:", "gpu2/hang@1:combine", "segfault@3:"]
    assert select_faults(texts, "gpu2") == ["hang@1:combine", "segfault@3:"]
    assert [Fault.parse(text).rank for text in select_faults(texts, "gpu2")] == [1, 3]


def test_host_lists_agree_with_clustershell():
    assert selection.expand("gpu[1-3],gpu9") == ["gpu1", "gpu2", "gpu3", "gpu9"]
    assert selection.expand("gpu[001-003]") == ["gpu001", "gpu002", "gpu003"]
    for bad in ("gpu[1-", "", "@nosuch:x", "@nosuch", "gpu[3-1]", "gpu[1-5/0]"):
        with pytest.raises(UserError, match="nodes="):
            selection.expand(bad)


def test_the_order_of_an_earlier_version_gives_a_job():
    spec_ = nodes.spec()
    order = Order(1, 0.0, [], spec_, ["gpu1"], lanes={"gpu1": 0}, deadline=time.time())
    order = msgspec.structs.replace(order, settings={"poll_s": 0.5, "partition": "low"})
    assert "#SBATCH --partition=low" in node_jobs.script(order, "gpu1")
