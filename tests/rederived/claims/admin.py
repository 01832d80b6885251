"""The measured numbers of docs/ADMIN.md."""

from __future__ import annotations

from statistics import median

from tests.rederived import records as r
from tests.rederived import sweeps as s
from tests.rederived.documents import Claim
from tests.rederived.records import EP2_AGAIN, EP2_H100, EP2_H200, LIBRARIES

_ADMIN = "docs/ADMIN.md"
_NODES = {"2 x H100": "h100x2-node", "4 x H200": "h200x4-ep4-node"}
_JUDGED = (("num_sms", 64), ("nvl_chunk", 8), ("nvl_buffer", 256))
_PEAK_GB_PER_S = 450


def _share(test: str, machine: str) -> list[object]:
    """The lowest of a healthy node's GPUs or pairs over the links' peak, and the machine."""
    rates = r.node(_NODES[machine])["attempts"][0]["rates"]
    largest = [one for one in rates if one["test"] == test and one["per"] not in ("64 MiB", "256 MiB")]
    of_test = largest or [one for one in rates if one["test"] == test]
    return [min(median(one["blocks"]) for one in of_test) / _PEAK_GB_PER_S, machine]


def _slowest(test: str) -> list[object]:
    return min((_share(test, machine) for machine in _NODES), key=lambda found: float(str(found[0])))


def _combine_of_two() -> list[object]:
    """Slower than that of the two H100s of a validation: a pair of H200s of a sweep."""
    share = r.wire_of(EP2_H200, "combine", s.medians(EP2_H200)["combine", _JUDGED]) / _PEAK_GB_PER_S
    assert share < float(str(_share("combine", "2 x H100")[0]))
    return [share, "2 x H200"]


def _two_pairs(op: str) -> float:
    first, second = (s.medians(run)[op, _JUDGED] for run in (EP2_H200, EP2_AGAIN))
    return 100 * (max(first, second) / min(first, second) - 1)


def _two_builds() -> list[object]:
    """No number: the medians of two builds on two H100s each differ by less than 1 %."""
    for op in ("dispatch", "combine"):
        old, new = (
            min(s.medians(run)[op, _JUDGED] for run in (first, f"{first}-again")) for first in (EP2_H100, LIBRARIES)
        )
        assert abs(new / old - 1) < 0.01
    return []


_ROW = " | {:.3f} ({}) |"
CLAIMS = [
    Claim(_ADMIN, "| copy engine" + _ROW, lambda: _slowest("pair_copy")),
    Claim(_ADMIN, "| kernel" + _ROW, lambda: _slowest("pair_sm")),
    Claim(_ADMIN, "| all-to-all, 2 or 3 GPUs" + _ROW, lambda: _share("all_to_all", "2 x H100")),
    Claim(_ADMIN, "| dispatch, 2 or 3 GPUs" + _ROW, lambda: _share("dispatch", "2 x H100")),
    Claim(_ADMIN, "| combine, 2 or 3 GPUs" + _ROW, _combine_of_two),
    Claim(_ADMIN, "| all-to-all, 4 or more GPUs" + _ROW, lambda: _share("all_to_all", "4 x H200")),
    Claim(_ADMIN, "| dispatch, 4 or more GPUs" + _ROW, lambda: _share("dispatch", "4 x H200")),
    Claim(_ADMIN, "| combine, 4 or more GPUs" + _ROW, lambda: _share("combine", "4 x H200")),
    Claim(
        _ADMIN,
        "differ by {:.1f} % in the combine that is judged here, and by {:.1f} % in dispatch",
        lambda: [_two_pairs("combine"), _two_pairs("dispatch")],
    ),
    Claim(_ADMIN, "two builds agree within 1 % on H100s", _two_builds),
    Claim(
        _ADMIN,
        "compute bf16 4096x7168 256/8 uniform is {:.2f}x that of the node's other GPUs |",
        lambda: [r.gemms_over_others("h100x2-node-slow", "gpu1")],
    ),
]
