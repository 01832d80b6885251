"""Jobs as processes of this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.builders import ROOT


def test_local_jobs_run_this_program_where_the_user_has_packages_of_the_same_names(
    no_gpus: dict[str, str], tmp_path: Path
):
    for name in ("bench", "conf", "launcher"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('a package of the user')\n")
    command = f"import sys; sys.path[0] = {str(ROOT)!r}; from launcher.sweep import main; main()"
    small = ("ep=2", "hardware=cpu", "backend=alltoall", "workload=small", "grid=smoke", "measure=quick")
    launcher = ("hydra/launcher=submitit_local", "search.rounds=1", "search.final_groups=0")
    process = subprocess.run(
        [sys.executable, "-c", command, "-m", *small, *launcher],
        cwd=tmp_path,
        env=no_gpus,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert (tmp_path / process.stdout.strip()).is_file()
