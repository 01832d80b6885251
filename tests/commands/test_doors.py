"""The common behaviour of all eight commands: help, version, refusals, pipes and Ctrl-C. Starts processes."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.store.run_folder import RunFolder
from tests.builders import ROOT

COMMANDS = ("sweep", "resume", "status", "aggregate", "export", "publish", "compare", "validate")
NEEDS_ARGUMENTS = ("resume", "status", "aggregate", "export", "publish", "compare")
USAGE = dict.fromkeys(COMMANDS, 2) | {"validate": 64}
HEAVY = ("scipy", "numpy", "hydra", "omegaconf", "matplotlib", "rich", "torch", "submitit", "jinja2")
RESULTS = ROOT / "outputs" / "published" / "h200x4-ep4-deepseek_v3-bf16" / "RESULTS_EP4.json"

Start = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def start(no_gpus: dict[str, str], tmp_path: Path) -> Start:
    """``start("export", "--help")`` runs launcher.export in an empty folder; ``flags`` are Python's."""

    def run(name: str, *arguments: str, flags: tuple[str, ...] = (), path: Path = ROOT, **streams: Any):
        line = [sys.executable, *flags, "-m", f"launcher.{name}", *arguments]
        environment = no_gpus | {"PYTHONPATH": f"{path}{os.pathsep}{ROOT}", "PYTHONUNBUFFERED": ""}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
        return subprocess.run(line, cwd=tmp_path, env=environment, text=True, timeout=60, check=False, **streams)

    return run


@pytest.fixture
def unread() -> int:
    """A pipe whose reader has exited, like that of ``| head``."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_a_manual_page_and_asking_anywhere_is_enough(name: str, start: Start) -> None:
    process = start(name, "--help")
    page = process.stdout
    assert (process.returncode, process.stderr) == (0, "")
    assert re.match(rf"deepep-{name} - \w.+\n\nUsage\n  python -m launcher\.{name}\b", page)
    assert f"\n  deepep-{name} " in page
    headings = re.findall(r"^(\w[\w ]*)(?=[,( ]|$)", page, re.MULTILINE)
    for section in ("Options", "Description", "Exit status", "Examples", "See also"):
        assert any(heading.startswith(section) for heading in headings), section
    statuses = re.findall(r"^  (\d+)  +\w", page.partition("\nExit status")[2].partition("\n\n")[0], re.MULTILINE)
    assert {"0", str(USAGE[name])} <= set(statuses)
    assert max(map(len, page.splitlines())) <= 140
    assert [start(name, *arguments).stdout for arguments in (["-h"], ["RUN", "--help"], ["--no-such", "-h"])] == [
        page
    ] * 3


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_version_import_no_slow_module(name: str, start: Start) -> None:
    for flag in ("--help", "--version"):
        process = start(name, flag, flags=("-X", "importtime"))
        imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in process.stderr.splitlines()}
        assert "launcher" in imported
        assert imported & set(HEAVY) == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_complete_without_docstrings(name: str, start: Start) -> None:
    assert start(name, "--help", flags=("-OO",)).stdout == start(name, "--help").stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_the_version_equals_that_of_the_package(name: str, start: Start) -> None:
    process = start(name, "--version")
    assert (process.returncode, process.stdout, process.stderr) == (0, "deepep-sweep 0.1.0\n", "")


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_flag_is_refused_in_one_line_with_a_hint(name: str, start: Start, tmp_path: Path) -> None:
    process = start(name, *["RUN"] * {"compare": 2}.get(name, name in NEEDS_ARGUMENTS), "--frobnicate")
    assert (process.returncode, process.stdout) == (USAGE[name], "")
    if name == "resume":  # its other arguments are those of a sweep, which needs a run
        process = start(name, "--frobnicate")
    assert process.stderr == (f"error: unrecognized arguments: --frobnicate\nhint: python -m launcher.{name} --help\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NEEDS_ARGUMENTS)
def test_no_arguments_are_a_usage_error_that_shows_the_usage(name: str, start: Start) -> None:
    process = start(name)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == start(name, "--help").stdout.partition("\n\nArguments")[0] + "\n"


@pytest.mark.parametrize("name", ["sweep", "validate"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cfg", "nothing"], "argument --cfg/-c: invalid choice: 'nothing' (choose from 'job', 'hydra', 'all')"),
        (["--cfg", "job", "--info"], "argument --info/-i: not allowed with argument --cfg/-c"),
        (["--resolve"], "--resolve needs --cfg"),
        (["workload=7"], "workload must be one of deepseek_v3, "),
    ],
)
def test_a_refusal_of_hydra_is_one_line_without_usage_or_traceback(
    name: str, arguments: list[str], message: str, start: Start
) -> None:
    process = start(name, *arguments)
    assert (process.returncode, process.stdout) == (USAGE[name], "")
    error, hint = process.stderr.splitlines()
    assert error.startswith(f"error: {message.format(name=name)}")
    assert hint.startswith(f"hint: python -m launcher.{name} --help")


def test_flags_of_hydra_may_stand_anywhere_and_m_is_implied(start: Start) -> None:
    plan = start("sweep", "-m", "dry_run=true", "hardware=h200", "ep=2").stdout
    assert plan.startswith("DeepEP V1, DeepEP V2, NCCL EP on h200, EP=2, ")
    assert start("sweep", "dry_run=true", "hardware=h200", "-m", "ep=2").stdout == plan
    assert start("sweep", "dry_run=true", "hardware=h200", "ep=2").stdout == plan
    assert start("sweep", "-m", "ep=2", "--cfg", "job").stdout == start("sweep", "--cfg=job", "ep=2").stdout


@pytest.mark.parametrize("name", ["sweep", "validate"])
def test_a_package_called_conf_in_the_working_directory_is_not_ours(name: str, start: Start, tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "__init__.py").touch()
    process = start(name, "dry_run=true")
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("unbuffered", [(), ("-u",)])
def test_a_reader_that_has_gone_leaves_no_traceback(
    name: str, unbuffered: tuple[str, ...], start: Start, unread: int
) -> None:
    process = start(name, "--help", stdout=unread, flags=unbuffered)
    assert (process.returncode, process.stderr) == (3 if name == "validate" else 141, "")
    process = start(name, "--frobnicate", stderr=unread, flags=unbuffered)
    assert (process.returncode, process.stdout) == (3 if name == "validate" else 141, "")


def test_output_without_a_reader_leaves_no_traceback(start: Start, unread: int, folder: RunFolder) -> None:
    run = str(RESULTS.parent)
    for name, *arguments in (
        ("status", str(folder.path)),
        ("compare", run, run),
        ("compare", run, run, "--json"),
        ("publish", run),
        ("sweep", "--cfg", "job"),
        ("sweep", "dry_run=true", "hardware=h200"),
    ):
        process = start(name, *arguments, stdout=unread)
        assert process.returncode == 141
        assert not re.search("Traceback|Exception|Error", process.stderr)


@pytest.mark.parametrize(
    ("words", "status"), [("aggregate --help", 1), ("compare RUN RUN", 2), ("compare RUN RUN --json", 2)]
)
def test_a_full_disk_behind_stdout_is_an_error_in_one_line(words: str, status: int, start: Start) -> None:
    with Path("/dev/full").open("w") as full:
        process = start(*words.replace("RUN", str(RESULTS.parent)).split(), stdout=full)
    assert process.returncode == status
    assert process.stderr == "error: cannot write the output: No space left on device\n"


LATE = dict.fromkeys(COMMANDS, "msgspec") | {"sweep": "hydra", "validate": "hydra"}
"""A module that the command imports inside a function."""


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_leaves_no_traceback(name: str, start: Start, tmp_path: Path) -> None:
    """The signal arrives during an import; imports take most of the time before the first measurement."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / f"{LATE[name]}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    arguments = {"compare": ["A", "B"]}.get(name, ["RUN"] if name in NEEDS_ARGUMENTS else [])
    process = start(name, *arguments, path=modules)
    assert process.stdout == ""
    assert process.stderr == "interrupted\n"
    assert process.returncode == (3 if name == "validate" else 130)


@pytest.mark.parametrize("module", ["matplotlib", "scipy"])
def test_ctrl_c_leaves_no_traceback_of_a_child_either(module: str, no_gpus: dict[str, str], tmp_path: Path) -> None:
    """The drawing process imports matplotlib; a C library may turn Ctrl-C into another exception."""
    modules, run = tmp_path / "modules", tmp_path / "run"
    modules.mkdir()
    interrupt = "import os, signal, time\nos.killpg(0, signal.SIGINT)\ntime.sleep(9)\n"
    if module == "scipy":
        interrupt = (
            "try:\n    raise KeyboardInterrupt\nexcept KeyboardInterrupt as error:\n    raise ImportError from error\n"
        )
    (modules / f"{module}.py").write_text(interrupt)
    shutil.copytree(RESULTS.parent, run)
    for packed in run.rglob("*.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    process = subprocess.run(
        [sys.executable, "-m", "launcher.aggregate", str(run)],
        cwd=tmp_path,
        env=no_gpus | {"PYTHONPATH": f"{modules}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
        check=False,
    )
    assert (process.returncode, process.stdout, process.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("flags", [["--strict", "--allow-mixed"], ["strict=true", "allow_mixed=true"]])
def test_aggregate_takes_its_flags_in_both_notations(flags: list[str], start: Start) -> None:
    process = start("aggregate", "nowhere", *flags)
    assert process.returncode == 2
    assert process.stderr.startswith("error: nowhere is no")
