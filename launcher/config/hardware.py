"""The hardware and backend of a sweep, with ``auto`` resolved from NVML and the import system. Never imports torch."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import msgspec
import yaml

from bench.nvml import gpus
from bench.records import Gpu
from launcher.config.schema import Hardware, Spec
from launcher.errors import ROOT, UserError

_GROUP = ROOT / "conf" / "hardware"

_GET_DEEP_EP = (
    "pip install --no-deps tokenspeed-deepep==1.2.1.post20251110 with torch 2.11.0 (CUDA 13), "
    "or another pair of README's table; or backend=alltoall"
)


def known_hardware() -> list[Hardware]:
    """The files of the hardware group that name a GPU, or the CPU."""
    files = [msgspec.convert(yaml.safe_load(path.read_text()), Hardware) for path in sorted(_GROUP.glob("*.yaml"))]
    return [hardware for hardware in files if hardware.gpu_pattern or hardware.name == "cpu"]


def count_gpus() -> int:
    """The number of visible GPUs of this machine."""
    return len(gpus.inventory())


def resolve(spec: Spec, *, local: bool, dry_run: bool = False) -> Spec:
    """The spec without ``auto``. ``local``: this machine measures, not a job elsewhere.

    UserError if ``auto`` cannot be decided, or if this machine lacks the hardware that is named.
    """
    spec = msgspec.structs.replace(spec, hardware=resolve_hardware(spec.hardware, local=local))
    if local and not dry_run and spec.hardware.name != "cpu":
        _refuse_missing_gpus(spec)
    backend = resolve_backend(spec.backend, spec.hardware, local=local, dry_run=dry_run)
    return msgspec.structs.replace(spec, backend=backend)


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
    for hardware in known:
        if hardware.gpu_pattern and re.search(hardware.gpu_pattern, inventory[0].name):
            return _with_readings(hardware, inventory[0])
    raise UserError(
        f"no hardware file matches the GPU {inventory[0].name!r}",
        hint=f"take the nearest of {names} (hardware=NAME), or add conf/hardware/<name>.yaml",
    )


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


def resolve_backend(name: str, hardware: Hardware, *, local: bool, dry_run: bool = False) -> str:
    """The named backend, or for ``auto`` the one that this hardware can run. UserError as in ``resolve``."""
    on_gpu = hardware.name != "cpu"
    is_importable = dry_run or _is_importable("deep_ep")
    if name == "deepep" and not on_gpu:
        raise UserError("backend=deepep needs GPUs, this machine has none", hint="backend=alltoall runs on CPUs")
    if name == "deepep" and local and not is_importable:
        raise UserError("backend=deepep cannot import deep_ep", hint=_GET_DEEP_EP)
    if name != "auto":
        return name
    if on_gpu and (is_importable or not local):
        return "deepep"
    if on_gpu:
        raise UserError("backend=auto found GPUs, but deep_ep is not installed", hint=_GET_DEEP_EP)
    if not local:
        raise UserError("backend=auto found no GPU", hint="backend=alltoall tests the path on CPUs")
    return "alltoall"


def _is_importable(name: str) -> bool:
    """Whether ranks can import a package. They do not look in the working directory, which ``python -m`` does."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return False
    places = [*(spec.submodule_search_locations or []), *([spec.origin] if spec.origin else [])]
    search_path = {Path(entry).resolve() for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}
    here = Path.cwd()
    return here in search_path or not all(Path(place).resolve().parent in (here, here / name) for place in places)
