"""Built-in reporters of numbers: `metrics` for pandas and jq, `tensorboard` for TensorBoard."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import mtmeta

if TYPE_CHECKING:
    from mtmeta import Event

METRICS, BOARD = "metrics.jsonl", "tensorboard"
FIELDS = ("step", "group", "split", "task", "name", "value")
FINAL = "final"  # the split of the last table, which comes again where a run is killed after it


@dataclass(frozen=True)
class Metrics(mtmeta.Reporter):
    """Every number as a line of metrics.jsonl in the run directory: step, group, split, task, name, value.

    `pandas.read_json("metrics.jsonl", lines=True)` reads it as one flat table. Each number stands there once, however
    often the run was cut. `split` is `train`, that of an evaluation, or `final` for the table of the best weights;
    undefined numbers are null.
    """

    name = "metrics"

    @contextmanager
    def open(self, folder: Path) -> Iterator[Callable[[Event], None]]:
        files = mtmeta.RunFiles(folder)
        # without a buffer: each line is the system's at once, and nothing is left to be written where the disk is full
        file, begun = files.append(METRICS), False

        def write(event: Any) -> None:
            nonlocal file, begun
            if event.type == "run_started" and not begun:
                file.truncate(0)
            elif event.type == "run_resumed":
                file.close()
                _rewind(files, event.steps)
                file = files.append(METRICS)
            begun = True
            write_all(file, b"".join(_line(scalar) for scalar in mtmeta.scalars(event)))

        try:
            yield write
        finally:
            file.close()


def write_all(file: IO[bytes], data: bytes) -> None:
    """Write to a file without a buffer, of which an almost full disk takes a part."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _line(scalar: mtmeta.Scalar) -> bytes:
    fields = {name: getattr(scalar, name) for name in FIELDS}
    fields["value"] = scalar.value if math.isfinite(scalar.value) else None
    return json.dumps(fields).encode() + b"\n"


def _rewind(files: mtmeta.RunFiles, steps: Mapping[str, int]) -> None:
    """Keep the lines up to the step that each group goes on from, and no half one."""
    with open(files.folder / METRICS, "rb") as old, files.replace(METRICS) as new:
        new.writelines(line for line in old if _stands(line, steps))


def _stands(line: bytes, steps: Mapping[str, int]) -> bool:
    try:
        fields = json.loads(line)
        known = line.endswith(b"\n") and fields["split"] != FINAL
        return known and int(fields["step"]) <= steps.get(fields["group"], 0)
    except (ValueError, KeyError, TypeError, RecursionError):  # torn by a kill, or not ours
        return False


@dataclass(frozen=True)
class TensorBoard(mtmeta.Reporter):
    """Losses, learning rate, norms, drifts and metrics for `tensorboard --logdir RUN`, in tensorboard/ of the run.

    Needs tensorboard (pip install 'mtmeta[tensorboard]'). Where an algorithm trains several groups of tasks, each has a
    folder of its own, whose curves TensorBoard lays over each other.
    """

    name = "tensorboard"

    def require(self) -> None:
        _tensorboard()

    @contextmanager
    def open(self, folder: Path) -> Iterator[Callable[[Event], None]]:
        board = _Board(folder)
        try:
            yield board.handle
        finally:
            for file in board.files.values():
                file.close()


class _Board:
    """The event files of a run: one for each group and sitting."""

    def __init__(self, folder: Path) -> None:
        self.recipe, self.run = folder / "recipe.yaml", mtmeta.RunFiles(folder)
        self.files: dict[str, _EventFile] = {}
        self.several = False
        self.steps: Mapping[str, int] | None = None

    def handle(self, event: Any) -> None:
        if event.type == "run_started" and self.steps is None:
            for old in (self.run.folder / BOARD).rglob("events.out.tfevents.*"):
                self.run.remove(str(old.relative_to(self.run.folder)))
            self.several = len(event.groups) > 1
            self.file("" if self.several else "+".join(event.groups[0])).text("recipe", self.recipe.read_text("utf-8"))
        elif event.type == "run_resumed":
            self.several, self.steps = len(event.groups) > 1, event.steps
        scalars = [scalar for scalar in mtmeta.scalars(event) if scalar.split != FINAL]
        if scalars:  # all of one event, so of one step of one group
            self.file(scalars[0].group).scalars(scalars[0].step, {scalar.tag(): scalar.value for scalar in scalars})

    def file(self, group: str) -> _EventFile:
        """Return the file of a group. In a run that goes on, it voids earlier files from the checkpoint on."""
        if group not in self.files:
            purge = None if self.steps is None else self.steps.get(group, 0) + 1
            self.files[group] = _EventFile(self.run, f"{BOARD}/{group}" if self.several else BOARD, purge)
        return self.files[group]


class _EventFile:
    """A file of TensorBoard's format, each record of which is the system's at once.

    TensorBoard's own writer hands records to a thread, which keeps them up to two minutes: those a kill would cost,
    though the checkpoint after them is safe.
    """

    def __init__(self, run: mtmeta.RunFiles, folder: str, purge: int | None) -> None:
        self.proto, records = _tensorboard()
        # files are read in the order of their names, also where the clock was set back
        numbers = [path.name.split(".")[3] for path in (run.folder / folder).glob("events.out.tfevents.*")]
        latest = max((int(number) for number in numbers if number.isdecimal()), default=0)
        name = f"events.out.tfevents.{max(int(time.time()), latest + 1):010d}.mtmeta.{os.getpid()}"
        self.raw = run.create(f"{folder}/{name}")  # until the reporter closes
        self.records = records(self.raw)
        self.write(file_version="brain.Event:2")
        if purge is not None:
            log = self.proto.SessionLog(status=self.proto.SessionLog.START)
            self.write(step=purge, session_log=log)

    def write(self, **content: Any) -> None:
        self.records.write(self.proto.Event(wall_time=time.time(), **content).SerializeToString())
        self.records.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        pairs = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self.write(step=step, summary=Summary(value=pairs))

    def text(self, tag: str, text: str) -> None:
        """Write a text, which TensorBoard shows under Text, as a block of code."""
        from tensorboard.plugins.text.summary_v2 import text_pb

        self.write(step=0, summary=text_pb(tag, "\n".join(f"    {line}" for line in text.splitlines())))

    def close(self) -> None:
        self.records.close()


def _tensorboard() -> tuple[Any, Any]:
    """Import TensorBoard's messages and the writer of its records. Raises MachineError without tensorboard."""
    try:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ModuleNotFoundError as error:
        message = "needs tensorboard, which is not installed; pip install 'mtmeta[tensorboard]'"
        raise mtmeta.MachineError("reporter 'tensorboard'", message) from error
    except Exception as error:  # such as the TypeError of a protobuf that does not fit
        message = f"tensorboard cannot be imported ({type(error).__name__}: {mtmeta.safe(str(error))})"
        message = f"{message}; pip install --upgrade 'mtmeta[tensorboard]'"
        raise mtmeta.MachineError("reporter 'tensorboard'", message) from error
    return event_pb2, RecordWriter
