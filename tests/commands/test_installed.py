"""The installed package, run from unrelated folders. Starts processes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders import ROOT

SOURCES = ("bench", "conf", "hydra_plugins", "launcher", "pyproject.toml", "README.md", "LICENSE")
COMMANDS = ("sweep", "resume", "status", "aggregate", "export", "publish", "compare", "validate")
TINY = ("ep=2", "workload=small", "grid=smoke", "measure=quick", "search.rounds=1", "search.final_groups=0")
FOREIGN = ("bench", "conf", "launcher", "hydra_plugins/deepep_sweep")

Script = Callable[..., subprocess.CompletedProcess[str]]


def checked(*line: str | Path, cwd: Path) -> None:
    done = subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(no_gpus: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy because a build leaves folders in its source tree."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    offline = ("--no-deps", "--no-index", "--no-build-isolation", "--quiet")
    checked(sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", folder, source, cwd=folder)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment with the wheel; it takes its other packages from the tests' environment."""
    folder = tmp_path_factory.mktemp("environment")
    checked(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    shared = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "shared.pth").write_text("\n".join(shared))
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python")
    checked(*pip, "install", "--no-deps", "--no-index", "--quiet", wheel, cwd=folder)
    return folder


@pytest.fixture
def script(environment: Path, no_gpus: dict[str, str], tmp_path: Path) -> Script:
    """``script("deepep-sweep", ...)`` in a folder whose packages have our names and fail on import."""
    for name in FOREIGN:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('a foreign package')\n")
    variables = {name: value for name, value in no_gpus.items() if name != "PYTHONPATH"}

    def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        line = [environment / "bin" / name, *arguments]
        return subprocess.run(
            line, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120, check=False
        )

    return run


def test_the_wheel_has_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {
        str(file.relative_to(ROOT))
        for folder in SOURCES[:4]
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {"launcher/py.typed", "bench/py.typed", "launcher/deploy/templates/deepep_shim.py"} <= names


def test_the_installed_code_runs_and_not_that_of_the_checkout(script: Script, environment: Path) -> None:
    root = script("python", "-P", "-c", "from launcher import errors; print(errors.ROOT)").stdout.strip()
    assert Path(root).is_relative_to(environment)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_installed_and_shows_its_page(name: str, script: Script) -> None:
    process = script(f"deepep-{name}", "--help")
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.startswith(f"deepep-{name} - ")
    assert script(f"deepep-{name}", "--version").stdout == "deepep-sweep 0.1.0\n"


def test_a_plan_is_printed_where_a_folder_holds_packages_of_the_same_names(script: Script, tmp_path: Path) -> None:
    process = script("deepep-sweep", "dry_run=true", "hardware=h200", "backend=deepep")
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.startswith("DeepEP V1 on h200, EP=4, deepseek_v3 ")
    assert not list(tmp_path.glob("outputs/*-*"))


@pytest.mark.parametrize("launcher", ["basic", "submitit_local"])
def test_a_dry_run_measures_there_and_every_command_reads_its_folder(
    launcher: str, script: Script, tmp_path: Path
) -> None:
    process = script("deepep-sweep", "hardware=cpu", f"hydra/launcher={launcher}", *TINY)
    assert process.returncode == 0, process.stderr
    assert re.fullmatch(r"outputs/[\w-]+/OPTIMAL_CONFIGS.md\n", process.stdout)
    report = tmp_path / process.stdout.strip()
    run = report.parent
    assert report.is_file()
    for name, *arguments in (("status", run), ("aggregate", run), ("compare", run, run), ("resume", run)):
        done = script(f"deepep-{name}", *arguments)
        assert done.returncode == 0, done.stderr
    refused = script("deepep-publish", run)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "is a dry run" in refused.stderr


def test_a_validation_runs_there_too(script: Script, tmp_path: Path) -> None:
    process = script("deepep-validate", "gpus=2", "blocks=5")
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("DEEPEP OK - dry run without GPUs: 1 node passes")
    (report,) = tmp_path.glob("outputs/*/NODES.md")
    rerun = script("deepep-validate", f"report={report.parent}")
    assert (rerun.returncode, rerun.stdout) == (0, process.stdout)
