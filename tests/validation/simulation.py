"""Simulated nodes and fleets around a published node, for the figures of docs/ADMIN.md (python -m, with --full).

Each rate of a node is off by 1 % (standard deviation), each GPU's GEMMs by 2 % more, each pair by 0.2 % more; so is the
published node that the reference is made of. Blocks scatter as they did on the published nodes.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from launcher.validation import node as node_files
from launcher.validation.codes import NodeVerdict
from launcher.validation.config import Spec
from launcher.validation.judge.outliers import GPU_SCATTER, find_outliers, place_rates
from launcher.validation.node import Rate, SuiteRun
from tests import nodes
from tests.builders import ROOT

NODE_SCATTER, PAIR_SCATTER = 0.01, 0.002
BLOCK_SCATTER, GEMM_BLOCK_SCATTER = 0.003, 0.025
DISPATCH_AND_COMBINE = {"dispatch": 0.9, "combine": 0.9}
KINDS = {"4 x H200": ("h200x4-ep4-node", "h200", 4), "2 x H100": ("h100x2-node", "h100", 2)}

Rates = dict[str, list[float]]
"""Rates by key, one for each GPU, pair or the node."""


class Kind(NamedTuple):
    """A published node, its spec, and the mean of each rate by key."""

    suite_run: SuiteRun
    spec: Spec
    centre: dict[str, float]


def read_kind(name: str) -> Kind:
    """A kind of node by its name."""
    folder, hardware, gpus = KINDS[name]
    node = node_files.read(ROOT / "outputs" / "published" / folder / "nodes" / "vm" / "NODE.json")
    centre = {key: float(np.exp(np.mean(np.log(values)))) for key, values in place_rates(node.rates).items()}
    spec = nodes.spec(f"hardware={hardware}", "backend=deepep", f"gpus={gpus}")
    return Kind(node.suite_runs[0], spec, centre)


def draw_offsets(kind: Kind, generator: np.random.Generator) -> dict[str, float]:
    """How far each rate of one node is from the mean of its kind, as a logarithm."""
    return {key: NODE_SCATTER * generator.standard_normal() for key in kind.centre}


def draw_node(
    kind: Kind, generator: np.random.Generator, slow: Mapping[str, float], published: Mapping[str, float]
) -> list[Rate]:
    """The true rates of a node, one block each, with a factor for each slow test. ``published``: its own offsets."""
    offsets = draw_offsets(kind, generator)
    rates = []
    for rate in kind.suite_run.rates:
        own = {"compute": GPU_SCATTER}.get(rate.test, PAIR_SCATTER if rate.where else 0.0)
        log = offsets[rate.key] - published[rate.key] + own * generator.standard_normal()
        middle = kind.centre[rate.key] * float(np.exp(log)) * slow.get(rate.test, 1.0)
        rates.append(nodes.replace(rate, blocks=[middle]))
    return rates


def measure(kind: Kind, generator: np.random.Generator, truth: list[Rate], number: int) -> SuiteRun:
    """One suite run of a node."""
    rates = []
    for rate, original in zip(truth, kind.suite_run.rates, strict=True):
        scatter = GEMM_BLOCK_SCATTER if rate.test == "compute" else BLOCK_SCATTER
        noise = 1 + scatter * generator.standard_normal(len(original.blocks))
        rates.append(nodes.replace(rate, blocks=[rate.blocks[0] * factor for factor in noise.tolist()]))
    return nodes.replace(kind.suite_run, rates=rates, number=number, findings=[])


def judge_alone(name: str, slow: Mapping[str, float], *, count: int, seed: int) -> Counter[NodeVerdict]:
    """The verdicts on nodes that are validated alone, with a second suite run where the first calls for one."""
    kind, generator = read_kind(name), np.random.default_rng(seed)
    verdicts: Counter[NodeVerdict] = Counter()
    for _ in range(count):
        truth = draw_node(kind, generator, slow, draw_offsets(kind, generator))
        runs = [measure(kind, generator, truth, number) for number in (0, 1)]
        node = nodes.judge_node(runs[0], spec=kind.spec)
        if any(finding.needs_confirmation for finding in node.suite_runs[0].findings):
            node = nodes.judge_node(*runs, spec=kind.spec)
        verdicts[node.verdict] += 1
    return verdicts


def draw_fleet(kind: Kind, generator: np.random.Generator, slow: Mapping[str, float], size: int) -> list[Rates]:
    """The rates of a fleet whose first node is slow."""
    published = draw_offsets(kind, generator)
    return [
        place_rates(draw_node(kind, generator, slow if position == 0 else {}, published)) for position in range(size)
    ]


class Flagged(NamedTuple):
    """Shares of fleets: those with any healthy node flagged, and those whose slow node was."""

    wrongly: float
    found: float


def judge_fleets(name: str, slow: Mapping[str, float], *, size: int, count: int, seed: int) -> Flagged:
    """The shares over ``count`` fleets of ``size`` nodes, the first of them slow."""
    kind, generator = read_kind(name), np.random.default_rng(seed)
    flagged = [set(find_outliers(draw_fleet(kind, generator, slow, size))) for _ in range(count)]
    healthy = set(range(1 if slow else 0, size))
    return Flagged(
        sum(bool(one & healthy) for one in flagged) / count, sum(bool(one - healthy) for one in flagged) / count
    )


def main(*, factor: int) -> None:
    """Prints every figure, from ``factor`` times as many nodes and fleets as the tests draw."""
    for name in KINDS:
        for label, slow in (("healthy", {}), ("dispatch and combine 10 % slower", DISPATCH_AND_COMBINE)):
            count = 1000 * factor
            verdicts = judge_alone(name, slow, count=count, seed=1)
            shares = {verdict.value: f"{100 * number / count:.2f} %" for verdict, number in verdicts.items()}
            print(f"{name} alone, {label}: {shares}")
        for size in (4, 8, 16, 64):
            count = 4 * factor * 500 // size
            share = judge_fleets(name, {}, size=size, count=count, seed=2).wrongly
            print(f"{name}, {count} healthy fleets of {size}: {100 * share:.2f} % flagged")
            for slower in (5, 7, 8, 10, 15):
                slow = {"compute": 1 - slower / 100}
                found = judge_fleets(name, slow, size=size, count=count // 4, seed=3).found
                print(f"  GEMMs of one node {slower} % slower: {100 * found:.1f} % found")


if __name__ == "__main__":
    main(factor=10 if "--full" in sys.argv else 1)
