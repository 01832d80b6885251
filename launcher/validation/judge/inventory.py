"""The inventory: the GPUs and links that NVML shows, against those that belong to the node; pure."""

from __future__ import annotations

import re

from launcher.validation.codes import Finding, NodeVerdict
from launcher.validation.config import Spec
from launcher.validation.node import Preflight, SuiteRun


def judge_inventory(suite_run: SuiteRun, spec: Spec) -> list[Finding]:
    """GPUs and links that are missing, of another kind, or in use."""
    preflight = suite_run.preflight
    if preflight is None or (spec.on_cpu and not preflight.is_synthetic):
        return []
    if not preflight.gpus:
        return [_make_finding(NodeVerdict.SETUP, "U913", f"NVML shows none of {spec.gpus} GPUs")]
    mismatch = _describe_mismatch(preflight, spec)
    mismatches = [_make_finding(NodeVerdict.SETUP, "U914", mismatch)] if mismatch else _find_unlike(preflight, spec)
    return [*_find_missing(preflight, spec), *mismatches, *_find_busy(preflight)]


def describe_inventory(suite_run: SuiteRun, spec: Spec) -> str:
    """What the layer could judge."""
    preflight = suite_run.preflight
    if preflight is None or not preflight.gpus:
        return "absent: NVML shows no GPUs"
    if preflight.is_synthetic:
        return "absent: the GPUs are synthetic"
    if not spec.gpus_named:
        return f"absent: the number of GPUs that belong here is not known ({len(preflight.gpus)} seen); set gpus=N"
    return f"judged: {len(preflight.gpus)} GPUs, {spec.gpus} expected"


def _make_finding(verdict: NodeVerdict, code: str, message: str, where: str = "") -> Finding:
    return Finding(verdict, code, where, message, "inventory")


def _find_missing(preflight: Preflight, spec: Spec) -> list[Finding]:
    """Fewer GPUs than expected. Without gpus=N, fewer than PCI shows are only a warning: a container may hide some."""
    seen = len(preflight.gpus)
    if seen < spec.gpus:
        return [_make_finding(NodeVerdict.FAIL, "E101", f"NVML shows {seen} of {spec.gpus} GPUs")]
    if not spec.gpus_named and (preflight.pci_gpus or 0) > seen:
        message = f"PCI shows {preflight.pci_gpus} NVIDIA GPUs, NVML {seen}; set gpus=N to the number that belongs here"
        return [_make_finding(NodeVerdict.WARN, "E101", message)]
    return []


def _other_models(preflight: Preflight, spec: Spec) -> list[int]:
    """The GPUs of another model than the hardware file's."""
    pattern = "" if preflight.is_synthetic else spec.hardware.gpu_pattern or ""
    return [number for number, gpu in enumerate(preflight.gpus) if not re.search(pattern, gpu.name)]


def _describe_mismatch(preflight: Preflight, spec: Spec) -> str | None:
    """How every GPU differs from the hardware file, if it does: then only hardware=NAME is wrong."""
    if len(_other_models(preflight, spec)) == len(preflight.gpus):
        return f"the GPUs are {preflight.gpus[0].name}, not {spec.hardware.name}"
    counts, expected = {gpu.num_links for gpu in preflight.gpus}, spec.hardware.num_links
    if expected is None or counts & {expected, None}:
        return None
    numbers = " or ".join(map(str, sorted(count for count in counts if count is not None)))
    return f"every GPU has {numbers} NVLinks, {spec.hardware.name} has {expected}"


def _find_unlike(preflight: Preflight, spec: Spec) -> list[Finding]:
    """GPUs, links and connections that differ from the other GPUs or from the hardware file."""
    expected = spec.hardware.num_links
    findings = [
        _make_finding(
            NodeVerdict.FAIL,
            "E102",
            f"this GPU is a {preflight.gpus[number].name}, not a {spec.hardware.name}",
            f"gpu{number}",
        )
        for number in _other_models(preflight, spec)
    ]
    findings += [
        _make_finding(NodeVerdict.FAIL, "E103", f"{up} of {expected} NVLinks are up", f"gpu{number}")
        for number, up in enumerate(preflight.links_up)
        if up is not None and expected is not None and up < expected
    ]
    if preflight.topology and len(preflight.gpus) > 1 and expected and preflight.topology != "NVLINK":
        findings.append(
            _make_finding(
                NodeVerdict.FAIL, "E104", f"the GPUs are connected by {preflight.topology}; NVLINK is expected for all"
            )
        )
    return findings


def _find_busy(preflight: Preflight) -> list[Finding]:
    return [
        _make_finding(
            NodeVerdict.SETUP, "U902", f"other processes use this GPU ({state.foreign_processes})", f"gpu{number}"
        )
        for number, state in enumerate(preflight.states)
        if state.foreign_processes
    ]
