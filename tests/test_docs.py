"""Generated documents are what their generators give now, and leave nothing out."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import pytest
import yaml
from builders import ROOT

from launcher.config import manual
from launcher.config.manual import SWEEP, VALIDATE, ConfigKey, sections
from launcher.validation import node

REMAKE = "make docs writes it anew"
REFERENCE = manual.reference()
KEYS = [key for section in [*sections(SWEEP), *sections(VALIDATE)] for key in section.keys]


def classes(file: str) -> set[tuple[str, str]]:
    """The dataclasses of a file of the schema."""
    found = ast.parse((ROOT / "launcher" / file).read_text()).body
    return {(file, one.name) for one in found if isinstance(one, ast.ClassDef) and one.decorator_list}


def test_configs_md_is_what_the_generator_gives() -> None:
    assert (ROOT / "docs" / "CONFIGS.md").read_text() == REFERENCE, REMAKE


def test_node_schema_json_is_what_the_program_reads() -> None:
    assert (ROOT / "docs" / "node.schema.json").read_bytes() == node.schema(), REMAKE


def test_every_dataclass_of_the_schema_is_documented() -> None:
    files = ("config/schema.py", "config/job_options.py", "validation/config.py")
    assert {(file, name) for file, name, _ in [*SWEEP, *VALIDATE]} == set().union(*map(classes, files))


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_every_key_has_a_meaning(key: ConfigKey) -> None:
    assert key.comment.strip(), "write it behind the field: # what it means"
    assert f"| `{key.name}` |" in REFERENCE


@pytest.mark.parametrize(
    ("name", "default"),
    [("thresholds.fleet_z", "3.5"), ("alltoall_mib", "[64, 256, 1024]"), ("grid", "{}"), ("search.candidates", "[]")],
)
def test_a_default_is_written_as_on_the_command_line(name: str, default: str) -> None:
    assert [key.default for key in KEYS if key.name == name] == [default]


@pytest.mark.parametrize(
    "file", sorted((ROOT / "conf").glob("*/*.yaml")), ids=lambda file: f"{file.parent.name}={file.stem}"
)
def test_every_choice_has_a_source_in_its_first_line_and_its_values_in_the_document(file: Path) -> None:
    first, _, rest = file.read_text().partition("\n")
    assert first.startswith("# ")
    row = next(
        line
        for line in REFERENCE.split(f"\n### {file.parent.name}\n")[-1].splitlines()
        if line.startswith(f"| `{file.stem}` |")
    )
    for name, value in yaml.safe_load(rest).items():
        if isinstance(value, int) and not isinstance(value, bool):
            assert f"| `{value}` |" in row, name


def test_the_generator_prints_or_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert manual.main([str(tmp_path / "CONFIGS.md")]) == 0
    assert capsys.readouterr() == ("", "")
    assert manual.main([]) == 0
    assert capsys.readouterr().out == (tmp_path / "CONFIGS.md").read_text() == REFERENCE
    assert manual.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: cannot write {tmp_path}: Is a directory\n"


def columns(text: str) -> set[str]:
    """The headers of the columns of numbers, of every table."""
    lines = text.splitlines()
    found = set()
    for header, align in itertools.pairwise(lines):
        if re.fullmatch(r"\|( -+:? \|)+", align):
            names = [name.strip() for name in header.strip("|").split("|")]
            found |= {name for name, one in zip(names, align.strip("|").split("|"), strict=True) if one.endswith(": ")}
    return found


def test_every_column_of_a_report_stands_in_the_readme() -> None:
    section = (ROOT / "README.md").read_text().split("## Read the results")[1].split("\n## ")[0]
    known = {name for line in section.splitlines() if line.startswith("| ") for name in line.split("|")[1].split(",")}
    for run in ("h100x2-ep2-bf16", "h200x2-ep2-fp8", "h200x4-ep4-deepseek_v3-bf16"):
        found = columns((ROOT / "outputs" / "published" / run / "OPTIMAL_CONFIGS.md").read_text())
        assert {"beside GEMMs us", "GEMM slowdown", "saved ms", "speed", "measured"} <= found
        assert found - {name.strip() for name in known} == set()
