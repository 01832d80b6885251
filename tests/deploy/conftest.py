"""Fixtures for the tests of exports."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from launcher.deploy import exporting
from launcher.deploy.formats import EXPORTS
from tests.deploy.exported import FILES, RESULTS, Document


@pytest.fixture
def document() -> Document:
    """A real RESULTS document without its long tables, to be changed."""
    decoded: Document = msgspec.json.decode(RESULTS.read_bytes())
    return decoded | {"measurements": [], "best_per_shared": []}


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all exports of two H200s at EP=2."""
    run = tmp_path_factory.mktemp("run")
    shutil.copy(RESULTS, run)
    paths = exporting.export(run / RESULTS.name, names=list(EXPORTS))
    assert [path.name for path in paths] == FILES
    return run / "exports"
