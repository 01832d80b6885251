"""Marks on this node for the points whose kernels it has compiled, so that the next process need not run them."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from bench.backends import BACKENDS, Backend, machine
from bench.protocol import GroupSpec
from bench.records import Point, digest


class Marks:
    """An empty file for each point, in a folder of the node. A mark holds for what kernels are compiled from.

    That is the point, the shape of the workload, the number of ranks, the versions of the library's packages, the
    compiler, and the folder of the kernels, which must still hold some.
    """

    def __init__(self, spec: GroupSpec, folder: Path) -> None:
        self._spec, self._folder = spec, folder
        self._software: dict[str, dict[str, str]] = {}

    def has(self, point: Point) -> bool:
        """Whether the kernels of the point are there."""
        kernels = _kernel_folder(BACKENDS[point.backend])
        is_gone = kernels is not None and not (kernels.is_dir() and any(kernels.iterdir()))
        return not is_gone and self._file(point).exists()

    def add(self, point: Point) -> None:
        """Notes that the kernels of the point are there."""
        self._file(point).touch()

    def _file(self, point: Point) -> Path:
        backend, spec = BACKENDS[point.backend], self._spec
        shape = msgspec.structs.replace(spec.workload, name="", routing="", seed=0)
        if backend.name not in self._software:
            self._software[backend.name] = _read_software(backend)
        origin = self._software[backend.name], str(_kernel_folder(backend))
        return self._folder / digest(point, shape, spec.num_ranks, spec.device, *origin)


def _kernel_folder(backend: Backend) -> Path | None:
    """Where the library keeps its kernels; None if it compiles none."""
    name = backend.kernel_variable
    return Path(os.environ.get(name) or backend.environment()[name]) if name else None


def _read_software(backend: Backend) -> dict[str, str]:
    """The versions of the library's packages, and the compiler."""
    nvcc = machine.find_nvcc()
    compiler = "" if nvcc is None else f"{nvcc} {machine.nvcc_version(nvcc)}"
    return machine.installed_versions(backend.packages) | {"nvcc": compiler}
