"""The correctness layer: wrong tokens and bytes, and ranks that could not go on; pure."""

from __future__ import annotations

import re

from launcher.validation.codes import Finding, NodeVerdict
from launcher.validation.config import Spec
from launcher.validation.node import SuiteRun

_TROUBLE = {
    "hang": (NodeVerdict.HANG, "E601"),
    "crash": (NodeVerdict.FAIL, "E602"),
    "cuda": (NodeVerdict.FAIL, "E602"),
    "error": (NodeVerdict.SETUP, "U901"),
    "start": (NodeVerdict.SETUP, "U903"),
    "timeout": (NodeVerdict.INCONCLUSIVE, "U915"),
    "driver": (NodeVerdict.HANG, "E605"),
}
_SITE = {
    r"ModuleNotFoundError|ImportError|undefined symbol": (NodeVerdict.SETUP, "U903"),
    r"(?i)no kernel image is available|driver version is insufficient|invalid device function": (
        NodeVerdict.SETUP,
        "U903",
    ),
    r"(?i)out of memory": (NodeVerdict.SETUP, "U904"),
}
"""Last words of a rank that show a fault of the site's software, however the rank ended."""

_WRONG = {"pairs": "E302", "alltoall": "E303"}


def judge_correctness(suite_run: SuiteRun) -> list[Finding]:
    """A finding for each check that failed, and for each rank that could not go on."""
    wrong = [
        Finding(
            NodeVerdict.FAIL,
            _WRONG.get(name.split(":")[0], "E301"),
            _find_place(f"{name}: {result}"),
            f"{name}: {result}",
            "correctness",
        )
        for name, result in suite_run.checks.items()
        if result != "ok"
    ]
    return wrong + _judge_troubles(suite_run)


def _judge_troubles(suite_run: SuiteRun) -> list[Finding]:
    findings = []
    for trouble in suite_run.troubles:
        if trouble.kind == "incorrect":
            continue  # it is among the checks
        words = f"{trouble.message} {trouble.last_words}"
        causes = [cause for pattern, cause in _SITE.items() if re.search(pattern, words)]
        verdict, code = causes[0] if causes else _TROUBLE[trouble.kind]
        findings.append(Finding(verdict, code, trouble.where, f"{trouble.phase}: {trouble.message}", "correctness"))
    return findings


def _find_place(text: str) -> str:
    match = re.search(r"gpu\d+(>gpu\d+)?", text)
    return match[0] if match else ""


def describe_correctness(suite_run: SuiteRun, spec: Spec) -> str:
    """What the layer could judge."""
    checked = (
        f"judged: {len(suite_run.checks)} checks against the oracle" if suite_run.checks else "absent: no check ran"
    )
    return checked + ("; FP8 is not tested: hidden is not a multiple of 128" if spec.workload.hidden % 128 else "")
