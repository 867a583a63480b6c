"""What to try next, and what to give up: Optuna's samplers and pruners, asked anew for every trial.

A study on disk is what its processes have got to. What decides on trial n must not depend on that, nor on a random
generator that a killed process took with it. So Optuna is asked in a study of its own in memory, which holds the trials
before n as any process would see them: those up to n - `in_flight` with their outcomes, those after as running. It is a
function of the seed, n and the outcomes alone; any number of processes, killed at any time, tries the same.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from mtmeta.core.errors import MachineError
from mtmeta.core.rng import derive
from mtmeta.core.studies.tuning.space import Dimension, Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.study import Study
    from optuna.trial import FrozenTrial

Pruner = Literal["median", "hyperband", "wilcoxon", "none"]
PRUNERS: tuple[Pruner, ...] = ("median", "hyperband", "wilcoxon", "none")
SHARES = 100
"""Steps of a run in a trial's course: an evaluation stands at its share of the training, in percent."""
RUNGS = "completed_rung_"
"""What Hyperband leaves with a trial for those after it."""
NAME = "mtmeta"


def optuna() -> ModuleType:
    """Return Optuna, silent but for errors. Raises MachineError without it."""
    try:
        import optuna
    except ImportError as error:
        raise MachineError("mtmeta tune", "needs Optuna, which is not installed; pip install 'mtmeta[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Leave out Optuna's warnings that a part of it is new."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="optuna")
        warnings.simplefilter("ignore", optuna().exceptions.ExperimentalWarning)
        yield


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return Optuna's distribution of every dimension; choices are their texts."""
    kinds = optuna().distributions

    def of(one: Dimension) -> BaseDistribution:
        found: BaseDistribution
        if one.choices:
            found = kinds.CategoricalDistribution(one.texts)
        elif one.whole:
            found = kinds.IntDistribution(one.low, one.high, log=one.log, step=one.step or 1)
        else:
            found = kinds.FloatDistribution(one.low, one.high, log=one.log, step=one.step)
        return found

    return {one.key: of(one) for one in space.dimensions}


def as_seen(trials: Sequence[FrozenTrial], number: int, in_flight: int) -> list[FrozenTrial]:
    """Return the trials before this number as all that decides on it sees them: of the last ones, no outcome."""
    create = optuna().trial.create_trial
    running = optuna().trial.TrialState.RUNNING
    return [
        trial
        if trial.number <= number - in_flight
        else create(state=running, params=trial.params, distributions=trial.distributions)
        for trial in trials[:number]
    ]


def _replay(seen: Sequence[FrozenTrial], **options: Any) -> Study:
    """Return a study in memory that holds these trials."""
    study: Study = optuna().create_study(direction="maximize", study_name=NAME, **options)
    study.add_trials(seen)
    return study


def suggest(space: Space, seed: int, seen: Sequence[FrozenTrial]) -> dict[str, Any]:
    """Return Optuna's values of the dimensions in play, by TPE (Bergstra et al. 2011; Watanabe 2023), after these."""
    with without_warnings():
        sampler = optuna().samplers.TPESampler(
            seed=derive(seed, "tune", len(seen)) % 2**32, multivariate=True, group=bool(space.switches)
        )
        trial = _replay(seen, sampler=sampler).ask()
        found = distributions(space)
        values: dict[str, Any] = {}
        for one in space.dimensions:
            if not one.holds({key: value for key, value in values.items() if isinstance(value, str)}):
                continue
            if one.choices:
                values[one.key] = trial.suggest_categorical(one.key, one.texts)
            elif one.whole:
                values[one.key] = trial.suggest_int(
                    one.key, int(one.low), int(one.high), step=int(one.step or 1), log=one.log
                )
            else:
                values[one.key] = trial.suggest_float(one.key, one.low, one.high, step=one.step, log=one.log)
        assert values.keys() <= found.keys()
        return values


def settings_of(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return Optuna's values as those of the recipe: choices themselves in place of their texts."""
    found = {}
    for one in space.dimensions:
        if one.key in values:
            value = values[one.key]
            found[one.key] = one.choices[one.texts.index(value)] if one.choices else value
    return found


class Judge:
    """Whether a trial is to be given up, after each value that it comes to."""

    def __init__(self, kind: Pruner, seen: Sequence[FrozenTrial], seeds: int) -> None:
        self.kind = kind
        self.values: dict[int, float] = {}
        """What was reported, by step."""
        with without_warnings():
            self._study = _replay(seen, pruner=_pruner(kind, seen, seeds))
            self._trial = self._study.ask()

    def gives_up(self, step: int, value: float) -> bool:
        """Report a value at a step; return whether the trial is worse than it may be there."""
        if step in self.values:
            return False  # of evaluations within one percent the first counts, as for Optuna
        self.values[step] = value
        if self.kind == "none":
            return False
        with without_warnings():
            self._trial.report(value, step)
            return bool(self._trial.should_prune())

    @property
    def marks(self) -> dict[str, float]:
        """Return what later trials have to know of how far this one came, for Hyperband."""
        attributes = self._study.get_trials(deepcopy=False)[-1].system_attrs
        return {key: value for key, value in attributes.items() if key.startswith(RUNGS)}


def _pruner(kind: Pruner, seen: Sequence[FrozenTrial], seeds: int) -> BasePruner:
    pruners = optuna().pruners
    complete = optuna().trial.TrialState.COMPLETE
    found: BasePruner
    if kind == "median":
        found = pruners.MedianPruner()
    elif kind == "wilcoxon":
        found = pruners.WilcoxonPruner()
    elif kind == "hyperband":
        first = next((trial for trial in seen if trial.state == complete and trial.intermediate_values), None)
        # the first rung is the first evaluation; before one trial is complete nobody knows where that is
        least = min(first.intermediate_values) if first is not None else 0
        found = pruners.HyperbandPruner(least, seeds * SHARES) if least else pruners.NopPruner()
    else:
        found = pruners.NopPruner()
    return found
