"""The effect of the optimal config on a model, computed from the measured times; pure."""

from __future__ import annotations

import msgspec

from launcher.analysis.pairs import Pair
from launcher.analysis.results import Results
from launcher.report import layer_table
from launcher.report.columns import Column, headings
from launcher.report.report import Report
from launcher.text import table, text


class Layer(msgspec.Struct, frozen=True):
    """Communication of one MoE layer, in microseconds.

    Forward: a full dispatch, because no handle exists yet, and a combine. Backward: a cached dispatch, which is the
    gradient of the combine, and a combine, which is the gradient of the dispatch.
    """

    forward_us: float
    backward_us: float


class Effect(msgspec.Struct, frozen=True):
    """Communication of a model's MoE layers per rank, before any overlap.

    ``has_full``: whether the full dispatch was measured; else the forward pass counts the cached one.
    """

    model: str
    num_layers: int
    default: Layer
    optimal: Layer
    has_full: bool

    @property
    def forward_ms(self) -> tuple[float, float]:
        """A forward pass with the default, and with the optimal config."""
        return self._ms(self.default.forward_us), self._ms(self.optimal.forward_us)

    @property
    def training_ms(self) -> tuple[float, float]:
        """A training step, forward and backward, with the default, and with the optimal config."""
        default, optimal = self.default, self.optimal
        return self._ms(default.forward_us + default.backward_us), self._ms(optimal.forward_us + optimal.backward_us)

    @property
    def rows(self) -> list[list[str]]:
        """The rows of the table; see ``COLUMNS``."""
        passes = (("forward pass", self.forward_ms), ("training step", self.training_ms))
        return [[name, f"{before:.1f}", f"{after:.1f}", f"{before - after:.1f}"] for name, (before, after) in passes]

    @property
    def explanation(self) -> str:
        """The formula behind the table, as plain text."""
        if self.has_full:
            forward, caveat = "full dispatch + combine", ""
        else:
            forward = "cached dispatch + combine"
            caveat = " The full dispatch was not measured, so the forward pass is too short."
        return (
            f"Computed, not measured, for {self.model} and one micro-batch of as many tokens as here. Forward pass: "
            f"{self.num_layers} MoE layers x ({forward}).{caveat} Training step: that + {self.num_layers} x (cached "
            "dispatch + combine) for the backward pass, where each combine becomes a dispatch of as many bytes and "
            "vice versa. Where communication is hidden behind compute, less is gained: see the overlapped pick. A "
            "model with another hidden size, number of experts or top-k needs its own run: workload=NAME."
        )

    def _ms(self, layer_us: float) -> float:
        return self.num_layers * layer_us / 1000


COLUMNS = tuple(map(Column, ("before overlap", "default ms", "optimal ms", "saved ms")))


def effect(results: Results) -> Effect | None:
    """The effect on the measured workload's model; None without a verdict, for dry runs, and where it was measured."""
    choice, workload = results.choice, results.plan.spec.workload
    if (
        results.plan.is_dry
        or layer_table.is_measured(results)
        or choice.verdict is None
        or choice.default is None
        or choice.optimal is None
    ):
        return None
    has_full = choice.default.full is not None and choice.optimal.full is not None
    default, optimal = (_layer(pair, has_full=has_full) for pair in (choice.default, choice.optimal))
    return Effect(workload.name, workload.num_moe_layers, default, optimal, has_full)


def _layer(pair: Pair, *, has_full: bool) -> Layer:
    dispatch = pair.full if has_full and pair.full is not None else pair.dispatch
    return Layer(forward_us=dispatch.median_us + pair.combine.median_us, backward_us=pair.round_trip_us)


def section(report: Report) -> list[str]:
    """The table of the effect, and its formula."""
    gain = effect(report.results)
    if gain is None:
        return []
    return [
        "## Expected effect on the model, computed",
        "",
        *table(headings(COLUMNS), [[name, before, f"**{after}**", saved] for name, before, after, saved in gain.rows]),
        text(gain.explanation),
        "",
    ]
