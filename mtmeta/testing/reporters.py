"""The contract of a reporter, checked, and the events of a small run to try one on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtmeta.core.api.contracts import Reporter
from mtmeta.core.api.events import (
    CheckpointSaved,
    DataLoaded,
    Evaluated,
    Event,
    RunFinished,
    RunResumed,
    RunStarted,
    StepDone,
    StepSkipped,
    Warned,
)
from mtmeta.testing.tiny import check, check_documented

STEPS = 4
CUT = 2
"""The step whose checkpoint a cut run goes on from."""


def run_events(groups: Sequence[Sequence[str]] = (("sst", "sts"),), *, after: int = 0) -> list[Event]:
    """Return the events of a run of four steps a group, evaluated and saved after the second and the last.

    Its numbers are functions of group, task and step; one metric is undefined. `after` is the step of the first group
    that the run goes on from, 0 for one that begins.
    """
    tasks = [task for group in groups for task in group]
    names = ["+".join(group) for group in groups]
    about: dict[str, Any] = {"name": "tiny", "algorithm": "joint", "device": "cpu", "parameters": 1000}
    about |= {"tasks": tasks, "groups": [list(group) for group in groups]}
    events: list[Event]
    if after:
        events = [RunResumed(**about, group=names[0], step=after, steps={names[0]: after})]
    else:
        size = {"examples": 8, "skipped": 1, "tokens": 80, "truncated": 0}
        events = [RunStarted(**about)]
        events += [DataLoaded(task=task, split="train", file=f"{task}.csv", **size) for task in tasks]
        events += [Warned(f"{tasks[0]}.csv: skipped 1 bad rows")]
    for group, name in zip(groups, names, strict=True):
        for step in range(1, STEPS + 1):
            if name != names[0] or step > after:
                events += _step(group, name, step)
    scores = {task: _score(STEPS, n) for n, task in enumerate(tasks)}
    summary = {"name": "tiny", "steps": STEPS * len(groups), "tasks": scores, "mean": 0.5, "examples": 64}
    return [*events, RunFinished(summary)]


def _step(group: Sequence[str], name: str, step: int) -> list[Event]:
    losses = {task: [1.0 / step + n] for n, task in enumerate(group)}
    drifts = {task: [0.1 * step] for task in group}
    where: dict[str, Any] = {"group": name, "step": step}
    numbers: dict[str, Any] = {"examples": 16 * step, "seconds": 0.5 * step, "lr": 0.1 / step, "norm": 0.5}
    events: list[Event] = [StepDone(**where, **numbers, steps=STEPS, losses=losses, drifts=drifts)]
    if step == STEPS - 1:
        events = [StepSkipped(**where, reason=f"loss became nan at meta-step {step}")]
    if step in (CUT, STEPS):
        scores = {task: _score(step, n) for n, task in enumerate(group)}
        used = {"planned_draws": 1.0, "draws": step, "batches": step, "examples": 8 * step, "epochs": 0.5 * step}
        sampling = dict.fromkeys(group, used)
        events.append(Evaluated(**where, split="dev", tasks=scores, selected=0.1 * step, best=True, sampling=sampling))
        events.append(CheckpointSaved(**where, path=f"checkpoints/step-{step:08d}"))
    return events


def _score(step: int, n: int) -> dict[str, Any]:
    others = {"macro_f1": math.nan if n else 0.2 * step}
    return {"metric": "accuracy", "value": 0.1 * step, "low": 0.0, "high": 1.0, "loss": 1 / step, "others": others}


def check_reporter(reporter: Reporter, folder: Path) -> None:
    """Check that a reporter keeps its contract, in run directories `whole`, `cut` and `groups` under `folder`.

    It has what it needs, takes a whole run, one that is interrupted after its third step and goes on from its second,
    and one of two groups of tasks. It lets an interruption through, and its class and options are documented. Its
    files of the runs are left for the test to look at; `whole` and `cut` are of the same run.
    """
    reporter.require()
    _feed(reporter, folder / "whole", run_events())
    _feed(reporter, folder / "groups", run_events([["sst"], ["sts"]]))
    third = next(i for i, event in enumerate(run_events()) if isinstance(event, StepSkipped))
    interrupted = False
    try:
        _feed(reporter, folder / "cut", run_events()[: third + 1], KeyboardInterrupt())
    except KeyboardInterrupt:
        interrupted = True
    check(interrupted, "the context swallowed an interruption; let it pass")
    _feed(reporter, folder / "cut", run_events(after=CUT))
    check_documented(type(reporter), Reporter)


def _feed(reporter: Reporter, run: Path, events: Sequence[Event], end: BaseException | None = None) -> None:
    run.mkdir(parents=True, exist_ok=True)
    (run / "recipe.yaml").write_text("name: tiny\nseed: 1\nalgorithm: {name: joint}\n", encoding="utf-8")
    with reporter.open(run) as handle:
        check(callable(handle), f"the context of open gives {handle!r}, expected a function of an event")
        for event in events:
            handle(event)
        if end is not None:
            raise end
