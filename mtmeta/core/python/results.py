"""What the functions of `import mtmeta` return: the documents of `--json`, with types, and as tables of pandas."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from mtmeta.core.errors import MachineError
from mtmeta.core.run.evaluate import open_run
from mtmeta.core.run.predictor import Prediction, Predictor, Text
from mtmeta.core.run.request import RunRequest

if TYPE_CHECKING:
    import pandas

Cells = dict[str, Any]


class Result(dict[str, Any]):
    """A document as `--json` prints it, with types for what is in it; `to_pandas()` is the same as a table."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({super().__repr__()})"

    def records(self) -> list[Cells]:
        """Return the rows of the table, each as a mapping of columns to values."""
        raise NotImplementedError

    def to_pandas(self) -> pandas.DataFrame:
        """Return the result as a DataFrame. Raises MachineError where pandas is not installed."""
        try:
            import pandas
        except ImportError as error:
            raise MachineError("to_pandas()", "needs pandas; pip install pandas") from error
        return pandas.DataFrame(self.records())


class Scores(Result):
    """Scores of a run's best weights on one split, by task."""

    @property
    def tasks(self) -> dict[str, Cells]:
        """Return metric, value, 95% interval (low, high), examples and loss of each task."""
        found: dict[str, Cells] = self["tasks"]
        return found

    @property
    def split(self) -> str:
        """Return the split that was scored."""
        return str(self["split"])

    @property
    def mean(self) -> float:
        """Return the mean of the tasks' primary metrics."""
        return float(self["mean"])

    def records(self) -> list[Cells]:
        """Return a row for each task."""
        rows = []
        for name, score in self.tasks.items():
            kept = {key: value for key, value in score.items() if key != "others"}
            rows.append({"task": name, "split": self.split, **kept, **score["others"]})
        return rows


class Run(Scores):
    """A finished run: the contents of its summary.json, and its best weights to predict with."""

    def __init__(self, document: Cells, request: RunRequest | None = None) -> None:
        super().__init__(document)
        self._request = request or RunRequest()
        self._predictor: Predictor | None = None

    @property
    def path(self) -> Path:
        """Return the run directory."""
        return Path(self["run"])

    @property
    def predictor(self) -> Predictor:
        """Return the best weights, to predict with; they are loaded when they are first asked for."""
        if self._predictor is None:
            asked = self._request
            request = RunRequest(device=asked.device, block=asked.block, plugins=asked.plugins, warn=asked.warn)
            self._predictor = Predictor(open_run(self.path, request))
        return self._predictor

    @overload
    def predict(  # type: ignore[overload-overlap]
        self, task: str, texts: str, *, abstain: float | None = None
    ) -> Prediction: ...

    @overload
    def predict(self, task: str, texts: Iterable[Text], *, abstain: float | None = None) -> list[Prediction]: ...

    def predict(
        self, task: str, texts: str | Iterable[Text], *, abstain: float | None = None
    ) -> Prediction | list[Prediction]:
        """Predict one text, or each of several; see `Predictor.predict`. Raises UsageError, MtmetaError."""
        return self.predictor.predict(task, texts, abstain=abstain)

    def encode(self, texts: str | Iterable[str], task: str | None = None) -> NDArray[np.float32]:
        """Return the vectors of texts; see `Predictor.encode`. Raises UsageError, MtmetaError."""
        return self.predictor.encode(texts, task)


class Comparison(Result):
    """Recipes with their seeds beside each other: means, intervals, and differences to a baseline."""

    @property
    def rows(self) -> list[Cells]:
        """Return the rows of the comparison, one for each recipe, with `columns` of every task and the mean."""
        found: list[Cells] = self["rows"]
        return found

    def records(self) -> list[Cells]:
        """Return a row for each recipe and column: mean, interval, and the difference to the first baseline."""
        records = []
        for row in self.rows:
            for column, cell in row["columns"].items():
                delta = cell.get("delta") or {}
                records.append(
                    {
                        "recipe": row["name"],
                        "algorithm": row["algorithm"],
                        "column": column,
                        "metric": self["metrics"].get(column),
                        "seeds": len(row["seeds"]),
                        **{key: cell[key] for key in ("mean", "low", "high", "best")},
                        **{f"difference_{key}": delta.get(key) for key in ("value", "low", "high", "p")},
                    }
                )
        return records


class LearningCurve(Result):
    """A recipe on several shares of its training data: means and intervals over the seeds."""

    @property
    def points(self) -> list[Cells]:
        """Return the points in the order of their `fraction`, with `examples` and `columns` of each task and all."""
        found: list[Cells] = self["points"]
        return found

    @property
    def comparison(self) -> Comparison:
        """Return the comparison of the shares, with differences to the largest."""
        return Comparison(self["comparison"])

    def records(self) -> list[Cells]:
        """Return a row for each share and column: training examples, mean, interval."""
        records = []
        for point in self.points:
            for column, cell in point["columns"].items():
                numbers = {key: cell[key] for key in ("mean", "low", "high")}
                examples = point["examples"].get(column)
                metric = self["metrics"].get(column)
                about = {"fraction": point["fraction"], "column": column, "metric": metric, "examples": examples}
                records.append({**about, "seeds": len(cell["values"]), **numbers})
        return records

    def plot(self, out: str | Path) -> Path:
        """Write a page with the curves to `out`, and return its path. Raises MachineError without matplotlib."""
        from mtmeta.core.reports.learning_curve import write_page

        return write_page(self, out)


class Adaptation(Result):
    """Few-shot adaptations of runs, and of the encoder that they began from."""

    def records(self) -> list[Cells]:
        """Return a row for each adaptation: start, task, shots, draw, examples, metric, value, seconds."""
        found: list[Cells] = self["adapted"]
        return found


class Search(Result):
    """A search for the settings of a recipe: its trials, the best of them, and what each key matters."""

    @property
    def best(self) -> Cells | None:
        """Return the best trial: its number, value, settings and values of its seeds; None if none is complete."""
        found: Cells | None = self["best"]
        return found

    @property
    def best_recipe(self) -> Path | None:
        """Return the file of the recipe with the best settings, which trains as it stands."""
        return Path(self["best_recipe"]) if self["best_recipe"] else None

    def records(self) -> list[Cells]:
        """Return a row for each trial: its number, state and value, then a column for each key that was chosen."""
        return [
            {key: trial[key] for key in ("number", "state", "value")} | trial["settings"] for trial in self["trials"]
        ]


class Exported(Result):
    """A folder that other libraries load, and how far its answers are from those of the run."""

    @property
    def folder(self) -> Path:
        """Return the folder that was written."""
        return Path(self["folder"])

    def records(self) -> list[Cells]:
        """Return a row for each task: its largest difference to `predict`."""
        format_, found = self["format"], self["differences"]
        return [{"task": task, "format": format_, "difference": found.get(task)} for task in self["tasks"]]


class Plan(Result):
    """What a run would do, and how long it would take."""

    def records(self) -> list[Cells]:
        """Return a row for each task: rows of its splits, tokens, batch size, examples and epochs."""
        kept = ("task", "tokens_per_example", "batch_size", "inner_steps", "examples", "epochs")
        rows = []
        for name, task in self["tasks"].items():
            sizes = {f"{split}_rows": task[split]["rows"] for split in ("train", "dev", "test") if split in task}
            rows.append({"name": name, **{key: task[key] for key in kept}, **sizes})
        return rows


class Checked(Result):
    """What is wrong with a recipe, its data or its weights, and the facts on its data files."""

    @property
    def ok(self) -> bool:
        """Return whether nothing is wrong."""
        return bool(self["ok"])

    @property
    def problems(self) -> list[str]:
        """Return what is wrong, each as `place: what is wrong; one fix`."""
        found: list[str] = self["problems"]
        return found

    def records(self) -> list[Cells]:
        """Return a row for each problem."""
        return [{"recipe": self["recipe"], "problem": problem} for problem in self.problems]
