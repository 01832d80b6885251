"""Injects every fault on this machine and checks that each gets its verdict: validators have bugs too."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from launcher.validation.codes import EXIT_OK, EXIT_UNKNOWN, NodeVerdict, Status
from launcher.validation.config import Spec
from launcher.validation.measure.suite import Suite

_SLOW_US = 50_000
_BLOCKS, _DEADLINE_S = 5, 5.0
"""Less than a validation takes, because the faults are gross."""


class Case(msgspec.Struct, frozen=True):
    """A fault, with the verdict, code and place that the validation must give."""

    name: str
    faults: list[str]
    verdict: NodeVerdict
    code: str
    where: str = ""

    def describe(self) -> str:
        """Verdict, code and place."""
        return _join(self.verdict, self.code, self.where)


def list_cases(spec: Spec) -> list[Case]:
    """The faults that can be injected here, into the last GPU."""
    last = spec.gpus - 1
    gpu = f"gpu{last}"
    return [
        Case("healthy", [], NodeVerdict.PASS, ""),
        Case("wrong token", [f"wrong_token@{last}:dispatch"], NodeVerdict.FAIL, "E301"),
        Case("wrong bytes", [f"wrong_token@{last}:exchange"], NodeVerdict.FAIL, "E303"),
        Case("slow GPU", [f"slow={_SLOW_US}@{last}:compute"], NodeVerdict.FAIL, "E203", gpu),
        Case("hang", [f"hang@{last}:combine"], NodeVerdict.HANG, "E601"),
        Case("crash", [f"segfault@{last}:combine"], NodeVerdict.FAIL, "E602", gpu),
        Case("missing GPU", [f"missing_gpu@{last}:"], NodeVerdict.FAIL, "E101"),
        Case("GPU that falls off the bus", [f"lost_gpu@{last}:"], NodeVerdict.FAIL, "E101"),
        Case("GPUs in use", [f"foreign@{last}:"], NodeVerdict.SETUP, "U902", gpu),
        Case("memory error", [f"ecc@{last}:"], NodeVerdict.FAIL, "E401", gpu),
        Case("row remapping", [f"remap@{last}:"], NodeVerdict.FAIL, "E402", gpu),
        Case("XID", [f"xid@{last}:"], NodeVerdict.FAIL, "E403", gpu),
        Case(
            "slow while throttled",
            [f"throttle@{last}:", f"slow={_SLOW_US}@{last}:compute"],
            NodeVerdict.FAIL,
            "E501",
            gpu,
        ),
    ]


def run(spec: Spec, say: Callable[[str], None]) -> Status:
    """Runs every case in turn; EXIT_OK if each got its verdict, code and place."""
    measure = msgspec.structs.replace(spec.measure, deadline_s=_DEADLINE_S)
    spec = msgspec.structs.replace(spec, blocks=_BLOCKS, measure=measure)
    cases = list_cases(spec)
    num_right = sum(_run_case(case, spec, say) for case in cases)
    say(f"{num_right} of {len(cases)} faults were judged right")
    return EXIT_OK if num_right == len(cases) else EXIT_UNKNOWN


def _run_case(case: Case, spec: Spec, say: Callable[[str], None]) -> bool:
    """Whether the fault was judged right."""
    with tempfile.TemporaryDirectory(prefix="deepep-self-test-") as folder:
        node = Suite(msgspec.structs.replace(spec, faults=case.faults), Path(folder), node="self").run()
    where = next((finding.where for finding in node.findings if finding.code == node.code), "")
    is_right = (node.verdict, node.code) == (case.verdict, case.code) and case.where in ("", where)
    line = f"{'ok' if is_right else 'WRONG'}: {case.name}: {_join(node.verdict, node.code, where)}"
    say(line if is_right else f"{line}, expected {case.describe()}: {node.reason}")
    return is_right


def _join(verdict: NodeVerdict, code: str, where: str) -> str:
    return " ".join(filter(None, [verdict.value, code, where]))
