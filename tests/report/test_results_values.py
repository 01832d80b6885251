"""The comparison of two formats of RESULTS, number by number."""

from __future__ import annotations

import msgspec

from tests.published import GOLDEN, PUBLISHED
from tests.report.results_values import differences, values

FIRST = {
    "schema": "results/1",
    "ep": 4,
    "default": {"num_sms": 20, "dispatch": {"nvl_chunk": 6, "ci95_us": [1.5, 2.5]}},
    "overlapped": [{"num_sms": 8, "dispatch": {"nvl_chunk": 4}, "one_after_the_other_us": 9.0}],
}
SECOND = {
    "schema": "results/2",
    "ep": 4,
    "libraries": [
        {
            "name": "deepep",
            "defaults": {
                "library": {
                    "shared_knobs": {"num_sms": 20},
                    "dispatch": {"knobs": {"num_sms": 20, "nvl_chunk": 6}, "ci95_us": [1.5, 2.5]},
                }
            },
            "overlapped": [
                {"shared_knobs": {"num_sms": 8}, "dispatch": {"num_sms": 8, "nvl_chunk": 4}, "serial_us": 9.0}
            ],
        }
    ],
}


def test_both_formats_have_the_same_paths() -> None:
    assert values(FIRST) == values(SECOND)
    assert values(FIRST) == {
        "ep": 4,
        "default.num_sms": 20,
        "default.dispatch.nvl_chunk": 6,
        "default.dispatch.ci95_us.0": 1.5,
        "default.dispatch.ci95_us.1": 2.5,
        "overlapped.0.num_sms": 8,
        "overlapped.0.dispatch.nvl_chunk": 4,
        "overlapped.0.serial_us": 9.0,
    }


def test_a_number_that_differs_in_its_last_digit_or_is_missing_is_named() -> None:
    (file,) = (PUBLISHED / GOLDEN).glob("RESULTS_EP*.json")
    numbers = values(msgspec.json.decode(file.read_bytes()))
    changed = numbers | {"optimal.dispatch.median_us": 497.18}
    del changed["verdict.margin"]
    assert differences(numbers, numbers) == []
    assert differences(numbers, changed) == [
        "optimal.dispatch.median_us: 497.17 | 497.18",
        "verdict.margin: 0.02 | None",
    ]


def test_the_last_digits_of_a_sum_are_no_difference_and_a_number_on_one_side_only_is_one() -> None:
    assert differences({"ratio": 2.4126521345215135}, {"ratio": 2.412652134521514}) == []
    assert differences({"ratio": 2.41265213452}, {"ratio": 2.41265213453}) == ["ratio: 2.41265213452 | 2.41265213453"]
    assert differences({"zero": 0.0}, {}) == ["zero: 0.0 | None"]
    assert differences({}, {"zero": 0}) == ["zero: None | 0"]


def test_measurements_are_compared_by_their_points_in_whatever_order_they_stand() -> None:
    one, two = (
        {"backend": "deepep", "op": "combine", "dtype": "bf16", "knobs": {"num_sms": sms}, "median_us": 9.0 + sms}
        for sms in (8, 16)
    )
    assert values({"measurements": [one, two]}) == values({"measurements": [two, one]})
    assert values({"measurements": [one]})["measurements.deepep/combine/bf16/num_sms=8.median_us"] == 17.0
