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
    from optuna.trial import FrozenTrial

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

    `value` is the share of a key in the sum over all; `low` and `high` are the 2.5 and 97.5% points of it over
    resamples of the trials. `chance` is what a key comes to that decides nothing: the 95% point over permutations of
    its values among the trials. None with fewer than 20 complete trials.
    """
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    keys = list(dict.fromkeys(key for trial in complete for key in trial.params))
    if len(complete) < FEWEST or len(keys) < 2:
        return None
    found = _shares(complete, keys)
    random = np.random.Generator(np.random.PCG64(derive(0, "tune", "importance")))
    count = len(complete)
    picks = [random.integers(0, count, count) for _ in range(RESAMPLES)]
    draws = [_shares([complete[at] for at in pick], keys) for pick in picks]
    rows = {}
    for number, key in enumerate(keys):
        chance = [_shares(_permuted(complete, key, random), keys)[number] for _ in range(RESAMPLES // 2)]
        column = [draw[number] for draw in draws]
        rows[key] = {
            "value": found[number],
            "low": float(np.quantile(column, 0.025)),
            "high": float(np.quantile(column, 0.975)),
            "chance": float(np.quantile(chance, 0.95)),
        }
    ordered = dict(sorted(rows.items(), key=lambda item: -item[1]["value"]))
    return {"method": "PED-ANOVA", "top": TOP, "trials": len(complete), "resamples": RESAMPLES, "keys": ordered}


def _shares(trials: Sequence[FrozenTrial], keys: Sequence[str]) -> list[float]:
    """Return the importance of each key among these trials, as its share in the sum."""
    library = optuna()
    with without_warnings():
        study = library.create_study(direction="maximize", study_name=NAME)
        study.add_trials(trials)
        evaluator = library.importance.PedAnovaImportanceEvaluator(target_quantile=TOP)
        found = evaluator.evaluate(study)
    values = [max(0.0, float(found.get(key, 0.0))) for key in keys]
    total = sum(values)
    return [value / total for value in values] if total else [1 / len(keys)] * len(keys)


def _permuted(trials: Sequence[FrozenTrial], key: str, random: np.random.Generator) -> list[FrozenTrial]:
    """Return the trials with the values of a key exchanged among those that have it."""
    create = optuna().trial.create_trial
    having = [trial for trial in trials if key in trial.params]
    values = iter([having[i].params[key] for i in random.permutation(len(having))])
    return [
        create(
            value=trial.value,
            params=trial.params | ({key: next(values)} if key in trial.params else {}),
            distributions=trial.distributions,
        )
        for trial in trials
    ]


def read_study(folder: str | Path) -> dict[str, Any]:
    """Return the figures of the search in a folder. Raises UsageError where there is none."""
    if not is_study(Path(folder)):
        raise UsageError(str(folder), "is no study of mtmeta tune; give the folder of one")
    return figures(Path(folder))
