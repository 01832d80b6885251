"""The script of a job."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from launcher.jobs import sbatch
from launcher.store.run_folder import RunFolder


@pytest.mark.parametrize("refusals", [0, 1])
def test_a_batch_script_retries_the_requeue_where_the_controller_does_not_answer(
    folder: RunFolder, tmp_path: Path, refusals: int
):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        f"""#!/bin/sh\necho "$@" >> '{tmp_path}/asked'\ntest $(wc -l < '{tmp_path}/asked') -gt {refusals}\n"""
    )
    scontrol.chmod(0o755)
    environment = {"SLURM_JOB_ID": "7", "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def ended(status: int) -> int:
        script = "\n".join([*sbatch.code_setup(folder.code), f"(exit {status})"])
        return subprocess.run(["bash", "-c", script], env=environment, check=False).returncode

    assert ended(1) == 1
    assert not (tmp_path / "asked").exists()
    assert ended(sbatch.REQUEUE) == sbatch.REQUEUE
    assert (tmp_path / "asked").read_text() == "requeue 7\n" * (refusals + 1)
