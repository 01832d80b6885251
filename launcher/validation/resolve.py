"""From the configuration to a node's Spec: what ``auto`` and null mean here, and what is refused; see validate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from bench import rules
from bench.backends import BACKENDS, Backend
from bench.records import Op
from bench.rules import Facts
from launcher import machine
from launcher.errors import UserError
from launcher.validation import reference
from launcher.validation.settings import ON_CPU, Spec
from launcher.validation.suite import check_faults

DEEPEP_CONFIG = [64, 8, 256]
"""num_sms, nvl_chunk and nvl_buffer of the speed phase: half of the link's peak and more on H200s, and within the
rules of every number of ranks."""


def for_jobs(values: dict[str, Any]) -> Spec:
    """The Spec of nodes elsewhere: hardware has to be named where this machine has no GPUs."""
    return _spec(values, local=False)


def for_here(values: dict[str, Any]) -> Spec:
    """The Spec of this machine."""
    return _spec(values, local=True)


def _spec(values: dict[str, Any], *, local: bool) -> Spec:
    wanted = msgspec.convert(values | {"gpus": values["gpus"] or 0, "references": _references(values)}, Spec)
    hardware = machine.hardware(wanted.hardware, local=local)
    gpus = wanted.gpus or (machine.num_gpus() if local else 0) or hardware.gpus_per_node or 4
    on_cpu = hardware.name == "cpu"
    backend_name = machine.backend(wanted.backend, hardware, local=local)
    backend = BACKENDS[backend_name]
    thresholds = wanted.thresholds
    if on_cpu:
        thresholds = msgspec.convert(msgspec.to_builtins(thresholds) | ON_CPU, type(thresholds))
    spec = msgspec.structs.replace(
        wanted,
        hardware=hardware,
        gpus=gpus,
        backend=backend_name,
        thresholds=thresholds,
        configs=_configs(wanted, backend, gpus),
    )
    _refuse(spec, backend)
    return spec


def _references(values: dict[str, Any]) -> list[Any]:
    if values["reference"] is None:
        return []
    plain: list[Any] = msgspec.to_builtins(reference.read(Path(values["reference"])).entries)
    return plain


def _configs(spec: Spec, backend: Backend, gpus: int) -> dict[str, list[int]]:
    found = {}
    for op in (Op.DISPATCH, Op.COMBINE):
        own = DEEPEP_CONFIG if backend.name == "deepep" else list(backend.default(op, num_ranks=gpus).values())
        found[op.value] = spec.configs.get(op.value, own)
    if unknown := set(spec.configs) - set(found):
        raise UserError(
            f"configs has {', '.join(sorted(unknown))}", hint="configs={dispatch:[64,8,256],combine:[64,8,256]}"
        )
    return found


def _refuse(spec: Spec, backend: Backend) -> None:
    facts = Facts(spec.gpus, spec.workload, spec.hardware.num_sms, None)
    for violation in rules.workload_violations(facts) + backend.workload_violations(facts):
        raise UserError(str(violation), hint=violation.hint)
    for op in (Op.DISPATCH, Op.COMBINE):
        values = spec.configs[op.value]
        if len(values) != len(backend.knobs):
            names = ", ".join(knob.name for knob in backend.knobs)
            raise UserError(f"configs.{op} must hold {names}, got {values}")
        knobs = dict(zip((knob.name for knob in backend.knobs), values, strict=True))
        for violation in backend.point_violations(op, knobs, facts=facts):
            raise UserError(f"configs.{op}: {violation}", hint=violation.hint)
    try:
        check_faults(spec.faults)
    except ValueError as error:
        raise UserError(f"faults: {error}") from None
