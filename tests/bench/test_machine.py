"""The folder of compiled kernels: ranks run what lies in it, so it must belong to this user alone."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path

import pytest

from bench.backends import machine


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
