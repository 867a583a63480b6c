"""What the functions of `import mtmeta` return: the documents of `--json`, with types, and as tables of pandas."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

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
    def predict(self, task: str, texts: str) -> Prediction: ...  # type: ignore[overload-overlap]

    @overload
    def predict(self, task: str, texts: Iterable[Text]) -> list[Prediction]: ...

    def predict(self, task: str, texts: str | Iterable[Text]) -> Prediction | list[Prediction]:
        """Predict one text, or each of several; see `Predictor.predict`. Raises UsageError, MtmetaError."""
        return self.predictor.predict(task, texts)
