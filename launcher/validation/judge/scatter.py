"""The stability layer: blocks that scatter too much to judge by; pure."""

from __future__ import annotations

from launcher.validation.codes import Finding, NodeVerdict
from launcher.validation.config import Spec
from launcher.validation.node import Rate


def judge_scatter(rates: list[Rate], spec: Spec) -> list[Finding]:
    """A finding for the noisiest rate, if it is too noisy."""
    noisy = [rate for rate in rates if rate.variation > spec.thresholds.noise(rate.test)]
    if not noisy:
        return []
    rate = max(noisy, key=lambda rate: rate.variation)
    message = (
        f"{rate.key} {rate.where}".strip()
        + f" scatters by {rate.variation:.1%} even over {len(rate.blocks)} blocks, twice the planned number"
    )
    return [Finding(NodeVerdict.INCONCLUSIVE, "U910", rate.where, message, "stability")]


def describe_scatter(rates: list[Rate]) -> str:
    """What the layer could judge."""
    return "judged" if rates else "absent: nothing was measured"
