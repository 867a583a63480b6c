"""A few-shot adaptation in words: title, cells and notes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mtmeta.core.reports.table import Cell
from mtmeta.core.wording import MAX_NAMES, plural, safe, span


def title_of(adaptation: Mapping[str, Any]) -> str:
    """Return split, steps and head in a line."""
    return f"{adaptation['recipe']}: {adaptation['split']}, {adaptation['steps']} steps, head {adaptation['head']}"


def cells_of(adapted: Mapping[str, Any]) -> list[Cell]:
    """Return a cell for every start of a task and number of shots: its mean, below it what it is ahead of others."""
    cells = []
    for start, score in adapted["starts"].items():
        below = [_with_interval(score[key], "+") for key in ("gain", "beside") if key in score]
        cells.append(Cell(_with_interval(score), "\n".join(below), start == adapted["best"]))
    return cells


def notes_of(adaptation: Mapping[str, Any]) -> list[str]:
    """Return the lines under the table."""
    draws = adaptation["draws"]
    over = f"95% interval by Student's t over the {draws} draws" if draws > 1 else "of one draw, so without interval"
    gained = "below, the gain over the pretrained encoder on the same examples"
    if any("beside" in score for cell in adaptation["cells"] for score in cell["starts"].values()):
        gained += f", and below that the difference to {safe(adaptation['baseline'])} on them"
    return [f"Shots: examples of each class. Brackets: {over}; {gained}.", *_fewer(adaptation), *_empty(adaptation)]


def _fewer(adaptation: Mapping[str, Any]) -> Iterator[str]:
    """Yield for each task and number of shots the classes that have fewer rows, all of which were taken."""
    for cell in adaptation["cells"]:
        key = (cell["task"], cell["shots"])
        examples = span(one["examples"] for one in adaptation["adapted"] if (one["task"], one["shots"]) == key)
        if fewer := cell.get("fewer"):
            shown = ", ".join(f"{safe(name, 40)} {rows}" for name, rows in list(fewer.items())[:MAX_NAMES])
            more = f", and {len(fewer) - MAX_NAMES} more" if len(fewer) > MAX_NAMES else ""
            drawn = f"so {examples} {'example was' if examples == '1' else 'examples were'} drawn"
            of = f"{safe(cell['task'])}, {plural(cell['shots'], 'shot')}"
            yield f"{of}: fewer rows are there of {shown}{more}; {drawn}."


def _empty(adaptation: Mapping[str, Any]) -> Iterator[str]:
    """Yield for each task and number of shots how many fixed samples are missing, for they hold nothing."""
    for cell in adaptation["cells"]:
        if missing := adaptation["draws"] - cell["draws"]:
            of = f"{safe(cell['task'])}, {plural(cell['shots'], 'shot')}"
            holds = f"{missing} of the {adaptation['draws']} samples {'holds' if missing == 1 else 'hold'} no example"
            yield f"{of}: {plural(cell['draws'], 'draw')}, for {holds}."


def _with_interval(score: Mapping[str, Any], sign: str = "") -> str:
    """Return a mean with its interval; a zero has no minus."""
    mean = f"{round(score['mean'], 4) + 0.0:{sign}.4f}"
    if score["low"] is None:
        return mean
    return f"{mean} [{round(score['low'], 3) + 0.0:{sign}.3f}, {round(score['high'], 3) + 0.0:{sign}.3f}]"
