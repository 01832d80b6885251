"""The layers that were measured whole: what a config gains where the model waits for it; pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bench.backends import LIBRARY_DEFAULT
from launcher.analysis.layers import Layer, compare, gain, layer_of
from launcher.analysis.results import Results
from launcher.report import cells
from launcher.report.columns import CI95, ENGINES_GAIN, GAIN, LAYER, SMS, Column, headings
from launcher.report.library_tables import is_limit, named_pairs
from launcher.report.library_verdict import title_of
from launcher.report.report import Report
from launcher.text import table, text

_COLUMNS = (
    *(Column("library"), Column("layer"), Column("pick"), SMS),
    *(LAYER, CI95, GAIN, ENGINES_GAIN, Column("other knobs")),
)

_OTHER = "best of the sweep, which the final replaced"


class LayerTable(NamedTuple):
    """Every layer that was measured: by library, forward before training, defaults first."""

    columns: Sequence[Column]
    rows: list[list[str]]


def make_table(results: Results) -> LayerTable:
    """The table of layers, without the last gain where no engine sets a default of its own."""
    rows = [
        row
        for name in results.plan.spec.backends
        for training in (False, True)
        for row in _library_rows(results, name, training=training)
    ]
    at = _COLUMNS.index(ENGINES_GAIN)
    if any(row[at] for row in rows):
        return LayerTable(_COLUMNS, rows)
    return LayerTable((*_COLUMNS[:at], *_COLUMNS[at + 1 :]), [[*row[:at], *row[at + 1 :]] for row in rows])


def _library_rows(results: Results, backend: str, *, training: bool) -> list[list[str]]:
    choice = results.choices[backend]
    named = named_pairs(choice, backend)
    others = [pair for name, pair in choice.defaults.items() if name != LIBRARY_DEFAULT]
    before = [layer_of(choice.layers, pair, training=training) for pair in (choice.default, *others[:1])]
    found = []
    for layer in choice.layers:
        if layer.training is training:
            places = [at for at, (_, pair) in enumerate(named) if layer.is_of(pair)]
            gains = [_gain(default, layer) for default in (*before, None)[:2]]
            cells_of = [*_head(backend, layer, [named[at][0] for at in places]), *gains]
            other = cells.without_sms(backend, layer.dispatch, layer.combine)
            found.append((places or [len(named)], [*cells_of, other]))
    return [row for _, row in sorted(found, key=lambda each: each[0])]


def _head(backend: str, layer: Layer, labels: list[str]) -> list[str]:
    """Library, layer, pick, SMs and time; a limit of SMs is named only where nothing else names the pair."""
    chosen = [label for label in labels if not is_limit(label)] or labels or [_OTHER]
    return [
        *(title_of(backend), "training" if layer.training else "forward", "; ".join(chosen)),
        *(cells.sms(backend, layer.dispatch), cells.time(layer.median_us), cells.interval(layer.ci95_us)),
    ]


def _gain(default: Layer | None, layer: Layer) -> str:
    """``1.052x (1.049 to 1.055)``; empty for the default itself, and where too few passes measured both."""
    gained = None if default is None or default is layer else compare(default, layer)
    if gained is None:
        return ""
    return f"{gained.ratio:.3f}x ({gained.ci95.low:.3f} to {gained.ci95.high:.3f})"


def is_measured(results: Results) -> bool:
    """Whether the gain of the optimal pair over the default was measured, in a layer and in its training step.

    Of one library.
    """
    choice = results.choice
    gains = [gain(choice.layers, choice.default, choice.optimal, training=training) for training in (False, True)]
    return None not in gains


def section(report: Report) -> list[str]:
    """The table of layers."""
    columns, rows = make_table(report.results)
    if not rows:
        return []
    return ["## A whole layer, measured", "", text(explanation(report.results)), "", *table(headings(columns), rows)]


def _gemms(results: Results) -> str:
    """What they multiply: ``BF16``."""
    used = {layer.gemms.upper() for choice in results.choices.values() for layer in choice.layers}
    return ", ".join(sorted(used))


def explanation(results: Results) -> str:
    """What the table of layers holds, as plain text."""
    workload = results.plan.spec.workload
    return (
        f"Full dispatch, expert GEMMs of the received tokens ({_gemms(results)}) and combine, one after the other; "
        "training adds the backward pass: a cached dispatch of the gradients, its GEMMs (BF16), and a combine. Nothing "
        "is overlapped. A gain is "
        "the time with the default over the time with this pair, paired over the passes. The model "
        f"{workload.name} has {workload.num_moe_layers} such layers."
    )
