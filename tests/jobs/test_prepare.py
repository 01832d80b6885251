"""Preparing the run folder of a plan: a new one, or that of an earlier command or version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest

from launcher.config.plan import Plan
from launcher.config.schema import Options
from launcher.errors import UserError
from launcher.jobs.prepare import prepare
from launcher.store.revision import code_digest, snapshot_code
from launcher.store.run_folder import RunFolder


def options(folder: RunFolder, **changes: bool) -> Options:
    """The options of a command that completes a run."""
    switches = dict.fromkeys(("dry_run", "strict", "allow_mixed", "allow_other_code"), False) | changes
    return msgspec.convert({"run": str(folder.path), "outputs": "outputs", "shard_index": None, **switches}, Options)


def copy_without_jobs(folder: RunFolder) -> Path:
    """The run's copy of the code, as from a version with other modules."""
    snapshot_code(folder.code)
    shutil.rmtree(folder.code / "launcher" / "jobs")
    return folder.code


def test_a_run_whose_copy_of_the_code_lacks_our_jobs_is_resumed_only_by_that_copy(plan: Plan, folder: RunFolder):
    copy_without_jobs(folder)
    with pytest.raises(UserError, match="begun by an earlier version, whose jobs this one cannot start") as caught:
        prepare(plan, options(folder), command=[], in_jobs=True)
    assert f"cd {folder.path}/code && python -m launcher.resume {folder.path}" in caught.value.hint
    reopened = prepare(plan, options(folder, allow_other_code=True), command=[], in_jobs=True)
    assert reopened.path == folder.path


def test_other_code_is_used_where_it_is_allowed_and_the_first_copy_is_kept(folder: RunFolder):
    code = copy_without_jobs(folder)
    first = code_digest(code)
    snapshot_code(code, renew=False)
    assert code_digest(code) == first
    for _ in range(2):
        snapshot_code(code, renew=True)
        assert code_digest(code) == code_digest()
    assert [code_digest(copy) for copy in folder.path.glob("code.*")] == [first]


def test_a_run_that_an_option_of_an_earlier_version_planned_is_not_resumed(plan: Plan, folder: RunFolder):
    document = json.loads(folder.plan_file.read_bytes())
    for number in (2, 4):
        document["spec"]["search"]["finalists_per_group"] = number
        folder.plan_file.write_text(json.dumps(document))
        if number == 2:
            assert prepare(plan, options(folder), command=[]).path == folder.path
            continue
        with pytest.raises(UserError, match=r"search\.finalists_per_group=4, which this version fixes at 2"):
            prepare(plan, options(folder), command=[])
