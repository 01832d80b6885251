"""RESULTS files: the same Structs read and write them; unknown members are ignored, newer major versions refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launcher import compare, library
from launcher.comparison.run import compared_run
from launcher.deploy import exporting, publishing, tuned
from launcher.errors import UserError
from launcher.store import results_file
from launcher.store.results_file import SCHEMA, SavedLibraryComparison, SavedResults
from tests.published import FORMAT_1, PUBLISHED, Unpack

replace = msgspec.structs.replace
NAME = Path("RESULTS_EP4.json")
RESULTS = results_file.read(PUBLISHED / "h200x4-ep4-deepseek_v3-bf16" / NAME)
RUNS = sorted(file.parent.name for file in PUBLISHED.glob("*/RESULTS_EP*.json*"))
PICKS = ("default", "optimal", "overlapped")


def two_libraries() -> SavedResults:
    """The run with a second library that has another default."""
    (deepep,) = RESULTS.libraries
    default, knee = deepep.defaults["library"], deepep.picks["knee"]
    second = replace(deepep, name="deepep_v2", version="sgl-deep-ep 0.1.2", defaults={"library": default, "vllm": knee})
    compared = SavedLibraryComparison("deepep", "deepep_v2", "fastest", 0.75, (0.74, 0.76), "a_is_faster")
    return replace(RESULTS, libraries=[second, deepep], comparisons=[compared])


@pytest.mark.parametrize("run", RUNS)
def test_every_published_file_survives_decoding_and_encoding(run: str, published: Unpack) -> None:
    results = results_file.read(results_file.locate(published(run)))
    assert results.libraries[0].picks.keys() <= {*tuned.PICKS}
    assert results_file.decode(NAME, results_file.encode(results)) == results


def test_a_file_of_format_1_gives_each_operation_all_of_its_knobs() -> None:
    results = results_file.read(FORMAT_1)
    fastest = results.libraries[0].picks["fastest"]
    assert fastest.shared_knobs == {"num_sms": 128}
    assert fastest.dispatch.knobs == {"num_sms": 128, "nvl_chunk": 8, "nvl_buffer": 128}
    assert fastest.combine.knobs == {"num_sms": 128, "nvl_chunk": 14, "nvl_buffer": 256}
    assert all(measurement.knobs for measurement in results.measurements if measurement.op != "compute")


def grown(value: Any) -> Any:
    """The value with a new number in each object that is not a table with values of one type."""
    if isinstance(value, list):
        return [grown(member) for member in value]
    if not isinstance(value, dict):
        return value
    is_table = len({type(member) for member in value.values()}) < 2
    return {name: grown(member) for name, member in value.items()} | ({} if is_table else {"p99_us": 1.5})


def test_members_that_a_newer_version_adds_are_ignored(tmp_path: Path) -> None:
    file = tmp_path / NAME
    text = json.dumps(grown(json.loads(results_file.encode(RESULTS))))
    assert text.count("p99_us") > len(RESULTS.measurements)
    file.write_text(text)
    assert results_file.read(file) == RESULTS
    assert compare.main([str(file), str(file)]) == 0
    assert tuned.configs(tuned.read(file).pair("fastest")) == tuned.configs(RESULTS.libraries[0].picks["fastest"])


@pytest.mark.parametrize("major", [3, 10])
def test_a_newer_major_version_is_refused_by_name(major: int) -> None:
    content = json.dumps({"schema": f"deepep-sweep/results/{major}", "anything": 1}).encode()
    with pytest.raises(UserError, match=rf"has schema deepep-sweep/results/{major}, this program reads up to {SCHEMA}"):
        results_file.decode(NAME, content)


def test_a_run_of_two_libraries_is_compared_exported_and_published_by_name(tmp_path: Path) -> None:
    file = tmp_path / NAME
    file.write_bytes(results_file.encode(two_libraries()))
    assert results_file.read(file) == two_libraries()
    picks = compared_run(file, results_file.read(file)).picks
    second = ["deepep_v2 default", "deepep_v2 default of vllm", "deepep_v2 optimal", "deepep_v2 overlapped"]
    assert list(picks) == [*second, *(f"deepep {pick}" for pick in PICKS)]
    assert compare.main([str(file), str(file)]) == 0
    exports = exporting.export(file, names=["shim"])
    assert "'num_sms': 128" in exports[0].read_text()
    entry, _ = publishing.publish(tuned.read(file), tmp_path / "library")
    assert library.read(entry).key.deep_ep == RESULTS.libraries[0].version


def test_runs_of_other_libraries_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "one.json", tmp_path / "two.json"
    first.write_bytes(results_file.encode(RESULTS))
    second.write_bytes(results_file.encode(two_libraries()))
    assert compare.main([str(first), str(second)]) == 2
    assert "backend is deepep in A, deepep_v2, deepep in B" in capsys.readouterr().err
