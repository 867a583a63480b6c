"""The trials of a study, in Optuna's journal in its folder. All its processes see and change it under one lock.

study.json           what was planned, so that a later start does the same
journal.log          Optuna's, one line for each event; a line that a kill has torn is cut before the next is written
trial-0007/          recipe.yaml, and a run directory for each seed; `.lock` while a process works on it
best.yaml
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from mtmeta.core.errors import CheckpointError, MachineError, UsageError
from mtmeta.core.storage.atomic import make_folder, own_file
from mtmeta.core.storage.disk import disk_errors, write_file
from mtmeta.core.storage.lock import file_lock
from mtmeta.core.storage.reading import LIMITS, open_regular, parse_json, read_json, read_lines, why
from mtmeta.core.studies.tuning.sampling import NAME, distributions, optuna
from mtmeta.core.studies.tuning.space import Space
from mtmeta.core.wording import exception_line, safe

if TYPE_CHECKING:
    from optuna.storages.journal import JournalStorage
    from optuna.trial import FrozenTrial

LOCK, JOURNAL, PLAN = ".tune.lock", "journal.log", "study.json"


class _Ours:
    """In place of the journal's own lock, which a killed process leaves behind: whoever writes has the study's."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


class Journal:
    """The trials of one study."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / JOURNAL
        self._storage: JournalStorage | None = None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all other processes of the study out; what a killed one has left half-written is gone. It waits."""

        def unsupported(reason: str) -> None:
            message = f"lies on a disk without file locks ({safe(reason)}), so that processes cannot share a study"
            raise MachineError(str(self.folder), f"{message}; choose another --out")

        with contextlib.ExitStack() as stack:
            with disk_errors(self.folder):
                make_folder(self.folder)
                stack.enter_context(file_lock(self.folder / LOCK, lambda handle: None, unsupported))
                self._cut()
            yield

    def _cut(self) -> None:
        """Cut what stands behind the last line break: Optuna would write on behind it, and read nothing more."""
        if not os.path.lexists(self.path):
            return
        with open_regular(self.path, LIMITS["events"]) as file:
            size = end = os.fstat(file.fileno()).st_size
            while end:  # lines are short: as a rule the last byte tells
                begin = max(0, end - 2**16)
                file.seek(begin)
                found = file.read(end - begin).rfind(b"\n")
                if found >= 0:
                    end = begin + found + 1
                    break
                end = begin
        if end < size:
            with own_file(self.path, "r+b") as file:
                file.truncate(end)

    def open(self) -> None:
        """Open it, made if need be; the study is locked. Raises CheckpointError for a damaged one."""
        library = optuna()
        if os.path.lexists(self.path):
            self._check()
        try:
            backend = library.storages.journal.JournalFileBackend(str(self.path), lock_obj=_Ours())
            self._storage = storage = library.storages.JournalStorage(backend)
            studies = storage.get_all_studies()
            if not studies:
                storage.create_new_study([library.study.StudyDirection.MAXIMIZE], NAME)
                studies = storage.get_all_studies()
        except OSError:
            raise
        except Exception as error:  # whatever Optuna meets in lines that it has not written
            message = f"damaged ({exception_line(error)}); choose another --out"
            raise CheckpointError(str(self.path), message) from error
        if len(studies) != 1 or studies[0].study_name != NAME:
            raise CheckpointError(str(self.path), "is the journal of another study; choose another --out")
        self._study = storage.get_study_id_from_name(NAME)

    def _check(self) -> None:
        """Raise CheckpointError for a line that is none of the journal's."""
        number = 0
        try:
            with open_regular(self.path, LIMITS["events"]) as file:
                for line in read_lines(file):
                    number += 1
                    event = parse_json(line)
                    if not isinstance(event, dict) or type(event.get("op_code")) is not int:
                        raise ValueError("no event of a journal")
        except (OSError, ValueError) as error:
            place = f"{self.path}:{number}" if isinstance(error, ValueError) else str(self.path)
            raise CheckpointError(place, f"damaged ({why(error)}); choose another --out") from error

    @property
    def storage(self) -> JournalStorage:
        assert self._storage is not None, "open it first"
        return self._storage

    def trials(self) -> list[FrozenTrial]:
        """Return all trials as they are now, by number."""
        return self.storage.get_all_trials(self._study, deepcopy=False)

    def add(self, space: Space, values: Mapping[str, Any], reason: str = "") -> None:
        """Add the next trial, as running, in one line: a kill leaves it there as a whole or not at all.

        With a `reason` it has failed already.
        """
        library = optuna()
        kinds = distributions(space)
        state = library.trial.TrialState.FAIL if reason else library.trial.TrialState.RUNNING
        trial = library.trial.create_trial(
            state=state,
            params=dict(values),
            distributions={key: kinds[key] for key in values},
            user_attrs={"reason": reason} if reason else {},
        )
        self.storage.create_new_trial(self._study, template_trial=trial)

    def tell(
        self,
        number: int,
        state: str,
        value: float | None,
        *,
        course: Mapping[int, float],
        marks: Mapping[str, float],
        facts: Mapping[str, Any],
    ) -> None:
        """Note how a trial ended: complete, pruned or failed. The last line alone says so."""
        library = optuna()
        states = library.trial.TrialState
        ends = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}
        trial = self.trials()[number]
        identity = self.storage.get_trial_id_from_study_id_trial_number(self._study, number)
        for step, reported in course.items():
            if trial.intermediate_values.get(step) != reported:
                self.storage.set_trial_intermediate_value(identity, step, reported)
        for key, mark in marks.items():
            self.storage.set_trial_system_attr(identity, key, mark)
        for key, fact in facts.items():
            self.storage.set_trial_user_attr(identity, key, fact)
        self.storage.set_trial_state_values(identity, ends[state], None if value is None else [value])


def settled_plan(path: Path, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Write what is planned at the first start; later return what was. Raises UsageError where that is another study.

    `threads`, which decide bits, stay as they were at the first start.
    """
    if not os.path.lexists(path):
        write_file(path, json.dumps(plan, indent=2, ensure_ascii=False) + "\n")
        return dict(plan)
    before = read_plan(path)
    differs = [key for key in plan if key != "threads" and plan[key] != before.get(key)]
    if differs:
        shown = ", ".join(f"{key} was {_shown(before.get(key))}, now {_shown(plan[key])}" for key in differs[:3])
        raise UsageError(str(path.parent), f"holds another study ({shown}); choose another --out")
    return before


def read_plan(path: Path) -> dict[str, Any]:
    """Return what was planned. Raises CheckpointError for a damaged file."""
    try:
        plan = read_json(path, "summary")
    except CheckpointError as error:
        raise CheckpointError(error.place, f"{error.message}; choose another --out") from error
    kinds = {"recipe": str, "name": str, "space": dict, "seeds": list, "in_flight": int, "pruner": str}
    if (
        not isinstance(plan, dict)
        or any(type(plan.get(key)) is not kind for key, kind in kinds.items())
        or type(plan.get("threads", "")) not in (int, NoneType)
    ):
        raise CheckpointError(str(path), "damaged (it holds no plan of a study); choose another --out")
    return plan


def _shown(value: Any) -> str:
    return safe(json.dumps(value, ensure_ascii=False), 60)
