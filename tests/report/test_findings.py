"""What is computed from the numbers, in sentences."""

from __future__ import annotations

import msgspec
import pytest

from launcher.report import findings, html_report, optimal_configs
from tests.analysis.runs import choice_of, chosen, paired, said
from tests.builders import (
    Sweep,
)


def test_a_forward_pass_waits_for_the_whole_dispatch_and_a_backward_pass_has_its_handle() -> None:
    found = chosen(default=paired(20, 464.0, 497.1, 534.2), optimal=paired(128, 201.0, 216.0, 267.7))
    layers = found.plan.spec.workload.num_moe_layers
    effect = findings.effect(found)
    assert effect is not None
    assert (effect.num_layers, effect.has_whole) == (layers, True)
    assert effect.forward_ms == pytest.approx((layers * (534.2 + 497.1) / 1e3, layers * (267.7 + 216.0) / 1e3))
    assert effect.training_ms == pytest.approx(
        (layers * (534.2 + 497.1 + 464.0 + 497.1) / 1e3, layers * (267.7 + 216.0 + 201.0 + 216.0) / 1e3)
    )
    assert "The dispatch of a forward pass is the whole one" in optimal_configs.markdown(found)
    assert "forward pass, with the whole dispatch" in html_report.html(found, pictures={})


@pytest.mark.parametrize("without", ["default", "optimal"])
def test_without_the_whole_dispatch_of_both_the_effect_takes_the_cached_one_and_says_so(without: str) -> None:
    pairs = {"default": paired(20, 464.0, 497.1, 534.2), "optimal": paired(128, 201.0, 216.0, 267.7)}
    found = chosen(**pairs | {without: msgspec.structs.replace(pairs[without], full=None)})
    layers = found.plan.spec.workload.num_moe_layers
    effect = findings.effect(found)
    assert effect is not None
    assert not effect.has_whole
    assert effect.forward_ms == pytest.approx((layers * 961.1 / 1e3, layers * 417.0 / 1e3))
    assert effect.training_ms == pytest.approx((2 * layers * 961.1 / 1e3, 2 * layers * 417.0 / 1e3))
    assert "**The whole dispatch was not measured" in optimal_configs.markdown(found)
    assert "the whole dispatch was not measured" in html_report.html(found, pictures={})


def test_what_cannot_be_told_apart_beside_gemms_is_said_with_its_cost_and_whether_overlapping_pays() -> None:
    rise = [1.0, 1.02, 0.98, 1.01]
    noisy_passes = {
        8: [2000.0 * one for one in rise],
        16: [1080.0 * one for one in rise],
        24: [1150.0, 1100.0, 1120.0, 1080.0],
        32: [1100.0, 1130.0, 1040.0, 1150.0],
    }
    assert said(choice_of(noisy_passes)) == [
        "Beside expert GEMMs num_sms 16 to 32 cannot be told apart: any may be the best, and another run may order "
        "them otherwise, since one set of processes measured all passes.",
        "Communication alone is fastest with num_sms 32, beside expert GEMMs num_sms 16 is taken; where communication "
        "is waited for that costs 0 us, never measured together.",
        "num_sms 32 beside expert GEMMs takes 1.020 times (95 % interval 0.974 to 1.068) as long as the pick of the "
        "passes other than the one that is compared; it may be nothing.",
        "Overlapping need not pay: 3 of 4 pairs beside GEMMs took longer than GEMMs and communication one after the "
        "other (2 by more than their interval), most of all num_sms 8: 2005 us against 1100.",
    ]


def test_where_one_pair_is_surely_the_best_and_overlapping_pays_nothing_is_left_open() -> None:
    clear = {16: [1010.0, 1011.0, 1012.0, 1013.0], 32: [1050.0, 1051.0, 1053.0, 1054.0]}
    assert said(choice_of(clear, alone_us=1000.0)) == [
        "Communication alone is fastest with num_sms 32, beside expert GEMMs num_sms 16 is taken; where communication "
        "is waited for that costs 0 us, never measured together.",
        "num_sms 32 beside expert GEMMs takes 1.040 times (95 % interval 1.039 to 1.041) as long as the pick of the "
        "passes other than the one that is compared.",
    ]


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({2}, "2"),
        ({2, 4}, "2 and 4"),
        ({2, 4, 8}, "2 to 8"),
        ({2, 8, 12, 16}, "2 and 8 to 16"),
        ({2, 8, 16}, "2, 8 and 16"),
    ],
)
def test_neighbours_are_a_range(chosen: set[int], words: str) -> None:
    assert findings._ranges({(one,) for one in chosen}, {(one,) for one in (2, 4, 8, 12, 16)}) == words


def test_a_dry_run_s_findings_are_labelled_and_nothing_of_it_is_to_be_deployed(sweep: Sweep) -> None:
    for name in ("OPTIMAL_CONFIGS.md", "SUMMARY.md", "report.html"):
        text = (sweep.folder / name).read_text()
        assert "Key findings of a dry run, about this CPU" in text
        assert text.count("Key findings") == 1
    assert "nothing here is to be deployed" in (sweep.folder / "SUMMARY.md").read_text()
