"""`mtmeta runs`: the run directories under a folder, how far each is, and its best metrics."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from mtmeta.core.errors import MtmetaError, UsageError
from mtmeta.core.reports.terminal.console import Folding, console_for_tables
from mtmeta.core.run.directory import RunDir
from mtmeta.core.storage.lock import lock_owner
from mtmeta.core.storage.reading import UnfitFile, open_regular
from mtmeta.core.studies.launching.records import FOLDER as JOBS
from mtmeta.core.wording import plural, safe

if TYPE_CHECKING:
    from mtmeta.core.studies.launching.overview import JobStatus

TAIL = 2**22  # bytes at the end of events.jsonl that are looked at
ROOMY = 110  # columns of a terminal from which the metrics of a run fit in one line
UNITS = (("day", 86400), ("hour", 3600), ("minute", 60))


def list_runs(folder: str | Path, block: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return every run under a folder, newest first: path, status, steps, metrics and when it was last written to.

    `status` is finished, running or stopped, or what became of the run's job, of which `job` says more: queued,
    preempted, cancelled, failed, lost or unknown. `step` of `steps` is where the group trained last is; a finished run
    with fewer steps than these stopped early. `metrics` are those of the best weights so far. Raises UsageError if
    there is no such folder.
    """
    if not Path(folder).is_dir():
        raise UsageError(str(folder), "no such folder; give one that holds run directories")
    runs = {path.absolute(): _describe(RunDir(path)) for path in _run_folders(Path(folder))}
    for job in _jobs(Path(folder), block):
        shown = Path(folder) / job.run.relative_to(Path(folder).absolute())
        entry = runs.setdefault(job.run, _describe(RunDir(shown)))
        entry["job"] = {"launcher": job.launcher, "job": job.handle, "where": job.where or None, "why": job.why or None}
        if entry["status"] == "stopped":
            entry["status"] = job.status
    return sorted(runs.values(), key=lambda run: -run["changed"])


def _run_folders(folder: Path) -> Iterator[Path]:
    """Give directories with a recipe and a lock; folders inside one are not looked at."""
    for path, folders, files in os.walk(folder):
        if {"recipe.yaml", "recipe.lock.yaml"} <= set(files):
            folders.clear()
            yield Path(path)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _jobs(folder: Path, block: Sequence[str]) -> list[JobStatus]:
    """Return the jobs of runs that are not finished, of every study under a folder, itself included."""
    studies = [Path(path).absolute() for path, folders, _ in os.walk(folder) if JOBS in folders]
    if not studies:
        return []
    from mtmeta.core.registry.registry import build_registry  # of plugins, which take time
    from mtmeta.core.studies.launching.overview import jobs_of

    return jobs_of(studies, build_registry(block=block))


def _describe(run: RunDir) -> dict[str, Any]:
    events = run.path / "events.jsonl"
    changed = max(map(_changed, (run.recipe, run.lock_file, run.summary, events)))
    process = lock_owner(run.path) or None
    entry: dict[str, Any] = {"run": str(run.path), "status": "running" if process else "stopped", "holder": process}
    entry |= {
        "step": None,
        "steps": None,
        "split": None,
        "metrics": {},
        "mean": None,
        "changed": round(changed, 3),
        "job": None,
    }
    try:
        summary = run.finished()
    except MtmetaError as error:
        return entry | {"status": f"damaged: {error.message}"}
    if summary is not None:
        metrics = {name: score.value for name, score in summary.tasks.items()}
        planned = summary.planned_steps or summary.steps
        steps = {"step": summary.steps, "steps": planned, "split": summary.split}
        return entry | {"status": "finished", **steps, "metrics": metrics, "mean": summary.mean}
    try:
        return entry | _progress(events)
    except UnfitFile as error:
        return entry | {"status": f"damaged: {events.name} {error}"}


def _changed(path: Path) -> float:
    try:
        return path.lstat().st_mtime  # what a link leads to is of no concern
    except OSError:
        return 0.0


def _progress(path: Path) -> dict[str, Any]:
    """Return where a run is that is not finished, by its last events, and the best metrics of each group so far."""
    from mtmeta.core.run.event_stream import read_event  # its types take time, and a finished run needs none

    progress: dict[str, Any] = {}
    best: dict[str, dict[str, float]] = {}
    latest: dict[str, dict[str, float]] = {}
    try:
        with open_regular(path) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read(TAIL).splitlines(keepends=True)
    except FileNotFoundError:
        return progress
    for line in reversed(lines):
        if b'"evaluated"' not in line and (b'"step"' not in line or "step" in progress):
            continue  # most lines are steps, and only the last one counts
        try:
            event = read_event(line)
        except ValueError:
            continue  # the first line is cut, the last may be under way
        if event["type"] == "step" and "step" not in progress:
            progress |= {"step": event["step"], "steps": event["steps"]}
        if event["type"] == "evaluated":
            metrics = {name: score["value"] for name, score in event["tasks"].items() if score["value"] is not None}
            progress.setdefault("split", event["split"])
            latest.setdefault(event["group"], metrics)
            if event["best"]:
                best.setdefault(event["group"], metrics)
    groups = {**latest, **best}  # a group's best may lie further back than what was read
    merged = {name: value for group in reversed(groups.values()) for name, value in group.items()}
    return progress | ({"metrics": merged} if merged else {})


def show_runs(runs: list[dict[str, Any]], folder: str | Path) -> None:
    """Print a row for each run."""
    console = console_for_tables()
    if not runs:
        console.print(f"no runs in {safe(str(folder))}")
        return
    table = Folding(console)
    for heading in ("run", "status", "best metrics", "mean", "age"):
        table.add_column(heading, justify="right" if heading in ("mean", "age") else "left")
    for run in runs:
        status = run["status"] + _of_job(run["job"])
        if run["steps"] and (run["status"] != "finished" or run["step"] < run["steps"]):
            early = ", stopped early" if run["status"] == "finished" else ""
            status += f"{early}, step {run['step']:,} of {run['steps']:,}"
        between = "  " if console.width >= ROOMY else "\n"
        metrics = between.join(f"{safe(name)} {value:.3f}" for name, value in run["metrics"].items())
        mean = f"{run['mean']:.4f}" if run["mean"] is not None else ""
        cells = (safe(run["run"], 200), safe(status, 200), metrics, mean, age(time.time() - run["changed"]))
        table.add_row(*map(Text, cells))
    console.print(table)


def _of_job(job: dict[str, Any] | None) -> str:
    """Return which job a run is, where it is and why it waits, behind the word for its status."""
    if job is None:
        return ""
    where, why = f" on {job['where']}" if job["where"] else "", f" ({job['why']})" if job["why"] else ""
    return f"{where}{why}, {job['launcher']} job {job['job'] or 'not submitted'}"


def age(seconds: float) -> str:
    """Return a span of time in its largest unit."""
    for unit, length in UNITS:
        if seconds >= length:
            return plural(int(seconds // length), unit)
    return f"{max(0, int(seconds))} s"
