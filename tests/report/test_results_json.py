"""RESULTS documents and their schema."""

from __future__ import annotations

import jsonschema
import msgspec

from bench.records import (
    Dtype,
    Op,
    Role,
    Stage,
)
from bench.workload import Workload
from launcher.config.schema import Hardware, Search
from tests.analysis.runs import LINES, PLAN, SCHEMA, build, check_tables, valid
from tests.builders import (
    Sweep,
    markdown_of,
)


def test_the_results_have_exactly_the_members_of_the_schema() -> None:
    schema = SCHEMA["$defs"]["SavedResults"]
    assert set(valid(build(LINES))) == set(schema["properties"])
    assert {"libraries", "measurements", "failures", "points", "workload"} <= set(schema["required"])
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_results_without_measurements_match_the_schema_and_can_be_reported() -> None:
    plain = valid(build([]))
    assert (plain["points"]["missing"], plain["environment"]) == (len(PLAN.every_point), None)
    assert [library["optimal"] for library in plain["libraries"]] == [None]
    assert "No pair of a dispatch and a combine was measured" in markdown_of(build([]))


def test_the_schema_refuses_documents_that_are_not_results() -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    plain = valid(build(LINES))
    (library,) = plain["libraries"]
    for wrong in (
        plain | {"schema": "deepep-sweep/results/3"},
        plain | {"points": plain["points"] | {"planned": -1}},
        plain | {"libraries": [library | {"verdict": library["verdict"] | {"kind": "great"}}]},
        plain | {"libraries": [library | {"optimal": library["optimal"] | {"combine": None}}]},
        plain | {"measurements": [plain["measurements"][0] | {"median_us": "fast"}]},
        plain | {"measurements": [plain["measurements"][0] | {"knobs": {"num_sms": "all"}}]},
        {key: value for key, value in plain.items() if key != "failures"},
    ):
        assert not validator.is_valid(wrong)
    assert validator.is_valid(plain | {"extra": 1})  # a member of a newer version, which readers ignore


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
    for kind in (Op, Dtype, Role, Stage):
        assert definitions[kind.__name__]["enum"] == sorted(kind)
    for struct, saved in ((Hardware, "SavedHardware"), (Search, "SavedSearch"), (Workload, "Workload")):
        assert set(struct.__struct_fields__) <= set(definitions[saved]["properties"])
