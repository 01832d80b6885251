"""From the configuration to a node's Spec: resolves ``auto`` and null, and refuses what cannot run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from bench import rules
from bench.backends import BACKENDS, LIBRARY_DEFAULT, Backend
from bench.records import Op
from bench.rules import Facts, Violation
from launcher.config import hardware as machine
from launcher.errors import UserError
from launcher.validation import reference
from launcher.validation.config import DEEPEP_CONFIG, ON_CPU, Spec
from launcher.validation.node_faults import check_faults

_CPU_INTERMEDIATE = 1
"""Width of an expert in a dry run: BF16 products are slow on a CPU, and there they only show slow ranks."""


def for_jobs(values: dict[str, Any]) -> Spec:
    """The Spec of other nodes. UserError without hardware=NAME if this machine has no GPUs."""
    return _resolve(values, local=False)


def for_here(values: dict[str, Any]) -> Spec:
    """The Spec of this machine."""
    return _resolve(values, local=True)


def _resolve(values: dict[str, Any], *, local: bool) -> Spec:
    requested = msgspec.convert(values | {"gpus": values["gpus"] or 0, "references": _read_references(values)}, Spec)
    hardware = machine.resolve_hardware(requested.hardware, local=local)
    counted = machine.count_gpus() if local else 0
    gpus = requested.gpus or counted or hardware.gpus_per_node or 4
    on_cpu = hardware.name == "cpu"
    if local and not on_cpu and not counted:
        raise UserError(
            f"hardware={hardware.name} needs GPUs, this machine has none", hint="hardware=cpu tests without them"
        )
    backend_name = machine.resolve_backends(requested.backend, hardware, local=local)[0][0]
    backend = BACKENDS[backend_name]
    thresholds, workload = requested.thresholds, requested.workload
    if on_cpu:
        workload = msgspec.structs.replace(workload, moe_intermediate=_CPU_INTERMEDIATE)
        thresholds = msgspec.convert(msgspec.to_builtins(thresholds) | ON_CPU, type(thresholds))
    spec = msgspec.structs.replace(
        requested,
        hardware=hardware,
        workload=workload,
        gpus=gpus,
        gpus_named=bool(requested.gpus or not counted),
        backend=backend_name,
        thresholds=thresholds,
    )
    _check_workload(spec, backend)
    spec = msgspec.structs.replace(spec, configs=_choose_configs(spec, backend))
    _check(spec, backend)
    return spec


def _read_references(values: dict[str, Any]) -> list[Any]:
    """The entries of reference=; the published ones are those of the GPUs of hardware=NAME, as far as it names any."""
    name, pattern = values["reference"], values["hardware"]["gpu_pattern"] or ""
    if name is None or (name == reference.PUBLISHED and values["hardware"]["name"] == "cpu"):
        return []
    if name == reference.PUBLISHED:
        entries = [entry for entry in reference.read_published() if re.search(pattern, entry.gpu)]
    else:
        entries = reference.read(Path(name)).entries
    plain: list[Any] = msgspec.to_builtins(entries)
    return plain


def _choose_configs(spec: Spec, backend: Backend) -> dict[str, list[int]]:
    facts = machine.facts_of(spec.hardware, spec.workload, num_ranks=spec.gpus)
    configs = {}
    for op in (Op.DISPATCH, Op.COMBINE):
        own = list(backend.defaults(op, facts)[LIBRARY_DEFAULT].values())
        configs[op.value] = spec.configs.get(op.value) or (DEEPEP_CONFIG if backend.name == "deepep" else own)
    return configs


def _make_hint(violation: Violation, spec: Spec) -> str:
    """The hint of a violation; if the number of GPUs breaks the rule, the number first: a GPU may be missing."""
    if violation.key not in ("ep.size", "workload.num_experts"):
        return violation.hint
    count = f"{spec.gpus} GPUs are " + ("expected" if spec.gpus_named else "seen here")
    return f"{count}; set gpus=N to the number that belongs here; {violation.hint}"


def _check_workload(spec: Spec, backend: Backend) -> None:
    """UserError for a workload, or a number of GPUs, that the library cannot run; it may have no default there."""
    facts = machine.facts_of(spec.hardware, spec.workload, num_ranks=spec.gpus)
    for violation in rules.workload_violations(facts) + backend.workload_violations(facts):
        raise UserError(str(violation), hint=_make_hint(violation, spec))


def _check(spec: Spec, backend: Backend) -> None:
    facts = Facts(spec.gpus, spec.workload, spec.hardware.num_sms, None)
    for op in (Op.DISPATCH, Op.COMBINE):
        values = spec.configs[op.value]
        if len(values) != len(backend.knobs):
            names = ", ".join(knob.name for knob in backend.knobs)
            raise UserError(f"configs.{op} must hold {names}, got {values}")
        knobs = dict(zip((knob.name for knob in backend.knobs), values, strict=True))
        for violation in backend.point_violations(op, knobs, facts=facts):
            raise UserError(f"configs.{op}: {violation}", hint=violation.hint)
    try:
        check_faults(spec.faults, gpus=spec.gpus)
    except ValueError as error:
        raise UserError(f"faults: {error}") from None
