"""Which weights are the best: the split that selects is scored now and then, and what has risen is saved."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from mtmeta.core.api.contracts import Metric, scored_tasks
from mtmeta.core.api.events import Evaluated
from mtmeta.core.data.dataset import Dataset
from mtmeta.core.distributed.group import Group
from mtmeta.core.machine import memory_errors
from mtmeta.core.recipe.sections import EvaluationOptions
from mtmeta.core.training import evaluation
from mtmeta.core.training.checkpoint import Checkpoints
from mtmeta.core.training.model import MultiTaskModel, tuned_weights


@dataclass
class Selection:
    """The best weights so far of one learner, by each value that selects."""

    options: EvaluationOptions
    group: str
    datasets: Mapping[str, Dataset]
    """The split that selects, by task."""
    metrics: Mapping[str, Metric]
    checkpoints: Checkpoints
    seed: int
    precision: Literal["fp32", "bf16"] = "fp32"
    ranks: Group = field(default_factory=Group)
    """Those that score together."""
    bests: dict[str, float] = field(default_factory=dict)
    """Best value so far of `best` and of each `best-TASK`, higher is better."""
    links: dict[str, str] = field(default_factory=dict)
    """Which directory of best weights each of them is."""
    warned: list[str] = field(default_factory=list)
    """Warnings of metrics so far, each of which is told once."""

    def evaluate(
        self, model: MultiTaskModel, step: int, weights: Mapping[str, Tensor], warn: Callable[[str], None]
    ) -> Evaluated:
        """Score the model after `step` steps; save its weights where a value has risen. `warn` hears new warnings."""
        scores, tuned = self._score(model, warn)
        selected = evaluation.aggregate(scores, self.metrics, self.options.select)
        values = {"best": selected}
        if len(scores) > 1:
            values |= {f"best-{n}": evaluation.aggregate({n: s}, self.metrics, n) for n, s in scores.items()}
        risen = [link for link, value in values.items() if value > self.bests.get(link, -math.inf)]
        if risen:
            kept = {**weights, **tuned}
            name = self.ranks.together(lambda: self.checkpoints.save_best(step, kept, risen))
            self.bests |= {link: values[link] for link in risen}
            self.links |= dict.fromkeys(risen, name)
        return Evaluated(
            group=self.group,
            step=step,
            split=self.options.select_on,
            tasks={name: score.json() for name, score in scores.items()},
            selected=selected,
            best="best" in risen,
        )

    def restore(self, bests: Mapping[str, float], links: Mapping[str, str], warned: Sequence[str]) -> None:
        """Go on from what a checkpoint holds."""
        self.bests, self.links, self.warned = dict(bests), dict(links), list(warned)

    def _score(
        self, model: MultiTaskModel, warn: Callable[[str], None]
    ) -> tuple[dict[str, evaluation.Score], dict[str, Tensor]]:
        """Score each task without intervals; a warning that came before is not told again.

        Returns the numbers too that were tuned, as they are kept with the weights.
        """
        scores: dict[str, evaluation.Score] = {}
        tuned: dict[str, Tensor] = {}
        tokens = self.options.batch_tokens
        for name, dataset in self.datasets.items():
            with memory_errors(f"evaluating task '{name}' (batch_tokens {tokens})", "lower evaluation.batch_tokens"):
                task = model.tasks[name]
                scored = scored_tasks({name: task})
                metrics = {of: [self.metrics[metric] for metric in each.metrics] for of, each in scored.items()}
                predictions = evaluation.predict(
                    model,
                    dataset,
                    batch_tokens=tokens,
                    precision=self.precision,
                    ranks=self.ranks,
                    scores=evaluation.wants_scores(itertools.chain.from_iterable(metrics.values())),
                    tune=True,
                )
            tuned |= tuned_weights(name, predictions.tuned)
            for of, (_, own) in evaluation.of_parts(task, predictions).items():
                scores[of], warnings = evaluation.score(own, metrics[of], seed=self.seed, intervals=False)
                for text in warnings:
                    if text not in self.warned:
                        self.warned.append(text)
                        warn(text)
        return scores, tuned
