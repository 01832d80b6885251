"""Reading tuned results, and refusing those that must not be deployed."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from launcher.deploy import exporting, tuned
from launcher.errors import UserError
from launcher.store import results_file
from tests.deploy.exported import Document, written


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dry_run": True}, "is a dry run: it measured no DeepEP"),
        ({"shared_gpus": True}, "has ranks that shared a GPU: its times mean nothing"),
        ({"backend": "alltoall"}, "measured backend alltoall, not deepep"),
        ({"optimal": None, "picks": {}}, "has no optimal pair: too little was measured"),
        ({"verdict": None}, "has no verdict on the default: too little was measured"),
        (
            {"schema": "deepep-sweep/results/3"},
            "has schema deepep-sweep/results/3, this program reads up to deepep-sweep/results/2",
        ),
        ({"schema": "other"}, "is not a RESULTS file: its schema is not deepep-sweep/results/2"),
        ({"schema": 7}, "is not a RESULTS file: Expected `str`, got `int` - at `$.schema`"),
        ({"picks": {}}, "is not a RESULTS file: picks has no fastest"),
        ({"ep": "two"}, "is not a RESULTS file: Expected `int`, got `str` - at `$.ep`"),
    ],
)
def test_results_that_must_not_be_deployed_are_refused_in_one_line(
    changes: Document, message: str, document: Document, tmp_path: Path
) -> None:
    file = written(document | changes, tmp_path)
    with pytest.raises(UserError) as caught:
        tuned.read(file)
    assert str(caught.value) == f"{file} {message}"
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'"text"', b"{}"])
def test_a_file_that_is_not_a_results_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "RESULTS_EP2.json").write_bytes(content)
    with pytest.raises(UserError, match="is not a RESULTS file"):
        tuned.read(tmp_path / "RESULTS_EP2.json")


def test_a_run_folder_without_results_names_the_command_that_makes_them(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"format": 1}')
    with pytest.raises(UserError, match="has no RESULTS file yet") as caught:
        results_file.locate(tmp_path)
    assert caught.value.hint == f"python -m launcher.aggregate {shlex.quote(str(tmp_path))}"


def test_the_results_of_other_environments_are_not_taken_for_the_run_s(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"format": 1}')
    for name in ("RESULTS_EP2.2.json", "RESULTS_EP2.json"):
        (tmp_path / name).touch()
    assert results_file.locate(tmp_path) == tmp_path / "RESULTS_EP2.json"


def test_a_pick_that_the_run_does_not_have_is_refused_with_those_that_it_has(
    document: Document, tmp_path: Path
) -> None:
    del document["picks"]["overlapped"]
    with pytest.raises(UserError, match=r"^pick must be one of fastest, default_sms, knee here, got overlapped$"):
        exporting.export(written(document, tmp_path), names=["sglang"], pick="overlapped")
    assert not (tmp_path / "exports").exists()
