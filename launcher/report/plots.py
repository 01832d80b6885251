"""Pictures of the results as SVG: the price of speed in SMs, and heatmaps of the grid; Results in, text out."""

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
    if not results.choice.best_per_shared or len(shared_knobs(BACKENDS[results.plan.spec.backend])) != 1:
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
    """Round trip alone and, where it was measured, the time beside GEMMs, over the shared knob."""
    choice = results.choice
    name = shared_knobs(BACKENDS[results.plan.spec.backend])[0]
    figure = Figure(figsize=(10 if choice.overlaps else 5.5, 4), layout="constrained")
    axes = figure.subplots(1, 2 if choice.overlaps else 1, squeeze=False)[0]
    _serial(axes[0], results, name)
    if choice.overlaps:
        _overlapped(axes[1], results, name)
    device = results.environment.device if results.environment else ""
    figure.suptitle(
        f"{results.plan.spec.backend} at EP={results.plan.spec.ep.size}, {device}, {results.plan.spec.workload.name}"
    )
    return figure


def _serial(axes: Axes, results: Results, name: str) -> None:
    choice = results.choice
    pairs = choice.best_per_shared
    low = [pair.dispatch.ci95_us.low + pair.combine.ci95_us.low for pair in pairs]
    high = [pair.dispatch.ci95_us.high + pair.combine.ci95_us.high for pair in pairs]
    middle = [pair.round_trip_us for pair in pairs]
    errors = np.abs([np.subtract(middle, low), np.subtract(high, middle)])
    axes.errorbar([_shared(pair) for pair in pairs], middle, yerr=errors, marker="o", capsize=2, label="best pair")
    for pick, pair in choice.picks.items():
        axes.plot(_shared(pair), pair.round_trip_us, _MARKERS[pick], markersize=11, fillstyle="none", label=pick)
    if choice.default is not None:
        axes.plot(_shared(choice.default), choice.default.round_trip_us, "kx", markersize=9, label="default")
    axes.set(xlabel=name, ylabel="dispatch + combine, us", title="alone")
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.grid(alpha=0.3)


def _overlapped(axes: Axes, results: Results, name: str) -> None:
    overlaps = results.choice.overlaps
    default = results.choice.default
    best = [one for one in overlaps if one.pair is not default]
    middle = [one.makespan_us for one in best]
    errors = np.abs(
        [[one.makespan_us - one.ci95_us.low for one in best], [one.ci95_us.high - one.makespan_us for one in best]]
    )
    axes.errorbar([_shared(one.pair) for one in best], middle, yerr=errors, marker="o", capsize=2, label="overlapped")
    axes.plot(
        [_shared(one.pair) for one in best],
        [one.serial_us for one in best],
        "--",
        label="one after the other",
    )
    axes.axhline(overlaps[0].compute_isolated_us, color="grey", linestyle=":", label="GEMMs alone")
    chosen = results.choice.picks.get("overlapped")
    for one in overlaps:
        if one.pair is chosen:
            axes.plot(_shared(one.pair), one.makespan_us, "D", markersize=11, fillstyle="none", label="overlapped pick")
        if one.pair is default:
            axes.plot(_shared(one.pair), one.makespan_us, "kx", markersize=9, label="default")
    axes.set(xlabel=name, ylabel="until both are done, us", title="beside expert GEMMs")
    axes.legend()
    axes.grid(alpha=0.3)


def _heatmaps(results: Results, op: Op) -> Figure | None:
    """One panel for each value of the last knob: the first own knob down, the shared knob across."""
    backend = BACKENDS[results.plan.spec.backend]
    names = [knob.name for knob in backend.knobs]
    found = [
        one
        for one in results.measurements
        if one.point.op is op and one.point.backend == backend.name and one.role is not Role.UPSTREAM
    ]
    if len(names) < 2 or not found:
        return None
    panels = sorted({one.point.knobs[names[-1]] for one in found}) if len(names) > 2 else [None]
    figure = Figure(figsize=(1.5 + 4.2 * len(panels), 4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    times = [one.median_us for one in found]
    norm = mpl.colors.LogNorm(min(times), max(times))
    image = None
    for panel, value in zip(axes, panels, strict=True):
        part = [one for one in found if value is None or one.point.knobs[names[-1]] == value]
        image = _heatmap(panel, part, across=names[0], down=names[1], norm=norm)
        panel.set_title(str(op) if value is None else f"{op}, {names[-1]} {value}")
    assert image is not None
    figure.colorbar(image, ax=list(axes), label="median us")
    return figure


def _heatmap(axes: Axes, part: list[Measurement], *, across: str, down: str, norm: Any) -> Any:
    columns = sorted({one.point.knobs[across] for one in part})
    rows = sorted({one.point.knobs[down] for one in part})
    grid = np.full((len(rows), len(columns)), np.nan)
    at_row, at_column = ({value: at for at, value in enumerate(values)} for values in (rows, columns))
    for one in part:
        grid[at_row[one.point.knobs[down]], at_column[one.point.knobs[across]]] = one.median_us
    image = axes.imshow(grid, origin="lower", aspect="auto", norm=norm, cmap="viridis_r")
    across_ticks, down_ticks = _ticks(len(columns)), _ticks(len(rows))
    axes.set_xticks(across_ticks, [str(columns[at]) for at in across_ticks], rotation=90)
    axes.set_yticks(down_ticks, [str(rows[at]) for at in down_ticks])
    axes.set(xlabel=across, ylabel=down)
    return image


def _ticks(count: int) -> range:
    """Every place, or as many as can be read."""
    return range(0, count, -(-count // _MAX_TICKS))
