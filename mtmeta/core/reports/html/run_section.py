"""The section of a report on one run: losses, sampling, drift, gradients, predictions, recipe."""

from __future__ import annotations

import contextlib
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtmeta.core.errors import MtmetaError
from mtmeta.core.recipe.resolved import describe, dump
from mtmeta.core.reports.html import plots
from mtmeta.core.reports.html.history import History
from mtmeta.core.reports.html.page import Figure, HeatTable
from mtmeta.core.studies.comparison import read_predictions

SMOOTH = 0.1  # of a curve's points that its running mean takes together


def run_section(run: History) -> dict[str, Any]:
    """Return the values of `run.html.j2`."""
    measured = bool(run.of("gradients"))
    return {
        "label": run.label,
        "facts": _facts(run),
        "warnings": [event["text"] for event in run.of("warning")],
        "losses": _losses(run),
        "sampling": _sampling(run.sampling()),
        "drift": _drift(run),
        "gradients": _gradients(run) if measured else None,
        "cosines": _cosines(run) if measured else None,
        "clouds": _clouds(run) if run.summary is not None else [],
        "recipe": dump(describe(run.recipe)),
        "lock": dump(run.lock),
    }


def _facts(run: History) -> str:
    started = run.of("run_started")
    facts = [f"algorithm {run.recipe.algorithm.name}"]
    if started:
        facts += [f"{started[0]['parameters'] / 1e6:.1f} M parameters", f"device {started[0]['device']}"]
    if summary := run.summary:
        planned = summary.get("planned_steps") or 0
        early = f" of {planned:,}, stopped early" if planned > summary["steps"] else ""
        facts += [f"{summary['steps']:,} steps{early}", f"{summary['examples']:,} example-forwards in training"]
        facts += [f"{summary['seconds']:,.0f} s", f"peak memory {summary['peak_memory_bytes'] / 2**30:.2f} GiB"]
        facts += [f"{summary['skipped_steps']} steps skipped"] if summary["skipped_steps"] else []
    return "; ".join(facts) + f". {run.folder.path}"


def _losses(run: History) -> list[Figure]:
    """Draw the curve of each task's training losses, and the histogram of all of them: the paper's Figure 3."""
    figures, losses_of = [], {}
    for number, task in enumerate(run.recipe.tasks):
        steps, losses = run.losses(task)
        if losses:
            losses_of[task] = losses
            points = plots.Line("", steps, losses, number, points=True)
            mean = plots.Line("", steps, running_mean(losses), number)
            figures.append(plots.lines(f"{task}: training loss", "step", "loss", [points, mean]))
    if losses_of:
        histogram = plots.histograms("All training losses", "loss", "count", losses_of)
        figures.append(Figure("Histogram of training losses", histogram.svg))
    return figures


def _sampling(sampling: Mapping[str, Mapping[str, float]]) -> list[Figure]:
    if not sampling:
        return []
    tasks, figures = list(sampling), []
    if any(used["planned_draws"] for used in sampling.values()):
        keys = {"planned": "planned_draws", "made": "draws"}
        counts = {kind: [used[key] for used in sampling.values()] for kind, key in keys.items()}
        figures.append(Figure("Draws planned and made", plots.bars("Draws", "", "draws", tasks, counts).svg))
    epochs = {"epochs": [used["epochs"] for used in sampling.values()]}
    figures.append(Figure("Epochs seen of each task", plots.bars("Epochs seen", "", "epochs", tasks, epochs).svg))
    return figures


def _drift(run: History) -> list[Figure]:
    lines = [plots.Line(task, *run.drifts(task), number) for number, task in enumerate(run.recipe.tasks)]
    lines = [line for line in lines if line.y]
    return [plots.lines("|theta' - theta| of each episode", "step", "norm", lines)] if lines else []


def _gradients(run: History) -> list[Figure]:
    norms: dict[str, list[tuple[int, float]]] = defaultdict(list)  # steps and values
    cosines: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for event in run.of("gradients"):
        for task, norm in event["norms"].items():
            if norm is not None:
                norms[task].append((event["step"], norm))
        for one, other in itertools.combinations(event["norms"], 2):
            if (cosine := event["cosines"].get(one, {}).get(other)) is not None:
                cosines[f"{one}, {other}"].append((event["step"], cosine))
    figures = []
    for title, y, series in (("Gradient norms", "norm", norms), ("Cosines of gradients", "cosine", cosines)):
        lines = [
            plots.Line(name, [step for step, _ in points], [value for _, value in points], number)
            for number, (name, points) in enumerate(series.items())
        ]
        if lines:
            figures.append(plots.lines(title, "step", y, lines, zero=y == "cosine"))
    return figures


def _cosines(run: History) -> HeatTable | None:
    """Return the cosines between tasks at the end of the run; None of a single task."""
    last = run.of("gradients")[-1]
    if len(last["norms"]) < 2:
        return None
    rows, names = [], list(last["cosines"])
    for task, others in last["cosines"].items():
        values = [others.get(name) for name in names]
        cosines = [None if value is None else round(value, 2) + 0.0 for value in values]  # no -0.00
        rows.append((task, [("-" if value is None else f"{value:+.2f}", value or 0.0) for value in cosines]))
    caption = f"Cosines at step {last['step']}; a negative one is a conflict"
    return HeatTable(caption, names, rows)


def _clouds(run: History) -> list[Figure]:
    """Draw predicted against true values of each task without classes."""
    clouds = []
    for name, task in run.recipe.scored.items():
        if not task.objective.classes and task.objective.labelled == "one":
            path = run.folder.path / "predictions" / f"{name}-{run.recipe.evaluation.report_on}.csv"
            with contextlib.suppress(MtmetaError):  # the section of the task has warned of it
                labels, predicted = read_predictions(path, task)
                cloud = plots.cloud(name, "label", "predicted", labels.tolist(), predicted.tolist())
                clouds.append(Figure(f"{name}: predicted against true", cloud.svg))
    return clouds


def running_mean(values: Sequence[float]) -> list[float]:
    """Return the mean over the past of each value, of a tenth of all values."""
    window = max(1, round(SMOOTH * len(values)))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    means: list[float] = ((sums[ends] - sums[starts]) / (ends - starts)).tolist()
    return means
