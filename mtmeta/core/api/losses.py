"""Losses that a task with classes may be trained by, in place of plain cross entropy.

Shapes: `B` batch, `C` classes. With w_c the weight of class c, t [B, C] the targets and p [B, C] the probabilities,

    cross entropy   1/B sum_b sum_c w_c t_bc (-log p_bc)        t: labels, smoothed or mixed with a teacher's
    focal           1/B sum_b w_y (1 - p_by)^gamma (-log p_by)  y: the label of example b (Lin et al. 2017)

The mean is over examples, not over weights as in torch.nn.CrossEntropyLoss: then the loss of a batch is the mean of
those of its parts, however it is split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from mtmeta.core.api.option_types import NonNegativeFloat, PositiveFloat
from mtmeta.core.wording import did_you_mean, quote

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ClassLoss:
    """What training descends in a task with classes; tables show plain cross entropy whatever it is."""

    weights: Literal["balanced", "effective"] | dict[str, PositiveFloat] | None = None
    """Weights of classes: by label, {joy: 2, anger: 0.5}, 1 for others; `balanced`: N / (C n_c) of the training set;
    `effective`: (1 - beta) / (1 - beta^n_c), of mean 1 (Cui et al. 2019)."""
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """Beta of `effective` weights: 0.9 is near none, 0.9999 near 1 / n_c."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of every target that all classes have equally (Szegedy et al. 2016)."""
    focal: NonNegativeFloat = 0.0
    """Gamma of focal loss, (1 - p)^gamma times the loss of an example (Lin et al. 2017); 0 is cross entropy."""

    def named(self, names: Mapping[str, str]) -> ClassLoss:
        """Return the same loss with weights by the names of labels, where they stand under the labels themselves."""
        if not isinstance(self.weights, dict):
            return self
        return replace(self, weights={names.get(label, label): weight for label, weight in self.weights.items()})

    def faults(self, classes: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yield (option, what is wrong) where the options do not fit together, or not these classes."""
        if self.focal and self.smoothing:
            yield "loss.smoothing", "does not go with focal loss; leave one of them out"
        for label in self.weights if isinstance(self.weights, dict) else ():
            if label not in classes:
                yield "loss.weights", f"names no label of the task: {quote(label)}{did_you_mean(label, classes)}"

    def fitted(self, classes: Sequence[str], counts: Sequence[int]) -> ClassLoss:
        """Return the same loss with weights in numbers, for a training set with so many examples of each class.

        A class without examples has the weight 1, and no part in the others.
        """
        if not isinstance(self.weights, str):
            return self
        present = {name: count for name, count in zip(classes, counts, strict=True) if count}
        if self.weights == "balanced":
            weights = {name: sum(present.values()) / (len(present) * count) for name, count in present.items()}
        else:
            inverse = {name: (1 - self.beta) / (1 - self.beta**count) for name, count in present.items()}
            weights = {name: len(present) * one / sum(inverse.values()) for name, one in inverse.items()}
        return replace(self, weights=weights)

    def of_labels(self, logits: Tensor, labels: Tensor, classes: Sequence[str]) -> Tensor:
        """Return the mean loss, a scalar, of logits [B, C] and class indices [B]."""
        from torch.nn import functional

        weights = self._weights(logits, classes)
        if self.focal:
            return self._focal(logits, labels, weights)
        options = {"weight": weights, "label_smoothing": self.smoothing, "reduction": "sum"}
        return functional.cross_entropy(logits, labels, **options) / len(labels)  # type: ignore[arg-type]

    def smoothed(self, targets: Tensor) -> Tensor:
        """Return targets [B, C] of which all classes have their share."""
        return (1 - self.smoothing) * targets + self.smoothing / targets.shape[1] if self.smoothing else targets

    def of_targets(self, logits: Tensor, targets: Tensor, classes: Sequence[str]) -> Tensor:
        """Return the mean loss, a scalar, of logits [B, C] and targets [B, C], which are smoothed before."""
        from torch.nn import functional

        weights = self._weights(logits, classes)
        return functional.cross_entropy(logits, targets, weight=weights, reduction="sum") / len(targets)

    def _focal(self, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        rows = labels[:, None]  # [B, 1]
        log_all = logits.logsumexp(dim=1)
        # log(1 - p) of the other classes' logits: 1 - p itself would be 0 for a sure answer, and its power no gradient
        log_rest = logits.scatter(1, rows, float("-inf")).logsumexp(dim=1) - log_all
        losses = (self.focal * log_rest).exp() * (log_all - logits.gather(1, rows)[:, 0])  # [B]
        return (losses if weights is None else losses * weights[labels]).sum() / len(labels)

    def _weights(self, logits: Tensor, classes: Sequence[str]) -> Tensor | None:
        """Return the weight of each class [C]. Raises ValueError for weights that are not `fitted` yet."""
        if isinstance(self.weights, str):
            raise ValueError(f"{self.weights} weights await a training set; call `for_training` of the task")
        if self.weights is None:
            return None
        given: Mapping[str, float] = self.weights
        return logits.new_tensor([given.get(name, 1.0) for name in classes])
