"""How a comparison is judged, fixed before its runs: baselines, margin, seeds, and when a row has run enough.

A protocol stands in a hidden file beside the runs from the first start on, so that a table can tell what was planned
from what was chosen after a look at the results.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mtmeta.core.errors import CheckpointError, MachineError, MtmetaError, UsageError
from mtmeta.core.recipe.resolved import digest
from mtmeta.core.storage.atomic import make_folder, remove_entry
from mtmeta.core.storage.disk import write_file
from mtmeta.core.storage.lock import file_lock
from mtmeta.core.storage.reading import read_json
from mtmeta.core.studies.comparable import Planned
from mtmeta.core.training.statistics import Look, looks
from mtmeta.core.wording import did_you_mean, first_fault, quote, safe

FEWEST = 4
"""Seeds that `until` needs at least: with fewer there is one look alone."""
MOST = 1000
"""Seeds that a recipe may have."""


@dataclass(frozen=True)
class Protocol:
    """How a comparison is judged.

    `baselines` are the rows that differences are to; without any it is the row that trains each task alone. A row is
    not inferior to a baseline if its interval lies above -`margin`. With `until_interval` a row gets no further seeds
    once its interval of the mean, beside the first baseline, excludes 0 at one of the looks. `tasks` are those that are
    compared, by default all: what recipes train beside them are helpers.
    """

    baselines: tuple[str, ...] = ()
    margin: float | None = None
    until_interval: bool = False
    tasks: tuple[str, ...] = ()

    def settled(self, plan: Mapping[str, Sequence[Planned]]) -> Protocol:
        """Return the protocol with its baselines found among the rows. Raises UsageError for one that is none."""
        if self.margin is not None and not 0 < self.margin < float("inf"):
            raise UsageError("--margin", f"must be a number > 0 and finite, found {self.margin:g}")
        for name in self.baselines:
            if name not in plan:
                message = f"{quote(name)} is none of these recipes{did_you_mean(name, plan)} ({', '.join(plan)})"
                raise UsageError("--baseline", message)
        protocol = replace(self, baselines=self._baselines_among(plan))
        if self.until_interval and protocol.baselines and set(plan) <= set(protocol.baselines):
            raise UsageError("--until", "has no row to decide on, for every recipe here is a baseline; leave it out")
        return protocol

    def _baselines_among(self, plan: Mapping[str, Sequence[Planned]]) -> tuple[str, ...]:
        alone = [name for name, row in plan.items() if row[0].recipe.algorithm.name == "individual"]
        return tuple(dict.fromkeys(self.baselines)) or tuple(alone[:1])

    def within(self, names: Sequence[str]) -> Protocol:
        """Return the protocol for a comparison of these rows alone."""
        return replace(self, baselines=tuple(name for name in self.baselines if name in names))

    def looks(self, seeds: int) -> list[Look]:
        """Return the looks at a comparison of so many seeds. Raises UsageError where there is nothing to decide."""
        if not self.until_interval:
            return [Look(seeds, 0.95)]
        if seeds < FEWEST:
            raise UsageError("--until", f"needs --seeds {FEWEST} or more, the most that a row may get; found {seeds}")
        if not self.baselines:
            raise UsageError("--until", "needs a baseline, and no recipe here trains each task alone; --baseline NAME")
        return looks(seeds)


def chosen_tasks(names: Sequence[str], place: str) -> tuple[str, ...]:
    """Return the tasks that are to count. Raises UsageError for a name twice, an empty one, and a text."""
    if isinstance(names, str):
        raise UsageError(place, f"is the text {quote(names)}, expected a list of names")
    chosen = tuple(name.strip() for name in names)
    for name in chosen:
        if not name or chosen.count(name) > 1:
            raise UsageError(place, f"has {quote(name)} twice; name each task once" if name else "has an empty name")
    return chosen


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    began: Annotated[str, Field(max_length=40)]
    finished: Annotated[int, Field(ge=0)]
    seeds: Annotated[int, Field(ge=1, le=MOST)]
    planned_seeds: Annotated[int, Field(ge=1, le=MOST)] | None = None  # at the first start
    ended: bool = False  # whether the comparison of so many seeds came to its table, some rows maybe with fewer
    baselines: list[str]
    margin: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    until_interval: bool
    tasks: list[str] = []


@dataclass(frozen=True)
class Register:
    """The file in which the protocol of a comparison stands, in the folder of its runs."""

    path: Path

    @classmethod
    def of(cls, folder: Path, plan: Mapping[str, Sequence[Planned]]) -> Register:
        """Return that of a comparison of these rows: its name is made of their recipes with their first seeds."""
        rows = sorted(f"{name} {digest(row[0].recipe)}" for name, row in plan.items())
        key = hashlib.sha256("\n".join(rows).encode()).hexdigest()[:8]
        return cls(folder / f".compare-{key}.json")

    @classmethod
    def gave_seeds_by_looks(cls, folders: Iterable[Path]) -> bool:
        """Return whether a comparison in one of these folders let looks on the way decide on seeds of rows."""
        for path in (path for folder in folders for path in sorted(folder.glob(".compare-*.json"))):
            with contextlib.suppress(MtmetaError):  # one that is damaged says nothing
                record = cls(path).read()
                if record is not None and (record.until_interval or record.ended):
                    return True
        return False

    def read(self) -> _Record | None:
        """Return what was planned, None before the first start. Raises CheckpointError for a damaged file."""
        if not self.path.exists() and not self.path.is_symlink():
            return None
        try:
            data = read_json(self.path, "summary")
            if not isinstance(data, dict):
                raise CheckpointError(str(self.path), "damaged (it holds no mapping)")
            return _Record.model_validate(data)
        except ValidationError as error:
            message = f"damaged ({first_fault(error.errors())}); remove it to plan anew"
            raise CheckpointError(str(self.path), message) from error
        except CheckpointError as error:
            raise CheckpointError(error.place, f"{error.message}; remove it to plan anew") from error

    def write(self, protocol: Protocol, *, seeds: int, finished: int, runs: int) -> _Record:
        """Write what is planned now, when so many of the `runs` are finished, unless it was before; returns what holds.

        What was planned stays; the number of seeds alone is brought up to date. Raises MachineError where it cannot be
        written, unless no run is to come: finished runs may lie where nobody writes.
        """
        with self._alone():
            return self._planned(protocol, seeds, finished, runs)

    def _planned(self, protocol: Protocol, seeds: int, finished: int, runs: int) -> _Record:
        record = self.read()
        if record is None:
            began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            plan = asdict(protocol) | {"baselines": list(protocol.baselines), "tasks": list(protocol.tasks)}
            record = _Record(began=began, finished=finished, seeds=seeds, planned_seeds=seeds, **plan)
        elif record.seeds == seeds and (protocol.until_interval or not record.ended):
            return record
        record = record.model_copy(update={"seeds": seeds, "ended": False})
        try:
            self._write(record)
        except MachineError:
            if finished < runs:
                raise
        return record

    def note_end(self, protocol: Protocol) -> None:
        """Note that the comparison came to its table: of rows that were decided on the way no runs are missing."""
        if protocol.until_interval:
            with contextlib.suppress(MtmetaError):  # the table is there, and is worth more than the note
                record = self.read()
                if record is not None and not record.ended:
                    self._write(record.model_copy(update={"ended": True}))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Have another start of this comparison wait, so that what one has planned is not written over by the other."""
        lock = self.path.with_suffix(".lock")
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # a folder that nobody writes to: its runs are finished
                make_folder(lock.parent)
                stack.enter_context(file_lock(lock, lambda handle: None))
                stack.callback(remove_entry, lock)
            yield

    def _write(self, record: _Record) -> None:
        write_file(self.path, record.model_dump_json(indent=2) + "\n")


def departures(record: _Record, protocol: Protocol) -> list[str]:
    """Return a line for each part of a protocol that was not planned before its runs."""
    if protocol.margin is None and not protocol.until_interval:
        return []
    lines = []
    if record.finished:
        lines.append(f"This was planned when {record.finished} of the runs were finished already.")
    words = {"margin": "margin", "baselines": "baselines", "until_interval": "rule of when a row has run enough"}
    words["tasks"] = "choice of tasks"
    before: dict[str, Any] = record.model_dump() | {
        "baselines": tuple(record.baselines),
        "tasks": tuple(record.tasks) or ("all",),
    }
    now = asdict(protocol) | {"tasks": protocol.tasks or ("all",)}
    if record.planned_seeds is not None:
        words["seeds"] = "number of seeds"
        before["seeds"], now["seeds"] = record.planned_seeds, record.seeds
    for key, value in now.items():
        if before[key] != value:
            change = f"{_shown(before[key])} when the runs began on {safe(record.began)}, now {_shown(value)}"
            lines.append(f"The {words[key]} changed: {change}; it may have been chosen by what they came to.")
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(safe, value)) or "none"
    if isinstance(value, bool):
        return "until the interval" if value else "all seeds"
    return "none" if value is None else f"{value:g}"
