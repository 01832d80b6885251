"""The physics layer: rates against the peak of the links, and bandwidth that falls with size; pure."""

from __future__ import annotations

import itertools
from collections import defaultdict

from launcher.validation.codes import Finding, NodeVerdict
from launcher.validation.config import ALLTOALL_FLOOR_MIB, COPY_FLOOR_MIB, Spec
from launcher.validation.judge.findings import SLOW, describe_band, grade
from launcher.validation.node import Rate, SuiteRun

DIP = 0.95
"""Least bandwidth of an all-to-all over that of the next smaller size. On the published nodes it is 1.13 or more."""


def judge_physics(rates: list[Rate], spec: Spec) -> list[Finding]:
    """Rates above the peak or below their floor, and dips."""
    return _judge_shares(rates, spec) + _find_dips(rates, spec)


def describe_physics(rates: list[Rate], spec: Spec) -> str:
    """What the layer could judge, with a clause for each test that has no floor here."""
    if not any(rate.peak for rate in rates):
        return "absent: the links' peak is not known"
    clauses = ["judged"]
    if not spec.has_dispatch_floor:
        clauses.append("dispatch and combine have no floor with these links, this backend, config or workload")
    if not spec.has_floor("all_to_all", max(spec.alltoall_mib)):
        clauses.append(f"the all-to-all has no floor below {ALLTOALL_FLOOR_MIB} MiB")
    if not spec.has_floor("pair_copy", spec.copy_mib):
        clauses.append(f"copies have no floor below {COPY_FLOOR_MIB} MiB")
    return "; ".join(clauses)


def describe_link_bytes(suite_run: SuiteRun) -> str:
    """NVML's count of the bytes on the links over ours, from which the rates follow."""
    ratios: dict[str, list[float]] = defaultdict(list)
    for count in suite_run.link_bytes:
        ratios[count.test].append(count.ratio)
    ranges = ", ".join(f"{test} {min(values):.2f} to {max(values):.2f}" for test, values in ratios.items())
    return f"NVML's link counters over the bytes of the tokens: {ranges}"


def _judge_shares(rates: list[Rate], spec: Spec) -> list[Finding]:
    findings = []
    for rate in rates:
        band = spec.thresholds.floor(rate.test, num_gpus=spec.gpus)
        has_floor = spec.has_floor(rate.test, _size_mib(rate))
        if rate.peak is None or band is None or (not has_floor and rate.median <= rate.peak):
            continue
        share = rate.median / rate.peak
        message = f"{rate.key} of {rate.median:.0f} {rate.unit} is {share:.0%} of the link's peak"
        if share > 1:
            findings.append(Finding(NodeVerdict.INCONCLUSIVE, "U912", rate.where, message, "physics"))
        elif share < band[0]:
            message += f", below the floor of {describe_band(band)}"
            findings.append(Finding(grade(share, band), SLOW[rate.test], rate.where, message, "physics"))
    return findings


def _find_dips(rates: list[Rate], spec: Spec) -> list[Finding]:
    """All-to-alls with less bandwidth than the next smaller one. Dry runs are exempt: their processes share cores."""
    if spec.on_cpu:
        return []
    findings = []
    steps = sorted((rate for rate in rates if rate.test == "all_to_all"), key=_size_mib)
    for smaller, larger in itertools.pairwise(steps):
        ratio = larger.median / smaller.median
        if ratio < DIP:
            message = f"{larger.key} reaches {ratio:.2f}x the bandwidth of {smaller.per}"
            findings.append(Finding(NodeVerdict.WARN, "E205", "", message, "physics"))
    return findings


def _size_mib(rate: Rate) -> int:
    """The size in the name of a rate, 64 MiB; 0 where there is none."""
    size = rate.per.removesuffix(" MiB")
    return int(size) if size.isdigit() else 0
