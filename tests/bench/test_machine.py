"""What a node offers the libraries: a folder for kernels that nobody else may write, a CUDA toolkit, packages."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path

import pytest

from bench.backends import BACKENDS, machine


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node whose temporary folder is empty."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_all_libraries_have_a_folder_in_the_same_private_one_that_a_second_call_finds_again(node: Path) -> None:
    first, second = machine.kernel_folder("deepep_v2"), machine.kernel_folder("nccl_ep")
    assert first.parent == second.parent
    assert first.parent.parent == node
    assert stat.S_IMODE(first.parent.stat().st_mode) == 0o700
    machine._private_folder.cache_clear()  # as in another process
    assert machine.kernel_folder("deepep_v2") == first


@pytest.mark.parametrize("trap", ["link", "file", "writable"])
def test_a_folder_that_somebody_else_may_write_is_not_used(node: Path, trap: str) -> None:
    taken = machine.kernel_folder("probe").parent
    (taken / "probe").rmdir()
    taken.rmdir()
    machine._private_folder.cache_clear()
    if trap == "link":
        (node / "elsewhere").mkdir()
        taken.symlink_to(node / "elsewhere")
    elif trap == "file":
        taken.touch()
    else:
        taken.mkdir()
        taken.chmod(0o777)
    folder = machine.kernel_folder("deepep_v2")
    assert folder.parent != taken
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert machine.kernel_folder("nccl_ep").parent == folder.parent


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CUDA toolkit that no variable names, on a node without any other."""
    nvcc = tmp_path / "toolkit" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    nvcc.chmod(0o755)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(machine, "_CUDA", tmp_path / "none")
    return nvcc.parent.parent


def test_the_toolkit_is_that_of_the_variables_then_of_path_then_the_usual_place(
    toolkit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine.cuda_home() is None
    assert machine.find_nvcc() is None
    monkeypatch.setattr(machine, "_CUDA", toolkit)
    assert machine.cuda_home() == toolkit
    monkeypatch.setattr(machine, "_CUDA", toolkit / "none")
    monkeypatch.setenv("PATH", str(toolkit / "bin"))
    assert machine.find_nvcc() == toolkit / "bin" / "nvcc"
    monkeypatch.setenv("CUDA_HOME", "")  # as if it were not set, as in deep_ep
    monkeypatch.setenv("CUDA_PATH", "/elsewhere")
    assert machine.cuda_home() == Path("/elsewhere")


def test_a_variable_that_names_a_folder_without_nvcc_is_a_problem_even_where_path_has_one(
    toolkit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{toolkit / 'bin'}:/usr/bin:/bin")
    assert machine.nvcc_problems(least=(12, 3)) == []
    monkeypatch.setenv("CUDA_HOME", "/elsewhere")
    (problem,) = machine.nvcc_problems(least=(12, 3))
    assert "/elsewhere" in problem.what
    assert "CUDA_HOME" in problem.cure


@pytest.mark.usefixtures("toolkit")
def test_without_a_toolkit_only_deep_ep_1_can_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "packages" / "deep_ep"
    (package / "buffers").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(package.parent)
    assert BACKENDS["deepep"].problems() == []
    (package / "buffers" / "elastic.py").touch()
    (problem,) = BACKENDS["deepep"].problems()
    assert "CUDA toolkit" in problem.what


def test_packages_are_named_with_their_versions_and_unknown_ones_are_empty() -> None:
    import msgspec

    assert machine.providers(frozenset({"msgspec.json", "no_such"})) == {
        "msgspec.json": f"msgspec {msgspec.__version__}",
        "no_such": "",
    }
