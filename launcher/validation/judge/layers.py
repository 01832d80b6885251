"""The layers that judge one suite run: their order, and what each reports; pure.

A layer that cannot judge reports why; it never passes silently. Every layer is one-sided: fast is never bad.
"""

from __future__ import annotations

from launcher.validation.codes import Finding
from launcher.validation.config import Spec
from launcher.validation.judge.correctness import describe_correctness, judge_correctness
from launcher.validation.judge.counter_growth import judge_growth
from launcher.validation.judge.findings import select_certain_faults
from launcher.validation.judge.inventory import describe_inventory, judge_inventory
from launcher.validation.judge.peers import compare_peers, describe_peers
from launcher.validation.judge.physics import describe_link_bytes, describe_physics, judge_physics
from launcher.validation.judge.reference import compare_with_reference
from launcher.validation.judge.scatter import describe_scatter, judge_scatter
from launcher.validation.judge.throttling import describe_throttling, explain_slowness
from launcher.validation.node import SuiteRun

LAYERS = ("inventory", "correctness", "physics", "reference", "inside", "fleet", "stability", "context", "confirmation")


def judge_suite_run(suite_run: SuiteRun, spec: Spec) -> tuple[list[Finding], dict[str, str]]:
    """Every finding of one suite run, and the report of each layer; fleet and confirmation come later."""
    inventory = judge_inventory(suite_run, spec)
    slow, layers = _judge_speed(suite_run, spec)
    if any(finding.code == "U914" for finding in inventory):  # the peaks and floors are those of another GPU
        slow, layers = [], dict.fromkeys(layers, "absent: the GPUs are not those of hardware=NAME (U914)")
    layers |= {
        "inventory": describe_inventory(suite_run, spec),
        "correctness": describe_correctness(suite_run, spec),
        "context": describe_throttling(suite_run),
    }
    if suite_run.link_bytes:
        layers["physics"] += f"; {describe_link_bytes(suite_run)}"
    certain = [*inventory, *judge_correctness(suite_run), *judge_growth(suite_run)]
    return [*certain, *explain_slowness(slow, suite_run)], layers


def find_certain_faults(suite_run: SuiteRun, spec: Spec) -> list[Finding]:
    """The faults of a suite run, finished or not, that need no confirmation: wrong tokens, missing GPUs, counters."""
    findings = [*judge_inventory(suite_run, spec), *judge_correctness(suite_run), *judge_growth(suite_run)]
    return select_certain_faults(findings)


def _judge_speed(suite_run: SuiteRun, spec: Spec) -> tuple[list[Finding], dict[str, str]]:
    rates = suite_run.rates
    below_reference, reference_report = compare_with_reference(suite_run, spec)
    findings = [
        *judge_physics(rates, spec),
        *compare_peers(rates, spec),
        *judge_scatter(rates, spec),
        *below_reference,
    ]
    return findings, {
        "physics": describe_physics(rates, spec),
        "inside": describe_peers(rates),
        "stability": describe_scatter(rates),
        "fleet": "absent: it needs other nodes; the fleet's summary judges it",
        "reference": reference_report,
    }
