"""A library of a test."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import forkserver
from tests.bench.libraries import Library
from tests.builders import ROOT


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """The library, and a forkserver that finds it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # kernels of DeepEP
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path)]))
    forkserver.end()
    yield Library(tmp_path)
    forkserver.end()
