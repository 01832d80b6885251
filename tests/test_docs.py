"""The documentation agrees with the program."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path

import pytest

from launcher.report import writer
from launcher.store.run_folder import RunFolder
from tests.builders import ROOT
from tests.published import unpack


def columns(text: str) -> set[str]:
    """The headers of all columns of numbers, over every table."""
    lines = text.splitlines()
    headers = set()
    for header, align in itertools.pairwise(lines):
        if re.fullmatch(r"\|( -+:? \|)+", align):
            names = [name.strip() for name in header.strip("|").split("|")]
            headers |= {
                name for name, end in zip(names, align.strip("|").split("|"), strict=True) if end.endswith(": ")
            }
    return headers


def test_every_column_of_a_report_stands_in_the_methodology(tmp_path: Path) -> None:
    methodology = (ROOT / "docs" / "METHODOLOGY.md").read_text()
    section = methodology.split("## Columns of the report")[1].split("\n## ")[0]
    known = {name for line in section.splitlines() if line.startswith("| ") for name in line.split("|")[1].split(",")}
    for run in ("h100x2-ep2-bf16", "h200x2-ep2-fp8", "h200x4-ep4-deepseek_v3-bf16"):
        folder = RunFolder.open(unpack(run, tmp_path))
        assert writer.aggregate(folder, draw=False) == 0
        headers = columns(folder.report_file.read_text())
        assert {"overlapped us", "GEMM slowdown", "saved ms", "speed", "measured"} <= headers
        assert headers - {name.strip() for name in known} == set()


def anchors(text: str) -> set[str]:
    """The anchors of a Markdown file's headings, as GitHub makes them; code blocks have none."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_every_relative_link_leads_to_a_file_and_a_heading() -> None:
    """Only links: the pictures of a published report are made from its records, and not all are tracked."""
    broken = []
    for file in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("outputs/published/**/*.md")]:
        for link in re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", file.read_text()):
            path, _, anchor = link.partition("#")
            target = file.parent / path if path else file
            leads_there = target.exists() and (not anchor or anchor in anchors(target.read_text()))
            if ":" not in link and not leads_there:
                broken.append(f"{file.relative_to(ROOT)}: {link}")
    assert broken == []


@pytest.mark.parametrize("extra", ["deepep", "deepep-v1"])
def test_every_pin_of_an_extra_stands_in_its_row_of_the_readme(extra: str) -> None:
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra]
    (row,) = [line for line in (ROOT / "README.md").read_text().splitlines() if f"| `{extra}` |" in line]
    for name, version in (pin.split("==") for pin in pins):
        assert (f"`{name}=={version}`" in row) or f"| {version} " in row, name
