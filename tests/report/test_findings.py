"""Key findings, computed from the results."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from bench.records import Dtype
from launcher.analysis.choice import Choice
from launcher.report import effect as effects
from tests.analysis.runs import choice_of, make_pair, overlap_findings, results_with
from tests.builders import (
    Sweep,
    html_of,
    markdown_of,
)


def test_a_forward_pass_takes_the_full_dispatch_and_a_backward_pass_the_cached_one() -> None:
    results = results_with(default=make_pair(20, 464.0, 497.1, 534.2), optimal=make_pair(128, 201.0, 216.0, 267.7))
    layers = results.plan.spec.workload.num_moe_layers
    effect = effects.effect(results)
    assert effect is not None
    assert (effect.num_layers, effect.has_full) == (layers, True)
    assert effect.forward_ms == pytest.approx((layers * (534.2 + 497.1) / 1e3, layers * (267.7 + 216.0) / 1e3))
    assert effect.training_ms == pytest.approx(
        (layers * (534.2 + 497.1 + 464.0 + 497.1) / 1e3, layers * (267.7 + 216.0 + 201.0 + 216.0) / 1e3)
    )
    assert f"Forward pass: {layers} MoE layers x (full dispatch + combine)." in markdown_of(results)
    assert f"Forward pass: {layers} MoE layers x (full dispatch + combine)." in html_of(results)


@pytest.mark.parametrize("without", ["default", "optimal"])
def test_without_a_full_dispatch_of_both_pairs_the_effect_takes_the_cached_one_and_states_it(without: str) -> None:
    pairs = {"default": make_pair(20, 464.0, 497.1, 534.2), "optimal": make_pair(128, 201.0, 216.0, 267.7)}
    results = results_with(**pairs | {without: msgspec.structs.replace(pairs[without], full=None)})
    layers = results.plan.spec.workload.num_moe_layers
    effect = effects.effect(results)
    assert effect is not None
    assert not effect.has_full
    assert effect.forward_ms == pytest.approx((layers * 961.1 / 1e3, layers * 417.0 / 1e3))
    assert effect.training_ms == pytest.approx((2 * layers * 961.1 / 1e3, 2 * layers * 417.0 / 1e3))
    assert "x (cached dispatch + combine). The full dispatch was not measured" in markdown_of(results)
    assert "x (cached dispatch + combine). The full dispatch was not measured" in html_of(results)


def test_an_overlapped_answer_that_is_not_resolved_says_what_the_pick_may_cost() -> None:
    rise = [1.0, 1.02, 0.98, 1.01]
    noisy_passes = {
        8: [2000.0 * one for one in rise],
        16: [1080.0 * one for one in rise],
        24: [1150.0, 1100.0, 1120.0, 1080.0],
        32: [1100.0, 1130.0, 1040.0, 1150.0],
    }
    choice = choice_of(noisy_passes)
    pick = choice.overlap_of(choice.picks["overlapped"])
    assert pick is not None
    assert 1.03 < pick.may_cost < 1.2
    assert overlap_findings(choice) == [
        "Overlapped with expert GEMMs, the best pair is not resolved: the pick num_sms 16 may take up to "
        f"{100 * (pick.may_cost - 1):.1f} % longer than the best one (95 % confidence; the table has this limit for "
        "every pair).",
        "The pick is num_sms 32 for isolated communication and num_sms 16 for communication overlapped with expert "
        "GEMMs. Isolated, num_sms 16 takes 0 us longer per round trip; no two groups measured both.",
        "Overlapped with expert GEMMs, num_sms 32 takes 1.020x as long as the pick num_sms 16 (95 % CI 0.974 to "
        "1.068). The two are indistinguishable.",
        "Overlap does not always pay: 3 of 4 pairs take longer overlapped than serially (2 by more than their 95 % "
        "CI). The worst is num_sms 8: 2005 us overlapped, 1100 us serially. Serially stands for a sum here, of GEMMs "
        "at the power cap and of communication measured apart, at full clocks: this run did not measure the sequence.",
    ]


def test_overlap_is_judged_by_the_sequence_that_the_same_passes_measured() -> None:
    level = [1.0, 1.1, 0.9, 1.05]  # of each pass, which cancels
    choice = choice_of({16: [1010.0 * one for one in level], 32: [1100.0 * one for one in level]})
    found = overlap_findings(with_serial(choice, {16: 1300.0, 32: 1060.0}, level))
    assert found[-2:] == [
        "Overlapping saves 4.7 % (95 % CI 4.7 to 4.7 %): the pick num_sms 16 takes 1020 us overlapped. Dispatch, GEMMs "
        "and combine one after the other take 1070 us at best, with num_sms 32, in the same passes.",
        "Overlap does not always pay: 1 of 2 pairs take longer overlapped than serially (1 by more than their 95 % "
        "CI). The worst is num_sms 32: 1111 us overlapped, 1070 us serially.",
    ]


def with_serial(choice: Choice, serial_us: dict[int, float], level: list[float]) -> Choice:
    """The choice with the sequences of its pairs measured, by num_sms, at the level of each pass."""
    overlaps = [
        replace(
            overlap,
            serial_by_round={
                number: serial_us[overlap.pair.shared["num_sms"]] * one for number, one in enumerate(level)
            },
        )
        for overlap in choice.overlaps
    ]
    return replace(choice, overlaps=overlaps, default=overlaps[0].pair)


def test_communication_between_gemms_is_what_the_sequence_takes_beyond_them() -> None:
    choice = choice_of({16: [1010.0] * 4, 32: [1100.0] * 4}, isolated_us=1000.0)
    (*_, sentence) = overlap_findings(with_serial(choice, {16: 1300.0, 32: 1150.0}, [1.0, 1.001, 0.999, 1.0]))
    assert sentence == (
        "Between GEMMs, at the clocks that these leave (the sequence less the isolated GEMMs), dispatch and combine "
        "take 300 us with the default, 2.000x as long as the 150 us with num_sms 32 (95 % CI 1.991 to 2.009); isolated "
        "it is 1.000x."
    )


def with_overlaps(dtype: Dtype, gemms: Dtype) -> str:
    """The report of a run that dispatches in one dtype and overlaps GEMMs of another."""
    choice = choice_of({16: [1010.0, 1011.0, 1012.0], 32: [1050.0, 1051.0, 1053.0]})
    results = results_with(overlaps=[replace(overlap, gemms=gemms) for overlap in choice.overlaps])
    spec = results.plan.spec
    workload = replace(spec.workload, dtype=dtype)
    return markdown_of(replace(results, plan=replace(results.plan, spec=replace(spec, workload=workload))))


def test_the_report_says_what_the_gemms_multiply_and_warns_where_that_is_not_what_was_dispatched() -> None:
    warning = "**The dispatch is FP8, the GEMMs are BF16**"
    for dtype, gemms, warns in ((Dtype.BF16, Dtype.BF16, 0), (Dtype.FP8, Dtype.FP8, 0), (Dtype.FP8, Dtype.BF16, 1)):
        report = with_overlaps(dtype, gemms)
        assert f"one layer's expert GEMMs ({gemms.upper()}, hidden" in report
        assert report.count(warning) == warns


def test_where_the_overlapped_answer_is_resolved_and_overlap_pays_the_findings_have_no_caveats() -> None:
    clear = {16: [1010.0, 1011.0, 1012.0, 1013.0], 32: [1050.0, 1051.0, 1053.0, 1054.0]}
    assert overlap_findings(choice_of(clear, isolated_us=1000.0)) == [
        "Overlapped with expert GEMMs, the pick num_sms 16 takes at most 0.0 % longer than the best pair, whichever "
        "that is (95 % confidence).",
        "The pick is num_sms 32 for isolated communication and num_sms 16 for communication overlapped with expert "
        "GEMMs. Isolated, num_sms 16 takes 0 us longer per round trip; no two groups measured both.",
        "Overlapped with expert GEMMs, num_sms 32 takes 1.040x as long as the pick num_sms 16 (95 % CI 1.039 to "
        "1.041).",
    ]


def test_the_findings_of_a_dry_run_are_labelled_and_must_not_be_deployed(sweep: Sweep) -> None:
    for name in ("OPTIMAL_CONFIGS.md", "SUMMARY.md", "report.html"):
        text = (sweep.folder / name).read_text()
        assert "Key findings of a dry run on this CPU" in text
        assert text.count("Key findings") == 1
    assert "nothing here is to be deployed" in (sweep.folder / "SUMMARY.md").read_text()
