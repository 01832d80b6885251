"""The exported run, and processes that load the exported files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import strategies as st

from launcher.deploy import tuned
from launcher.deploy.formats import EXPORTS
from launcher.deploy.tuned import TunedResults
from tests.builders import ROOT
from tests.published import FORMAT_1

RESULTS = FORMAT_1
STAND_INS = ROOT / "tests" / "stand_ins"
TUNED = tuned.read(RESULTS)
FILES = [one.file for one in EXPORTS.values()]
DISPATCH, COMBINE = (128, 8, 128, 6, 128), (128, 14, 256, 6, 128)

Document = dict[str, Any]


def written(document: Document, folder: Path, name: str = "RESULTS_EP2.json") -> Path:
    file = folder / name
    file.write_bytes(msgspec.json.encode(document))
    return file


def python(code: str, *folders: Path, stand_ins: bool = True) -> subprocess.CompletedProcess[str]:
    """A finished process that could import from the folders, and the stand-in deep_ep."""
    path = [*map(str, folders), *([str(STAND_INS)] if stand_ins else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "RANK": "0"}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def holds(code: str, *folders: Path) -> subprocess.CompletedProcess[str]:
    """The finished process, after checking that its assertions held."""
    process = python(code, *folders)
    assert process.returncode == 0, process.stderr
    return process


hostile = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="\n\r\v\f\x1c\x85\u2028\u2029'\"`$(){}[]#:;\\|&<>!%*, -=\x00\ud83d\ufeff", max_size=30),
)


def with_text(text: str) -> TunedResults:
    """The tuned results with this text in every field from a machine, a command or a configuration."""
    replace, results = msgspec.structs.replace, TUNED.results
    return TUNED._replace(
        results=replace(
            results,
            command=["deepep-sweep", text, f"run={text}"],
            ended=text,
            hosts=[replace(results.hosts[0], hostname=text)],
            workload=replace(results.workload, name=text, routing=text),
        ),
        library=replace(TUNED.library, version=text),
        device=text,
        verdict=replace(TUNED.verdict, meaning=text),
    )
