"""A few-shot adaptation in words: title, cells and notes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtmeta.core.reports.table import Cell, Tone
from mtmeta.core.studies.comparison import TELLING
from mtmeta.core.training.statistics import over_seeds
from mtmeta.core.wording import MAX_NAMES, plural, safe, span


def title_of(adaptation: Mapping[str, Any]) -> str:
    """Return split, steps and head in a line."""
    return f"{adaptation['recipe']}: {adaptation['split']}, {adaptation['steps']} steps, head {adaptation['head']}"


def rows_of(adaptation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what has a row in a table: each task and number of shots, then the means over tasks."""
    return [*adaptation["cells"], *adaptation["means"]]


def cells_of(adapted: Mapping[str, Any]) -> list[Cell]:
    """Return a cell for every start of a task and number of shots: its mean, below it what it is ahead of others.

    One stands out that is better than every other start on the same draws, by the intervals of its differences.
    """
    cells, sign = [], adapted.get("sign", 1)
    few = adapted["draws"] if 1 < adapted["draws"] < TELLING else None
    for start, score in adapted["starts"].items():
        ahead = [score[key] for key in ("gain", "beside") if key in score]
        below = "\n".join(_with_interval(one, few, "+") for one in ahead)
        tones = tuple(tone(one, sign, adapted["draws"]) for one in ahead)
        cells.append(Cell(_with_interval(score, few), below, start == _surely_best(adapted), tones))
    return cells


def tone(gain: Mapping[str, Any], sign: float, draws: int) -> Tone:
    """Return what a mean difference surely is: its interval over so many draws excludes 0."""
    if gain["low"] is None or draws < TELLING:
        return ""
    worst, best = (gain["low"], gain["high"]) if sign > 0 else (-gain["high"], -gain["low"])
    return "better" if worst > 0 else "worse" if best < 0 else ""


def _surely_best(adapted: Mapping[str, Any]) -> str | None:
    best, sign = adapted["best"], adapted.get("sign", 1)
    values = adapted["starts"][best]["values"]
    for start, score in adapted["starts"].items():
        if start != best:
            gained = [one - other for one, other in zip(values, score["values"], strict=True)]
            mean, low, high = over_seeds(gained)
            if tone({"mean": mean, "low": low, "high": high}, sign, len(values)) != "better":
                return None
    return str(best)


def verdict_of(adaptation: Mapping[str, Any]) -> str:
    """Return in a sentence what the runs gain over the pretrained encoder, as far as the draws tell."""
    plain, *runs = adaptation["starts"]
    draws = adaptation["draws"]
    if draws < TELLING:
        why = "one draw cannot tell" if draws == 1 else f"{draws} draws are too few for an interval"
        return f"Gains over the {plain} encoder are known of {plural(draws, 'draw')} alone: {why}."
    parts = []
    for run in runs:
        tones: dict[Tone, list[str]] = {"better": [], "worse": [], "": []}
        for cell in adaptation["cells"]:
            found = tone(cell["starts"][run]["gain"], cell.get("sign", 1), cell["draws"])
            tones[found].append(
                f"{safe(cell['task'])} at {cell['shots']:,} ({cell['starts'][run]['gain']['mean']:+.3f})"
            )
        told = [f"{what} on {_some(tones[key])}" for key, what in _WORDS.items() if tones[key]]
        rest = f"no clear difference on {'the rest' if told else 'any task'}" if tones[""] else ""
        parts.append(
            f"{safe(run)} is {' and '.join(told)}" + (f", {rest}" if rest else "")
            if told
            else f"{safe(run)} shows {rest}"
        )
    return f"Beside the {plain} encoder, adapted to the same examples, {draws} draws: {'; '.join(parts)}."


_WORDS: dict[Tone, str] = {"better": "better", "worse": "worse"}


def _some(names: Sequence[str]) -> str:
    """Return a few names, or how many there are."""
    return ", ".join(names) if len(names) <= MAX_NAMES else f"{len(names)} combinations of task and shots"


def notes_of(adaptation: Mapping[str, Any]) -> list[str]:
    """Return the lines under the table."""
    draws = adaptation["draws"]
    over = f"95% interval by Student's t over the {draws} draws" if draws > 1 else "of one draw, so without interval"
    if 1 < draws < TELLING:
        over = f"{draws} draws, too few for an interval (--json has the one that Student's t gives)"
    gained = "below, the gain over the pretrained encoder on the same examples"
    if any("beside" in score for cell in adaptation["cells"] for score in cell["starts"].values()):
        gained += f", and below that the difference to {safe(adaptation['baseline'])} on them"
    brackets = f"Shots: examples of each class. Brackets: {over}; {gained}."
    return [brackets, *_fewer(adaptation), *_empty(adaptation), *_without_draws(adaptation)]


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


def _without_draws(adaptation: Mapping[str, Any]) -> Iterator[str]:
    """Yield which means over tasks leave out a draw that some task has no sample of."""
    for mean in adaptation["means"]:
        if mean["draws"] < adaptation["draws"]:
            of, draws = f"{mean['task']}, {plural(mean['shots'], 'shot')}", plural(mean["draws"], "draw")
            yield f"{of}: {draws}, those that every task has; so not the mean of the rows above."
    if adaptation["means"]:
        shown = {mean["shots"] for mean in adaptation["means"]}
        for k in dict.fromkeys(cell["shots"] for cell in adaptation["cells"]):
            if k not in shown:
                yield f"No mean over tasks of {plural(k, 'shot')}: there is no draw that every task has."


def _with_interval(score: Mapping[str, Any], few: int | None, sign: str = "") -> str:
    """Return a mean with its interval, or `few`, the number of draws if they are too few; a zero has no minus."""
    mean = f"{round(score['mean'], 4) + 0.0:{sign}.4f}"
    if few is not None:
        return f"{mean} ({plural(few, 'draw')})"
    if score["low"] is None:
        return mean
    return f"{mean} [{round(score['low'], 3) + 0.0:{sign}.3f}, {round(score['high'], 3) + 0.0:{sign}.3f}]"
