"""Plots of a search: what each trial came to, its value over every key, and settings beside each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtmeta.core.reports.html.plots import SERIES, panel
from mtmeta.core.wording import safe

COMPLETE, BEST, GIVEN_UP = SERIES[0], SERIES[1], SERIES[7]
WIDE = 1.2  # inches of width for each axis of parallel coordinates
SHORT = 18  # characters of a choice
CHOICES = 8
"""Choices of a key that are named on an axis."""


@dataclass(frozen=True)
class Trial:
    """One trial: its number, its value (None where it has none), whether it was given up, and its settings."""

    number: int
    value: float | None
    given_up: bool
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """A key of the space on an axis: of numbers, in logarithms if so, or of choices by their texts."""

    key: str
    choices: Sequence[str]
    low: float
    high: float
    log: bool
    whole: bool

    @classmethod
    def of(cls, key: str, given: Mapping[str, Any]) -> Axis:
        """Return the axis of an entry of a space."""
        choices = list(given.get("choices", ()))
        low, high = given.get("low", 0), given.get("high", 1)
        whole = not choices and isinstance(low, int) and isinstance(high, int)
        return cls(key, choices, low, high, bool(given.get("log")), whole)

    def at(self, value: Any) -> float:
        """Return where a value stands, from 0 to 1; not a number where a trial has none."""
        if value is None:
            return math.nan
        if self.choices:
            return self.choices.index(value) / max(1, len(self.choices) - 1) if value in self.choices else math.nan
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        return ((math.log(value) if self.log else value) - low) / (high - low)

    @property
    def ends(self) -> tuple[str, str]:
        """Return the texts of its lower and its upper end."""
        if self.choices:
            return _short(self.choices[0]), _short(self.choices[-1])
        return f"{self.low:.3g}", f"{self.high:.3g}"


def _short(text: str) -> str:
    return safe(text, SHORT)


@panel
def history(axes: Any, trials: Sequence[Trial]) -> None:
    """Draw the value of each trial over its number, and the best so far as a line; what was given up is grey."""
    for given_up, colour, label in ((True, GIVEN_UP, "given up"), (False, COMPLETE, "complete")):
        shown = [trial for trial in trials if trial.given_up == given_up and trial.value is not None]
        if shown:
            numbers, values = [one.number for one in shown], [one.value for one in shown]
            axes.plot(numbers, values, "o", color=colour, markersize=3.5, markeredgewidth=0, label=label)
    best: list[tuple[int, float]] = []
    for trial in trials:
        if trial.value is not None and not trial.given_up and (not best or trial.value > best[-1][1]):
            best.append((trial.number, trial.value))
    if best:
        end = max(trial.number for trial in trials)
        numbers, values = [*(at for at, _ in best), end], [*(value for _, value in best), best[-1][1]]
        axes.step(numbers, values, where="post", color=BEST, label="best so far")
    _whole_ticks(axes)
    _legend(axes)


@panel
def slices(axes: Any, axis: Axis, trials: Sequence[Trial]) -> None:
    """Draw the values of trials over one key; choices stand beside each other."""
    shown = [trial for trial in trials if trial.settings.get(axis.key) is not None and trial.value is not None]
    for given_up, colour in ((True, GIVEN_UP), (False, COMPLETE)):
        some = [trial for trial in shown if trial.given_up == given_up]
        if axis.choices:
            # trials of one choice beside each other, always the same way
            x = [axis.choices.index(one.settings[axis.key]) + 0.1 * (one.number % 5 - 2) for one in some]
        else:
            x = [one.settings[axis.key] for one in some]
        axes.plot(x, [one.value for one in some], "o", color=colour, markersize=3, alpha=0.8, markeredgewidth=0)
    if axis.choices:
        names = [_short(text) for text in axis.choices] if len(axis.choices) <= CHOICES else []
        tilted = len(names) > 2
        axes.set_xticks(range(len(names)), names, rotation=30 if tilted else 0, ha="right" if tilted else "center")
        axes.set_xlim(-0.5, len(axis.choices) - 0.5)
        axes.grid(axis="x", visible=False)
    elif axis.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")  # the usual one writes in formulas
        axes.minorticks_off()
    elif axis.whole:
        _whole_ticks(axes)


@panel
def parallel(axes: Any, keys: Sequence[Axis], trials: Sequence[Trial], top: float) -> None:
    """Draw a line for each complete trial through its settings to its value; the best `top` of them stand out."""
    complete = [(trial.value, trial) for trial in trials if trial.value is not None and not trial.given_up]
    complete.sort(key=lambda pair: pair[0])
    values = [value for value, _ in complete]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    last = Axis("value", (), low, high if high > low else low + 1, False, False)
    columns = [*keys, last]
    axes.figure.set_size_inches(max(3.6, WIDE * len(columns)), 2.8)
    first_good = len(complete) - max(1, math.ceil(top * len(complete)))
    for rank, (value, trial) in enumerate(complete):
        good = rank >= first_good
        y = [*(axis.at(trial.settings.get(axis.key)) for axis in keys), last.at(value)]
        style = {"color": BEST, "linewidth": 1.3} if good else {"color": GIVEN_UP, "linewidth": 0.7, "alpha": 0.5}
        axes.plot(range(len(columns)), y, marker="o", markersize=2, **style)
    for number, axis in enumerate(columns):
        axes.text(number, -0.04, axis.ends[0], ha="center", va="top", fontsize=6)
        axes.text(number, 1.04, axis.ends[1], ha="center", va="bottom", fontsize=6)
    axes.set_title("", loc="left")  # where the upper ends stand
    names = [_name(axis.key) for axis in columns]
    axes.set_xticks(range(len(columns)), names, rotation=20, ha="right", fontsize=7)
    axes.tick_params(axis="x", pad=12)
    axes.set_yticks([])
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlim(-0.4, len(columns) - 0.6)


def _name(key: str) -> str:
    """Return the end of a key, which tells it from others; the whole key stands on its own plot."""
    return safe(".".join(key.split(".")[-2:]), 28)


def _whole_ticks(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _legend(axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:
        axes.legend(handles, labels, fontsize=7, loc="lower right")
