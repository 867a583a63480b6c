"""Runs in MLflow: a reporter as an mtmeta plugin."""

from __future__ import annotations

import functools
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mtmeta

if TYPE_CHECKING:
    from mtmeta import Event


@dataclass(frozen=True)
class MLflow(mtmeta.Reporter):
    """Losses, learning rate, norms, drifts and metrics as a run in MLflow, with the recipe as an artifact.

    A run that was cut goes on under the same id, and no number is logged twice.
    """

    name = "mlflow"

    experiment: str = "mtmeta"
    """Experiment the run belongs to; made if it is not there."""
    tracking_uri: str | None = None
    """Server, database or folder that keeps runs; default: MLFLOW_TRACKING_URI, else MLflow's own."""

    def require(self) -> None:
        client = library()
        try:
            client(tracking_uri=self.tracking_uri).get_experiment_by_name(self.experiment)
        except Exception as error:  # no server, no store of this kind, no right to it: better now than after hours
            what = f"cannot use its store ({mtmeta.safe(str(error), 300)}); set tracking_uri or MLFLOW_TRACKING_URI"
            raise mtmeta.MachineError("reporter 'mlflow'", what) from error

    def open(self, folder: Path) -> AbstractContextManager[Callable[[Event], None]]:
        return self._open(folder)

    @contextmanager
    def _open(self, folder: Path) -> Iterator[Callable[[Event], None]]:
        sitting = Sitting(self, folder)
        try:
            yield sitting.handle
        finally:
            sitting.close(interrupted=isinstance(sys.exception(), KeyboardInterrupt))


class Sitting:
    """From the first event of a process to its last."""

    def __init__(self, options: MLflow, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.client = library()(tracking_uri=options.tracking_uri)
        self.run = ""
        self.several = self.resumed = self.finished = False
        self.last = functools.cache(self.last_step)

    def handle(self, event: Any) -> None:
        if not self.run:
            self.begin(event)
        self.finished |= event.type == "run_finished"
        self.log(mtmeta.scalars(event))

    def begin(self, event: Any) -> None:
        kept = self.folder / "mlflow-run-id.txt"
        self.several, self.resumed = len(event.groups) > 1, event.type == "run_resumed" and kept.exists()
        if self.resumed:
            self.run = kept.read_text(encoding="utf-8").strip()
            self.client.update_run(self.run, status="RUNNING")
            return
        found = self.client.get_experiment_by_name(self.options.experiment)
        experiment = found.experiment_id if found else self.client.create_experiment(self.options.experiment)
        self.run = self.client.create_run(experiment, run_name=event.name).info.run_id
        kept.write_text(self.run, encoding="utf-8")
        for key in ("algorithm", "device", "parameters"):
            self.client.log_param(self.run, key, getattr(event, key))
        self.client.log_param(self.run, "tasks", ", ".join(event.tasks))
        self.client.log_artifact(self.run, str(self.folder / "recipe.yaml"))

    def log(self, scalars: list[mtmeta.Scalar]) -> None:
        from mlflow.entities import Metric

        now, made = int(time.time() * 1000), []
        for scalar in scalars:
            key = re.sub(r"[^\w/. -]", "-", scalar.tag(with_group=self.several))  # what MLflow lets names be made of
            if scalar.step > self.last(key):
                made.append(Metric(key, scalar.value, now, scalar.step))
        if made:
            self.client.log_batch(self.run, metrics=made)

    def last_step(self, key: str) -> int:
        """The last step of a metric that an earlier sitting has logged; up to there the same values come again."""
        if not self.resumed:
            return 0
        return max((found.step for found in self.client.get_metric_history(self.run, key)), default=0)

    def close(self, *, interrupted: bool) -> None:
        if self.run:
            status = "FINISHED" if self.finished else "KILLED" if interrupted else "FAILED"
            self.client.set_terminated(self.run, status)


def library() -> Any:
    """MLflow's client class, which takes seconds to load. Raises MachineError without the package."""
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        what = "needs mlflow, which is not installed; pip install mlflow-skinny"
        raise mtmeta.MachineError("reporter 'mlflow'", what) from error
    return MlflowClient


@mtmeta.hookimpl
def register_reporters() -> list[type[mtmeta.Reporter]]:
    return [MLflow]
