"""Injects every fault on this machine and checks that each gets its verdict: validators are themselves buggy."""

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
"""Less than a validation takes: the faults are gross."""


class Case(msgspec.Struct, frozen=True):
    """A fault, and what must be said of the machine that has it."""

    name: str
    faults: list[str]
    verdict: NodeVerdict
    code: str
    where: str = ""


def cases(spec: Spec) -> list[Case]:
    """The faults that can be injected here; the last GPU has them."""
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
    """Every case in turn; EXIT_OK when each got its verdict, code and place."""
    wrong = 0
    measure = msgspec.structs.replace(spec.measure, deadline_s=_DEADLINE_S)
    spec = msgspec.structs.replace(spec, blocks=_BLOCKS, measure=measure)
    for case in cases(spec):
        with tempfile.TemporaryDirectory(prefix="deepep-self-test-") as folder:
            node = Suite(msgspec.structs.replace(spec, faults=case.faults), Path(folder), node="self").run()
        finding = next((one for one in node.findings if one.code == node.code), None)
        where = finding.where if finding is not None else ""
        right = (node.verdict, node.code) == (case.verdict, case.code) and case.where in ("", where)
        wrong += not right
        got = " ".join(filter(None, [node.verdict.value, node.code, where]))
        wanted = " ".join(filter(None, [case.verdict.value, case.code, case.where]))
        say(
            f"{'ok' if right else 'WRONG'}: {case.name}: {got}"
            + ("" if right else f", expected {wanted}: {node.reason}")
        )
    say(f"{len(cases(spec)) - wrong} of {len(cases(spec))} faults were judged right")
    return EXIT_UNKNOWN if wrong else EXIT_OK
