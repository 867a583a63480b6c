"""Results as typed objects: the table that `mtmeta eval` shows, and summary.json, written and checked when read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mtmeta.core.errors import CheckpointError
from mtmeta.core.storage.disk import write_file
from mtmeta.core.storage.reading import read_json
from mtmeta.core.wording import first_fault

Count = Annotated[int, Field(ge=0, le=2**63)]
LARGEST = 1e100
"""No number of a run is larger, for no float32 is; sums, means and axes of such numbers stay finite."""
Finite = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=LARGEST, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class _Score(_Strict):
    metric: str
    value: Finite
    low: Finite | None
    high: Finite | None
    examples: Count
    loss: Finite
    skipped: Count
    others: dict[str, Finite]


class _Calibration(_Strict):
    temperature: Annotated[float, Field(gt=0, le=1e6)]
    examples: Count
    loss: list[Finite]
    error: list[Finite]


class _Usage(_Strict):
    planned_draws: Finite
    draws: Count
    batches: Count
    examples: Count
    epochs: Finite


class _Table(_Strict):
    """Scores of a run on one split."""

    run: str
    split: str
    tasks: Annotated[dict[str, _Score], Field(min_length=1)]
    mean: Finite

    def plain(self) -> dict[str, Any]:
        """Return the table as plain data, keys in the order of the fields, as `--json` prints it."""
        return self.model_dump(exclude_unset=True)


class Evaluation(_Table):
    """Result of `mtmeta eval`."""

    steps: Count
    """Of the weights that were scored, summed over groups."""
    seconds: Seconds
    details: dict[str, Any] = {}
    """Confusion or error detail by task."""


class RunSummary(_Table):
    """Result of a finished run: the contents of its summary.json."""

    name: str
    algorithm: str
    seed: Count
    selected_on: str
    steps: Count
    seconds: Seconds
    """Of training."""
    total_seconds: Seconds
    examples: Count
    """Example-forwards in training."""
    teacher_examples: Count = 0
    """Example-forwards of its teachers, if it has any: in their own training, and to label the training set."""
    skipped_steps: Count
    planned_steps: Count | None = None
    """Of a run with `training.stop`, the steps it would have without, summed over groups."""
    parameters: Count | None = None
    """Of all models that the run leaves, as they are used later; None in summaries of earlier versions."""
    encodings: Count | None = None
    """Passes of an encoder that answer all tasks on one text, or on a pair in one sequence; None in summaries of
    earlier versions."""
    sampling: dict[str, _Usage]
    calibration: dict[str, _Calibration] = {}
    """Of `evaluation.calibrate`, by task: the temperature, and loss and calibration error before and after it."""
    peak_memory_bytes: Count
    adapted: dict[str, Any] = {}
    """Of a kept adaptation: the run it came from, and how many shots it saw."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a summary.json. Raises CheckpointError if it is damaged."""
        remedy = "remove it and the same command writes it again"
        try:
            return cls.model_validate(read_json(path, "summary"))
        except CheckpointError as error:
            raise CheckpointError(error.place, f"{error.message}; {remedy}") from error
        except ValidationError as error:
            raise CheckpointError(str(path), f"damaged ({first_fault(error.errors())}); {remedy}") from error

    def write(self, path: Path) -> None:
        """Write summary.json atomically: with it a run is over."""
        write_file(path, json.dumps(self.plain(), indent=2, allow_nan=False) + "\n")

    def moved(self, folder: Path) -> Self:
        """Return the summary with the directory that the run lies in now."""
        return self.model_copy(update={"run": str(folder)})
