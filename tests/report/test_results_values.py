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
    changed = numbers | {"optimal.dispatch.median_us": 496.49}
    del changed["verdict.margin"]
    assert differences(numbers, numbers) == []
    assert differences(numbers, changed) == [
        "optimal.dispatch.median_us: 496.48 | 496.49",
        "verdict.margin: 0.02 | None",
    ]
