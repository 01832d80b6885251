"""Generated documents are up to date and complete."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from launcher.config import job_options, manual, schema
from launcher.config.manual import SWEEP, VALIDATE, ConfigKey, sections
from launcher.validation import config, node
from tests.builders import ROOT

REMAKE = "make docs rewrites it"
REFERENCE = manual.reference()

KEYS = [key for section in [*sections(SWEEP), *sections(VALIDATE)] for key in section.keys]


def classes(module: ModuleType) -> set[tuple[str, str]]:
    """The dataclasses of a schema module, each with its file as in the manual."""
    assert module.__file__ is not None
    file = Path(module.__file__).relative_to(ROOT / "launcher").as_posix()
    statements = ast.parse(Path(module.__file__).read_text()).body
    return {(file, one.name) for one in statements if isinstance(one, ast.ClassDef) and one.decorator_list}


def test_configs_md_equals_the_output_of_its_generator() -> None:
    assert (ROOT / "docs" / "CONFIGS.md").read_text() == REFERENCE, REMAKE


def test_node_schema_json_is_the_schema_that_the_program_reads() -> None:
    assert (ROOT / "docs" / "node.schema.json").read_bytes() == node.schema(), REMAKE


def test_every_dataclass_of_the_schema_is_documented() -> None:
    modules = (schema, job_options, config)
    assert {(file, name) for file, name, _ in [*SWEEP, *VALIDATE]} == set().union(*map(classes, modules))


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_every_key_has_a_meaning(key: ConfigKey) -> None:
    assert key.comment.strip(), "write it behind the field: # what it means"
    assert f"| `{key.name}` |" in REFERENCE


@pytest.mark.parametrize(
    ("name", "default"),
    [("blocks", "24"), ("alltoall_mib", "[64, 256, 1024]"), ("grid", "{}"), ("search.candidates", "null")],
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
