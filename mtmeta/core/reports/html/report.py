"""`mtmeta report`: one HTML page of one run or several, made from their files alone, without PyTorch or network.

results: the comparison of several recipes, or the table of one
dev metric against example-forwards, by task (the paper's Figure 2)
of every run: curve and histogram of training losses (Figure 3), sampling, drift, gradients, predictions, recipe
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtmeta.core.errors import MtmetaError
from mtmeta.core.recipe.resolved import describe, digest
from mtmeta.core.registry.registry import Registry, build_registry
from mtmeta.core.reports.comparison import notes_of, table_of, title_of
from mtmeta.core.reports.html import plots
from mtmeta.core.reports.html.history import History, read_history
from mtmeta.core.reports.html.page import Figure, render
from mtmeta.core.reports.html.run_section import run_section
from mtmeta.core.reports.table import Cell, Table
from mtmeta.core.storage.disk import write_file
from mtmeta.core.studies.comparable import Planned, check_alike, check_data
from mtmeta.core.studies.comparison import baseline_of, comparison
from mtmeta.core.wording import plural

Warn = Callable[[str], None]


def report(
    runs: Sequence[str | Path],
    *,
    out: str | Path = "report.html",
    baseline: str | None = None,
    block: Sequence[str] = (),
    warn: Warn = lambda text: None,
) -> Path:
    """Write the page of these run directories to `out`; return its path.

    Runs of one recipe with several seeds are one row of the comparison. Raises MtmetaError; MachineError without
    matplotlib.
    """
    registry = build_registry(block=block, warn=warn)
    histories = [read_history(path, registry, warn) for path in dict.fromkeys(map(str, runs))]
    page = render(
        "report.html.j2",
        title=_title(histories),
        overview=_overview(histories),
        results=_results(histories, baseline, registry, warn),
        selected_on=histories[0].recipe.evaluation.select_on,
        metrics=_metric_curves(histories),
        runs=[run_section(run, warn) for run in histories],
    )
    write_file(Path(out), page)
    return Path(out)


def _title(runs: Sequence[History]) -> str:
    names = list(dict.fromkeys(run.recipe.name for run in runs))
    return names[0] if len(names) == 1 else f"{len(names)} recipes: {', '.join(names)}"


def _overview(runs: Sequence[History]) -> list[str]:
    """Return a sentence or two on what these runs are."""
    first = runs[0].recipe
    backbone = describe(first)["backbone"]
    weights = f", weights {backbone['weights']}" if "weights" in backbone else ""
    tasks = ", ".join(first.tasks)
    lines = [f"{plural(len(runs), 'run')} on {tasks}; backbone {first.backbone.name}{weights}."]
    lines += [f"{run.label} is not finished; what it has so far is shown." for run in runs if run.summary is None]
    return lines


# ------------------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class Results:
    """The comparison where there are several recipes that can be compared, else the table of each finished run."""

    lead: str
    comparison: Table | None = None
    notes: Sequence[str] = ()
    summaries: Sequence[tuple[str, Table]] = ()


def _results(runs: Sequence[History], baseline: str | None, registry: Registry, warn: Warn) -> Results:
    finished = [run for run in runs if run.summary is not None]
    plan = _rows(finished)
    chosen = baseline_of(plan, baseline) if plan else None
    if not plan:
        return Results("No run is finished.")
    try:
        check_alike([row[0].recipe for row in plan.values()])
        check_data([run for row in plan.values() for run in row])
        compared = comparison(plan, chosen, registry)
    except MtmetaError as error:
        if baseline is not None:
            raise
        warn(f"{error}; the report shows the runs without comparing them")
        return Results(f"These runs cannot be compared: {error}.", summaries=[*map(_summary, finished)])
    alone = finished if len(finished) == 1 else ()
    return Results(f"{title_of(compared)}.", table_of(compared), notes_of(compared), [*map(_summary, alone)])


def _rows(runs: Sequence[History]) -> dict[str, list[Planned]]:
    """Return runs of one recipe, whatever their seed, as one row; two recipes of one name go by their directories."""
    rows: dict[str, list[Planned]] = {}
    names: dict[str, str] = {}
    for run in runs:
        key = digest(dataclasses.replace(run.recipe, seed=0))
        if key not in names:
            name = run.recipe.name
            names[key] = name if name not in names.values() else run.folder.path.name
        rows.setdefault(names[key], []).append(Planned(run.folder.path, run.recipe, run.folder))
    return rows


def _summary(run: History) -> tuple[str, Table]:
    """Return label and table of a finished run: task, metric, value with interval, examples, loss."""
    summary = run.summary or {}
    rows = []
    for name, score in summary["tasks"].items():
        interval = f"{score['low']:.3f} to {score['high']:.3f}" if score["low"] is not None else ""
        others = ", ".join(f"{metric} {value:.4f}" for metric, value in score["others"].items())
        texts = [name, score["metric"], f"{score['value']:.4f}", interval, others, f"{score['examples']:,}"]
        rows.append([*map(Cell, texts), Cell(f"{score['loss']:.4f}")])
    header = ["task", "metric", "value", "95% interval", "other metrics", f"{summary['split']} examples", "loss"]
    return run.label, Table(header, rows)


def _metric_curves(runs: Sequence[History]) -> list[Figure]:
    """Draw a plot for each task: the paper's Figure 2, a line a run, in the colour of its recipe."""
    names = list(dict.fromkeys(run.recipe.name for run in runs))
    several = len(runs) > 1
    figures = []
    for task, options in runs[0].recipe.tasks.items():
        lines, in_legend = [], set()
        for run in runs:
            if task not in run.recipe.tasks:
                continue
            steps, examples, values = run.metric(task)
            name = run.recipe.name
            label = name if several and name not in in_legend else ""
            in_legend.add(name)
            x = examples if several else steps
            lines.append(plots.Line(label, x, values, names.index(name), len(runs) == len(names)))
        title = f"{task}: {options.metrics[0]}"
        # the learners of an algorithm that trains tasks alone count their own examples, each its own
        axis = "example-forwards of its learner" if several else "step"
        figures.append(Figure(title, plots.lines(title, axis, options.metrics[0], lines)))
    return figures
