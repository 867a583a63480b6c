"""Plots as SVG text that stands in an HTML page and takes its colours: light or dark, whatever the reader has.

matplotlib draws in placeholder colours, which become the page's CSS variables.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec

import numpy as np

from mtmeta.core.errors import MachineError
from mtmeta.core.reports.html.page import TEMPLATES, Figure
from mtmeta.core.wording import safe

Parameters = ParamSpec("Parameters")

FOREGROUND, GRID = "#010101", "#020202"
SERIES = [f"#0300{number:02x}" for number in range(8)]  # --s0 to --s7
VARIABLES = {FOREGROUND: "var(--fg)", GRID: "var(--grid)"} | {c: f"var(--s{i})" for i, c in enumerate(SERIES)}
PANEL = (3.6, 2.5)  # inches; a page shows as many beside each other as fit
ROW = 0.19  # inches of height that a row of a strip plot takes
LABEL = 26  # characters of a row's label
LAYERS = 8  # of the points of a cloud
DOT = re.compile(r"M (\d+\.\d{1,2})(\d*) (\d+\.\d{1,2})(\d*) \nL \1\2 \3\4 \n?")  # a line of no length in SVG
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mtmeta",
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "text.color": FOREGROUND,
    "text.parse_math": False,  # a dollar in a name begins no formula
    "axes.edgecolor": GRID,
    "axes.labelcolor": FOREGROUND,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": FOREGROUND,
    "ytick.color": FOREGROUND,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@dataclass(frozen=True)
class Line:
    """A series; `series` picks its colour, `strong` one of several that stand out, `points` stand without a line."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    series: int = 0
    strong: bool = True
    points: bool = False


@dataclass(frozen=True)
class Curve:
    """Means over an axis of counts, each with its interval (None where there is none) and the values behind it."""

    label: str
    x: Sequence[int]
    mean: Sequence[float]
    low: Sequence[float | None]
    high: Sequence[float | None]
    values: Sequence[Sequence[float]]
    series: int = 0
    dashed: bool = False


@dataclass(frozen=True)
class Strip:
    """The values of a row, one for each seed, with their mean and its interval (None where there is none)."""

    label: str
    values: Sequence[float]
    mean: float
    low: float | None
    high: float | None


def require(who: str) -> None:
    """Raise MachineError, in the name of a command, without matplotlib."""
    try:
        with contextlib.ExitStack() as stack:
            # while it is imported, matplotlib reads matplotlibrc of the current folder, whoever has put it there
            if "matplotlib" not in sys.modules:
                with contextlib.suppress(OSError):
                    stack.enter_context(contextlib.chdir(TEMPLATES))
            import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MachineError(who, "needs matplotlib, which is not installed; pip install 'mtmeta[report]'") from error


def _settings(defaults: Any) -> Any:
    """Return our settings over the library's own, so that a plot is the same whatever a user has set for others."""
    return {key: defaults[key] for key in defaults if not key.startswith("backend")} | STYLE


def panel(
    draw: Callable[Concatenate[Any, Parameters], None],
) -> Callable[Concatenate[str, str, str, Parameters], Figure]:
    """Make of a function that draws on axes one that takes title, x label and y label, and returns the figure."""

    @wraps(draw)
    def drawn(title: str, x: str, y: str, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Figure:
        require("mtmeta report")
        import matplotlib
        import matplotlib.figure
        from matplotlib.ticker import MaxNLocator

        with matplotlib.rc_context(_settings(matplotlib.rcParamsDefault)):
            figure = matplotlib.figure.Figure(figsize=PANEL, layout="constrained")
            axes = figure.subplots()
            axes.set_title(safe(title), loc="left")
            axes.set_xlabel(safe(x))
            axes.set_ylabel(safe(y))
            if x == "step":
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            draw(axes, *args, **kwargs)
            text = io.StringIO()
            figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        return Figure(title, _for_page(text.getvalue()))

    return drawn


@panel
def curves(axes: Any, curves: Sequence[Curve], *, zero: bool = False) -> None:
    """Draw means over a log axis, their intervals as bars, every value behind a mean as a faint dot beside it.

    The axis is as wide as the values ask for: of an interval that a few draws leave wide open it shows a part.
    """
    counts = sorted({at for curve in curves for at in curve.x})
    slot = (1.4**2 * counts[-1] / counts[0]) ** 0.03  # what a curve stands aside from its neighbour
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    if zero:
        axes.axhline(0, color=FOREGROUND, linewidth=0.8)
    for number, curve in enumerate(curves):
        colour = SERIES[curve.series % len(SERIES)]
        aside = slot ** (number - (len(curves) - 1) / 2)  # so that no curve hides the intervals of another
        style: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 3.5, "linewidth": 1.6}
        style |= {"linestyle": "--" if curve.dashed else "-", "label": safe(curve.label)}
        axes.plot([at * aside for at in curve.x], curve.mean, **style)
        for at, low, high, values in zip(curve.x, curve.low, curve.high, curve.values, strict=True):
            if low is not None and high is not None:
                axes.plot([at * aside] * 2, [low, high], color=colour, linewidth=3, alpha=0.35)
            here = [at * aside * slot**0.4] * len(values)
            axes.plot(here, values, "o", color=colour, markersize=2.4, alpha=0.5, markeredgewidth=0)
    axes.set_xlim(counts[0] / 1.4, counts[-1] * 1.4)
    bottom, top = _room(curves, zero)
    above = 0.1 * len(curves) * (len(curves) > 1)  # for the legend, which no bar may cross
    axes.set_ylim(bottom, top + above * (top - bottom))
    _legend(axes, "upper left")


def _room(curves: Sequence[Curve], zero: bool) -> tuple[float, float]:
    """Return the ends of an axis: all values, and of intervals what lies no further from them than they spread."""
    values = [value for curve in curves for values in curve.values for value in values] + [0.0] * zero
    least, most = min(values), max(values)
    ends = [end for curve in curves for end in (*curve.low, *curve.high) if end is not None]
    bottom = max(min([least, *ends]), least - (most - least) / 2)
    top = min(max([most, *ends]), most + (most - least) / 2)
    margin = 0.05 * (top - bottom) or 0.05
    return bottom - margin, top + margin


@panel
def strips(axes: Any, strips: Sequence[Strip]) -> None:
    """Draw a row below the other: a dot for each seed, the interval as a bar, the mean as a line across it.

    The plot is as high as its rows ask for, and of a long label the middle is left out.
    """
    axes.figure.set_size_inches(PANEL[0], max(PANEL[1], 0.6 + ROW * len(strips)))
    for number, strip in enumerate(strips):
        colour = SERIES[number % len(SERIES)]
        if strip.low is not None and strip.high is not None:
            axes.plot([strip.low, strip.high], [number, number], color=colour, linewidth=7, alpha=0.3)
        axes.plot([strip.mean] * 2, [number - 0.3, number + 0.3], color=colour, linewidth=1.8)
        # dots that would hide each other stand apart, in an order that is the same for the same values
        aside = [0.24 * ((at % 3) - 1) for at in range(len(strip.values))]
        at = [number + one for one in aside]
        axes.plot(strip.values, at, "o", color=colour, markersize=3, alpha=0.7, markeredgewidth=0)
    axes.locator_params(axis="x", nbins=5)  # more would run into each other
    axes.set_yticks(range(len(strips)), [shortened(safe(strip.label)) for strip in strips])
    axes.set_ylim(len(strips) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def shortened(label: str, most: int = LABEL) -> str:
    """Return a label that leaves room for what it stands beside; names of a study differ at either end."""
    return label if len(label) <= most else f"{label[: most // 2 - 1]}..{label[1 - most // 2 :]}"


@panel
def lines(axes: Any, lines: Sequence[Line], *, zero: bool = False) -> None:
    """Draw lines over a common axis; those without a label stand in no legend."""
    if zero:
        axes.axhline(0, color=FOREGROUND, linewidth=0.6)
    for line in lines:
        style: dict[str, Any] = {"color": SERIES[line.series % len(SERIES)], "label": safe(line.label) or None}
        if line.points:
            axes.plot(line.x, line.y, ".", markersize=2.5, alpha=0.35, **style)
        else:
            style |= {"linewidth": 1.6 if line.strong else 0.8, "alpha": 1.0 if line.strong else 0.6}
            axes.plot(line.x, line.y, marker="o" if len(line.x) < 2 else None, markersize=3, **style)
    _legend(axes)


@panel
def histograms(axes: Any, values: Mapping[str, Sequence[float]]) -> None:
    """Draw distributions over common bins, as outlines."""
    everything = np.concatenate([np.asarray(v, dtype=np.float64) for v in values.values()])
    bins = np.histogram_bin_edges(everything, bins=min(40, max(5, round(len(everything) ** 0.5))))
    for number, (label, series) in enumerate(values.items()):
        colour = SERIES[number % len(SERIES)]
        axes.hist(series, bins=bins, histtype="stepfilled", color=colour, alpha=0.3)
        axes.hist(series, bins=bins, histtype="step", color=colour, linewidth=1.4, label=safe(label))
    _legend(axes)


@panel
def bars(axes: Any, groups: Sequence[str], values: Mapping[str, Sequence[float]]) -> None:
    """Draw bars beside each other, one of each kind for every group."""
    width = 0.8 / len(values)
    for number, (label, series) in enumerate(values.items()):
        at = np.arange(len(groups)) + (number - (len(values) - 1) / 2) * width
        axes.bar(at, series, width * 0.92, color=SERIES[number % len(SERIES)], label=safe(label))
    many = len(groups) > 4
    axes.set_xticks(
        range(len(groups)), [*map(safe, groups)], rotation=30 if many else 0, ha="right" if many else "center"
    )
    axes.grid(axis="x", visible=False)
    _legend(axes)


@panel
def cloud(axes: Any, labels: Sequence[float], predictions: Sequence[float]) -> None:
    """Draw predicted against true values, with the line on which they are equal."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    ends = [min(labels), max(labels)]
    axes.plot(ends, ends, color=FOREGROUND, linewidth=0.8, linestyle="--")
    # a marker is 160 bytes a point in SVG, a line of no length with round ends 16; only other layers darken an overlap
    for layer in range(min(LAYERS, len(labels))):
        points = np.column_stack([labels[layer::LAYERS], predictions[layer::LAYERS]]).repeat(2, axis=0)
        dots = Path(points, [Path.MOVETO, Path.LINETO] * (len(points) // 2))
        axes.add_patch(PathPatch(dots, edgecolor=SERIES[0], linewidth=2.2, alpha=0.4, capstyle="round"))
    axes.autoscale_view()


def _legend(axes: Any, place: str = "best") -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:
        axes.legend(handles, labels, fontsize=7, loc=place)


def _for_page(svg: str) -> str:
    """Return the `<svg>` element alone, as wide as its place allows, in the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = DOT.sub(r"M\1 \3h0", svg)
    svg = re.sub(r' width="[^"]*pt"', "", re.sub(r' height="[^"]*pt"', "", svg, count=1), count=1)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    # ids are looked up in the whole page, where every plot has the same ones
    prefix = f"p{zlib.crc32(svg.encode()):x}-"
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    return svg.replace("<svg ", '<svg role="img" ', 1)
