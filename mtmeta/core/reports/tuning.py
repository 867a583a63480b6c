"""A search in words: title, the table of the best trials, that of importance, and notes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtmeta.core.reports.table import Cell, Table
from mtmeta.core.wording import plural, safe

ROWS = 10
"""Trials in the table."""


def title_of(search: Mapping[str, Any]) -> str:
    """Return recipe, number of trials, and what they are judged by, in a line."""
    select = "mean of the tasks" if search["select"] == "mean" else search["select"]
    seeds = plural(len(search["seeds"]), "seed")
    return f"{search['recipe']}: {plural(len(search['trials']), 'trial')} of {seeds}, by {select} on {search['split']}"


def ranked(search: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the complete trials, the best first."""
    complete = [trial for trial in search["trials"] if trial["state"] == "complete"]
    return sorted(complete, key=lambda trial: (-trial["value"], trial["number"]))


def best_table(search: Mapping[str, Any], rows: int = ROWS) -> Table:
    """Return a row for each of the best trials: its number, its value, those of its seeds, and its settings."""
    keys = list(search["space"])
    cells = []
    for place, trial in enumerate(ranked(search)[:rows]):
        seeds = [f"{value:.4f}" for value in trial["seeds"]]
        settings = [shown(trial["settings"].get(key)) for key in keys]
        row = [str(trial["number"]), f"{trial['value']:.4f}", " ".join(seeds), *settings]
        cells.append([Cell(text, best=not place) for text in row])
    return Table(["trial", "value", "seeds", *map(safe, keys)], cells)


def importance_table(search: Mapping[str, Any]) -> Table | None:
    """Return a row for each key: its share in deciding what is good, the interval, and what chance comes to."""
    if (found := search["importance"]) is None:
        return None
    rows = []
    for key, row in found["keys"].items():
        interval = f"{row['low']:.2f} to {row['high']:.2f}"
        rows.append(
            [
                Cell(safe(key), best=row["value"] > row["chance"]),
                *map(Cell, (f"{row['value']:.2f}", interval, f"{row['chance']:.2f}")),
            ]
        )
    return Table(["key", "importance", "95% of resamples", "by chance below"], rows)


def shown(value: Any) -> str:
    """Return the value of a setting for people; nothing where a trial has none."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else safe(str(value))


def notes_of(search: Mapping[str, Any]) -> Sequence[str]:
    """Return the lines under the tables."""
    return list(_notes(search))


def _notes(search: Mapping[str, Any]) -> Iterator[str]:
    counts = ", ".join(f"{count} {state}" for state, count in search["counts"].items() if count)
    yield f"Trials: {counts or 'none'}. Value: the mean over the seeds, on {search['split']}, higher is better."
    for trial in [trial for trial in search["trials"] if trial["state"] == "failed"][:3]:
        yield f"Trial {trial['number']} failed: {safe(trial.get('reason', 'no reason was noted'), 200)}"
    if (found := search["importance"]) is not None:
        yield (
            f"Importance: each key's share in what tells the best {found['top']:.0%} of {found['trials']} complete "
            f"trials from the others, by {found['method']}; the interval is of {found['resamples']} resamples of the "
            "trials; a key that decides nothing stays below the last column in 95 of 100 permutations of its values."
        )
    elif search["trials"]:
        yield "Importance is told from 20 complete trials and two keys on."
    if search["best"] is not None:
        yield (
            f"{safe(search['best_recipe'], 300)} trains with the best settings. The best of many trials is better on "
            f"{search['split']} than elsewhere: compare it on another split, with other seeds."
        )
