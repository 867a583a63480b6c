"""A few-shot adaptation in words: title, cells and notes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtmeta.core.reports.table import Cell


def title_of(adaptation: Mapping[str, Any]) -> str:
    """Return split, steps and head in a line."""
    return f"{adaptation['recipe']}: {adaptation['split']}, {adaptation['steps']} steps, head {adaptation['head']}"


def cells_of(adapted: Mapping[str, Any]) -> list[Cell]:
    """Return a cell for every start of a task and number of shots: its mean, below it the gain over the pretrained."""
    return [
        Cell(
            _with_interval(score, "{:.4f}", "{:.3f}"),
            _with_interval(score["gain"], "{:+.4f}", "{:+.3f}") if "gain" in score else "",
            start == adapted["best"],
        )
        for start, score in adapted["starts"].items()
    ]


def notes_of(adaptation: Mapping[str, Any]) -> list[str]:
    """Return the lines under the table."""
    draws = len(next(iter(adaptation["cells"][0]["starts"].values()))["values"])
    over = f"95% interval by Student's t over the {draws} draws" if draws > 1 else "of one draw, so without interval"
    gained = "below, the gain over the pretrained encoder on the same examples"
    return [f"Shots: examples of each class. Brackets: {over}; {gained}."]


def _with_interval(score: Mapping[str, Any], value: str, end: str) -> str:
    """Return a mean with its interval, in these formats."""
    mean = value.format(_no_minus(score["mean"], 4))
    if score["low"] is None:
        return mean
    return f"{mean} [{end.format(_no_minus(score['low'], 3))}, {end.format(_no_minus(score['high'], 3))}]"


def _no_minus(value: float, digits: int) -> float:
    """Return the value rounded, a zero without a minus."""
    return round(value, digits) + 0.0
