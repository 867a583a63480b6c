"""The section of a report on one task: scores of each class, confusions, and the errors that most runs make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtmeta.core.api.contracts import Task
from mtmeta.core.errors import MtmetaError
from mtmeta.core.reports.html import study_plots
from mtmeta.core.reports.html.worst_errors import WORST, texts_of
from mtmeta.core.reports.table import Cell, Table, shown_number
from mtmeta.core.studies.comparable import Planned
from mtmeta.core.studies.comparison import read_predicted_examples, same_labels
from mtmeta.core.wording import plural, safe

Array = NDArray[np.float64]
Counts = NDArray[np.int64]
MOST_CLASSES = 60
"""Classes up to which each is scored on the page."""


@dataclass(frozen=True)
class TaskPredictions:
    """What every row of a study predicts for the examples of a task."""

    name: str
    task: Task
    ids: Sequence[str]
    labels: Array
    """Of the examples [N]."""
    rows: Mapping[str, Array]
    """Predictions [K, N] of the K runs of each row."""
    runs: Sequence[Planned]

    @property
    def classes(self) -> Sequence[str]:
        return self.task.objective.classes

    @property
    def single(self) -> bool:
        """Whether each example has one class."""
        return self.task.objective.labelled == "one" and bool(self.classes)

    def confusion(self, predictions: Array) -> Counts:
        """Return how often each class [C, C], by row, was predicted as each, in all runs [K, N] together."""
        matrix = np.zeros((len(self.classes), len(self.classes)), dtype=np.int64)
        labels = np.broadcast_to(self.labels, predictions.shape).astype(np.int64)
        np.add.at(matrix, (labels.ravel(), predictions.astype(np.int64).ravel()), 1)
        return matrix

    def confused(self) -> list[str]:
        """Return the two classes that each row confuses most, in a line; nothing of a task without classes."""
        if not self.single:
            return []
        rows_of: dict[str, list[str]] = {}  # by what is confused
        for row, predictions in self.rows.items():
            matrix = self.confusion(predictions)
            wrong = matrix - np.diag(np.diag(matrix))
            if wrong.any():
                label, predicted = (int(at) for at in np.unravel_index(int(wrong.argmax()), wrong.shape))
                share = wrong[label, predicted] / matrix[label].sum()
                what = f"{safe(self.classes[label], 20)} read as {safe(self.classes[predicted], 20)}"
                rows_of.setdefault(what, []).append(f"{row} {share:.0%}")
        parts = [f"{what} ({', '.join(rows)})" for what, rows in rows_of.items()]
        return [f"{self.name}: {', '.join(parts) or 'nothing'}"]


def read_tasks(rows: Mapping[str, Sequence[Planned]], warn: Callable[[str], None]) -> list[TaskPredictions]:
    """Read the predictions of all tasks; what cannot be read, or is of other examples, is warned of and left out."""
    first = next(iter(rows.values()))[0].recipe
    return [one for name, task in first.scored.items() if (one := _read(name, task, rows, warn)) is not None]


def _read(
    name: str, task: Task, rows: Mapping[str, Sequence[Planned]], warn: Callable[[str], None]
) -> TaskPredictions | None:
    ids: list[str] = []
    labels: Array | None = None
    found: dict[str, list[Array]] = {}
    runs = []
    for row, run in ((row, run) for row, planned in rows.items() for run in planned if name in run.recipe.scored):
        path = run.folder.path / "predictions" / f"{name}-{run.recipe.evaluation.report_on}.csv"
        try:
            own_ids, own, predictions = read_predicted_examples(path, run.recipe.scored[name])
        except MtmetaError as error:
            warn(str(error))
            continue
        named = task.objective.labelled == "one" and bool(task.objective.classes)
        if named and not (known := own >= 0).all():  # of a label that is no class there is nothing to show
            own_ids = [one for one, inside in zip(own_ids, known.tolist(), strict=True) if inside]
            own, predictions = own[known], predictions[known]
        if labels is None:
            ids, labels = own_ids, own
        if not same_labels(own, labels) or run.recipe.scored[name].objective.classes != task.objective.classes:
            continue  # of other examples: a comparison refuses it, and says so
        found.setdefault(row, []).append(predictions)
        runs.append(run)
    if labels is None:
        return None
    return TaskPredictions(name, task, ids, labels, {row: np.array(each) for row, each in found.items()}, runs)


def task_section(of: TaskPredictions, *, texts: bool) -> dict[str, Any]:
    """Return the values of `task.html.j2`."""
    confusions, classes = [], None
    if of.single:
        for row, predictions in of.rows.items():
            title = f"{of.name}, {row}"
            counts = of.confusion(predictions).tolist()
            confusions.append(study_plots.confusion(title, "predicted", "label", list(of.classes), counts))
        classes = _classes(of) if len(of.classes) <= MOST_CLASSES else None
    worst, note = _worst(of, texts=texts)
    shown = {"classes": classes, "confusions": confusions, "own": _own_tables(of)}
    return {"name": of.name, **shown, "worst": worst, "note": note}


def _own_tables(of: TaskPredictions) -> list[tuple[str, Table]]:
    """Return the table that the task's objective makes of each row, all its runs together, if it makes one."""
    tables = []
    for row, predictions in of.rows.items():
        labels = np.concatenate([of.labels] * len(predictions))
        own = of.task.objective.confusion(labels, np.concatenate(list(predictions)))
        if own is not None:
            rows = [[*map(Cell, (safe(label, 40), *map(shown_number, numbers)))] for label, numbers in own.rows]
            tables.append((f"{row}: {own.caption}", Table(["", *own.columns], rows)))
    return tables


def _classes(of: TaskPredictions) -> Table:
    """Return F1, precision and recall of each class in each row, of the predictions of all its runs together."""
    matrices = {row: of.confusion(predictions) for row, predictions in of.rows.items()}
    support = np.bincount(of.labels.astype(np.int64), minlength=len(of.classes))
    rows = []
    for number, label in enumerate(of.classes):
        cells = [Cell(safe(label, 40), f"{support[number]:,} rows")]
        for matrix in matrices.values():
            right, predicted, labelled = matrix[number, number], matrix[:, number].sum(), matrix[number].sum()
            f1 = _ratio(2 * right, predicted + labelled)
            cells.append(Cell(f"F1 {f1}", f"precision {_ratio(right, predicted)}, recall {_ratio(right, labelled)}"))
        rows.append(cells)
    return Table(["class", *matrices], rows)


def _ratio(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "-"


def _worst(of: TaskPredictions, *, texts: bool) -> tuple[Table | None, str]:
    """Return the examples that most runs get wrong, the worst first, and a note on what could not be shown."""
    everything = np.concatenate(list(of.rows.values()))  # [runs, N], or [runs, N, L] of labels that are rows
    wrong = everything != of.labels
    counted = bool(of.classes)
    errors = np.empty(0) if counted else np.abs(everything - of.labels)
    if wrong.ndim == 3 and not counted:
        wrong = wrong.any(axis=2)
        errors = np.nanmean(errors, axis=2)  # of the numbers that there are
        rank = errors.mean(axis=0)
    elif wrong.ndim == 3:
        rank = wrong.mean(axis=(0, 2))
        wrong = wrong.any(axis=2)
    elif of.task.objective.labelled == "words":
        rank = wrong.mean(axis=0)
    elif of.classes:
        matrix = of.confusion(everything)
        # of as many runs the rarer mistake first: what is seldom predicted for a label is further off
        seldom = (everything.astype(np.int64), of.labels.astype(np.int64))
        share = matrix[seldom[1], seldom[0]] / np.maximum(1, matrix.sum(axis=1))[seldom[1]]
        rank = wrong.sum(axis=0) - np.where(wrong, share, 0.0).sum(axis=0) / (wrong.sum(axis=0) + 1)
    else:
        rank = errors.mean(axis=0)
    order = [int(at) for at in np.argsort(-rank, kind="stable")[:WORST] if rank[at] > 0 and wrong[:, at].any()]
    if not order:
        return None, ""
    shown, note = texts_of(of.runs[0], of.name, [of.ids[at] for at in order]) if texts else ({}, "")
    header = ["example", "label", "predicted", "wrong in" if counted else "mean error"]
    rows = []
    for at in order:
        example = shown.get(of.ids[at], "")
        text = f"{example}" if example else f"id {safe(of.ids[at], 60)}"
        cells = [text, of.task.objective.show(_plain(of.labels[at])), _predicted(of, everything[:, at])]
        missed = int(wrong[:, at].sum())
        if counted:
            cells.append(f"{missed} of {plural(len(everything), 'run')}")
        else:
            cells.append(f"{float(errors[:, at].mean()):.3f}")
        rows.append([*map(Cell, cells)])
    return Table(header, rows), note


def _predicted(of: TaskPredictions, values: Array) -> str:
    """Return what runs predict for an example: the classes by how often, or the mean of the numbers."""
    if not of.classes:
        return of.task.objective.show(values.mean(axis=0).tolist()) if values.ndim > 1 else f"{values.mean():.4g}"
    shown = [of.task.objective.show(_plain(value)) for value in values]
    found = sorted(dict.fromkeys(shown), key=lambda text: -shown.count(text))
    return found[0] if len(shown) == 1 else ", ".join(f"{text} ({shown.count(text)})" for text in found)


def _plain(value: Any) -> Any:
    """Return a label or a prediction as plain numbers."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
