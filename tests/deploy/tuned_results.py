"""The tuned results of a run, variants of them, and their key in a library."""

from __future__ import annotations

from typing import Any

import msgspec

from launcher.deploy import tuned
from launcher.deploy.tuned import TunedResults
from tests.published import FORMAT_1, PUBLISHED

LIBRARY = PUBLISHED / "library"
TUNED = tuned.read(FORMAT_1)
DEEP_EP = "tokenspeed-deepep 1.2.1.post20251110"
LOOKUP: dict[str, Any] = {
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
    """The tuned results with changes in their library or in the document."""
    return TUNED._replace(library=replace(TUNED.library, **library), results=replace(TUNED.results, **(results or {})))


def routed(routing: str) -> TunedResults:
    """The tuned results for another routing."""
    return changed(results={"workload": replace(TUNED.workload, routing=routing)})
