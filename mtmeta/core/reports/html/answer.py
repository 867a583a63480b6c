"""What stands on the first screen of a report: the verdict, differences as a plot, and what people ask next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from mtmeta.core.reports.comparison import few_of, interval_text, sign_of, table_of, tone_of
from mtmeta.core.reports.html.history import History
from mtmeta.core.reports.html.page import Figure
from mtmeta.core.reports.html.study_plots import Dot, Group, differences
from mtmeta.core.reports.html.task_section import TaskPredictions
from mtmeta.core.reports.table import Table, turned
from mtmeta.core.wording import plural

Fact = tuple[str, Sequence[str]]
"""What is asked, and the lines that answer it."""
STACKED = 4
"""Columns above which an interval stands below its number."""
TRANSPOSED = 8
"""Columns above which tasks are rows."""


def answer_table(compared: Mapping[str, Any]) -> Table:
    """Return the table of a comparison as it fits a page: no line of a cell is broken."""
    columns = len(compared["rows"][0]["columns"])
    as_rows = columns > TRANSPOSED and len(compared["rows"]) < columns
    wide = (len(compared["rows"]) if as_rows else columns) <= STACKED
    table = table_of(compared, " " if wide else "\n", costs=False)
    return turned(table) if as_rows else table


def difference_plot(compared: Mapping[str, Any], *, narrow: bool = False) -> list[Figure]:
    """Draw the differences of every row to the baseline; nothing where there is none. A narrow plot has no numbers."""
    baseline, groups = compared["baseline"], []
    if baseline is None:
        return []
    counts = {row["name"]: len(row["seeds"]) for row in compared["rows"]}
    differ = len({*counts.values()}) > 1
    for column in compared["rows"][0]["columns"]:
        sign = sign_of(compared, column)
        dots = []
        for row in compared["rows"]:
            delta = row["columns"][column].get("deltas", {}).get(baseline)
            if delta is not None:
                low, high = (None, None) if delta["too_few"] else (delta["low"], delta["high"])
                text = f"{delta['value']:+.3f}{interval_text(delta, few_of(delta), ' ', '+')}"
                label = f"{row['name']} ({plural(counts[row['name']], 'seed')})" if differ else row["name"]
                dots.append(Dot(label, delta["value"], low, high, tone_of(delta, sign), text))
        metric = f" {compared['metrics'][column]}" if column in compared["metrics"] else ""
        if dots:
            groups.append(Group(f"{column}{metric}{', less is better' if sign < 0 else ''}", dots))
    title = f"Differences to {baseline}"
    return differences(title, groups, compared["margin"], narrow=narrow) if groups else []


def facts_of(
    compared: Mapping[str, Any] | None, histories: Sequence[History], tasks: Sequence[TaskPredictions]
) -> list[Fact]:
    """Return what people ask of a study, and what its files answer."""
    facts = [
        ("Did it overfit?", _fits(histories)),
        ("What is confused? (% of the first label)", [line for task in tasks for line in task.confused()]),
    ]
    if compared is not None:
        facts.insert(0, ("Which is best?", _leaders(compared)))
        if compared["margin"] is not None and compared["baseline"] is not None:
            question = f"As good as {compared['baseline']}, but for {compared['margin']:g}?"
            facts.insert(1, (question, _within(compared)))
        facts.append(("What did a run cost?", [_cost(row) for row in compared["rows"]]))
    facts.append(("On what?", [_data(histories[0])]))
    return [(question, lines) for question, lines in facts if lines]


def _leaders(compared: Mapping[str, Any]) -> list[str]:
    """Return the row with the best mean of each column, and whether it surely is the best; nothing of a single row."""
    if len(compared["rows"]) < 2:
        return []
    sure: dict[str, list[str]] = {}
    likely: dict[str, list[str]] = {}
    for column in compared["rows"][0]["columns"]:
        for row in compared["rows"]:
            cell = row["columns"][column]
            if cell["best"]:
                (sure if cell["surely_best"] else likely).setdefault(row["name"], []).append(column)
    lines = [f"{name} on {', '.join(columns)}, surely" for name, columns in sure.items()]
    return lines + [f"{name} on {', '.join(columns)}, but not surely" for name, columns in likely.items()]


def _within(compared: Mapping[str, Any]) -> list[str]:
    """Return for each row on what its loss to the baseline surely is below the margin, and on what that is open."""
    lines = []
    for row in compared["rows"]:
        deltas = {c: cell.get("deltas", {}).get(compared["baseline"]) for c, cell in row["columns"].items()}
        surely = [column for column, delta in deltas.items() if delta and delta["non_inferior"]]
        beyond = [column for column, delta in deltas.items() if delta and delta["negative_transfer"]]
        open_ = [c for c, delta in deltas.items() if delta and c not in surely and c not in beyond]
        parts = [f"surely on {', '.join(surely)}"] if surely else []
        parts += [f"worse on {', '.join(beyond)}"] if beyond else []
        parts += [f"not known on {', '.join(open_)}"] if open_ else []
        lines += [f"{row['name']}: {'; '.join(parts)}"] if parts else []
    return lines


def _fits(histories: Sequence[History]) -> list[str]:
    """Return for each recipe where its dev score was best, and how far it had fallen by the end; means of its runs."""
    lines, unknown = [], []
    names = list(dict.fromkeys(run.recipe.name for run in histories))
    for name in names:
        found = [peak for run in histories if run.recipe.name == name for peak in run.peaks()]
        if not found:
            if any(run.recipe.name == name and run.summary is not None for run in histories):
                unknown.append(name)
            continue
        at, fall = fmean(at for at, _ in found), fmean(fall for _, fall in found)
        after = f"{fall:.3f} lower at its end" if fall >= 0.0005 else "as good at its end"
        lines.append(f"{name}: best at the end" if at > 0.995 else f"{name}: best after {at:.0%} of training, {after}")
    if unknown:
        who = "" if unknown == names else f"{', '.join(unknown)}: "
        lines.append(f"{who}not known, scored at the end alone")
    return lines


def _cost(row: Mapping[str, Any]) -> str:
    parts = [
        f"{row['examples']:,.0f} examples",
        f"{row['seconds']:,.0f} s",
        f"{row['peak_memory_bytes'] / 2**30:.2f} GiB at most",
    ]
    if row.get("parameters") is not None:
        parts.append(f"{row['parameters'] / 1e6:.1f} M parameters")
    return f"{row['name']}: {', '.join(parts)}"


def _data(run: History) -> str:
    """Return what the runs learn from and are scored on, as the first of them has read it."""
    report_on, rows = run.recipe.evaluation.report_on, []
    for task in run.recipe.tasks:
        read = {event["split"]: event["examples"] for event in run.of("data_loaded") if event["task"] == task}
        counts = [f"{read[split]:,} {split}" for split in ("train", report_on) if split in read]
        rows += [f"{task} {' and '.join(counts)}"] if counts else []
    return f"{', '.join(rows)} examples" if rows else ""
