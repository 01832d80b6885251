"""RESULTS for programs, and its schema."""

from __future__ import annotations

import jsonschema
import msgspec

from bench.records import (
    Dtype,
    FailureKind,
    Op,
    Role,
    Stage,
)
from bench.workload import Workload
from launcher.config.schema import METHODS, OBJECTIVES, Hardware, Search
from tests.analysis.runs import LINES, MADE, SCHEMA, build, check_tables, valid
from tests.builders import (
    Sweep,
    markdown_of,
)


def test_the_results_have_exactly_the_keys_of_the_schema() -> None:
    assert set(valid(build(LINES))) == set(SCHEMA["properties"]) == {*SCHEMA["required"], "timing"}
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_results_of_nothing_fit_the_schema_and_can_be_reported() -> None:
    plain = valid(build([]))
    assert (plain["points"]["missing"], plain["environment"]) == (len(MADE.every_point), None)
    assert [library["optimal"] for library in plain["libraries"]] == [None]
    assert "No pair of a dispatch and a combine was measured" in markdown_of(build([]))


def test_the_schema_refuses_what_is_not_a_result() -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    plain = valid(build(LINES))
    for wrong in (
        plain | {"extra": 1},
        plain | {"schema": "deepep-sweep/results/2"},
        plain | {"points": plain["points"] | {"planned": -1}},
        plain | {"points": plain["points"] | {"skipped": 0}},
        plain | {"verdict": plain["verdict"] | {"kind": "great"}},
        plain | {"optimal": plain["optimal"] | {"combine": None}},
        plain | {"measurements": [plain["measurements"][0] | {"median_us": "fast"}]},
        {key: value for key, value in plain.items() if key != "failures"},
    ):
        assert not validator.is_valid(wrong)


def test_the_results_of_a_real_sweep_fit_the_schema(sweep: Sweep) -> None:
    plain = msgspec.json.decode((sweep.folder / "RESULTS_EP4.json").read_bytes())
    jsonschema.Draft202012Validator(SCHEMA).validate(plain)
    assert plain["dry_run"] is True
    assert plain["points"]["measured"] == plain["points"]["planned"]
    assert plain["self_checks"][0]["edge_routings"] == dict.fromkeys(
        ["one_token", "empty_source", "empty_destination", "all_to_one", "odd"], "ok"
    )
    check_tables((sweep.folder / "OPTIMAL_CONFIGS.md").read_text())


def test_the_schema_knows_every_choice_that_the_program_may_write() -> None:
    definitions = SCHEMA["$defs"]
    assert definitions["op"]["enum"] == list(Op)
    assert definitions["dtype"]["enum"] == list(Dtype)
    assert definitions["measurement"]["properties"]["role"]["enum"] == list(Role)
    assert definitions["numbers"]["properties"]["stage"]["enum"] == list(Stage)
    assert definitions["failure"]["properties"]["kind"]["enum"] == [*FailureKind, "impossible"]
    assert SCHEMA["properties"]["search"]["properties"]["method"]["enum"] == list(METHODS)
    named, weights = SCHEMA["properties"]["search"]["properties"]["objective"]["anyOf"]
    assert (named["enum"], list(weights["properties"])) == (list(OBJECTIVES), ["dispatch", "combine"])
    for struct, name in ((Hardware, "hardware"), (Search, "search"), (Workload, "workload")):
        assert set(struct.__struct_fields__) <= set(SCHEMA["properties"][name]["properties"])
