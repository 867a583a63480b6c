"""One of several classes that have an order, by CORAL (Cao, Mirjalili and Raschka 2020, arXiv 1901.07884).

Of K classes the head answers K - 1 questions, "is it above class k?". All answers come from one number g of the text,
by a bias b_k for each question, so that no text has them in another order than any other has:

    P(y > k) = sigmoid(g + b_k)        loss = -1/B sum_b sum_k log P of the right answer

At the minimum of the loss the biases fall with k (the paper's theorem 1). Shapes: `B` batch, `K` classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import mtmeta
from mtmeta import sample
from mtmeta.plugins.tasks.generic import Classes, LabelColumn, Names, check_classes

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Ordinal(mtmeta.Objective):
    """One of K classes in order: outputs [B, K - 1], one for each class but the last, that of being above it.

    `labels` is as in `mtmeta.Classification`, from the lowest class to the highest.
    """

    labels: int | tuple[str, ...] | Mapping[str, str]

    @cached_property
    def _one(self) -> mtmeta.Classification:
        """The same classes without an order."""
        return mtmeta.Classification(self.labels)

    @property
    def outputs(self) -> int:
        return len(self.classes) - 1

    @property
    def classes(self) -> tuple[str, ...]:
        return self._one.classes

    def parse(self, label: object) -> int:
        """Return the index of a class."""
        return self._one.parse(label)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        import torch

        if labels.ndim != 1:
            raise ValueError(f"labels have shape {list(labels.shape)}, the loss needs [B]")
        above = labels[:, None] > torch.arange(self.outputs, device=labels.device)  # [B, K - 1]
        return self._of_answers(outputs, above)

    def soft_loss(self, outputs: Tensor, labels: Tensor, teacher: Tensor, trust: float) -> Tensor:
        """Return the loss to answers mixed with those that a teacher's probabilities of classes [B, K] come to."""
        import torch

        if not trust:
            return self.loss(outputs, labels)
        if list(teacher.shape) != [len(labels), len(self.classes)]:
            needed = [len(labels), len(self.classes)]
            raise ValueError(f"a teacher's rows have shape {list(teacher.shape)}, the loss needs {needed}")
        above = labels[:, None] > torch.arange(self.outputs, device=labels.device)
        said = teacher.flip(1).cumsum(1).flip(1)[:, 1:]  # P(y > k)
        return self._of_answers(outputs, (1 - trust) * above + trust * said.clamp(0, 1))

    def _of_answers(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """Return the mean over the batch of the sum over the questions, for answers [B, K - 1] from 0 to 1."""
        from torch.nn import functional

        if list(outputs.shape) != list(answers.shape):
            raise ValueError(f"outputs have shape {list(outputs.shape)}, the loss needs {list(answers.shape)}")
        logits = outputs.float() if outputs.dtype.itemsize < 8 else outputs
        total = functional.binary_cross_entropy_with_logits(logits, answers.to(logits.dtype), reduction="sum")
        return total / len(answers)

    def decode(self, outputs: Tensor) -> Tensor:
        """Return how many of the K - 1 answers are yes [B], that is, have a probability above .5."""
        return (outputs > 0).sum(dim=-1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return P(y > k - 1) - P(y > k) of each class [B, K].

        Biases that training left out of order make some of these negative: they count as 0, and the others are divided
        by their sum. `decode` goes by the answers all the same.
        """
        import torch

        logits = outputs.float()
        upper, lower = logits[:, :-1], logits[:, 1:]
        # s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)), which keeps the digits of small probabilities
        between = upper.sigmoid() * (-lower).sigmoid() * -torch.expm1((lower - upper).clamp(max=0))
        chances = torch.cat([(-logits[:, :1]).sigmoid(), between, logits[:, -1:].sigmoid()], dim=1)
        return chances / chances.sum(dim=1, keepdim=True)

    def export(self) -> Mapping[str, Any]:
        return {"objective": "ordinal", "labels": list(self.classes)}


@dataclass(frozen=True, kw_only=True)
class OrdinalTask(LabelColumn, mtmeta.Task):
    """One text to one of several classes that have an order, by CORAL (Cao et al. 2020)."""

    name = "ordinal"

    labels: Classes
    """Class names from the lowest to the highest; or their number for labels 0, 1, ...; or the names of labels, {1:
    poor, 2: fair, 3: good}, or a file of them, from data_root, as `classification` has it."""
    text: str = "sentence"
    """Column of the text."""
    label: str = "label"
    """Column of the label."""
    metrics: Names = ("quadratic_kappa", "mae", "accuracy")
    """Metrics; the first selects."""

    @property
    def objective(self) -> Ordinal:
        if isinstance(self.labels, str):
            raise ValueError(f"labels in {mtmeta.quote(self.labels)} are read with the recipe")
        return Ordinal(self.labels)

    def check(self) -> Iterator[tuple[str, str]]:
        yield from check_classes(self.labels)
        if self.head == "hf":
            message = "cannot be hf, whose outputs have weights of their own, where CORAL has one for all; leave it out"
            yield "head", message

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.text,)

    def build_head(self, hidden_size: int) -> nn.Module:
        return mtmeta.CoralHead(hidden_size, outputs=self.objective.outputs)

    def read(self, file: mtmeta.DataFile) -> Iterable[mtmeta.Example]:
        for row in file.rows(self.text, self.label):
            yield mtmeta.Example(row[self.text], label=row[self.label], id=row.id, line=row.line)

    def sample(self, split: str) -> Iterable[mtmeta.Example]:
        """Yield reviews with their grades, from 0 to 4, whatever the five classes are called."""
        if len(self.objective.classes) != 5:
            raise mtmeta.DataError("sample", "its reviews have five grades; name five labels, or a file of your own")
        for row in sample.examples("sst", split):
            yield mtmeta.Example(row.text, label=self.objective.show(row.label), id=row.id)
