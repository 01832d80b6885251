"""Command lines that repeat a sweep."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.errors import HydraException

from launcher.config import arguments, job_options, schema
from launcher.errors import UserError


def test_each_of_several_sweeps_is_resumed_by_a_separate_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["sweep", "-m", "ep='2','4'", "hydra/launcher=submitit_slurm"])
    command = arguments.command_line(["ep='4'"], ["hydra.mode=MULTIRUN", "hydra/launcher=submitit_slurm"])
    assert command == ["deepep-sweep", "-m", "hydra/launcher=submitit_slurm", "ep='4'"]
    monkeypatch.setattr(sys, "argv", ["sweep", "-m", "ep='4'"])
    assert arguments.command_line(["ep='4'"], ["hydra.mode=MULTIRUN"]) == ["deepep-sweep", "-m", "ep='4'"]


REMOVED = "hydra.launcher.poll_s is no longer a key (Slurm is queried every 2 to 8 s)"


@pytest.mark.parametrize(
    "argument", ["hydra.launcher.poll_s=0.5", "++hydra.launcher.poll_s=1", "~hydra.launcher.poll_s"]
)
def test_a_key_of_an_earlier_version_is_refused_by_name(argument: str):
    with pytest.raises(UserError) as caught:
        arguments.complete_arguments(["ep=2", argument])
    assert str(caught.value) == REMOVED


GRIDS = "grid must be one of full, smoke, standard, upstream, got nope"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("defaults: [submitit_slurm]\npoll_s: 0.5\n", REMOVED),
        ("defaults: [submitit_slurm, /grid@_global_.extra: nope]\n", GRIDS),
    ],
)
def test_a_refusal_names_the_file_of_the_site_in_which_the_key_or_the_choice_stands(
    content: str, message: str, tmp_path: Path
):
    file = tmp_path / "hydra" / "launcher" / "mysite.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    schema.register()
    job_options.register()
    site = [f"hydra.searchpath=['file://{tmp_path}']", "hydra/launcher=mysite"]
    with initialize_config_module("conf", version_base="1.3"), pytest.raises(HydraException) as caught:
        compose("sweep", overrides=site, return_hydra_config=True)
    assert arguments.one_line_message(caught.value) == f"In 'hydra/launcher/mysite': {message}"


def test_the_command_of_an_earlier_version_is_resumed_without_its_removed_keys(capsys: pytest.CaptureFixture[str]):
    assert arguments.drop_removed(["-m", "ep=2", "hydra.launcher.poll_s=5"]) == ["-m", "ep=2"]
    assert capsys.readouterr().err == f"dropped hydra.launcher.poll_s=5: {REMOVED}\n"
