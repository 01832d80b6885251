"""NODE.json and reference files of other versions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launcher.errors import UserError
from launcher.validation import node as node_files
from launcher.validation import reference
from launcher.validation.config import Spec
from tests.builders import ROOT
from tests.nodes import judge_node, learn_reference, suite_run

PUBLISHED = sorted((ROOT / "outputs" / "published").rglob("NODE.json"))


def common(value: Any, pattern: Any) -> Any:
    """The value without the members of later versions, which the pattern does not have."""
    if isinstance(pattern, dict):
        return {name: common(value[name], member) for name, member in pattern.items()}
    if isinstance(pattern, list):
        return [common(*pair) for pair in zip(value, pattern, strict=True)]
    return value


def test_node_files_are_published():
    assert len(PUBLISHED) >= 4


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: str(file.relative_to(ROOT / "outputs" / "published")))
def test_every_published_node_file_loads_and_keeps_its_members(file: Path):
    members = json.loads(file.read_bytes())
    assert common(json.loads(msgspec.json.encode(node_files.read(file))), members) == members


def test_members_that_are_not_known_are_ignored(spec: Spec, tmp_path: Path):
    node_files.write(tmp_path, judge_node(suite_run(), spec=spec))
    file = tmp_path / node_files.FILE_NAME
    node, members = node_files.read(file), json.loads(file.read_bytes())
    (first_run,) = members["attempts"]
    structs = [members, members["revision"], first_run, first_run["preflight"], first_run["environment"]]
    for struct in (*structs, first_run["rates"][0], first_run["phases"][0], first_run["before"][0]):
        struct["from_a_later_version"] = {"any": [1]}
    file.write_text(json.dumps(members))
    assert node_files.read(file) == node

    file = tmp_path / "reference.json"
    members = json.loads(msgspec.json.encode(learn_reference()))
    members["from_a_later_version"] = members["entries"][0]["from_a_later_version"] = 1
    file.write_text(json.dumps(members))
    assert reference.read(file) == learn_reference()


def test_a_newer_major_version_is_refused_by_name(tmp_path: Path):
    file = tmp_path / "NODE.json"
    file.write_text('{"schema": "deepep-sweep/node/2"}')
    with pytest.raises(UserError) as refusal:
        node_files.read(file)
    assert str(refusal.value) == f"{file} has schema deepep-sweep/node/2, this program reads up to deepep-sweep/node/1"
    file.write_text('{"schema": "deepep-sweep/reference/12"}')
    with pytest.raises(UserError) as refusal:
        reference.read(file)
    assert str(refusal.value) == (
        f"reference={file} has schema deepep-sweep/reference/12, this program reads up to deepep-sweep/reference/1"
    )


@pytest.mark.parametrize("schema", ["deepep-sweep/reference/1", "deepep-sweep/node/0", "deepep-sweep/results/9", ""])
def test_another_kind_of_file_is_not_taken_for_a_node_or_a_reference(schema: str, tmp_path: Path):
    file = tmp_path / "NODE.json"
    file.write_text(json.dumps({"schema": schema}))
    for read in (node_files.read, reference.read):
        with pytest.raises(UserError, match=re.escape(str(file))):
            read(file)
