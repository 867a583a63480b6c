"""`mtmeta report`: one HTML page of one run or several, made from their files alone, without PyTorch or network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtmeta.core.errors import MtmetaError, UsageError, raise_all
from mtmeta.core.recipe.resolved import describe, digest
from mtmeta.core.registry.registry import Registry, build_registry
from mtmeta.core.reports.comparison import cost_table, few_seeds, notes_of, other_metrics, title_of
from mtmeta.core.reports.html import plots, search
from mtmeta.core.reports.html.answer import answer_table, difference_plot, facts_of
from mtmeta.core.reports.html.history import History, label_of, read_history
from mtmeta.core.reports.html.page import Figure, render
from mtmeta.core.reports.html.run_section import run_section
from mtmeta.core.reports.html.task_section import read_tasks, task_section
from mtmeta.core.reports.table import Cell, Table
from mtmeta.core.reports.verdict import verdict_of
from mtmeta.core.storage.outputs import write_output
from mtmeta.core.studies.comparable import Planned, check_alike, check_data
from mtmeta.core.studies.comparison import comparison
from mtmeta.core.studies.protocol import Protocol, Register, chosen_tasks
from mtmeta.core.studies.tuning.figures import is_study, read_study
from mtmeta.core.wording import plural, safe

Warn = Callable[[str], None]


def report(
    runs: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    baseline: str | Sequence[str] | None = None,
    margin: float | None = None,
    tasks: Sequence[str] = (),
    texts: bool = True,
    block: Sequence[str] = (),
    warn: Warn = lambda text: None,
) -> Path:
    """Write the page of these run directories to `out`, by default report.html here; return its path.

    Runs of one recipe with several seeds are one row of the comparison, whatever the order they are given in;
    `baseline`, `margin` and `tasks` are as in `compare`. Without `texts` the page names examples by their ids alone. Of
    several runs, those that cannot be read are warned of and named on the page. Raises MtmetaError, where no run can be
    read too; MachineError without matplotlib. The folder of a study of `mtmeta tune` gives the page of the search.
    """
    if studies := [run for run in runs if is_study(Path(run))]:
        if len(runs) > 1 or baseline or margin is not None or tasks:
            message = "is a study of mtmeta tune, which has a page of its own; give it alone"
            raise UsageError(str(studies[0]), message)
        return search.write_page(read_study(studies[0]), out)
    protocol = Protocol((baseline,) if isinstance(baseline, str) else tuple(baseline or ()), margin)
    protocol = dataclasses.replace(protocol, tasks=chosen_tasks(tasks, "--tasks"))
    registry = build_registry(block=block, warn=warn)
    histories, damaged = _read(list(dict.fromkeys(map(str, runs))), registry, warn)
    histories, double = _distinct(sorted(histories, key=_place), warn)
    rows = _rows([run for run in histories if run.summary is not None])
    results = _results(rows, protocol, registry, warn)
    compared = results.pop("compared")
    read = read_tasks(rows, warn) if rows else []
    names = list(dict.fromkeys(run.recipe.name for run in histories))
    curves = _metric_curves(histories)
    page = render(
        "report.html.j2",
        title=names[0] if len(names) == 1 else f"{len(names)} recipes: {', '.join(names)}",
        verdict=verdict_of(compared) if compared is not None else results["lead"],
        overview=[*_overview(histories), *damaged, *double],
        differences=difference_plot(compared) if compared is not None else [],
        narrow=difference_plot(compared, narrow=True) if compared is not None else [],
        facts=facts_of(compared, histories, read),
        results=results,
        selected_on=histories[0].recipe.evaluation.select_on,
        curves=list(curves.values()),
        tasks=[task_section(task, texts=texts) for task in read],
        runs=[run_section(run) for run in histories],
    )
    path = Path(out if out is not None else "report.html")
    write_output(path, page, named=out is not None)
    return path


def _place(run: History) -> tuple[str, int, str]:
    """Return what orders runs, so that the page is the same in whatever order they are given."""
    return run.recipe.name, run.recipe.seed, str(run.folder.path)


def _distinct(runs: Sequence[History], warn: Warn) -> tuple[list[History], list[str]]:
    """Return runs less those of the recipe and seed of another one: counted twice, they would narrow every interval."""
    kept: dict[tuple[str, str], History] = {}
    lines = []
    for run in runs:
        key = run.recipe.name, digest(run.recipe)
        other = kept.setdefault(key, run)
        # a finished one is worth more
        if other is not run and other.summary is None and run.summary is not None:
            kept[key], other, run = run, run, other
        if other is not run:
            text = f"{run.folder.path} has the recipe and the seed of {other.folder.path}, so it is left out"
            warn(text)
            lines.append(f"{safe(text, 500)}.")
    return sorted(kept.values(), key=_place), lines


def _read(paths: Sequence[str], registry: Registry, warn: Warn) -> tuple[list[History], list[str]]:
    """Read runs; returns the histories of those that can be read, and a line about each of the others."""
    histories: list[History] = []
    problems: list[MtmetaError] = []
    for path in paths:
        try:
            histories.append(read_history(path, registry, warn))
        except MtmetaError as error:
            if type(error) is UsageError:  # no run at all: a slip of the command line
                raise
            problems.append(error)
    if not histories:
        raise_all(problems)
    for problem in problems:
        warn(f"{problem}; the report is of the other runs")
    return histories, [f"Left out: {safe(str(problem), 500)}." for problem in problems]


def _overview(runs: Sequence[History]) -> list[str]:
    first = runs[0].recipe
    backbone = describe(first)["backbone"]
    weights = f", weights {backbone['weights']}" if "weights" in backbone else ""
    sentence = f"{plural(len(runs), 'run')} on {', '.join(first.scored)}; backbone {first.backbone.name}{weights}."
    unfinished = [run.label for run in runs if run.summary is None]
    return [sentence, *(f"{label} is not finished; what it has so far is shown." for label in unfinished)]


def _results(
    rows: Mapping[str, Sequence[Planned]], protocol: Protocol, registry: Registry, warn: Warn
) -> dict[str, Any]:
    """Return the comparison where there are recipes that can be compared, else the table of each finished run."""
    results: dict[str, Any] = {"table": None, "costs": None, "others": None, "notes": [], "strips": []}
    results |= {"summaries": [], "compared": None}
    if not rows:
        return results | {"lead": "No run is finished."}
    finished = [run for row in rows.values() for run in row]
    asked, protocol = bool(protocol.baselines or protocol.tasks), protocol.settled(rows)
    try:
        check_alike([row[0].recipe for row in rows.values()], protocol.tasks)
        check_data(finished)
        compared = comparison(_baseline_first(rows, protocol), protocol, registry)
    except MtmetaError as error:
        if asked:
            raise
        warn(f"{error}; the report shows the runs without comparing them")
        lead = f"These runs cannot be compared: {error}."
        return results | {"lead": lead, "summaries": [*map(_summary, finished)]}
    compared["notes"] += _of_looks(compared, finished)
    results |= {"lead": f"{title_of(compared)}.", "table": answer_table(compared), "costs": cost_table(compared)}
    results |= {"others": other_metrics(compared), "notes": notes_of(compared), "compared": compared}
    if any(len(row["seeds"]) > 1 for row in compared["rows"]):
        results["strips"] = _strips(compared)
    return results | ({"summaries": [_summary(finished[0])]} if len(finished) == 1 else {})


def _baseline_first(rows: Mapping[str, Sequence[Planned]], protocol: Protocol) -> dict[str, Sequence[Planned]]:
    first = {name: rows[name] for name in protocol.baselines}
    return first | {name: row for name, row in rows.items() if name not in first}


def _of_looks(compared: Mapping[str, Any], runs: Sequence[Planned]) -> list[str]:
    """Return a line where rows may have got their numbers of seeds by what they came to."""
    counts = {len(row["seeds"]) for row in compared["rows"]}
    folders = dict.fromkeys(run.folder.path.parent for run in runs)
    if len(counts) < 2 or compared["baseline"] is None or not Register.gave_seeds_by_looks(folders):
        return []
    return [
        "These runs lie beside a comparison with --until interval, and rows have different numbers of seeds: if looks "
        "on the way gave them these, plain 95% intervals of differences err in more than 5% of comparisons; those "
        "of mtmeta compare --until interval count the looks."
    ]


def _strips(compared: Mapping[str, Any]) -> list[Figure]:
    """Draw a plot for each column of a comparison: every seed of every row, with the row's mean and interval."""
    figures = []
    for column in compared["rows"][0]["columns"]:
        cells = {row["name"]: row["columns"][column] for row in compared["rows"]}
        few = {row["name"] for row in compared["rows"] if few_seeds(row) is not None}
        strips = [
            plots.Strip(
                name, cell["values"], cell["mean"], *((None, None) if name in few else (cell["low"], cell["high"]))
            )
            for name, cell in cells.items()
        ]
        metric = compared["metrics"].get(column, column)
        figures.append(plots.strips(column if column == metric else f"{column}: {metric}", metric, "", strips))
    return figures


def _rows(runs: Sequence[History]) -> dict[str, list[Planned]]:
    """Return runs of one recipe, whatever their seed, as one row; two recipes of one name go by their directories."""
    rows: dict[str, list[Planned]] = {}
    names: dict[tuple[str, str], str] = {}
    for run in runs:
        key = run.recipe.name, digest(dataclasses.replace(run.recipe, seed=0))
        if key not in names:
            choices = (run.recipe.name, run.folder.path.name, str(run.folder.path))
            names[key] = next(name for name in choices if name not in names.values())
        rows.setdefault(names[key], []).append(Planned(run.folder.path, run.recipe, run.folder))
    return rows


def _summary(run: Planned) -> tuple[str, Table]:
    """Return label and table of a finished run: task, metric, value with interval, examples, loss."""
    finished = run.folder.finished()
    summary: dict[str, Any] = finished.plain() if finished is not None else {"tasks": {}, "split": ""}
    rows = []
    for name, score in summary["tasks"].items():
        interval = f"{score['low']:.3f} to {score['high']:.3f}" if score["low"] is not None else ""
        others = ", ".join(f"{metric} {value:.4f}" for metric, value in score["others"].items())
        scores = [score["metric"], f"{score['value']:.4f}", interval, others]
        rows.append([*map(Cell, (name, *scores, f"{score['examples']:,}", f"{score['loss']:.4f}"))])
    header = ["task", "metric", "value", "95% interval", "other metrics", f"{summary['split']} examples", "loss"]
    return label_of(run.recipe), Table(header, rows)


def _metric_curves(runs: Sequence[History]) -> dict[str, Figure]:
    """Draw a plot for each task: the paper's Figure 2, a line a run, in the colour of its recipe.

    The axis is of the task's own examples, so that a learner of this task alone and one of all tasks share it.
    """
    names = list(dict.fromkeys(run.recipe.name for run in runs))
    figures = {}
    for task, options in runs[0].recipe.scored.items():
        lines: list[plots.Line] = []
        for run in runs:
            if task not in run.recipe.scored:
                continue
            seen, values = run.seen(task)
            name = run.recipe.name
            label = name if len(names) > 1 and all(line.label != name for line in lines) else ""
            lines.append(plots.Line(label, seen, values, names.index(name), len(runs) == len(names)))
        title = f"{task}: {options.metrics[0]}"
        figures[task] = plots.lines(title, f"examples of {task} read", options.metrics[0], lines)
    return figures
