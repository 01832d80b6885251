"""What a model's MoE layers gain by the optimal config, computed from the measured times; pure."""

from __future__ import annotations

import msgspec

from launcher.analysis.pairs import Pair
from launcher.analysis.results import Results
from launcher.report.columns import Column, headings
from launcher.report.report import Report
from launcher.text import table, text


class Layer(msgspec.Struct, frozen=True):
    """What one MoE layer waits for, in microseconds.

    Forward: the whole dispatch, with layout and exchange of counts, since no handle exists yet, and a combine.
    Backward: a dispatch with the forward pass's handle (what a combine becomes), and a combine (what a dispatch does).
    """

    forward_us: float
    backward_us: float


class Effect(msgspec.Struct, frozen=True):
    """What a model's MoE layers wait for, a rank and before any overlap.

    ``has_whole``: whether the whole dispatch was measured; else the forward pass counts one with a handle.
    """

    model: str
    num_layers: int
    default: Layer
    optimal: Layer
    has_whole: bool

    @property
    def forward_ms(self) -> tuple[float, float]:
        """Of a forward pass, with the default and with the optimal config."""
        return self._ms(self.default.forward_us), self._ms(self.optimal.forward_us)

    @property
    def training_ms(self) -> tuple[float, float]:
        """The same of a training step: forward and backward."""
        default, optimal = self.default, self.optimal
        return self._ms(default.forward_us + default.backward_us), self._ms(optimal.forward_us + optimal.backward_us)

    @property
    def rows(self) -> list[list[str]]:
        """The table's rows, the middle column being what the optimal config takes."""
        passes = (("forward pass", self.forward_ms), ("training step", self.training_ms))
        return [[name, f"{before:.1f}", f"{after:.1f}", f"{before - after:.1f}"] for name, (before, after) in passes]

    def _ms(self, layer_us: float) -> float:
        return self.num_layers * layer_us / 1000


COLUMNS = tuple(map(Column, ("before overlap", "default ms", "optimal ms", "saved ms")))


def effect(results: Results) -> Effect | None:
    """For the model whose layers were measured; None without a verdict, and for dry runs, whose times say nothing."""
    choice, workload = results.choice, results.plan.spec.workload
    if results.plan.is_dry or choice.verdict is None or choice.default is None or choice.optimal is None:
        return None
    has_whole = choice.default.full is not None and choice.optimal.full is not None
    default, optimal = (_layer(pair, has_whole=has_whole) for pair in (choice.default, choice.optimal))
    return Effect(workload.name, workload.num_moe_layers, default, optimal, has_whole)


def _layer(pair: Pair, *, has_whole: bool) -> Layer:
    whole = pair.full if has_whole and pair.full is not None else pair.dispatch
    return Layer(forward_us=whole.median_us + pair.combine.median_us, backward_us=pair.round_trip_us)


def section(report: Report) -> list[str]:
    """What a model gains, by the formula that stands below the table."""
    gain = effect(report.results)
    if gain is None:
        return []
    whole = (
        "The dispatch of a forward pass is the whole one, with layout, exchange of counts and the wait for them."
        if gain.has_whole
        else "**The whole dispatch was not measured: that of a forward pass counts as if its handle existed**, which "
        "is too little."
    )
    return [
        "## Expected effect on the model",
        "",
        *table(headings(COLUMNS), [[name, before, f"**{after}**", saved] for name, before, after, saved in gain.rows]),
        f"{text(gain.model)}, computed, not measured: {gain.num_layers} MoE layers x (dispatch + combine) for a "
        f"forward pass. {whole} A training step adds as many x (dispatch with the handle + combine) for the backward "
        "pass, where a combine becomes a dispatch and the other way round, of as many bytes. For one micro-batch of "
        "as many tokens as here. Where communication is hidden behind compute less is gained: see *overlapped*. "
        "A model with another hidden size, number of experts or top-k has to be measured: workload=NAME.",
        "",
    ]
