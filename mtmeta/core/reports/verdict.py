"""What a comparison comes to, in one sentence: what its intervals say, and nothing that they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtmeta.core.reports.comparison import sign_of, tone_of
from mtmeta.core.studies.comparison import MEAN, TELLING
from mtmeta.core.wording import plural, safe

MOST_ROWS = 4
"""Rows that the sentence tells of one by one; of more it counts them."""


def verdict_of(comparison: Mapping[str, Any]) -> str:
    """Return the sentence."""
    rows, baseline = comparison["rows"], comparison["baseline"]
    if len(rows) == 1:
        return _of_one(rows[0], comparison)
    if baseline is None:
        return _of_the_best(comparison)
    stands = [_Stand.of(row, comparison) for row in rows if _has_delta(row, baseline)]
    if not stands:
        return f"There is nothing to compare with {safe(baseline)}."
    if len(stands) > MOST_ROWS:
        return _counted(stands, safe(baseline))
    if len(stands) == 1:
        (stand,) = stands
        return f"{stand.name} {stand.beside(safe(baseline))}{f'; {_seeds(stands)}' * (stand.fewest >= TELLING)}."
    parts = "; ".join(f"{stand.name} {stand.beside('')}" for stand in stands)
    return f"Beside {safe(baseline)}, {_seeds(stands)}: {parts}."


@dataclass(frozen=True)
class _Stand:
    """How a row stands beside the baseline: tasks on which it surely is better or worse, and how bad it may be."""

    name: str
    tasks: int
    better: Sequence[str]
    worse: Sequence[str]
    others: Sequence[str]
    mean: float
    """The difference of the means."""
    loss: float | None
    """What it may lose on `task` at most, by the intervals; None where there are none."""
    task: str
    margin: float | None
    """That it keeps within on every task, if it surely does."""
    same: bool
    fewest: int

    @classmethod
    def of(cls, row: Mapping[str, Any], comparison: Mapping[str, Any]) -> _Stand:
        """Return how a row stands beside the first baseline."""
        baseline = comparison["baseline"]
        deltas = {name: cell["deltas"][baseline] for name, cell in row["columns"].items() if "deltas" in cell}
        mean = deltas.pop(MEAN, None)
        signs = {task: sign_of(comparison, task) for task in deltas}
        tones = {task: tone_of(delta, signs[task]) for task, delta in deltas.items()}
        shown = {task: f"{safe(task)} ({delta['value']:+.3f})" for task, delta in deltas.items()}
        losses = [(-d["low"] if signs[task] > 0 else d["high"], task) for task, d in deltas.items() if _bounded(d)]
        loss, task = max(losses) if len(losses) == len(deltas) else (None, "")
        return cls(
            name=safe(row["name"]),
            tasks=len(deltas),
            better=[shown[task] for task, tone in tones.items() if tone == "better"],
            worse=[shown[task] for task, tone in tones.items() if tone == "worse"],
            others=[safe(task) for task, tone in tones.items() if not tone],
            mean=mean["value"] if mean else float("nan"),
            loss=loss,
            task=safe(task),
            margin=comparison["margin"] if all(delta["non_inferior"] for delta in deltas.values()) else None,
            same=all(delta["low"] == delta["high"] == delta["value"] == 0 for delta in deltas.values()),
            fewest=min(delta["fewest"] for delta in deltas.values()),
        )

    def beside(self, baseline: str) -> str:
        """Return what is known of the row, after its name; `baseline` is named where it is not named before."""
        to, on = f" than {baseline}" if baseline else "", "the one task" if self.tasks == 1 else "any task"
        if self.fewest < TELLING:
            mean = "" if self.mean != self.mean else f" by {self.mean:+.4f} in the mean"
            why = "one seed cannot tell" if self.fewest == 1 else f"{self.fewest} seeds are too few for an interval"
            return f"differs{f' from {baseline}' if baseline else ''}{mean}, which says nothing yet: {why}"
        if self.same:
            return f"predicts the same as {baseline or 'it'} on every task"
        surely = [f"better{to} on {_list(self.better)}"] if self.better else []
        surely += [f"worse{'' if surely else to} on {_list(self.worse)}"] if self.worse else []
        kept = f"{self.margin:.3f} on {on}" if self.margin is not None else ""
        if kept and not surely:
            return f"is not worse{to} by more than {kept}"
        if kept:
            return f"is {' and '.join(surely)}, and loses no more than {kept}"
        bound = (
            ""
            if self.loss is None or self.loss <= 0
            else f" (its interval on {self.task} reaches {self.loss:.3f} below)"
        )
        if not surely:
            return f"shows no clear difference{f' from {baseline}' if baseline else ''} on {on}{bound}"
        rest = f", with no clear difference on {_list(self.others)}" if self.others else ""
        return f"is {' and '.join(surely)}{rest}"


def _bounded(delta: Mapping[str, Any]) -> bool:
    return delta["low"] is not None and delta["high"] is not None


def _has_delta(row: Mapping[str, Any], baseline: str) -> bool:
    return any(baseline in cell.get("deltas", {}) for name, cell in row["columns"].items() if name != MEAN)


def _counted(stands: Sequence[_Stand], baseline: str) -> str:
    """Return the sentence about many rows: how many are better, worse, both or neither, and which are better."""
    told = [stand for stand in stands if stand.fewest >= TELLING]
    if not told:
        return f"Nothing can be told of {plural(len(stands), 'row')} beside {baseline}: {_seeds(stands)} are too few."
    gains = [stand.name for stand in told if stand.better and not stand.worse]
    worse = [stand.name for stand in told if stand.worse and not stand.better]
    mixed = [stand.name for stand in told if stand.worse and stand.better]
    parts = []
    for names, what in (
        (gains, "better on some task and worse on none"),
        (worse, "worse on some task and better on none"),
        (mixed, "better on some task and worse on another"),
    ):
        if names:
            which = f" ({', '.join(names)})" if len(names) <= MOST_ROWS else ""
            parts.append(f"{len(names)} {'is' if len(names) == 1 else 'are'} {what}{which}")
    if rest := len(told) - len(gains) - len(worse) - len(mixed):
        parts.append(f"{rest} {'shows' if rest == 1 else 'show'} no clear difference")
    if few := len(stands) - len(told):
        parts.append(f"{few} {'has' if few == 1 else 'have'} too few seeds to tell")
    return f"Of {plural(len(stands), 'row')} beside {baseline}, {_seeds(told)}: {', '.join(parts)}."


def _of_one(row: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    seeds = len(row["seeds"])
    scores = []
    for task, metric in comparison["metrics"].items():
        cell = row["columns"][task]
        known = cell["low"] is not None and (seeds == 1 or seeds >= TELLING)
        interval = f" [{cell['low']:.3f}, {cell['high']:.3f}]" if known else ""
        scores.append(f"{safe(task)} {safe(metric)} {cell['mean']:.3f}{interval}")
    why = {1: "one run, so brackets cover other examples, not other seeds", 2: "2 seeds: too few for an interval"}
    return f"{safe(row['name'])}: {', '.join(scores)}; {why.get(seeds, plural(seeds, 'seed'))}."


def _of_the_best(comparison: Mapping[str, Any]) -> str:
    """Return the sentence where there is no baseline: which rows surely are the best, and on what."""
    rows = comparison["rows"]
    fewest = min(len(row["seeds"]) for row in rows)
    of_row = {safe(row["name"]): [safe(c) for c, cell in row["columns"].items() if cell["surely_best"]] for row in rows}
    parts = [f"{name} is surely the best on {_list(columns)}" for name, columns in of_row.items() if columns]
    if parts:
        return f"{'; '.join(parts)}; {_seeds_text(fewest, max(len(row['seeds']) for row in rows))}."
    best = [safe(row["name"]) for row in rows if row["columns"][MEAN]["best"]]
    highest = f"; the best mean has {_list(best)}" if best else ""
    if fewest < TELLING:
        why = "one seed cannot tell" if fewest == 1 else f"{plural(fewest, 'seed')}: too few for an interval"
        return f"No row is surely the best on any task, for {why}{highest}."
    return f"No row is surely the best on any task{highest}; {plural(fewest, 'seed')}."


def _seeds(stands: Sequence[_Stand]) -> str:
    return _seeds_text(min(stand.fewest for stand in stands), max(stand.fewest for stand in stands))


def _seeds_text(least: int, most: int) -> str:
    return plural(least, "seed") if least == most else f"{least} to {most} seeds"


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
