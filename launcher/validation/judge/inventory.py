"""Layer 0: the GPUs and links that NVML shows, against those that belong there; pure."""

from __future__ import annotations

import re

from launcher.validation.codes import Finding, NodeVerdict
from launcher.validation.config import Spec
from launcher.validation.node import Preflight, SuiteRun


def judge_inventory(suite_run: SuiteRun, spec: Spec) -> list[Finding]:
    """What is missing, of another kind, or in use."""
    preflight = suite_run.preflight
    if preflight is None or (spec.on_cpu and not preflight.is_synthetic):
        return []
    if not preflight.gpus:
        return [_finding(NodeVerdict.SETUP, "U913", f"none of {spec.gpus} GPUs is there for NVML")]
    misnamed = _misnaming(preflight, spec)
    unlike = [_finding(NodeVerdict.SETUP, "U914", misnamed)] if misnamed else _find_unlike(preflight, spec)
    return [*_find_missing(preflight, spec), *unlike, *_find_busy(preflight)]


def describe_inventory(suite_run: SuiteRun, spec: Spec) -> str:
    """What the layer could judge."""
    preflight = suite_run.preflight
    if preflight is None or not preflight.gpus:
        return "absent: no GPUs were seen"
    if preflight.is_synthetic:
        return "absent: the GPUs are made up"
    if not spec.gpus_named:
        return f"absent: how many GPUs belong here is not known ({len(preflight.gpus)} seen); gpus=N says it"
    return f"judged: {len(preflight.gpus)} GPUs, {spec.gpus} expected"


def _finding(verdict: NodeVerdict, code: str, message: str, where: str = "") -> Finding:
    return Finding(verdict, code, where, message, "inventory")


def _find_missing(preflight: Preflight, spec: Spec) -> list[Finding]:
    """Fewer GPUs than PCI shows are only a warning where their number was not given: a container may hide some."""
    seen = len(preflight.gpus)
    if seen < spec.gpus:
        return [_finding(NodeVerdict.FAIL, "E101", f"{seen} of {spec.gpus} GPUs are there")]
    if not spec.gpus_named and (preflight.pci_gpus or 0) > seen:
        message = f"PCI shows {preflight.pci_gpus} NVIDIA GPUs, NVML {seen}; gpus=N says how many are meant"
        return [_finding(NodeVerdict.WARN, "E101", message)]
    return []


def _other_models(preflight: Preflight, spec: Spec) -> list[int]:
    """The GPUs of another kind than the hardware file's."""
    pattern = "" if preflight.is_synthetic else spec.hardware.gpu_pattern or ""
    return [number for number, gpu in enumerate(preflight.gpus) if not re.search(pattern, gpu.name)]


def _misnaming(preflight: Preflight, spec: Spec) -> str | None:
    """What shows that every GPU is of another kind than hardware=, so that only the name is wrong."""
    if len(_other_models(preflight, spec)) == len(preflight.gpus):
        return f"they are {preflight.gpus[0].name}, not {spec.hardware.name}"
    counts, expected = {gpu.num_links for gpu in preflight.gpus}, spec.hardware.num_links
    if expected is None or counts & {expected, None}:
        return None
    numbers = " or ".join(map(str, sorted(count for count in counts if count is not None)))
    return f"every GPU has {numbers} NVLinks, {spec.hardware.name} has {expected}"


def _find_unlike(preflight: Preflight, spec: Spec) -> list[Finding]:
    """GPUs, links and connections that differ from the other GPUs or from the hardware file."""
    expected = spec.hardware.num_links
    findings = [
        _finding(
            NodeVerdict.FAIL,
            "E102",
            f"it is a {preflight.gpus[number].name}, not a {spec.hardware.name}",
            f"gpu{number}",
        )
        for number in _other_models(preflight, spec)
    ]
    findings += [
        _finding(NodeVerdict.FAIL, "E103", f"{up} of {expected} NVLinks are up", f"gpu{number}")
        for number, up in enumerate(preflight.links_up)
        if up is not None and expected is not None and up < expected
    ]
    if preflight.topology and len(preflight.gpus) > 1 and expected and preflight.topology != "NVLINK":
        findings.append(_finding(NodeVerdict.FAIL, "E104", f"the pairs are connected by {preflight.topology}"))
    return findings


def _find_busy(preflight: Preflight) -> list[Finding]:
    return [
        _finding(NodeVerdict.SETUP, "U902", f"{state.foreign_processes} other processes use it", f"gpu{number}")
        for number, state in enumerate(preflight.states)
        if state.foreign_processes
    ]
