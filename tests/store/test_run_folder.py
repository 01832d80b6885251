"""Run folders return the lines written to them, even after damage."""

from __future__ import annotations

import signal
import socket
import subprocess
import tomllib
from pathlib import Path

import msgspec
import pytest

from bench import records
from bench.records import Line, Record, Traffic
from launcher.config.plan import Plan
from launcher.errors import UserError
from launcher.store.records_file import open_appender, read_lines, read_progress, read_shard
from launcher.store.run_folder import FORMAT_VERSION, RunFolder
from tests.builders import ROOT, calling, complete


def append(folder: RunFolder, lines: list[Line], *, shard: int = 0) -> None:
    with open_appender(folder, shard) as appender:
        for line in lines:
            appender.add(line)


def test_two_sweeps_of_one_second_get_two_folders(plan: Plan, tmp_path: Path) -> None:
    folders = [RunFolder.create(plan, outputs=tmp_path, path=None, command=[]) for _ in range(20)]
    assert len({folder.path for folder in folders}) == 20
    assert len(list(tmp_path.iterdir())) == 20


def test_a_folder_returns_the_plan_and_the_lines_written_to_it(plan: Plan, folder: RunFolder) -> None:
    append(folder, complete(plan))
    opened = RunFolder.open(folder.path)
    assert opened.plan() == plan
    assert opened.manifest().plan_id == plan.id
    assert opened.manifest().command == ["deepep-sweep", "-m"]
    assert opened.manifest().program == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert read_lines(opened) == (complete(plan), [])
    assert read_shard(opened, 0) == complete(plan)
    assert read_shard(opened, 1) == []


def test_a_named_folder_is_taken_by_one_sweep_only(plan: Plan, tmp_path: Path) -> None:
    RunFolder.create(plan, outputs=tmp_path, path=tmp_path / "mine", command=[])
    with pytest.raises(UserError, match=r"cannot make the run folder .*mine: File exists"):
        RunFolder.create(plan, outputs=tmp_path, path=tmp_path / "mine", command=[])


@pytest.mark.parametrize("named", [True, False])
def test_a_place_that_cannot_hold_a_folder_is_a_user_error(plan: Plan, tmp_path: Path, *, named: bool) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "outputs"
    with pytest.raises(UserError, match=r"cannot make the run folder .*: Not a directory"):
        RunFolder.create(plan, outputs=place, path=place / "run" if named else None, command=[])


def test_a_torn_line_and_a_foreign_line_are_reported_and_survived(plan: Plan, folder: RunFolder) -> None:
    lines = complete(plan)
    append(folder, lines[:5])
    file = folder.records_file(0)
    content = file.read_bytes()
    file.write_bytes(content + b'{"hello":"world"}\n' + records.encode(lines[5])[:-20])
    append(folder, lines[6:8])
    lines_read, damaged = read_lines(folder)
    assert lines_read == lines[:5] + lines[6:8]
    assert [(one.file, one.line) for one in damaged] == [
        ("shards/0000/records.jsonl", 6),
        ("shards/0000/records.jsonl", 7),
    ]
    assert all(one.why for one in damaged)
    assert file.read_bytes().startswith(content)
    assert file.read_bytes().endswith(records.encode(lines[7]) + b"\n")


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_line_after_a_torn_one_starts_on_a_new_line(plan: Plan, folder: RunFolder, cut: int) -> None:
    lines = complete(plan)
    append(folder, lines)
    file = folder.records_file(0)
    file.write_bytes(file.read_bytes()[:-cut])
    append(folder, [lines[-1]])
    lines_read, damaged = read_lines(folder)
    torn = cut > 1
    assert lines_read == [*lines[: len(lines) - torn], lines[-1]]
    assert len(damaged) == torn


def test_a_torn_record_does_not_count_as_done(plan: Plan, folder: RunFolder) -> None:
    lines = [line for line in complete(plan) if isinstance(line, Record)][:3]
    append(folder, list(lines))
    file = folder.records_file(0)
    content = file.read_bytes()
    before = len(records.encode(lines[0])) + len(records.encode(lines[1])) + 2
    for cut in range(before, len(content) - 1):
        file.write_bytes(content[:cut] + b"\n")
        assert read_progress(folder, 0).done == {line.point_id for line in lines[:2]}
    file.write_bytes(content)
    assert read_progress(folder, 0).done == {line.point_id for line in lines}


def test_bytes_that_are_not_text_are_damage(plan: Plan, folder: RunFolder) -> None:
    append(folder, complete(plan))
    with folder.records_file(0).open("ab") as file:
        file.write(b"\x00" * 100 + b"\n\xff\xfe\n")
    lines_read, damaged = read_lines(folder)
    assert lines_read == complete(plan)
    assert len(damaged) == 2


def write_on(path: str) -> None:
    """Appends lines until it is killed, and prints the number of each line once it is stored."""
    with open_appender(RunFolder(Path(path)), 0) as appender:
        for number in range(10**9):
            appender.add(Traffic([[number] * 50] * 50))
            print(number, flush=True)


def writer(folder: RunFolder) -> subprocess.Popen[str]:
    return subprocess.Popen(
        calling(write_on, folder.path),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )


@pytest.mark.slow  # starts processes
def test_a_killed_writer_loses_at_most_the_line_in_flight(folder: RunFolder) -> None:
    acknowledged = 0
    for _ in range(3):
        with writer(folder) as process:
            assert process.stdout is not None
            for _ in range(20):
                acknowledged += process.stdout.readline() != ""
            process.send_signal(signal.SIGKILL)
            acknowledged += len(process.stdout.readlines())
        lines_read, damaged = read_lines(folder)
        assert len(lines_read) >= acknowledged
        assert len(lines_read) + len(damaged) <= acknowledged + 3
        assert len(damaged) <= 3
    assert acknowledged >= 60


def test_a_second_writer_of_a_shard_is_refused_with_the_first_ones_name(plan: Plan, folder: RunFolder) -> None:
    with writer(folder) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(UserError) as caught, open_appender(folder, 0):
            pass
        assert str(caught.value).endswith(f" is being measured by process {process.pid} on {socket.gethostname()}")
        with open_appender(folder, 1) as other:
            other.add(complete(plan)[0])
        process.kill()
    append(folder, complete(plan)[:1])
    assert not (folder.shard(0) / "owner").exists()


def test_a_reader_needs_no_lock(plan: Plan, folder: RunFolder) -> None:
    with open_appender(folder, 0) as appender:
        appender.add(complete(plan)[0])
        assert read_lines(folder) == (complete(plan)[:1], [])


def test_a_folder_of_a_newer_version_is_refused_by_name(folder: RunFolder) -> None:
    plain = msgspec.json.decode(folder.manifest_file.read_bytes())
    folder.manifest_file.write_bytes(msgspec.json.encode({"format": FORMAT_VERSION + 1, "future": plain}))
    with pytest.raises(UserError) as caught:
        RunFolder.open(folder.path)
    assert str(caught.value) == f"{folder.path} has run folder format 2, this program reads up to 1"


def test_a_record_of_a_newer_version_is_refused_by_file_and_line(plan: Plan, folder: RunFolder) -> None:
    line = complete(plan)[-1]
    assert isinstance(line, Record)
    append(folder, [*complete(plan), msgspec.structs.replace(line, v=4)])
    number = len(complete(plan)) + 1
    with pytest.raises(UserError, match=rf"records\.jsonl line {number}: record version 4, this program reads up to 3"):
        read_lines(folder)


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{", b'{"format":"one"}'])
def test_a_folder_that_is_not_a_run_folder_is_a_user_error(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError):
        RunFolder.open(tmp_path).manifest()
