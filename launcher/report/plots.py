"""Pictures of the results as SVG: time over the shared knob, and heatmaps of the grid; Results in, text out."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.backends import BACKENDS, shared_knobs
from bench.records import Op, Role
from launcher.analysis.measurements import Measurement
from launcher.analysis.pairs import Pair
from launcher.analysis.results import Results

_STYLE: Any = {"svg.hashsalt": "deepep-sweep", "svg.fonttype": "none", "font.size": 9}
_MARKERS = {"fastest": "*", "overlapped": "D", "default_sms": "s", "knee": "^"}
_MAX_TICKS = 25


def draw(results: Results) -> dict[str, str]:
    """SVG texts by file name; empty where there is nothing to show."""
    if not results.choice.best_per_shared or len(shared_knobs(BACKENDS[results.plan.backend])) != 1:
        return {}
    with mpl.rc_context(_STYLE):
        pictures = {"pareto.svg": _pareto(results)}
        for op in (Op.DISPATCH, Op.COMBINE):
            heatmap = _heatmaps(results, op)
            if heatmap is not None:
                pictures[f"heatmap_{op}.svg"] = heatmap
        return {name: _svg(figure) for name, figure in pictures.items()}


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": "deepep-sweep"})
    return out.getvalue()


def _shared(pair: Pair) -> int:
    return next(iter(pair.shared.values()))


def _pareto(results: Results) -> Figure:
    """The isolated round trip and, where measured, the overlapped time, over the shared knob."""
    choice = results.choice
    name = shared_knobs(BACKENDS[results.plan.backend])[0]
    figure = Figure(figsize=(10 if choice.overlaps else 5.5, 4), layout="constrained")
    axes = figure.subplots(1, 2 if choice.overlaps else 1, squeeze=False)[0]
    _draw_isolated(axes[0], results, name)
    if choice.overlaps:
        _overlapped(axes[1], results, name)
    device = results.environment.device if results.environment else ""
    figure.suptitle(
        f"{results.plan.backend} at EP={results.plan.spec.ep.size}, {device}, {results.plan.spec.workload.name}"
    )
    return figure


def _draw_isolated(axes: Axes, results: Results, name: str) -> None:
    choice = results.choice
    pairs = choice.best_per_shared
    low = [pair.dispatch.ci95_us.low + pair.combine.ci95_us.low for pair in pairs]
    high = [pair.dispatch.ci95_us.high + pair.combine.ci95_us.high for pair in pairs]
    times_us = [pair.round_trip_us for pair in pairs]
    errors = np.abs([np.subtract(times_us, low), np.subtract(high, times_us)])
    axes.errorbar([_shared(pair) for pair in pairs], times_us, yerr=errors, marker="o", capsize=2, label="best pair")
    for pick, pair in choice.picks.items():
        axes.plot(_shared(pair), pair.round_trip_us, _MARKERS[pick], markersize=11, fillstyle="none", label=pick)
    if choice.default is not None:
        axes.plot(_shared(choice.default), choice.default.round_trip_us, "kx", markersize=9, label="default")
    axes.set(xlabel=name, ylabel="dispatch + combine, us", title="isolated")
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.grid(alpha=0.3)


def _overlapped(axes: Axes, results: Results, name: str) -> None:
    overlaps = results.choice.overlaps
    default = results.choice.default
    best = [overlap for overlap in overlaps if overlap.pair is not default]
    sms = [_shared(overlap.pair) for overlap in best]
    times_us = [overlap.makespan_us for overlap in best]
    low, high = ([getattr(overlap.ci95_us, end) for overlap in best] for end in ("low", "high"))
    errors = np.abs([np.subtract(times_us, low), np.subtract(high, times_us)])
    axes.errorbar(sms, times_us, yerr=errors, marker="o", capsize=2, label="overlapped")
    axes.plot(sms, [overlap.serial_us for overlap in best], "--", label="serial")
    axes.axhline(overlaps[0].compute_isolated_us, color="grey", linestyle=":", label="GEMMs isolated")
    pick = results.choice.picks.get("overlapped")
    for overlap in overlaps:
        place = _shared(overlap.pair), overlap.makespan_us
        if overlap.pair is pick:
            axes.plot(*place, "D", markersize=11, fillstyle="none", label="overlapped pick")
        if overlap.pair is default:
            axes.plot(*place, "kx", markersize=9, label="default")
    axes.set(xlabel=name, ylabel="until both are done, us", title="overlapped with expert GEMMs")
    axes.legend()
    axes.grid(alpha=0.3)


def _heatmaps(results: Results, op: Op) -> Figure | None:
    """One panel for each value of the last knob: the shared knob across, the first other knob up."""
    backend = BACKENDS[results.plan.backend]
    names = [knob.name for knob in backend.knobs]
    cells = [
        measurement
        for measurement in results.measurements
        if measurement.point.op is op
        and measurement.point.backend == backend.name
        and measurement.role is not Role.UPSTREAM
    ]
    if len(names) < 2 or not cells:
        return None
    values = sorted({cell.point.knobs[names[-1]] for cell in cells}) if len(names) > 2 else [None]
    figure = Figure(figsize=(1.5 + 4.2 * len(values), 4), layout="constrained")
    panels = figure.subplots(1, len(values), squeeze=False)[0]
    times_us = [cell.median_us for cell in cells]
    norm = mpl.colors.LogNorm(min(times_us), max(times_us))
    image = None
    for axes, value in zip(panels, values, strict=True):
        panel_cells = [cell for cell in cells if value is None or cell.point.knobs[names[-1]] == value]
        image = _heatmap(axes, panel_cells, across=names[0], up=names[1], norm=norm)
        axes.set_title(str(op) if value is None else f"{op}, {names[-1]} {value}")
    assert image is not None
    figure.colorbar(image, ax=list(panels), label="median us")
    return figure


def _heatmap(axes: Axes, cells: list[Measurement], *, across: str, up: str, norm: Any) -> Any:
    columns = sorted({cell.point.knobs[across] for cell in cells})
    rows = sorted({cell.point.knobs[up] for cell in cells})
    grid = np.full((len(rows), len(columns)), np.nan)
    row_of, column_of = ({value: index for index, value in enumerate(values)} for values in (rows, columns))
    for cell in cells:
        grid[row_of[cell.point.knobs[up]], column_of[cell.point.knobs[across]]] = cell.median_us
    image = axes.imshow(grid, origin="lower", aspect="auto", norm=norm, cmap="viridis_r")
    across_ticks, up_ticks = _ticks(len(columns)), _ticks(len(rows))
    axes.set_xticks(across_ticks, [str(columns[index]) for index in across_ticks], rotation=90)
    axes.set_yticks(up_ticks, [str(rows[index]) for index in up_ticks])
    axes.set(xlabel=across, ylabel=up)
    return image


def _ticks(count: int) -> range:
    """Every index, or as many as can be read."""
    return range(0, count, -(-count // _MAX_TICKS))
