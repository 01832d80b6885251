"""What is compared between two formats of RESULTS: every number, to the digit."""

from __future__ import annotations

import msgspec

from tests.published import GOLDEN, PUBLISHED
from tests.report.results_values import differences, values

FLAT = {"schema": "results/1", "optimal": {"num_sms": 128, "dispatch": {"nvl_chunk": 4, "ci95_us": [1.5, 2.5]}}}
NESTED = {
    "schema": "results/2",
    "optimal": {"knobs": {"num_sms": 128}, "dispatch": {"knobs": {"nvl_chunk": 4}, "ci95_us": [1.5, 2.5]}},
}


def test_every_number_has_its_path_and_knobs_may_stand_in_a_member_of_their_own() -> None:
    assert values(FLAT) == values(NESTED)
    assert values(FLAT) == {
        "optimal.num_sms": 128,
        "optimal.dispatch.nvl_chunk": 4,
        "optimal.dispatch.ci95_us.0": 1.5,
        "optimal.dispatch.ci95_us.1": 2.5,
    }


def test_a_number_that_differs_in_its_last_digit_or_is_missing_is_named() -> None:
    (file,) = (PUBLISHED / GOLDEN).glob("RESULTS_EP*.json")
    document = msgspec.json.decode(file.read_bytes())
    changed = msgspec.json.decode(file.read_bytes())
    changed["optimal"]["dispatch"]["median_us"] = 496.49
    del changed["verdict"]
    assert differences(values(document), values(document)) == []
    assert differences(values(document), values(changed)) == [
        "optimal.dispatch.median_us: 496.48 | 496.49",
        *(f"verdict.{path}: {document['verdict']['ci95'][at]} | None" for at, path in enumerate(("ci95.0", "ci95.1"))),
        "verdict.margin: 0.02 | None",
        f"verdict.ratio: {document['verdict']['ratio']} | None",
    ]
