"""Constructed RESULTS documents to compare."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import msgspec

from launcher.comparison import run as compared_runs
from launcher.comparison.compare import Comparison, compare
from launcher.comparison.run import ComparedRun
from launcher.store import results_file
from tests.published import FORMAT_1

REAL: dict[str, Any] = msgspec.json.decode(FORMAT_1.read_bytes())
BASE = REAL | {"measurements": [], "best_per_shared": [], "pareto": [], "overlapped": []}

Document = dict[str, Any]


def measurement(
    chunk: int,
    median_us: float,
    *,
    half: float = 0.002,
    stage: str = "final",
    op: str = "dispatch",
    count: int = 150,
    unstable: bool = False,
) -> Document:
    """A measurement at num_sms 24 whose interval is +- ``half`` in logarithms."""
    return {
        "backend": "deepep",
        "op": op,
        "dtype": "bf16",
        "role": "grid",
        "num_sms": 24,
        "nvl_chunk": chunk,
        "median_us": median_us,
        "ci95_us": [median_us * math.exp(-half), median_us * math.exp(half)],
        "spread": 0.01,
        "num_samples": count,
        "stage": stage,
        "unstable": unstable,
        "logical_gb_per_s": 100.0,
        "wire_gb_per_s": 50.0,
        "peak_fraction": None,
    }


def failure(chunk: int, kind: str = "hang", *, op: str = "dispatch") -> Document:
    point = {"backend": "deepep", "op": op, "dtype": "bf16", "knobs": {"num_sms": 24, "nvl_chunk": chunk}}
    return {
        "point": point,
        "kind": kind,
        "message": "no answer",
        "phase": "time",
        "rank": 1,
        "last_words": "",
        "shard": 0,
    }


def label(chunk: int, op: str = "dispatch") -> str:
    return f"deepep/{op}/bf16/num_sms=24,nvl_chunk={chunk}"


def run(*points: Document, failures: tuple[Document, ...] = (), **changes: Any) -> Document:
    """A RESULTS document with these points; a change such as ``environment__num_sms`` sets a nested member."""
    document = copy.deepcopy(BASE) | {"measurements": list(points), "failures": list(failures)}
    for path, value in changes.items():
        *parts, last = path.split("__")
        inner = document
        for part in parts:
            inner = inner[part]
        inner[last] = value
    return document


def as_compared_run(document: Document, name: str = "RESULTS_EP2.json") -> ComparedRun:
    file = Path(name)
    return compared_runs.compared_run(file, results_file.decode(file, msgspec.json.encode(document)))


def compare_documents(
    a: Document, b: Document, *, tolerance: float = 0.02, unlike_hardware: bool = False
) -> Comparison:
    return compare(as_compared_run(a), as_compared_run(b), tolerance=tolerance, unlike_hardware=unlike_hardware)


FINAL, SWEPT = measurement(4, 200.0), measurement(6, 200.0, stage="sweep", count=48)
SLOW_FINAL, SLOW_SWEPT = measurement(4, 210.0), measurement(6, 220.0, stage="sweep", count=48)
FINALS = [measurement(chunk, 200.0) for chunk in (4, 8, 10)]
