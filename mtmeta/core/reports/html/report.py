"""`mtmeta report`: one HTML page of one run or several, made from their files alone, without PyTorch or network.

results: the comparison of several recipes, or the table of one
dev metric against example-forwards, by task (the paper's Figure 2)
of every run: curve and histogram of training losses (Figure 3), sampling, drift, gradients, predictions, recipe
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mtmeta.core.errors import MtmetaError
from mtmeta.core.recipe.resolved import describe, digest, dump
from mtmeta.core.registry.registry import Registry, build_registry
from mtmeta.core.reports.html import plots
from mtmeta.core.reports.html.history import History, read_history
from mtmeta.core.reports.html.page import (
    details,
    figures,
    heading,
    heat_table,
    page,
    paragraph,
    preformatted,
    table,
)
from mtmeta.core.reports.terminal.comparison import COSTS, cells_of, notes_of, title_of
from mtmeta.core.storage.disk import write_file
from mtmeta.core.studies.comparable import Planned, check_alike, check_data
from mtmeta.core.studies.comparison import baseline_of, comparison, read_predictions

__all__ = ["report"]

SMOOTH = 0.1  # of a curve's points that its running mean takes together
Warn = Callable[[str], None]


def report(
    runs: Sequence[str | Path],
    *,
    out: str | Path = "report.html",
    baseline: str | None = None,
    block: Sequence[str] = (),
    warn: Warn = lambda text: None,
) -> Path:
    """Write the page of these run directories to `out`; returns its path.

    Runs of one recipe with several seeds are one row of the comparison. Raises MtmetaError; MachineError without
    matplotlib.
    """
    registry = build_registry(block=block, warn=warn)
    found = [read_history(path, registry, warn) for path in dict.fromkeys(map(str, runs))]
    parts = [heading(_title(found), 1), *_overview(found), *_results(found, baseline, registry, warn)]
    parts.append(heading("On the way"))
    parts.append(paragraph(f"The metric that selects, on {found[0].recipe.evaluation.select_on}, at each evaluation."))
    parts.append(figures(_metric_curves(found)))
    parts.append(heading("Run by run"))
    parts += [details(run.label, _run(run, warn), open_=len(found) == 1) for run in found]
    write_file(Path(out), page(_title(found), parts))
    return Path(out)


def _title(runs: Sequence[History]) -> str:
    names = list(dict.fromkeys(run.recipe.name for run in runs))
    return names[0] if len(names) == 1 else f"{len(names)} recipes: {', '.join(names)}"


def _overview(runs: Sequence[History]) -> list[str]:
    """What these runs are, in a sentence or two."""
    first = runs[0].recipe
    backbone = describe(first)["backbone"]
    weights = f", weights {backbone['weights']}" if "weights" in backbone else ""
    tasks = ", ".join(first.tasks)
    lines = [f"{len(runs)} {'run' if len(runs) == 1 else 'runs'} on {tasks}; backbone {first.backbone.name}{weights}."]
    lines += [f"{run.label} is not finished; what it has so far is shown." for run in runs if run.summary is None]
    return [paragraph(line) for line in lines]


# ------------------------------------------------------------------------------------------------------------- results


def _results(runs: Sequence[History], baseline: str | None, registry: Registry, warn: Warn) -> list[str]:
    """The comparison where there are several recipes, else the table of each run."""
    finished = [run for run in runs if run.summary is not None]
    plan = _rows(finished)
    chosen = baseline_of(plan, baseline) if plan else None
    parts = [heading("Results")]
    if not plan:
        return [*parts, paragraph("No run is finished.")]
    try:
        check_alike([row[0].recipe for row in plan.values()])
        check_data([run for row in plan.values() for run in row])
        made = comparison(plan, chosen, registry)
    except MtmetaError as error:
        if baseline is not None:
            raise
        warn(f"{error}; the report shows the runs without comparing them")
        parts.append(paragraph(f"These runs cannot be compared: {error}."))
        return parts + [_summary_table(run) for run in finished]
    header, rows = cells_of(made)
    parts.append(paragraph(title_of(made) + "."))
    shown = [[(f"{cell.value}\n{cell.below}".rstrip("\n"), cell.best) for cell in cells] for cells in rows]
    parts.append(table(header, shown, numbers=len(COSTS)))
    parts += [paragraph(line) for line in notes_of(made)]
    if len(plan) == 1 and len(finished) == 1:
        parts.append(_summary_table(finished[0]))
    return parts


def _rows(runs: Sequence[History]) -> dict[str, list[Planned]]:
    """Runs of one recipe, whatever their seed, as one row; two recipes of one name by their directories."""
    rows: dict[str, list[Planned]] = {}
    names: dict[str, str] = {}
    for run in runs:
        message = digest(dataclasses.replace(run.recipe, seed=0))
        if message not in names:
            name = run.recipe.name
            names[message] = name if name not in names.values() else run.folder.path.name
        rows.setdefault(names[message], []).append(Planned(run.folder.path, run.recipe, run.folder))
    return rows


def _summary_table(run: History) -> str:
    """Task, metric, value with interval, examples, loss of a finished run."""
    summary = run.summary or {}
    rows = []
    for name, made in summary["tasks"].items():
        between = f"{made['low']:.3f} to {made['high']:.3f}" if made["low"] is not None else ""
        others = ", ".join(f"{metric} {value:.4f}" for metric, value in made["others"].items())
        texts = [name, made["metric"], f"{made['value']:.4f}", between, others, f"{made['examples']:,}"]
        rows.append([(text, False) for text in [*texts, f"{made['loss']:.4f}"]])
    header = ["task", "metric", "value", "95% interval", "other metrics", f"{summary['split']} examples", "loss"]
    return heading(run.label, 3) + table(header, rows, numbers=2)


def _metric_curves(runs: Sequence[History]) -> list[tuple[str, str]]:
    """One plot a task: the paper's Figure 2, a line a run, in the colour of its recipe."""
    names = list(dict.fromkeys(run.recipe.name for run in runs))
    several = len(runs) > 1
    drawn = []
    for task, made in runs[0].recipe.tasks.items():
        lines, named = [], []
        for run in runs:
            if task not in run.recipe.tasks:
                continue
            steps, examples, values = run.metric(task)
            name = run.recipe.name
            label = name if several and name not in named else ""
            named.append(name)
            x = examples if several else steps
            lines.append(plots.Line(label, x, values, names.index(name), len(runs) == len(names)))
        title = f"{task}: {made.metrics[0]}"
        # the learners of an algorithm that trains tasks alone count their own examples, each its own
        axis = "example-forwards of its learner" if several else "step"
        drawn.append((title, plots.lines(title, axis, made.metrics[0], lines)))
    return drawn


# ------------------------------------------------------------------------------------------------------------ one run


def _run(run: History, warn: Warn) -> list[str]:
    """Everything about one run."""
    parts = [_facts(run)]
    parts += [heading("Training losses", 3), figures(_losses(run))]
    if sampling := run.sampling():
        parts += [heading("Sampling", 3), figures(_sampling(sampling))]
    if any(run.drifts(task)[0] for task in run.recipe.tasks):
        parts += [heading("Drift of the inner loops", 3), figures(_drift(run))]
    if run.of("gradients"):
        parts += [heading("Gradients of the tasks on the shared encoder", 3), *_gradients(run)]
    if run.summary is not None:
        parts += [heading(f"Predictions on {run.summary['split']}", 3), *_predictions(run, warn)]
    parts.append(details("Recipe", [preformatted(dump(describe(run.recipe)))]))
    parts.append(details("Versions, hashes and machine", [preformatted(dump(run.lock))]))
    return parts


def _facts(run: History) -> str:
    started = run.of("run_started")
    facts = [f"algorithm {run.recipe.algorithm.name}"]
    if started:
        facts += [f"{started[0]['parameters'] / 1e6:.1f} M parameters", f"device {started[0]['device']}"]
    if summary := run.summary:
        facts += [f"{summary['steps']:,} steps", f"{summary['examples']:,} example-forwards in training"]
        facts += [f"{summary['seconds']:,.0f} s", f"peak memory {summary['peak_memory_bytes'] / 2**30:.2f} GiB"]
        facts += [f"{summary['skipped_steps']} steps skipped"] if summary["skipped_steps"] else []
    warned = [paragraph(f"Warning: {event['text']}") for event in run.of("warning")]
    return paragraph("; ".join(facts) + f". {run.folder.path}") + "".join(warned)


def _losses(run: History) -> list[tuple[str, str]]:
    """Curve of each task's training losses, and the histogram of all of them: the paper's Figure 3."""
    drawn, found = [], {}
    for number, task in enumerate(run.recipe.tasks):
        steps, losses = run.losses(task)
        if losses:
            found[task] = losses
            points = plots.Line("", steps, losses, number, points=True)
            mean = plots.Line("", steps, _smooth(losses), number)
            title = f"{task}: training loss"
            drawn.append((title, plots.lines(title, "step", "loss", [points, mean])))
    if found:
        drawn.append(("Histogram of training losses", plots.histograms("All training losses", "loss", found)))
    return drawn


def _sampling(sampling: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str]]:
    tasks, drawn = list(sampling), []
    if any(used["planned_draws"] for used in sampling.values()):
        counts = {kind: [sampling[task][key] for task in tasks] for kind, key in DRAWS.items()}
        drawn.append(("Draws planned and made", plots.bars("Draws", "draws", tasks, counts)))
    epochs = {"epochs": [sampling[task]["epochs"] for task in tasks]}
    drawn.append(("Epochs seen of each task", plots.bars("Epochs seen", "epochs", tasks, epochs)))
    return drawn


DRAWS = {"planned": "planned_draws", "made": "draws"}


def _drift(run: History) -> list[tuple[str, str]]:
    drawn = []
    for number, task in enumerate(run.recipe.tasks):
        steps, drifts = run.drifts(task)
        if drifts:
            drawn.append(plots.Line(task, steps, drifts, number))
    title = "|theta' - theta| of each episode"
    return [(title, plots.lines(title, "step", "norm", drawn))]


def _gradients(run: History) -> list[str]:
    """Norms and cosines over the run, and the matrix at its end."""
    events = run.of("gradients")
    norms: dict[str, tuple[list[int], list[float]]] = {}
    pairs: dict[str, tuple[list[int], list[float]]] = {}
    for event in events:
        tasks = list(event["norms"])
        for at, one in enumerate(tasks):
            _note(norms, one, event["step"], event["norms"][one])
            for other in tasks[at + 1 :]:
                _note(pairs, f"{one}, {other}", event["step"], event["cosines"][one][other])
    drawn = []
    for title, y, found in (("Gradient norms", "norm", norms), ("Cosines of gradients", "cosine", pairs)):
        curves = [plots.Line(name, x, values, number) for number, (name, (x, values)) in enumerate(found.items())]
        if curves:
            drawn.append((title, plots.lines(title, "step", y, curves, zero=y == "cosine")))
    parts = [figures(drawn)]
    last = events[-1]
    if len(last["norms"]) > 1:
        rows = []
        for one, others in last["cosines"].items():
            cells = [None if value is None else round(value, 2) + 0.0 for value in others.values()]  # no -0.00
            rows.append((one, [("-" if value is None else f"{value:+.2f}", value or 0.0) for value in cells]))
        caption = f"Cosines at step {last['step']}; a negative one is a conflict"
        parts.append(heat_table(caption, list(last["cosines"]), rows))
    return parts


def _note(found: dict[str, tuple[list[int], list[float]]], name: str, step: int, value: float | None) -> None:
    if value is not None:
        steps, values = found.setdefault(name, ([], []))
        steps.append(step)
        values.append(value)


def _predictions(run: History, warn: Warn) -> list[str]:
    """Confusion of a task with classes, predicted against true values of the others."""
    drawn, tables = [], []
    for name, task in run.recipe.tasks.items():
        path = run.folder.path / "predictions" / f"{name}-{run.recipe.evaluation.report_on}.csv"
        try:
            labels, made = read_predictions(path, task)
        except MtmetaError as error:
            warn(str(error))
            tables.append(paragraph(str(error)))
            continue
        classes = task.objective.classes
        if not classes:
            drawn.append((f"{name}: predicted against true", plots.cloud(name, labels.tolist(), made.tolist())))
            continue
        matrix = np.zeros((len(classes), len(classes)), dtype=np.int64)
        np.add.at(matrix, (labels.astype(np.int64), made.astype(np.int64)), 1)
        rows = []
        for number, label in enumerate(classes):
            total = max(1, int(matrix[number].sum()))
            rows.append((label, [(f"{count:,}", count / total) for count in matrix[number].tolist()]))
        tables.append(heat_table(f"{name}: rows are labels, columns predictions", list(classes), rows))
    return [figures(drawn), *tables]


def _smooth(values: Sequence[float]) -> list[float]:
    """Running mean over the past, of a tenth of all values."""
    window = max(1, round(SMOOTH * len(values)))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    smoothed: list[float] = ((sums[ends] - sums[starts]) / (ends - starts)).tolist()
    return smoothed
