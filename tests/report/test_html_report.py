"""report.html in headless Chromium, which opens it from a file and runs its script."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import urllib.parse
from pathlib import Path

import msgspec
import pytest

from bench.records import Failed, FailureKind, Host, Line, Record, Role
from launcher.analysis import results
from launcher.config.plan import Plan
from launcher.store.table import run_records
from tests.builders import MANIFEST, complete, html_of

HOSTILE = "<script>document.title='owned'</script> </script> | ` ** ]]> &amp; \u2028 \" ' {{ 7*7 }}"


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of Chromium; without it, tests are skipped, but fail under CI."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        refuse = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        refuse("no chromium on PATH; apt-get install chromium")
    return program


def shown(chromium: str, file: Path, *, fragment: str = "", raw: str = "") -> str:
    """The page's document after its script has run; ``raw`` is a fragment that is not encoded."""
    hash_text = urllib.parse.quote(fragment) or raw
    address = file.as_uri() + ("#" + hash_text if hash_text else "")
    done = subprocess.run(
        [
            *(chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"),
            *(f"--user-data-dir={file.parent / 'profile'}", address),
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout


def rows(document: str) -> list[list[str]]:
    """The cells of the table of all points."""
    table = document.split('<table id="points">')[1].split("</table>", maxsplit=1)[0].split("<tbody>")[1]
    return [
        [html.unescape(re.sub("<[^>]+>", "", cell)) for cell in re.findall("<td.*?</td>", line, re.DOTALL)]
        for line in table.split("<tr")[1:]
    ]


def written(plan: Plan, lines: list[Line], folder: Path) -> Path:
    file = folder / "report.html"
    file.write_text(html_of(results.build(plan, MANIFEST, run_records(lines), []), pictures={"pareto.svg": "<svg/>"}))
    return file


def with_a_failure(plan: Plan, message: str) -> list[Line]:
    """A complete run in which one cell failed."""
    lines = complete(plan)
    index, victim = next((i, one) for i, one in enumerate(lines) if isinstance(one, Record) and one.role is Role.GRID)
    failed = msgspec.structs.replace(victim, outcome=Failed(FailureKind.HANG, message, "time", 1))
    return [*lines[:index], failed, *lines[index + 1 :]]


def test_every_point_has_a_row_fastest_first_and_failures_last(chromium: str, plan: Plan, tmp_path: Path):
    document = shown(chromium, written(plan, with_a_failure(plan, "no answer"), tmp_path))
    shown_rows = rows(document)
    assert len(shown_rows) == len(plan.every_point)
    assert [row[0] for row in shown_rows] == ["measured"] * (len(shown_rows) - 1) + ["failed"]
    column = 2 + 3
    times = [float(row[column]) for row in shown_rows[:-1]]
    assert times == sorted(times)
    assert f"{len(shown_rows)} of {len(shown_rows)} points" in document


def test_a_filter_in_the_address_shows_only_matching_rows(chromium: str, plan: Plan, tmp_path: Path):
    file = written(plan, with_a_failure(plan, "no answer"), tmp_path)
    failed = rows(shown(chromium, file, fragment="state=failed"))
    assert [row[0] for row in failed] == ["failed"]
    assert "hang in time (shard 0, rank 1): no answer" in failed[0][-1]
    sms = plan.cells[0].point.knobs["num_sms"]
    chosen = rows(shown(chromium, file, fragment=f"num_sms={sms}"))
    assert chosen
    assert {row[2] for row in chosen} == {str(sms)}


def test_a_percent_sign_in_the_address_that_encodes_nothing_is_a_filter_like_any(
    chromium: str, plan: Plan, tmp_path: Path
):
    file = written(plan, with_a_failure(plan, "100% gone"), tmp_path)
    shown_rows = rows(shown(chromium, file, raw="100%"))
    assert [row[0] for row in shown_rows] == ["failed"]


def test_hostile_names_and_errors_stay_text(chromium: str, plan: Plan, tmp_path: Path):
    manifest = msgspec.structs.replace(MANIFEST, command=["deepep-sweep", HOSTILE])
    lines = [
        msgspec.structs.replace(line, hostname=HOSTILE) if isinstance(line, Host) else line
        for line in with_a_failure(plan, HOSTILE)
    ]
    file = tmp_path / "report.html"
    file.write_text(html_of(results.build(plan, manifest, run_records(lines), [])))
    document = shown(chromium, file)
    assert "owned" not in re.findall("<title>(.*?)</title>", document, re.DOTALL)[0]
    shown_rows = rows(document)
    assert shown_rows[-1][0] == "failed"
    assert HOSTILE in shown_rows[-1][-1]


def test_the_page_loads_no_other_resource(plan: Plan, tmp_path: Path):
    text = written(plan, complete(plan), tmp_path).read_text()
    assert re.findall(r"""(?:src|href)=["'](?!data:)[^"']*""", text) == []
    assert "default-src 'none'" in text
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_a_run_without_any_result_has_a_page_too(chromium: str, plan: Plan, tmp_path: Path):
    document = shown(chromium, written(plan, [], tmp_path))
    assert {row[0] for row in rows(document)} == {"missing"}
    assert "No pair of a dispatch and a combine was measured" in document
