"""Every error a user can meet, with the exit code the command line gives it.

    MtmetaError
    ├── UsageError        2   command line
    │   └── RecipeError   2   the recipe, `--set` included
    ├── DataError         3   a data file or one of its rows
    ├── CheckpointError   4   a checkpoint or a run directory
    │   └── RunInUse      4   a run directory that another process holds
    ├── WeightsError      4   weights, config.json, tokenizer
    ├── PluginError       5   a plugin that is broken, missing or in conflict
    ├── MachineError      6   device, disk, network, versions
    │   ├── OutOfMemory   6   too little memory for what the recipe asks for
    │   └── RunKilled     6   a run of a study whose process was killed
    ├── DivergedError     7   a loss, gradient or parameter became non-finite
    └── Problems              several of the above at once; exits with the first one's code
        └── Incomplete        runs of a comparison that failed, beside the table of the others

    KeyboardInterrupt
    └── Stopped      75, 130  asked to stop by a signal; no error, but nothing may take it for one of its own and go on

An error reads `place: what is wrong; one fix`. Only the command line prints errors and exits.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from mtmeta.core.wording import safe

MAX_SHOWN = 10  # problems listed at once
MAX_PLACE = 500  # characters of a place, so that a line always has room for what is wrong
_MEMORYLESS = ("can't allocate memory", "annot allocate memory", "failed to map segment from shared object")
_THREADLESS = ("can't start new thread", "Resource temporarily unavailable")


class MtmetaError(Exception):
    """Base of every error a user can cause.

    `place` is `file:line:col`, an option or a path; `message` says what is wrong, with the fix after a semicolon;
    `help` holds optional further lines.
    """

    exit_code: ClassVar[int] = 1
    echoed: bool = False
    """Whether another process, which met the same error, prints it."""

    def __init__(self, place: str, message: str, *, help: Iterable[str] = ()) -> None:
        self.place = place
        self.message = message
        self.help = tuple(help)
        super().__init__(f"{place}: {message}" if place else message)

    def lines(self) -> list[str]:
        """Return the lines to print on stderr: one starting `error: `, then any `help: ` lines."""
        place = f"{safe(self.place, MAX_PLACE)}: " if self.place else ""
        return [safe(f"error: {place}{self.message}", 1000), *(safe(f"help: {line}", 1000) for line in self.help)]


class UsageError(MtmetaError):
    """The command line is wrong."""

    exit_code = 2


class RecipeError(UsageError):
    """The recipe is wrong."""


class DataError(MtmetaError):
    """A data file or one of its rows is wrong."""

    exit_code = 3


class NoExamples(DataError):
    """A data file that is in order, and holds not one example."""


class CheckpointError(MtmetaError):
    """A checkpoint or a run directory cannot be used."""

    exit_code = 4


class RunInUse(CheckpointError):
    """Another process holds the run directory."""


class WeightsError(MtmetaError):
    """Weights, config.json or the tokenizer cannot be used."""

    exit_code = 4


class PluginError(MtmetaError):
    """A plugin is broken, missing, or in conflict with another."""

    exit_code = 5


class MachineError(MtmetaError):
    """The machine lacks something: a device, a package, disk space, the network."""

    exit_code = 6


class OutOfMemory(MachineError):
    """The recipe asks for more memory than there is."""


class RunKilled(MachineError):
    """The process of a run was killed by a signal; it can go on."""


class DivergedError(MtmetaError):
    """A loss, gradient norm or parameter became non-finite."""

    exit_code = 7


class Problems(MtmetaError):
    """Several problems found in one pass; printed together, at most ten of them."""

    def __init__(self, problems: Sequence[MtmetaError]) -> None:
        assert problems, "Problems needs at least one problem"
        nested = (problem.problems if isinstance(problem, Problems) else [problem] for problem in problems)
        self.problems: list[MtmetaError] = [problem for group in nested for problem in group]
        super().__init__("", f"{len(self.problems)} problems, the first: {self.problems[0]}")

    @property
    def code(self) -> int:
        """Return the exit code of the first."""
        return self.problems[0].exit_code

    def lines(self) -> list[str]:
        shown = [line for problem in self.problems[:MAX_SHOWN] for line in problem.lines()]
        hidden = len(self.problems) - MAX_SHOWN
        return [*shown, f"and {hidden} more"] if hidden > 0 else shown


class Incomplete(Problems):
    """Runs of a comparison failed; `comparison` is that of the recipes of which none did."""

    def __init__(self, problems: Sequence[MtmetaError], comparison: dict[str, Any]) -> None:
        super().__init__(problems)
        self.comparison = comparison


class Stopped(KeyboardInterrupt):
    """A run was asked to stop by `signal`, and has; `where` says how far it is."""

    interrupted: ClassVar[int] = 130  # by Ctrl-C
    echoed: bool = False
    """Whether another process, which stopped with us, prints it."""

    def __init__(self, signal: str, where: str) -> None:
        self.signal = signal
        self.where = where
        self.exit_code = self.interrupted if signal == "SIGINT" else 75
        how = "interrupted" if signal == "SIGINT" else f"stopped by {signal}"
        super().__init__(f"{how} {where}; rerun the same command to continue")

    def lines(self) -> list[str]:
        """Return the line to print on stderr."""
        return [safe(f"error: {self}", 1000)]


def raise_all(problems: Sequence[MtmetaError]) -> None:
    """Raise the problem there is, or all of them together; return if there is none."""
    if problems:
        raise problems[0] if len(problems) == 1 else Problems(problems)


def out_of_memory(error: BaseException) -> str | None:
    """Return whose memory ran out, or None if the error is another one. Knows PyTorch's without importing it."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return "out of memory"
    text = str(error)
    if not isinstance(error, RuntimeError | ImportError):
        return None
    if any(words in text for words in _MEMORYLESS):  # PyTorch's on a CPU has no class
        return "out of memory"
    if type(error).__name__ == "OutOfMemoryError" or "out of memory" in text:
        return "CUDA out of memory"
    return None


def out_of_threads(error: BaseException) -> bool:
    """Return whether the system refused another thread or process."""
    return isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in _THREADLESS)
