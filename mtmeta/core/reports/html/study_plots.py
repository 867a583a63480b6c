"""Plots of a study: differences with their intervals, and confusions of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mtmeta.core.reports.html.page import Figure
from mtmeta.core.reports.html.plots import FOREGROUND, GRID, SERIES, panel, shortened
from mtmeta.core.reports.table import Tone
from mtmeta.core.wording import safe

TONES: dict[Tone, str] = {"better": SERIES[2], "worse": SERIES[4], "": SERIES[7]}
WIDTH, NARROW = 5.2, 3.4  # inches, of differences
LINE = 0.2  # inches of height that a difference takes
CELL = 0.42  # inches that a class takes at most
NAMED = 24
"""Classes up to which a confusion has numbers and names."""


@dataclass(frozen=True)
class Dot:
    """A difference: its interval (None where there is none), what it surely is, and what stands beside it."""

    label: str
    value: float
    low: float | None
    high: float | None
    tone: Tone
    text: str


@dataclass(frozen=True)
class Group:
    """Differences of one column, each of a row."""

    title: str
    dots: Sequence[Dot]


def differences(title: str, groups: Sequence[Group], margin: float | None, *, narrow: bool) -> list[Figure]:
    """Draw all groups over one axis; where one is far wider than another, each in a plot of its own."""
    x = "95% intervals" + (f"; shaded: within {margin:g}" if margin is not None else "")
    spans = [
        max(abs(end) for dot in group.dots for end in (dot.value, dot.low or 0.0, dot.high or 0.0)) for group in groups
    ]
    spans = [span for span in spans if span]
    if spans and max(spans) > 20 * min(spans):
        return [_differences(title, x, "", [group], margin, narrow) for group in groups]
    return [_differences(title, x, "", groups, margin, narrow)]


@panel
def _differences(axes: Any, groups: Sequence[Group], margin: float | None, narrow: bool) -> None:
    """Draw a dot for each difference, its interval as a line, its numbers beside it; 0 is where nothing differs."""
    lines = sum(len(group.dots) + 1 for group in groups)
    axes.figure.set_size_inches(NARROW if narrow else WIDTH, 0.9 + LINE * lines)
    axes.axvline(0, color=FOREGROUND, linewidth=0.9)
    if margin is not None:
        axes.axvspan(-margin, margin, color=GRID, alpha=0.5, linewidth=0)
    ticks: list[tuple[int, str]] = []
    at = 0
    for group in groups:
        axes.text(0.01, at, safe(group.title), transform=axes.get_yaxis_transform(), va="center", fontweight="bold")
        if at:
            axes.axhline(at - 0.6, color=GRID, linewidth=0.6)
        for dot in group.dots:
            at += 1
            colour = TONES[dot.tone]
            if dot.low is not None and dot.high is not None:
                axes.plot([dot.low, dot.high], [at, at], color=colour, linewidth=2.4, solid_capstyle="butt")
            face = colour if dot.low is not None else "none"
            axes.plot([dot.value], [at], "o", color=colour, markerfacecolor=face, markersize=5.5)
            if not narrow:
                axes.text(1.02, at, safe(dot.text), transform=axes.get_yaxis_transform(), va="center", fontsize=7)
            ticks.append((at, shortened(safe(dot.label))))
        at += 1
    axes.set_yticks([place for place, _ in ticks], [label for _, label in ticks])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(at - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.08)
    axes.locator_params(axis="x", nbins=4 if narrow else 5)


@panel
def confusion(axes: Any, classes: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
    """Draw the share of each label that was predicted as each class: what is right in blue, what is not in orange.

    Above 24 classes it is drawn without numbers.
    """
    size = len(classes)
    named = size <= NAMED
    side = min(6.0, max(1.6, CELL * size))
    axes.figure.set_size_inches(side + 1.0, side + 0.9)
    for row, of_label in enumerate(counts):
        total = max(1, sum(of_label))
        for column, count in enumerate(of_label):
            if not count:
                continue
            share = count / total
            colour = SERIES[0] if row == column else SERIES[1]
            axes.fill_between(
                [column - 0.5, column + 0.5], row - 0.5, row + 0.5, color=colour, alpha=0.75 * share, linewidth=0
            )
            if named and share >= 0.005:
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7)
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.grid(visible=False)
    labels = [shortened(safe(name), 14) for name in classes] if named else []
    tilted = any(len(label) > 3 for label in labels)
    axes.set_xticks(range(len(labels)), labels, rotation=35 if tilted else 0, ha="right" if tilted else "center")
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(length=0)
