"""What a search came to: its trials, the best of them, what each key matters, and the recipe with the best settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtmeta.core.errors import UsageError
from mtmeta.core.rng import derive
from mtmeta.core.storage.disk import write_file
from mtmeta.core.studies.tuning.journal import PLAN, Journal, read_plan
from mtmeta.core.studies.tuning.sampling import NAME, optuna, settings_of, without_warnings
from mtmeta.core.studies.tuning.search import best_of, folder_of
from mtmeta.core.studies.tuning.settings import Recipes, best_path

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from optuna.trial import FrozenTrial

    Numbers = NDArray[np.float64]

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
FEWEST = 20
"""Complete trials from which on importance says something."""
RESAMPLES = 200
TOP = 0.25
"""Share of the trials whose settings importance explains."""


def is_study(folder: Path) -> bool:
    """Return whether a folder is that of a search."""
    return (folder / PLAN).is_file()


def figures(folder: Path) -> dict[str, Any]:
    """Return the search in a folder as plain data, as `--json` prints it. Raises MachineError without Optuna."""
    plan = read_plan(folder / PLAN)
    journal = Journal(folder)
    with journal.locked():
        journal.open()
        trials = journal.trials()
    leader = best_of(trials)
    counts = {name: sum(trial.state.name == state for trial in trials) for state, name in STATES.items()}
    return {
        "study": str(folder),
        "recipe": plan["name"],
        "split": "dev",
        "select": plan.get("select", "mean"),
        "seeds": plan["seeds"],
        "pruner": plan["pruner"],
        "in_flight": plan["in_flight"],
        "space": plan["space"],
        "counts": counts,
        "best": None if leader is None else _trial(leader),
        "best_recipe": None if leader is None else str(best_path(folder)),
        "importance": importance(trials),
        "trials": [_trial(trial) for trial in trials],
    }


def _trial(trial: FrozenTrial) -> dict[str, Any]:
    reason = trial.user_attrs.get("reason")
    return {
        "number": trial.number,
        "state": STATES.get(trial.state.name, "running"),
        "value": trial.value,
        "seeds": trial.user_attrs.get("seeds", []),
        "settings": dict(trial.params),
        "course": {str(step): value for step, value in sorted(trial.intermediate_values.items())},
        **({"reason": str(reason)} if reason else {}),
    }


def write_best(folder: Path, recipes: Recipes, journal: Journal, plan: Mapping[str, Any]) -> None:
    """Write the recipe with the best settings so far, if there are any."""
    with journal.locked():
        trials = journal.trials()
        leader = best_of(trials)
        if leader is None:
            return
        ended = sum(trial.state.is_finished() for trial in trials)
        heading = [
            f"The best of {ended} trials by mtmeta tune: {leader.value:.4f} on dev, mean of {len(plan['seeds'])} seeds "
            f"({folder_of(folder, leader.number).name}).",
            "The best of many is better on dev than it is elsewhere: compare it, with other seeds, on another split.",
        ]
        write_file(best_path(folder), recipes.best(settings_of(recipes.space, leader.params), heading))


# -------------------------------------------------------------------------------------------------- importance


def importance(trials: Sequence[FrozenTrial]) -> dict[str, Any] | None:
    """Return how much each key decides whether a trial is among the best quarter: PED-ANOVA (Watanabe et al. 2023).

    `value` is the share of a key in the sum over all keys; `low` and `high` are the 2.5 and 97.5% points of it over
    resamples of the trials. `chance` is what a key that decides nothing stays below: the 95% point of its importance
    over permutations of the trials' values, as a share in the same sum. None with fewer than 20 complete trials.
    """
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    keys = list(dict.fromkeys(key for trial in complete for key in trial.params))
    count = len(complete)
    if count < FEWEST or len(keys) < 2:
        return None
    random = np.random.Generator(np.random.PCG64(derive(0, "tune", "importance")))
    found = _importance(complete, keys)
    picks = [random.integers(0, count, count) for _ in range(RESAMPLES)]
    draws = np.array([_shares(_importance([complete[at] for at in pick], keys)) for pick in picks])
    by_chance = np.array([_importance(_permuted(complete, random), keys) for _ in range(RESAMPLES)])
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    chance = _shares(np.quantile(by_chance, 0.95, axis=0), float(found.sum()))
    columns = [column.tolist() for column in (_shares(found), low, high, chance)]
    names = ("value", "low", "high", "chance")
    rows = {key: dict(zip(names, row, strict=True)) for key, *row in zip(keys, *columns, strict=True)}
    ordered = dict(sorted(rows.items(), key=lambda item: -item[1]["value"]))
    return {"method": "PED-ANOVA", "top": TOP, "trials": count, "resamples": RESAMPLES, "keys": ordered}


def _importance(trials: Sequence[FrozenTrial], keys: Sequence[str]) -> Numbers:
    """Return the importance of each key [K] among these trials, by itself."""
    library = optuna()
    with without_warnings():
        study = library.create_study(direction="maximize", study_name=NAME)
        study.add_trials(trials)
        evaluator = library.importance.PedAnovaImportanceEvaluator(target_quantile=TOP)
        found = evaluator.evaluate(study)
    return np.array([max(0.0, float(found.get(key, 0.0))) for key in keys])


def _shares(importance: Numbers, total: float | None = None) -> Numbers:
    """Return importance as shares [K] in a sum, by default in its own; equal ones where it sums to nothing."""
    total = float(importance.sum()) if total is None else total
    return np.minimum(1.0, importance / total) if total else np.full(len(importance), 1 / len(importance))


def _permuted(trials: Sequence[FrozenTrial], random: np.random.Generator) -> list[FrozenTrial]:
    """Return the trials with their values exchanged at random, so that no key decides anything."""
    create, values = optuna().trial.create_trial, [trial.value for trial in trials]
    return [
        create(value=values[at], params=trial.params, distributions=trial.distributions)
        for at, trial in zip(random.permutation(len(trials)), trials, strict=True)
    ]


def read_study(folder: str | Path) -> dict[str, Any]:
    """Return the figures of the search in a folder. Raises UsageError where there is none."""
    if not is_study(Path(folder)):
        raise UsageError(str(folder), "is no study of mtmeta tune; give the folder of one")
    return figures(Path(folder))
