"""Pictures of the results as SVG: time over the shared knob, and heatmaps of the grid; Results in, text out."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.backends import BACKENDS, shared_knobs, sms_knob
from bench.records import Op, Role
from launcher.analysis.measurements import Measurement
from launcher.analysis.results import Results
from launcher.report import library_plot
from launcher.report.pictures import LIBRARIES, name_of

_STYLE: Any = {"svg.hashsalt": "deepep-sweep", "svg.fonttype": "none", "font.size": 9}
_MARKERS = {"fastest": "*", "overlapped": "D", "default_sms": "s", "knee": "^"}
_MAX_TICKS = 25

T = TypeVar("T")


def draw(results: Results) -> dict[str, str]:
    """SVG texts by file name; empty where there is nothing to show."""
    names = results.plan.spec.backends
    with mpl.rc_context(_STYLE):
        if len(names) == 1:
            return {name_of(kind): _svg(figure) for kind, figure in _figures(results).items()}
        first = library_plot.figure(results)
        drawn = {} if first is None else {LIBRARIES: _svg(first)}
        for name in names:
            drawn |= {name_of(kind, name): _svg(figure) for kind, figure in _figures(results.of(name)).items()}
        return drawn


def _figures(results: Results) -> dict[str, Figure]:
    """The pictures of one library by what they show; none without a knob to draw them over."""
    name = _axis(results.plan.backend)
    if not results.choice.best_per_shared or name is None:
        return {}
    figures = {"pareto": _pareto(results, name)}
    for op in (Op.DISPATCH, Op.COMBINE):
        heatmap = _heatmaps(results, op)
        if heatmap is not None:
            figures[f"heatmap_{op}"] = heatmap
    return figures


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": "deepep-sweep"})
    return out.getvalue()


def _axis(backend: str) -> str | None:
    """The knob that times are drawn over: the one that counts SMs, or else the first shared one."""
    return sms_knob(backend) or next(iter(shared_knobs(BACKENDS[backend])), None)


def _fastest(timed: Iterable[tuple[int, float, T]]) -> list[T]:
    """Of those with one value the fastest, lowest value first."""
    by_value: dict[int, tuple[float, T]] = {}
    for value, us, each in timed:
        if value not in by_value or us < by_value[value][0]:
            by_value[value] = us, each
    return [by_value[value][1] for value in sorted(by_value)]


def _pareto(results: Results, name: str) -> Figure:
    """The isolated round trip and, where measured, the overlapped time, over one shared knob."""
    choice, spec = results.choice, results.plan.spec
    figure = Figure(figsize=(10 if choice.overlaps else 5.5, 4), layout="constrained")
    axes = figure.subplots(1, 2 if choice.overlaps else 1, squeeze=False)[0]
    _draw_isolated(axes[0], results, name)
    if choice.overlaps:
        _overlapped(axes[1], results, name)
    device = results.environment.device if results.environment else ""
    figure.suptitle(f"{BACKENDS[results.plan.backend].title} at EP={spec.ep.size}, {device}, {spec.workload.name}")
    return figure


def _draw_isolated(axes: Axes, results: Results, name: str) -> None:
    choice = results.choice
    pairs = _fastest((pair.shared[name], pair.round_trip_us, pair) for pair in choice.best_per_shared)
    low = [pair.dispatch.ci95_us.low + pair.combine.ci95_us.low for pair in pairs]
    high = [pair.dispatch.ci95_us.high + pair.combine.ci95_us.high for pair in pairs]
    times_us = [pair.round_trip_us for pair in pairs]
    errors = np.abs([np.subtract(times_us, low), np.subtract(high, times_us)])
    axes.errorbar(
        [pair.shared[name] for pair in pairs], times_us, yerr=errors, marker="o", capsize=2, label="best pair"
    )
    for pick, pair in choice.picks.items():
        axes.plot(pair.shared[name], pair.round_trip_us, _MARKERS[pick], markersize=11, fillstyle="none", label=pick)
    if choice.default is not None:
        axes.plot(choice.default.shared[name], choice.default.round_trip_us, "kx", markersize=9, label="default")
    axes.set(xlabel=name, ylabel="dispatch + combine, us", title="isolated")
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.grid(alpha=0.3)


def _overlapped(axes: Axes, results: Results, name: str) -> None:
    overlaps = results.choice.overlaps
    default = results.choice.default
    best = _fastest(
        (overlap.pair.shared[name], overlap.makespan_us, overlap) for overlap in overlaps if overlap.pair is not default
    )
    sms = [overlap.pair.shared[name] for overlap in best]
    times_us = [overlap.makespan_us for overlap in best]
    low, high = ([getattr(overlap.ci95_us, end) for overlap in best] for end in ("low", "high"))
    errors = np.abs([np.subtract(times_us, low), np.subtract(high, times_us)])
    axes.errorbar(sms, times_us, yerr=errors, marker="o", capsize=2, label="overlapped")
    axes.plot(sms, [overlap.serial_us for overlap in best], "--", label="serial")
    axes.axhline(overlaps[0].compute_isolated_us, color="grey", linestyle=":", label="GEMMs isolated")
    pick = results.choice.picks.get("overlapped")
    for overlap in overlaps:
        place = overlap.pair.shared[name], overlap.makespan_us
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
    if not 2 <= len(names) <= 3 or not cells:
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
    mixed = f"; cells of {results.num_nodes} nodes" if results.num_nodes > 1 else ""
    figure.colorbar(image, ax=list(panels), label=f"median us{mixed}")
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
