"""Commands under Hydra: job settings, errors, and the choice of the command."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from launcher.config import compose
from launcher.config.compose import Composed
from launcher.errors import UserError
from tests.builders import Command

HERE = ("hardware=cpu", "backend=alltoall", "ep='2'")


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hydra reads sys.argv, sets a variable, and makes its folder in the working directory."""
    monkeypatch.setattr(sys, "argv", ["sweep"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.chdir(tmp_path)


def test_a_measurement_has_the_environment_of_hydras_job() -> None:
    values: list[str | None] = []

    def body(_: Composed) -> int:
        values.append(os.environ.get("A_SETTING_OF_NCCL"))
        return 0

    assert compose.run("sweep", ["-m", *HERE, "+hydra.job.env_set.A_SETTING_OF_NCCL=7"], body) == 0
    assert (values, os.environ.get("A_SETTING_OF_NCCL")) == (["7"], None)


def test_the_status_of_several_sweeps_is_the_highest_and_a_refusal_ends_them() -> None:
    statuses = iter([0, 3, 0])
    assert compose.run("sweep", ["-m", *HERE, "seed=1,2,3"], lambda _: next(statuses)) == 3

    def refuse(composed: Composed) -> int:
        raise UserError(f"seed {composed.config.seed}")

    with pytest.raises(UserError, match=r"^seed 1$"):
        compose.run("sweep", ["-m", *HERE, "seed=1,2"], refuse)


def test_a_sweep_that_fails_does_not_keep_the_others_from_running() -> None:
    seeds: list[int] = []

    def body(composed: Composed) -> int:
        seeds.append(composed.config.seed)
        if composed.config.seed == 1:
            raise OSError("a full disk")
        return 0

    with pytest.raises(OSError, match="a full disk"):
        compose.run("sweep", ["-m", *HERE, "seed=1,2"], body)
    assert seeds == [1, 2]


def test_a_primary_config_of_the_site_belongs_to_the_command_that_names_it(run_module: Command, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "ours.yaml").write_text("defaults: [validate]\n")
    site = ("--config-dir", str(tmp_path / "site"), "--config-name", "ours")
    arguments = ("-m", *site, "hydra/launcher=submitit_local", "hardware=cpu", "nodes=a", f"outputs={tmp_path}/outputs")
    process = run_module("launcher.validate", *arguments)
    assert process.returncode == 64, process.stderr
    assert process.stderr.startswith("error: ")
