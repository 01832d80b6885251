"""Imports in the forkserver what every rank would import: once for all of them, and without touching a GPU."""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence

import msgspec

_NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""Makes torch.cuda.is_available ask NVML. Libraries call it at their import, and it would initialise CUDA."""

_DRIVER = "libcuda.so.1"
_NOT_INITIALISED = 3
"""CUDA_ERROR_NOT_INITIALIZED: nothing in this process has called cuInit."""


class Unfit(msgspec.Struct, frozen=True, tag="unfit"):
    """A module that cannot be imported ahead of the fork, and what its import did. Ranks need another forkserver."""

    module: str
    reason: str


class Preload:
    """The modules that this process has imported for its forks, and the ``variables`` that their imports have set."""

    def __init__(self) -> None:
        self._imported: set[str] = set()
        self.variables: dict[str, str] = {}

    def add(self, modules: Sequence[str], environment: Mapping[str, str]) -> Unfit | None:
        """Imports those that are missing, in the environment of the ranks. Ends at the first that is unfit."""
        for name in modules:
            if name not in self._imported:
                before = {**environment, **self.variables, _NVML_CHECK: "1"}
                os.environ.clear()
                os.environ.update(before)
                reason = _import(name)
                if reason is not None:
                    return Unfit(name, reason)
                self._imported.add(name)
                self.variables |= {key: value for key, value in os.environ.items() if before.get(key) != value}
        return None


def _import(name: str) -> str | None:
    """Imports a module; what makes it unfit, None if it is fit."""
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:  # noqa: BLE001  (whatever it is, the ranks raise it again)
        traceback.print_exc()
        return f"raises {type(error).__name__}"
    return "touches a GPU" if has_touched_gpu() else None


def has_touched_gpu() -> bool:
    """Whether CUDA was initialised in this process: then none of its forks can use a GPU.

    Asks the driver only where something has loaded it. Open files of /dev/nvidia* prove nothing: NVML has some too.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return True
    try:
        driver = ctypes.CDLL(_DRIVER, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return False
    return bool(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) != _NOT_INITIALISED)
