"""The hardware and backend of a sweep, with ``auto`` resolved from NVML and the import system. Never imports torch."""

from __future__ import annotations

import re

import msgspec
import yaml

from bench.backends import BACKENDS, Backend
from bench.nvml import gpus
from bench.records import Gpu
from bench.rules import Facts
from bench.workload import Workload
from launcher.config.groups import is_every
from launcher.config.schema import Hardware, Spec
from launcher.errors import ROOT, UserError

_GROUP = ROOT / "conf" / "hardware"


def known_hardware() -> list[Hardware]:
    """The files of the hardware group that name a GPU, or the CPU."""
    files = [msgspec.convert(yaml.safe_load(path.read_text()), Hardware) for path in sorted(_GROUP.glob("*.yaml"))]
    return [hardware for hardware in files if hardware.gpu_pattern or hardware.name == "cpu"]


def facts_of(hardware: Hardware, workload: Workload, *, num_ranks: int) -> Facts:
    """What the rules of backends may depend on."""
    return Facts(
        num_ranks=num_ranks,
        workload=workload,
        num_sms=hardware.num_sms,
        memory_bytes=None if hardware.memory_gb is None else int(hardware.memory_gb * 1e9),
        nvlink_gb_per_s=hardware.peak_gb_per_s,
    )


def count_gpus() -> int:
    """The number of visible GPUs of this machine."""
    return len(gpus.inventory())


def resolve(spec: Spec, *, local: bool, dry_run: bool = False) -> tuple[Spec, dict[str, str]]:
    """The spec without ``auto`` and ``all``, and why libraries are left out. ``local``: this machine measures.

    UserError if ``auto`` cannot be decided, or if this machine lacks the hardware that is named.
    """
    spec = msgspec.structs.replace(spec, hardware=resolve_hardware(spec.hardware, local=local))
    if local and not dry_run and spec.hardware.name != "cpu":
        _refuse_missing_gpus(spec)
    names, left_out = resolve_backends(spec.backend, spec.hardware, local=local, dry_run=dry_run)
    if is_every(spec.backend):
        facts = facts_of(spec.hardware, spec.workload, num_ranks=spec.ep.size)
        violations = {name: BACKENDS[name].workload_violations(facts) for name in names}
        fitting = [name for name in names if not violations[name]]
        if fitting:
            left_out |= {name: str(found[0]) for name, found in violations.items() if found}
            names = fitting
    return msgspec.structs.replace(spec, backend=names[0] if len(names) == 1 else names), left_out


def kind_of_this_machine() -> str:
    """The name of this machine's hardware file; that of the GPU where no file matches."""
    inventory = gpus.inventory()
    if not inventory:
        return "cpu"
    kind = _file_of(inventory[0])
    return inventory[0].name if kind is None else kind.name


def resolve_hardware(named: Hardware, *, local: bool) -> Hardware:
    """The named hardware, or that of this machine for ``auto``. UserError as in ``resolve``."""
    if named.name != "auto":
        return named
    known, inventory = known_hardware(), gpus.inventory()
    names = ", ".join(hardware.name for hardware in known)
    if not local and not inventory:
        raise UserError(
            "hardware=auto reads the GPUs of this machine, and it has none",
            hint=f"name the hardware of the job, hardware=NAME with NAME one of {names}",
        )
    if not inventory:
        return next(hardware for hardware in known if hardware.name == "cpu")
    kind = _file_of(inventory[0])
    if kind is not None:
        return _with_readings(kind, inventory[0])
    raise UserError(
        f"no hardware file matches the GPU {inventory[0].name!r}",
        hint=f"take the nearest of {names} (hardware=NAME), or add conf/hardware/<name>.yaml",
    )


def _file_of(gpu: Gpu) -> Hardware | None:
    """The hardware file whose pattern the name of the GPU matches."""
    return next((kind for kind in known_hardware() if kind.gpu_pattern and re.search(kind.gpu_pattern, gpu.name)), None)


def _with_readings(hardware: Hardware, gpu: Gpu) -> Hardware:
    """The hardware file with NVML's readings of this machine's GPU."""
    return msgspec.structs.replace(
        hardware,
        num_sms=gpu.num_sms or hardware.num_sms,
        memory_gb=round(gpu.memory_bytes / 1e9, 1),
        num_links=gpu.num_links or hardware.num_links,
    )


def _refuse_missing_gpus(spec: Spec) -> None:
    """UserError if the ranks would not find their GPUs."""
    count = count_gpus()
    if not count:
        raise UserError(
            f"hardware={spec.hardware.name} needs GPUs, this machine has none",
            hint="hardware=cpu backend=alltoall runs here, hydra/launcher=submitit_slurm runs elsewhere",
        )
    if count < spec.ep.size and not spec.ep.share_gpus:
        raise UserError(
            f"ep.size must be at most {count}, the GPUs of this machine, got {spec.ep.size}",
            hint="take a smaller ep; ep.share_gpus=true tests the path without measuring",
        )


def resolve_backends(
    name: str | list[str], hardware: Hardware, *, local: bool, dry_run: bool = False
) -> tuple[list[str], dict[str, str]]:
    """The libraries that are named, or for ``all`` those that this hardware can run; and why others are left out.

    UserError as in ``resolve``. Unknown names pass: the plan refuses them.
    """
    on_gpu = hardware.name != "cpu"
    if not is_every(name):
        names = [name] if isinstance(name, str) else name
        for each in names:
            if each in BACKENDS:
                _check_named(BACKENDS[each], on_gpu=on_gpu, measures_here=local and not dry_run)
        return names, {}
    if on_gpu:
        return _every_library(local=local, dry_run=dry_run)
    if not local:
        raise UserError("backend=all found no GPU", hint="backend=alltoall tests the path on CPUs")
    return ["alltoall"], {}


def _every_library(*, local: bool, dry_run: bool) -> tuple[list[str], dict[str, str]]:
    """The libraries that can run, and why the others cannot. The plan for a machine with GPUs, made without, has all.

    Of the machine of a job is only known whether this one has the library; without any the job tries DeepEP V1.
    """
    libraries = [backend for backend in BACKENDS.values() if not backend.is_baseline]
    if local and dry_run and not count_gpus():
        return [each.name for each in libraries], {}
    problems = {each.name: [one for one in each.problems() if local or one.absent] for each in libraries}
    left_out = {name: found[0].what for name, found in problems.items() if found}
    names = [each.name for each in libraries if each.name not in left_out]
    if names:
        return names, left_out
    first, *others = libraries
    if local:
        problem = problems[first.name][0]
        raise UserError(f"backend=all found GPUs, but {problem.what}", hint=problem.cure)
    return [first.name], {each.name: f"{left_out[each.name]} here; backend={each.name} tries it" for each in others}


def _check_named(backend: Backend, *, on_gpu: bool, measures_here: bool) -> None:
    """UserError if a library that is named cannot run."""
    if backend.needs_gpu and not on_gpu:
        raise UserError(
            f"backend={backend.name} needs GPUs, this machine has none", hint="backend=alltoall runs on CPUs"
        )
    for problem in backend.problems() if measures_here else ():
        raise UserError(f"backend={backend.name} cannot run here: {problem.what}", hint=problem.cure)
