"""The revision of the code of a run."""

from __future__ import annotations

import json
from pathlib import Path

from launcher.store.revision import snapshot_code
from launcher.store.run_folder import RunFolder
from tests.builders import Command, Sweep


def test_a_run_is_not_continued_by_another_version_of_the_program(sweep: Sweep, run_module: Command, tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("plan.json", "shards"):
        (run / name).symlink_to(sweep.folder / name)
    manifest = json.loads((sweep.folder / "run.json").read_bytes())
    manifest["revision"] = {"commit": None, "dirty": None, "code": "another"}
    (run / "run.json").write_text(json.dumps(manifest))
    done = run_module("launcher.sweep", "-m", f"run={run}")
    assert done.returncode == 2
    assert f"error: {run} was begun by other code of this program (another) than this, " in done.stderr
    note = "note: allow_mixed=true also resumes with other code; allow_other_code=true is the option for that\n"
    for option, noted in (("allow_other_code", False), ("allow_mixed", True)):
        done = run_module("launcher.sweep", "-m", f"run={run}", f"{option}=true")
        assert done.returncode == 0, done.stderr
        assert (note in done.stderr) is noted


def test_the_copy_of_the_code_that_a_run_began_with_is_kept(folder: RunFolder):
    snapshot_code(folder.code)
    (folder.code / "bench" / "records.py").write_text("older")
    snapshot_code(folder.code)
    assert (folder.code / "bench" / "records.py").read_text() == "older"
    assert (folder.code / "conf" / "sweep.yaml").is_file()
