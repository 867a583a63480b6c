"""Early stopping: training ends where the metric that selects the best weights has not risen for a while.

A value counts as a rise where it is more than `min_delta` above the highest one that counted before, so that many small
rises count once they come to that together.
"""

from __future__ import annotations

from dataclasses import dataclass

from mtmeta.core.recipe.sections import StopOptions


@dataclass
class Stopping:
    """What the evaluations of one learner so far say of whether to go on; a checkpoint holds it."""

    options: StopOptions
    best: float | None = None
    """The highest value that counted as a rise."""
    waited: int = 0
    """Evaluations since then."""

    def after_evaluation(self, selected: float) -> None:
        """Take the value of one evaluation; higher is better."""
        if self.best is None or selected > self.best + self.options.min_delta:
            self.best, self.waited = selected, 0
        else:
            self.waited += 1

    @property
    def is_over(self) -> bool:
        """Whether training is to end."""
        return self.waited >= self.options.patience
