"""A sweep of two shards, for the tests of several commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builders import Command, Sweep
from tests.commands.runs import FAULT, SMALL


@pytest.fixture(scope="module")
def two_shards(run_module: Command, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A sweep of two shards in which one point fails."""
    outputs = tmp_path_factory.mktemp("two") / "outputs"
    process = run_module("launcher.sweep", *SMALL, "shard.count=2", "strict=true", FAULT, f"outputs={outputs}")
    return Sweep(process, outputs, Path(process.stdout.strip()).parent)
