"""Built-in reporters: `console` for people, `jsonl` for every report, and the trackers of trackers.py."""

from __future__ import annotations

import errno
import html
import importlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mtmeta
from mtmeta.plugins.trackers import Metrics, TensorBoard, write_all

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from mtmeta import Event

MAX_LINE = 1000  # characters


@dataclass(frozen=True)
class Jsonl(mtmeta.Reporter):
    """Every event as a line of events.jsonl in the run directory."""

    name = "jsonl"
    essential = True  # every report reads its file

    @contextmanager
    def open(self, folder: Path) -> Iterator[Callable[[Event], None]]:
        # without a buffer: each line is the system's at once, and nothing is left to be written where the disk is full
        with mtmeta.RunFiles(folder).append("events.jsonl") as file:

            def write(event: Event) -> None:
                if event.recorded:
                    write_all(file, (event.json() + "\n").encode())

            yield write


@dataclass(frozen=True)
class ConsoleReporter(mtmeta.Reporter):
    """A live progress bar on stderr or in a notebook, plain lines where stderr is no terminal."""

    name = "console"

    every: mtmeta.PositiveFloat = 5.0
    """Seconds between two plain progress lines."""

    @contextmanager
    def open(self, folder: Path) -> Iterator[Callable[[Event], None]]:
        view = self._view()

        def handle(event: Event) -> None:
            with _may_hang_up():
                view.handle(event)

        try:
            yield handle
        finally:
            with _may_hang_up():
                view.close()

    def _view(self) -> _View:
        if (display := _notebook_display()) is not None:
            return _Notebook(display)
        from rich.console import Console

        console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
        return _Live(console) if console.is_terminal and not console.is_dumb_terminal else _Plain(self.every)


def _notebook_display() -> Any:
    """Return IPython's module that shows HTML, in a cell of a notebook; None anywhere else."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None or getattr(shell, "kernel", None) is None:
        return None
    return importlib.import_module("IPython.display")


@contextmanager
def _may_hang_up() -> Iterator[None]:
    """Ignore that a terminal was closed and takes no more lines; the run comes to its stop all the same."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise


class _View:
    """Turns events into lines; subclasses decide where they go, and make them safe for a terminal."""

    def __init__(self) -> None:
        self.rate = _Rate()

    def line(self, text: str, style: str = "") -> None:
        raise NotImplementedError

    def progress(self, event: Any, text: str) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def handle(self, event: Event) -> None:
        method = getattr(self, f"on_{event.type}", None)
        if method is not None:
            method(event)

    def on_run_started(self, event: Any, more: str = "") -> None:
        tasks = ", ".join(map(mtmeta.safe, event.tasks))
        size = f"{event.parameters / 1e6:.1f} M parameters"
        precision = f", {event.precision}" if event.precision else ""
        self.line(f"{event.name}: {event.algorithm} on {tasks}; {size}, {event.device}{precision}{more}")

    def on_run_resumed(self, event: Any) -> None:
        self.on_run_started(event, f", going on from step {event.step} of {mtmeta.safe(event.group)}")

    def on_data_loaded(self, event: Any) -> None:
        cut = f", {event.truncated} texts cut" if event.truncated else ""
        skipped = f", {event.skipped} bad rows skipped" if event.skipped else ""
        counts = f"{event.examples:,} examples, {event.tokens:,} tokens{cut}{skipped}"
        self.line(f"  {event.task} {event.split}: {counts} ({mtmeta.safe(event.file)})")

    def on_warning(self, event: Any) -> None:
        self.line(f"warning: {mtmeta.safe(event.text, 500)}", "yellow")

    def on_step(self, event: Any) -> None:
        self.rate.add(event.examples, event.seconds)
        losses = "  ".join(f"{task} {sum(values) / len(values):.3f}" for task, values in event.losses.items())
        self.progress(event, f"{losses}  {self.rate.per_second:.0f} ex/s")

    def on_step_skipped(self, event: Any) -> None:
        self.line(f"step {event.step} skipped: {event.reason}", "bold red")

    def on_stopped_early(self, event: Any) -> None:
        group, evaluations = mtmeta.safe(event.group), f"{event.evaluations} evaluations"
        self.line(f"{group}: stopped at step {event.step} of {event.steps}, none of {evaluations} better")

    def on_evaluated(self, event: Any) -> None:
        parts = [f"{name} {score['metric']} {score['value']:.3f}" for name, score in event.tasks.items()]
        mean = math.fsum(score["value"] for score in event.tasks.values()) / len(parts)
        if len(parts) > 1:
            parts.append(f"mean {mean:.3f}")
            if not math.isclose(event.selected, mean, abs_tol=1e-9):  # one task selects, or less is better somewhere
                parts.append(f"selected {event.selected:.3f}")
        if event.best:
            parts.append("best so far")
        self.line(f"step {event.step} ({event.split}): {'  '.join(parts)}", "green" if event.best else "")


class _Plain(_View):
    """Lines on stderr, at most one progress line every few seconds."""

    def __init__(self, every: float) -> None:
        super().__init__()
        self.every = every
        self.last = -math.inf

    def line(self, text: str, style: str = "") -> None:
        print(mtmeta.safe(text, MAX_LINE), file=sys.stderr, flush=True)

    def progress(self, event: Any, text: str) -> None:
        now = time.monotonic()
        if now - self.last >= self.every:
            self.last = now
            left = self.rate.eta(event.step, event.steps, event.seconds)
            self.line(f"{event.group} step {event.step}/{event.steps}  {text}  {left} left")


class _Live(_View):
    """A rich progress bar; other lines scroll above it."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        super().__init__()
        group = TextColumn("{task.fields[group]}", markup=False)
        text = TextColumn("{task.fields[text]}", markup=False)
        self.console = console
        columns = (group, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), text)
        self.bar: Progress = Progress(*columns, console=console, transient=True)
        self.bars: dict[str, TaskID] = {}
        self.bar.start()

    def line(self, text: str, style: str = "") -> None:
        self.console.print(mtmeta.safe(text, MAX_LINE), style=style or None)

    def progress(self, event: Any, text: str) -> None:
        if event.group not in self.bars:
            group = mtmeta.safe(event.group)
            self.bars[event.group] = self.bar.add_task("", total=event.steps, group=group, text="")
        self.bar.update(self.bars[event.group], completed=event.step, text=mtmeta.safe(text, MAX_LINE))

    def on_stopped_early(self, event: Any) -> None:
        if event.group in self.bars:
            self.bar.update(self.bars[event.group], total=event.step)
        super().on_stopped_early(event)

    def close(self) -> None:
        self.bar.stop()


class _Notebook(_View):
    """A bar for each group in the output of a cell, drawn anew a few times a second; other lines stand above it.

    It takes IPython alone: rich's own bar would take ipywidgets, too.
    """

    EVERY = 0.2  # seconds

    def __init__(self, display: Any) -> None:
        super().__init__()
        self.display = display
        self.handles: dict[str, Any] = {}
        self.drawn: dict[str, float] = {}
        self.last: dict[str, str] = {}

    def line(self, text: str, style: str = "") -> None:
        print(mtmeta.safe(text, MAX_LINE), flush=True)

    def progress(self, event: Any, text: str) -> None:
        left = self.rate.eta(event.step, event.steps, event.seconds)
        words = html.escape(mtmeta.safe(f"{event.step}/{event.steps}  {text}  {left} left", MAX_LINE))
        group = html.escape(mtmeta.safe(event.group))
        bar = f'<progress value="{event.step}" max="{event.steps}"></progress>'
        self.last[event.group] = f"<div><code>{group}</code> {bar} <code>{words}</code></div>"
        if time.monotonic() - self.drawn.get(event.group, -math.inf) >= self.EVERY:
            self._draw(event.group)

    def _draw(self, group: str) -> None:
        page = self.display.HTML(self.last.pop(group))
        if group in self.handles:
            self.handles[group].update(page)
        else:
            self.handles[group] = self.display.display(page, display_id=True)
        self.drawn[group] = time.monotonic()

    def close(self) -> None:
        for group in list(self.last):  # the last step that came, however soon after the one before
            self._draw(group)


class _Rate:
    """Examples a second over the recent past."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def add(self, examples: int, seconds: float) -> None:
        if self.seen and seconds < self.seen[-1][1]:  # another group began
            self.seen.clear()
        self.seen = [*self.seen[-20:], (examples, seconds)]

    @property
    def per_second(self) -> float:
        (first, start), (last, end) = self.seen[0], self.seen[-1]
        if len(self.seen) == 1:
            return last / end if end > 0 else 0.0
        return (last - first) / (end - start) if end > start else 0.0

    @staticmethod
    def eta(step: int, steps: int, seconds: float) -> str:
        left = int(seconds / step * (steps - step))
        return f"{left // 60}:{left % 60:02d}"


@mtmeta.hookimpl
def register_reporters() -> list[type[mtmeta.Reporter]]:
    return [ConsoleReporter, Jsonl, Metrics, TensorBoard]
