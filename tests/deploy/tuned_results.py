"""The answer of a published run, to be changed a bit, and how a library is asked for it."""

from __future__ import annotations

from typing import Any

import msgspec

from launcher.deploy import tuned
from launcher.deploy.tuned import TunedResults
from tests.published import PUBLISHED

RESULTS = PUBLISHED / "h200x2-ep2-bf16" / "RESULTS_EP2.json"
LIBRARY = PUBLISHED / "library"
ANSWER = tuned.read(RESULTS)
DEEP_EP = "tokenspeed-deepep 1.2.1.post20251110"
ASKED: dict[str, Any] = {
    "gpu": "NVIDIA H200",
    "ep": 2,
    "hidden": 7168,
    "num_experts": 256,
    "num_topk": 8,
    "num_tokens": 4096,
    "dtype": "bf16",
    "deep_ep": DEEP_EP,
}

replace = msgspec.structs.replace


def changed(*, results: dict[str, Any] | None = None, **library: Any) -> TunedResults:
    """The answer with other members in its library, or in the whole document."""
    return ANSWER._replace(
        library=replace(ANSWER.library, **library), results=replace(ANSWER.results, **(results or {}))
    )


def routed(routing: str) -> TunedResults:
    """The answer for another routing."""
    return changed(results={"workload": replace(ANSWER.workload, routing=routing)})
