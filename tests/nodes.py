"""Constructed results of nodes with four GPUs and plausible rates, each with fields to change."""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from bench.nvml.counters import Counters
from bench.records import Gpu, GpuState
from launcher.store.revision import Revision
from launcher.validation import node as nodes
from launcher.validation import reference
from launcher.validation.config import Spec, from_config
from launcher.validation.judge import fleet
from launcher.validation.judge.confirmation import confirm_findings
from launcher.validation.judge.fleet import NodeRow, make_row
from launcher.validation.judge.headline import choose_headline, drain_reason
from launcher.validation.judge.layers import LAYERS, judge_suite_run
from launcher.validation.node import Node, Phase, Preflight, Rate, SuiteRun
from tests.builders import ENVIRONMENT

replace = msgspec.structs.replace
A_TWENTIETH_SLOWER: dict[str, float] = {"dispatch": 0.95, "combine": 0.95}
"""Above every floor and within a published reference; only a fleet or a learned reference finds it."""

HOSTILE = "<script>alert(1)</script> | ` ** \" '; rm -rf / #\x07\n\x00"

GPUS = [f"gpu{number}" for number in range(4)]
PAIRS = [f"{one}>{other}" for one, other in itertools.permutations(GPUS, 2)]
GIGABYTES = {"pair_copy": 388.0, "pair_sm": 352.0, "all_to_all": 336.0, "dispatch": 280.0, "combine": 294.0}
"""As on the published node of four H200s."""

PEAK = 450.0
PYTHON = sys.executable
COUNTED = (
    *("nvlink_replay", "nvlink_recovery", "nvlink_crc", "ecc_uncorrectable", "remap_pending", "remap_failure"),
    *("throttle_power_ns", "throttle_thermal_ns", "throttle_software_thermal_ns", "throttle_hardware_thermal_ns"),
    *("throttle_power_brake_ns", "recovery_action"),
)
ZEROS: dict[str, int | None] = {**dict.fromkeys(COUNTED, 0), "links_up": 18}


@functools.cache
def spec(*overrides: str) -> Spec:
    """The Spec of four H200s with DeepEP and the configured thresholds, or that of the overrides."""
    from launcher.config.compose import compose
    from launcher.validation import config
    from launcher.validation.run import resolve

    config.register()
    values, _ = from_config(compose("validate", overrides or ["hardware=h200", "backend=deepep", "gpus=4"]))
    return resolve.for_jobs(values)


def rates(*, scale: dict[str, float] | float = 1.0, noise: float = 0.003, seed: int = 0) -> list[Rate]:
    """Rates of a healthy node times ``scale`` (for all, or by ``test where``, ``test`` or ``where``)."""
    generator = np.random.default_rng(seed)

    def rate(test: str, where: str, per: str, middle: float) -> Rate:
        factors = scale if isinstance(scale, dict) else {test: scale}
        factor = math.prod(factors.get(key, 1.0) for key in (f"{test} {where}", test, where))
        blocks = middle * factor * (1 + noise * generator.standard_normal(24))
        unit, peak = ("layers/s", None) if test == "compute" else ("GB/s", PEAK)
        return Rate(test, where, per, unit, [round(float(block), 3) for block in blocks], peak)

    measured = [rate(test, pair, "256 MiB", GIGABYTES[test]) for test in ("pair_copy", "pair_sm") for pair in PAIRS]
    sizes = {"64 MiB": 0.8, "256 MiB": 0.9, "1024 MiB": 1.0}
    measured += [rate("all_to_all", "", size, GIGABYTES["all_to_all"] * share) for size, share in sizes.items()]
    measured += [rate(test, "", "bf16", GIGABYTES[test]) for test in ("dispatch", "combine")]
    return measured + [rate("compute", gpu, "bf16", 220.0) for gpu in GPUS]


def suite_run(**changes: Any) -> SuiteRun:
    """A suite run without faults."""
    counters = [Counters(f"GPU-{number}", dict(ZEROS)) for number in range(4)]
    gpu = Gpu("NVIDIA H200", 150_000_000_000, 132, 18, 26.562)
    state = GpuState(1980, 300.0, 40, [], 0)
    base = SuiteRun(
        number=0,
        order=[0, 1, 2, 3],
        phases=[Phase("speed", "done", "", 20.0)],
        preflight=Preflight([gpu] * 4, [state] * 4, [18] * 4, "NVLINK", "580.65"),
        environment=ENVIRONMENT,
        rates=rates(),
        checks={"correctness: dispatch bf16": "ok", "pairs: sm gpu0>gpu1": "ok"},
        before=counters,
        after=counters,
        throttled={gpu: [] for gpu in GPUS},
    )
    return replace(base, **changes)


def grown_counters(gpu: int, **changes: int) -> list[Counters]:
    """Counters of four GPUs, those of one with changes."""
    return [Counters(f"GPU-{at}", {**ZEROS, **(changes if at == gpu else {})}) for at in range(4)]


def judge_node(*attempts: SuiteRun, spec: Spec, name: str = "node1", faults: Sequence[str] = ()) -> Node:
    """The result of a node, as its job would write it."""
    judgements = [judge_suite_run(one, spec) for one in attempts]
    suite_runs = [replace(one, findings=findings) for one, (findings, _) in zip(attempts, judgements, strict=True)]
    findings, confirmation = confirm_findings(suite_runs, confirm=spec.confirm)
    layers = judgements[0][1] | {"confirmation": confirmation}
    verdict, code, short, reason = choose_headline(findings)
    node = Node(
        verdict=verdict,
        reason_short=short,
        code=code,
        reason=reason,
        node=name,
        schema=nodes.SCHEMA,
        complete=True,
        started="2026-11-24T10:00:00Z",
        ended="2026-11-24T10:05:00Z",
        wall_s=300.0,
        job_id="7",
        backend="deepep",
        num_gpus=4,
        dry_run=False,
        program="0.1.0",
        revision=Revision(commit=None, dirty=None, code="0" * 16),
        findings=findings,
        layers={layer: layers[layer] for layer in LAYERS if layer in layers},
        suite_runs=suite_runs,
        faults=list(faults),
    )
    return replace(node, drain=drain_reason(node))


def verdict_of(node: Node) -> tuple[str, str]:
    return node.verdict.value, node.code


def place_of(node: Node) -> str:
    return next((one.where for one in node.findings if one.code == node.code), "")


def preflight(**changes: Any) -> Preflight:
    healthy = suite_run().preflight
    assert healthy is not None
    return replace(healthy, **changes)


def row(node: Node) -> NodeRow:
    return make_row(node.node, node.job_id, "COMPLETED", node)


def fleet_of(*members: Node) -> fleet.Fleet:
    return fleet.judge_fleet([row(one) for one in members])


def faulty_node(name: str, spec: Spec) -> Node:
    return judge_node(
        *(suite_run(rates=rates(scale={"compute gpu2": 0.71}), number=number) for number in (0, 1)),
        spec=spec,
        name=name,
    )


def good_nodes(count: int, *, factor: float = 1.0) -> list[Node]:
    base = spec()
    return [
        judge_node(suite_run(rates=rates(scale=factor, seed=seed)), spec=base, name=f"node{seed}")
        for seed in range(count)
    ]


def learn_reference(count: int = 5, *, factor: float = 1.0) -> reference.File:
    return reference.learn(good_nodes(count, factor=factor), learned="2026-11-24", program="0.1.0")


def phases(node: Node) -> dict[str, str]:
    return {phase.name: phase.status for phase in node.suite_runs[0].phases}
