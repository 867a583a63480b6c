"""Where the runs of a study run: in processes of the command itself, or as jobs of a launcher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mtmeta.core.api.contracts import Launcher
from mtmeta.core.errors import MtmetaError, RecipeError, UsageError
from mtmeta.core.registry.registry import Registry, build_registry
from mtmeta.core.run.request import RunRequest
from mtmeta.core.signals import StopRequest
from mtmeta.core.studies.launching.options import LOCAL, read_launcher, split_overrides
from mtmeta.core.studies.launching.watch import Submitter, watch
from mtmeta.core.studies.processes.pool import Job, RunWatcher, run_all

Say = Callable[[str], None]


@dataclass(frozen=True)
class Placement:
    """Where the runs of a study run, and whether the study waits for them."""

    launcher: Launcher | None = None
    """Who has the jobs; None for the pool of processes of this command."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The launcher's options as they were given."""
    at_once: int = 1
    """Runs at a time in the pool."""
    detach: bool = False
    """Submit the jobs, and do not wait."""

    def run(
        self,
        jobs: Sequence[Job],
        study: Path,
        *,
        say: Say = lambda text: None,
        ended: Callable[[Job], None] = lambda job: None,
        failed: Callable[[Job, MtmetaError], None] | None = None,
        stop: StopRequest | None = None,
        watcher: RunWatcher | None = None,
    ) -> None:
        """Run every job to its end, wherever: finished runs are kept, cut ones go on, jobs under way are picked up.

        `study` is the folder that the run directories lie in; jobs of a launcher stand in its `.jobs`. `ended` is
        called after each run that ended well. One that fails does not keep the others from running: `failed` takes its
        error; without it the errors of all are raised together in the end. Raises Stopped if a signal came: processes
        of the pool are over then, with everything saved, and jobs of a launcher go on. `watcher` is told of the runs of
        the pool.
        """
        if self.launcher is None:
            calls: dict[str, Any] = {"ended": ended, "failed": failed, "stop": stop}
            run_all(jobs, at_once=self.at_once, say=say, watcher=watcher, **calls)
        elif jobs:
            submitter = Submitter(self.launcher, self.options, study, say)
            watch(submitter, jobs, ended=ended, failed=failed, stop=stop or StopRequest())

    def cancel(self, jobs: Sequence[Job], study: Path, say: Say = lambda text: None) -> None:
        """End jobs of a launcher that are under way, and wait until they are over; a pool has none left by itself."""
        if self.launcher is not None and jobs:
            Submitter(self.launcher, self.options, study, say).cancel(jobs)

    def submit(self, jobs: Sequence[Job], study: Path, say: Say = lambda text: None) -> list[dict[str, str]]:
        """Submit jobs that are not under way yet, and return each run directory with the handle of its job."""
        assert self.launcher is not None, "a pool ends with its command"
        name = self.launcher.name
        handles = Submitter(self.launcher, self.options, study, say).submit(jobs)
        return [{"run": str(job.folder), "launcher": name, "job": handles[job.folder]} for job in jobs]


POOL = Placement()
"""One run at a time, as a process of the command."""


def place(
    request: RunRequest, on: str | None, *, jobs: int | None = None, detach: bool = False
) -> tuple[Placement, RunRequest]:
    """Return where the runs of a study run, by `--on`, `--jobs` and `--set launcher...`; and the request without it.

    Raises UsageError, RecipeError or PluginError for options that do not fit, MachineError where the launcher misses
    something.
    """
    of_launcher, others = split_overrides(request.overrides)
    if of_launcher and on is None:
        key = of_launcher[0].partition("=")[0].strip()
        raise RecipeError(f"--set {key}", "is an option of a launcher; name it with --on, as --on slurm")
    registry: Registry = build_registry(block=request.block)
    launcher, given = read_launcher(registry, on or LOCAL, of_launcher)
    if detach and launcher.in_pool:
        raise UsageError("--detach", f"runs on {launcher.name} end with this command; --on slurm has jobs that stay")
    if jobs is not None and not launcher.in_pool:
        raise UsageError("--jobs", f"is for runs of this machine; how many run at once {launcher.name} decides")
    launcher.require()
    return Placement(None if launcher.in_pool else launcher, given, jobs or 1, detach), replace(
        request, overrides=others
    )
