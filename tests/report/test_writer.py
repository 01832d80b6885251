"""Files written by aggregation, also for incomplete runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from launcher import aggregate
from launcher.config.plan import Plan
from launcher.config.schema import Ep, Options
from launcher.errors import FAILURE, OK
from launcher.report import writer
from launcher.store.attempts import Attempt, add_attempt
from launcher.store.records_file import open_appender
from launcher.store.run_folder import RunFolder
from tests.analysis.runs import LINES, PLAN, SCHEMA, mixed_environments, stored
from tests.builders import (
    complete,
    deepep_plan,
    measured_twice,
)


def test_unlike_environments_are_refused_and_reported_apart_on_demand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stored(mixed_environments(device="NVIDIA H100"), tmp_path)
    assert aggregate.main([str(folder.path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "error: the records were measured in different environments: device: NVIDIA H100 | NVIDIA H200\n"
        "hint: allow_mixed=true reports them separately\n"
    )
    assert not folder.report_file.exists()

    assert aggregate.main([str(folder.path), "allow_mixed=true"]) == 3
    text = folder.report_file.read_text()
    assert text.count("# Optimal configuration of DeepEP V1 at EP=4") == 2
    assert [line for line in text.splitlines() if line.startswith("Measured on")] == [
        f"Measured on 4 x {device} with 4 ranks: 256 tokens per rank, hidden 512, 16 experts, top-4 (small, routing "
        "uniform), dispatch in BF16, combine in BF16."
        for device in ("NVIDIA H200", "NVIDIA H100")
    ]
    pages = [(folder.path / name).read_text() for name in ("report.html", "report.2.html")]
    for at, (device, other) in enumerate((("NVIDIA H200", "report.2.html"), ("NVIDIA H100", "report.html"))):
        assert f"<h1>DeepEP at EP=4 on {device}</h1>" in pages[at]
        assert (
            '<p class="warning">Measured in 2 different environments (device: NVIDIA H100 | NVIDIA H200), '
            "reported separately: "
            f"this page is about environment {at + 1}, {device}. The others: {other}.</p>"
        ) in pages[at]
    assert [line for line in text.splitlines() if line.startswith("* `RESULTS")] == [
        f"* `RESULTS_EP4{part}.json`: the same for programs (docs/results.schema.json)" for part in ("", ".2")
    ]
    files = sorted(folder.path.glob("RESULTS_EP4*.json"))
    parts = [msgspec.json.decode(file.read_bytes()) for file in files]
    for part in parts:
        jsonschema.Draft202012Validator(SCHEMA).validate(part)
    assert {part["environment"]["device"] for part in parts} == {"NVIDIA H100", "NVIDIA H200"}
    labels = [{str(one) for one in part["measurements"]} for part in parts]
    assert not labels[0] & labels[1]


def test_no_picture_is_drawn_for_ranks_that_share_a_gpu(tmp_path: Path) -> None:
    plan = deepep_plan(ep=Ep(size=4, share_gpus=True))
    folder = RunFolder.create(plan, outputs=tmp_path, path=None, command=["deepep-sweep"])
    with open_appender(folder, 0) as appender:
        for line in complete(plan):
            appender.add(line)
    assert writer.aggregate(folder) == 0
    assert list(folder.path.glob("*.svg")) == []


OUTCOMES = {
    "spent": "Shard 0 spent search.budget_s before its search was complete; resume with a larger one.",
    "stopped": "Shard 0 reached its time limit before its search was complete.",
    "terminated": "Shard 0 was terminated before its search was complete.",
    None: "Shard 0 is still running, or was killed.",
}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_an_unfinished_search_is_reported_and_counts_as_missing(
    outcome: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every point has a record; only later rounds or overlapped passes are missing."""
    folder = RunFolder.create(PLAN, outputs=tmp_path, path=None, command=["deepep-sweep", "-m"])
    with open_appender(folder, 0) as appender:
        for line in LINES:
            appender.add(line)
    add_attempt(folder, 0, Attempt(None, "node1", 1.0, 2.0, "complete"))
    assert writer.aggregate(folder, draw=False) == 0
    add_attempt(folder, 0, Attempt(None, "node1", 3.0, 4.0, outcome))
    assert writer.aggregate(folder, draw=False) == 3
    sentence = OUTCOMES[outcome].removeprefix("S").removesuffix(".")
    assert capsys.readouterr().err == f"incomplete, exit status 3: s{sentence}\n"
    assert f"**{OUTCOMES[outcome]}**" in folder.report_file.read_text()
    assert OUTCOMES[outcome] in (folder.path / "report.html").read_text()
    assert "python -m launcher.resume" in (folder.path / "SUMMARY.md").read_text()


def options(**changes: Any) -> Options:
    values = {"run": None, "outputs": "outputs", "dry_run": False, "strict": False, "allow_mixed": False}
    values["allow_other_code"] = False
    return msgspec.convert(values | {"shard_index": None} | changes, Options)


def test_mixed_environments_are_a_failure_and_not_a_usage_error(
    plan: Plan, folder: RunFolder, capsys: pytest.CaptureFixture[str]
):
    measured_twice(folder, plan)
    assert writer.report(folder, options()) == FAILURE
    assert "error: the records were measured in different environments" in capsys.readouterr().err
    assert writer.report(folder, options(allow_mixed=True), draw=False) == OK
