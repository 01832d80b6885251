"""The published runs: unpacking them and remaking their reports (make published-reports, make golden)."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from launcher.deploy import exporting
from launcher.deploy.formats import EXPORTS
from launcher.report import writer
from launcher.store.run_folder import RunFolder
from tests.builders import ROOT

PUBLISHED = ROOT / "outputs" / "published"
REPORTS = ROOT / "outputs" / "reports"
FORMAT_1 = ROOT / "tests" / "store" / "results_1" / "RESULTS_EP2.json"
"""A file of results/1, as written for h200x2-ep2-bf16; of its measurements those of the final."""
GOLDEN = "h200x4-ep4-deepseek_v3-bf16"
"""The one run with tracked reports: a changed wording shows here and rewrites no other run."""

WITH_RECORDS = sorted({file.parents[2].name for file in PUBLISHED.glob("*/shards/0000/records.jsonl.gz")})
VALIDATIONS = sorted(file.parent.name for file in PUBLISHED.glob("*/order.json"))


Unpack = Callable[[str], Path]
"""``published(name)``, see conftest."""


def unpack(name: str, parent: Path) -> Path:
    """A copy of a published folder in ``parent``, unpacked."""
    copy = Path(shutil.copytree(PUBLISHED / name, parent / name))
    for packed in copy.rglob("*.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    return copy


def remake(name: str, parent: Path) -> Path:
    """A copy of a published run with RESULTS, reports and exports remade from its records, without pictures."""
    copy = unpack(name, parent)
    for file in (*copy.glob("RESULTS_EP*.json"), *copy.glob("*.md"), *copy.glob("exports/*")):
        file.unlink()
    assert writer.aggregate(RunFolder.open(copy), draw=False) == 0
    (results_file,) = copy.glob("RESULTS_EP*.json")
    exporting.export(results_file, names=list(EXPORTS))
    return copy


def write_golden() -> None:
    """Rewrites the tracked reports and exports of the golden run."""
    with tempfile.TemporaryDirectory() as parent:
        copy = remake(GOLDEN, Path(parent))
        for text in (*copy.glob("*.md"), *copy.glob("exports/*")):
            shutil.copy(text, PUBLISHED / GOLDEN / text.relative_to(copy))


def write_reports() -> None:
    """Writes every published run with records, and every validation, to outputs/reports, replacing older ones."""
    for name in (*WITH_RECORDS, *VALIDATIONS):
        shutil.rmtree(REPORTS / name, ignore_errors=True)
        folder = str(unpack(name, REPORTS))
        if name in VALIDATIONS:
            _run("launcher.validate", f"report={folder}", passes=range(3))  # also those that found a fault
        else:
            _run("launcher.aggregate", folder)
            _run("launcher.export", folder)


def _run(module: str, *arguments: str, passes: range = range(1)) -> None:
    done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, check=False)
    if done.returncode not in passes:
        sys.exit(done.returncode)


if __name__ == "__main__":
    if sys.argv[1:] == ["golden"]:
        write_golden()
    else:
        write_reports()
