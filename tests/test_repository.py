"""Rules for the files of the project."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.builders import ROOT
from tests.published import PUBLISHED

UNTIL_MEASURED_AGAIN = {
    *("h100x2-ep2-bf16", "h100x2-ep2-bf16-again", "h100x2-ep2-exhaustive", "h100x2-ep2-fp8"),
    *("h100x2-node", "h100x2-node-slow", "h100x2-node-wrong"),
    *("h200x2-ep2-bf16", "h200x2-ep2-bf16-again", "h200x2-ep2-exhaustive", "h200x2-ep2-fp8", "h200x2-ep2-fp8-again"),
    *("h200x2-ep4-shared", "h200x4-ep4-node"),
    *("h200x4-ep4-deepseek_v3-bf16", "h200x4-ep4-deepseek_v3-fp8"),
    *("h200x4-ep4-qwen3_30b_a3b-bf16", "h200x4-ep4-qwen3_30b_a3b-fp8"),
}
"""Published before their program knew its own version, or from a changed checkout; the list only gets shorter."""


def comes_from_a_commit(file: Path) -> bool:
    """Whether a run.json or NODE.json names the version of the program and an unchanged commit."""
    document = json.loads(file.read_bytes())
    revision = document["revision"]
    return document["program"] != "unknown" and revision["commit"] is not None and revision["dirty"] is False


def test_no_file_of_the_project_names_a_machine_it_was_written_on() -> None:
    for folder, suffix in itertools.product(("bench", "launcher", "conf"), (".py", ".yaml")):
        for file in (ROOT / folder).rglob(f"*{suffix}"):
            assert not re.search(r"/(home|work|Users)/", file.read_text()), file


def test_every_published_run_names_a_commit_or_is_listed_to_be_measured_again() -> None:
    files = [*PUBLISHED.rglob("run.json"), *PUBLISHED.rglob("NODE.json")]
    known = {file.relative_to(PUBLISHED).parts[0]: comes_from_a_commit(file) for file in files}
    folders = {folder.name for folder in PUBLISHED.iterdir() if folder.is_dir()} - {"library"}
    assert known.keys() == folders
    assert {name for name, comes in known.items() if not comes} == UNTIL_MEASURED_AGAIN


@pytest.mark.parametrize(
    ("changes", "comes"),
    [
        ({}, True),
        ({"program": "unknown"}, False),
        ({"revision": {"commit": None, "dirty": None, "code": "0"}}, False),
        ({"revision": {"commit": "0" * 40, "dirty": True, "code": "0"}}, False),
    ],
)
def test_an_unknown_program_and_an_unknown_or_changed_revision_do_not_count_as_a_commit(
    changes: dict[str, Any], *, comes: bool, tmp_path: Path
) -> None:
    document = {"program": "0.1.0", "revision": {"commit": "0" * 40, "dirty": False, "code": "0"}}
    (tmp_path / "run.json").write_text(json.dumps(document | changes))
    assert comes_from_a_commit(tmp_path / "run.json") is comes
