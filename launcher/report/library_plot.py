"""The first picture of several libraries: time over SMs, a curve for each; Results in, a figure out."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from bench.backends import default_label, sms_knob
from bench.stats import Interval
from launcher.analysis.choice import Choice
from launcher.analysis.pairs import Pair
from launcher.analysis.results import Results
from launcher.report.library_verdict import plain, ranked, title_of

_STYLES: Sequence[tuple[str, str, Any]] = (
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", (0, (6, 1.5))),
    ("#009E73", "D", (0, (2.5, 1))),
    ("#CC79A7", "v", "-."),
    ("#E69F00", "^", ":"),
)
"""Colour, marker and dashes of a library: Okabe and Ito's palette, which the colour-blind can tell apart."""

_DEFAULT_MARKERS = ("X", "P", "*")
_INK = "#505050"
_LINE: Any = {"color": _INK, "linestyle": ":", "linewidth": 1.2}
_TICKS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192)


class _Timed(NamedTuple):
    """A time with its 95 % CI at a number of SMs."""

    sms: int
    us: float
    ends: Interval


class _Curve(NamedTuple):
    """What a panel shows of a library: its fastest time for each number of SMs, and its defaults by label."""

    fastest: list[_Timed]
    defaults: dict[str, _Timed]


_Curves = Mapping[str, _Curve]
_TimesOf = Callable[[Choice], Iterable[tuple[Pair, float, Interval]]]


def figure(results: Results) -> Figure | None:
    """Isolated, and overlapped with GEMMs where that was measured; None where no time has a number of SMs."""
    isolated, overlapped = _curves(results, _isolated), _curves(results, _overlapped)
    if not isolated:
        return None
    drawing = Figure(figsize=(11 if overlapped else 6.5, 5), layout="constrained")
    panels = drawing.subplots(1, 2 if overlapped else 1, squeeze=False)[0]
    labels = list(dict.fromkeys(label for curve in isolated.values() for label in curve.defaults))
    markers = dict(zip(labels, itertools.cycle(_DEFAULT_MARKERS), strict=False))
    _draw(panels[0], isolated, markers)
    panels[0].set(title="isolated: computation waits", ylabel="dispatch + combine, us")
    panels[0].set_ylim(bottom=0)
    _mark_collectives(panels[0], results)
    if overlapped:
        _draw(panels[1], overlapped, markers)
        panels[1].set(title="overlapped with one layer's expert GEMMs", ylabel="until both are done, us (not from 0)")
        _mark_gemms(panels[1], results)
    device = results.environment.device if results.environment else ""
    drawing.suptitle(f"EP={results.plan.spec.ep.size}, {device}, {results.plan.spec.workload.name}")
    drawing.legend(handles=_legend(results, isolated, markers), loc="outside lower center", ncols=6, frameon=False)
    return drawing


def _curves(results: Results, times_of: _TimesOf) -> dict[str, _Curve]:
    """The curve of each library that has one."""
    curves = {}
    for name in ranked(results):
        knob, choice = sms_knob(name), results.choices[name]
        fastest: dict[int, _Timed] = {}
        defaults: dict[str, _Timed] = {}
        for pair, us, ends in times_of(choice):
            timed = _Timed(pair.shared.get(knob or "", 0), us, ends)
            fastest[timed.sms] = min(timed, fastest.get(timed.sms, timed))
            names = [default for default, other in choice.defaults.items() if other.same_configs(pair)]
            defaults |= {default_label(name, default): timed for default in names}
        if fastest and knob is not None:
            curves[name] = _Curve(sorted(fastest.values()), defaults)
    return curves


def _isolated(choice: Choice) -> Iterable[tuple[Pair, float, Interval]]:
    """The best pair for each value of the shared knobs, and the defaults."""
    for pair in (*choice.best_per_shared, *choice.defaults.values()):
        yield pair, pair.round_trip_us, pair.round_trip_ci95_us or _sum_of_ends(pair)


def _sum_of_ends(pair: Pair) -> Interval:
    """At least as wide as the interval of the sum."""
    dispatch, combine = pair.dispatch.ci95_us, pair.combine.ci95_us
    return Interval(dispatch.low + combine.low, dispatch.high + combine.high)


def _overlapped(choice: Choice) -> Iterable[tuple[Pair, float, Interval]]:
    for overlap in choice.overlaps:
        yield overlap.pair, overlap.makespan_us, overlap.ci95_us


def _draw(axes: Axes, curves: _Curves, markers: Mapping[str, str]) -> None:
    """A curve with bars for each library, and a mark on each of its defaults."""
    for (color, marker, dashes), curve in zip(itertools.cycle(_STYLES), curves.values(), strict=False):
        sms, us = [timed.sms for timed in curve.fastest], [timed.us for timed in curve.fastest]
        bars = np.abs([[timed.us - timed.ends.low, timed.ends.high - timed.us] for timed in curve.fastest]).T
        line: Any = {"color": color, "marker": marker, "linestyle": dashes, "markersize": 4.5, "linewidth": 1.7}
        axes.errorbar(sms, us, yerr=bars, capsize=3, **line)
        for label, timed in curve.defaults.items():
            mark: Any = {"color": color, "markeredgecolor": "black", "markersize": 10, "zorder": 4}
            axes.plot(timed.sms, timed.us, markers[label], **mark)
    every = [timed.sms for curve in curves.values() for timed in curve.fastest]
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in _TICKS if min(every) <= tick <= max(every)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel("SMs of the library's knob")
    axes.grid(alpha=0.3)


def _mark_collectives(axes: Axes, results: Results) -> None:
    """A line for each plain collective, with its label right of the panel; the slowest one's stands above its line."""
    pairs = sorted(plain(results).items(), key=lambda item: item[1].round_trip_us)
    for at, (name, pair) in enumerate(pairs):
        ends = pair.round_trip_ci95_us or _sum_of_ends(pair)
        axes.axhline(pair.round_trip_us, **_LINE)
        axes.axhspan(ends.low, ends.high, color=_INK, alpha=0.25, linewidth=0)
        words = textwrap.fill(f"{title_of(name)}", 15) + f"\n{pair.round_trip_us:.0f} us"
        _write(axes, (1.01, pair.round_trip_us), words, above=at == len(pairs) - 1)


def _mark_gemms(axes: Axes, results: Results) -> None:
    us = next(overlap.compute_isolated_us for choice in results.choices.values() for overlap in choice.overlaps)
    axes.axhline(us, **_LINE)
    _write(axes, (0.01, us), f"GEMMs isolated, {us:.0f} us", above=True)


def _write(axes: Axes, place: tuple[float, float], words: str, *, above: bool) -> None:
    """A label above or below a horizontal line, at a share of the panel's width."""
    style: Any = {"color": _INK, "fontsize": 8, "va": "bottom" if above else "top", "linespacing": 1.0}
    shift, across = (0, 2 if above else -2), axes.get_yaxis_transform()
    axes.annotate(words, xy=place, xycoords=across, xytext=shift, textcoords="offset points", **style)


def _legend(results: Results, curves: _Curves, markers: Mapping[str, str]) -> list[Line2D]:
    """The libraries, the marks of defaults, and the lines of plain collectives."""
    handles = [
        Line2D([], [], color=color, marker=marker, linestyle=dashes, label=title_of(name))
        for (color, marker, dashes), name in zip(itertools.cycle(_STYLES), curves, strict=False)
    ]
    mark: Any = {"color": "white", "markeredgecolor": "black", "markersize": 9, "linestyle": ""}
    handles += [Line2D([], [], marker=marker, label=label, **mark) for label, marker in markers.items()]
    if plain(results):
        handles.append(Line2D([], [], label="plain collective (another contract)", **_LINE))
    return handles
