"""Objectives of heads: what a label is, the number of outputs, the loss, and the way from outputs to predictions.

Shapes: `B` batch, `C` classes, `L` numbers in a label that is a row, `N` examples of a split. Losses are means over the
examples in the batch and refuse tensors of other shapes, because [B] against [B, 1] would broadcast to [B, B] in
silence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

from mtmeta.core.api.losses import ClassLoss
from mtmeta.core.tables.bad_rows import BadRowError, BadRowKind
from mtmeta.core.wording import did_you_mean, quote

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Labelled = Literal["one", "row", "words", "texts"]
"""A label is one number, a class's index or a value; or a row of `Objective.width` numbers; or one number a word; or
data have none, for what is right is which texts stand together."""


@dataclass(frozen=True)
class Confusion:
    """A table under `mtmeta eval --verbose` and in the HTML report: how predictions and labels go together."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float, ...]], ...]
    """The name of each row, and a number for each column: counts as whole numbers, all else as floats."""


@dataclass(frozen=True)
class Objective:
    """Base of the objectives; a task may bring its own.

    Where labels are rows (`labelled`), a label [B], a prediction [B] and what `parse` gives and `show` takes are rows:
    [B, L] and [L]. Where each word has a label, the words of the batch stand in the place of its examples, W for B, and
    what `parse` gives and `show` takes is a tuple of numbers, one for each word of a text, which whitespace parts.

    Where data have no labels (`texts`), the T texts of an example belong together and are told from those of the others
    in its batch, which is never cut. `labels` are then which text each is, int64 [B, T], equal for texts of the same
    words, and outputs are [B, T, C]. `decode` gives a number [B] of each example by itself; metrics see `ranks`, beside
    labels that are all 1, as `parse` makes them of none.
    """

    @property
    def labelled(self) -> Labelled:
        """What a label is: `one` number, a `row` of `width` numbers, one number for each of the `words`, or none but
        which `texts` stand together."""
        return "one"

    @property
    def width(self) -> int:
        """Numbers in a label that is a row, L."""
        return 1

    @property
    def outputs(self) -> int:
        """Width of the head's last layer; 0 where it has none, for pooled vectors are compared as they are."""
        raise NotImplementedError(f"{type(self).__name__} has no `outputs`")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in index order; empty for regression."""
        return ()

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the numbers of a row, in their order; empty where a label is no row, or of classes."""
        return tuple(map(str, range(self.width))) if self.labelled == "row" and not self.classes else ()

    @property
    def partial(self) -> bool:
        """Whether numbers of a row may be missing, which `parse` gives as nan; `loss` and metrics go without them."""
        return False

    def parse(self, label: object) -> Any:
        """Return the label as a number, or as a row. Raises ValueError with the reason, quoting the user's token."""
        raise NotImplementedError(f"{type(self).__name__} has no `parse`")

    def show(self, prediction: Any) -> str:
        """Return a prediction as the data files write labels."""
        return self.classes[int(prediction)] if self.classes else f"{prediction:.6g}"

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss over the batch, a scalar, of raw outputs [B, C] or [B] and float32 labels [B]."""
        raise NotImplementedError(f"{type(self).__name__} has no `loss`")

    @property
    def trains_otherwise(self) -> bool:
        """Whether training descends another loss than `loss`, which evaluation shows."""
        return False

    def training_loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the loss that training descends, of the same shapes as `loss`, which it is by default."""
        return self.loss(outputs, labels)

    def within(self, labels: Tensor) -> Objective | None:
        """Return the same objective whose losses of the parts of a batch with these labels [B] add up to that of the
        batch. None, as here: the loss of a part counts by its share of the labels, for it is a mean over these."""
        return None

    @property
    def teacher_obstacle(self) -> str:
        """Why these options keep it from learning what a teacher says; empty where nothing does."""
        return ""

    def soft_loss(self, outputs: Tensor, labels: Tensor, teacher: Tensor, trust: float) -> Tensor:
        """Return the mean loss to labels mixed with what a teacher said, a scalar (Hinton et al. 2015, at T = 1).

        `teacher` holds class probabilities [B, C], or values [B] where there are no classes; the target is
        (1 - trust) label + trust teacher, so that a `trust` of 0 is `training_loss`, bit for bit.
        """
        raise ValueError(f"{type(self).__name__} has no soft_loss, so it cannot be distilled")

    def decode(self, outputs: Tensor) -> Tensor:
        """Return predictions [B], class indices or values, from raw outputs."""
        raise NotImplementedError(f"{type(self).__name__} has no `decode`")

    def probabilities(self, outputs: Tensor) -> Tensor | None:
        """Return probabilities of the classes [B, C] from raw outputs; None where there are no classes."""
        return None

    @property
    def outside(self) -> int | None:
        """The index of the class that means none of the others, if there is one; metrics see it as -1."""
        return None

    @property
    def takes_temperature(self) -> bool:
        """Whether `probabilities(outputs / T)` are those at a temperature T: outputs are logits, [B, 1] of the second
        of two classes or [B, C]."""
        return False

    # ------------------------------------------------------------------------------ what an objective need not have

    def ranks(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return what metrics see in the place of predictions where labels are `texts`: ranks [N], 1 for the best.

        `outputs` [N, T, C] and `labels` [N, T] are those of all examples of a split.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `ranks`")

    @property
    def tunes(self) -> bool:
        """Whether `decode` goes by numbers that are tuned on the split that selects, such as thresholds."""
        return False

    def tune(self, outputs: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """Return the numbers that `decode` goes by, by name: float32, of any shape, a function of a whole split.

        `outputs` and `labels` are those of all its examples, N in the place of B, on the CPU. They are kept with the
        weights that were scored, and count wherever these do: in `eval`, `predict` and exports.
        """
        return {}

    def tuned(self, numbers: Mapping[str, Tensor]) -> Objective:
        """Return the same objective whose `decode` goes by these numbers, of `tune`."""
        return self

    def confusion(self, labels: Any, predictions: Any) -> Confusion | None:
        """Return a table of all labels and predictions, arrays as metrics get them; None for the usual one.

        That is the confusion matrix of classes, or how far numbers are off.
        """
        return None

    def spans(self, prediction: Any) -> tuple[tuple[str, int, int], ...] | None:
        """Return the pieces of a text that a prediction for its words marks: name, first word, and the word after it.

        They are what `mtmeta predict` shows beside the words; None where words are not marked in pieces.
        """
        return None

    def export(self) -> Mapping[str, Any] | None:
        """Return how `decode` and `probabilities` are done, as JSON that goes into an export; None: it has none.

        Its key `objective` names a rule that the code beside an export knows, with what that rule needs:
        `classification` and `binary` (`labels`), `ordinal` (`labels`, from the lowest), `regression` (`low`, `high`),
        `targets` (`labels`, and lists of `low` and `high`), `multi_label` (`labels`, `thresholds`: the logit that each
        label's has to be above), `cosine` (nothing; outputs are two vectors of length 1). An export whose rule gives
        other answers is refused.
        """
        return None


def has_temperature(objective: Objective) -> bool:
    """Return whether a temperature can be fitted to the probabilities of an objective, of one class an example."""
    return objective.takes_temperature and objective.labelled == "one" and bool(objective.classes)


def has_soft_loss(kind: type[Objective]) -> bool:
    """Return whether a class has a soft loss that goes with its loss: one that is not older than it."""
    for one in kind.__mro__:
        if "soft_loss" in vars(one):
            return one is not Objective
        if "loss" in vars(one) or "training_loss" in vars(one):
            return False
    return False


@dataclass(frozen=True)
class _OfClasses(Objective):
    """One of several classes."""

    @property
    def takes_temperature(self) -> bool:
        return True

    @property
    def tokens(self) -> tuple[str, ...]:
        """The classes as data files write them, in index order; by default their names."""
        return self.classes

    @cached_property
    def _indices(self) -> dict[str, int]:
        """The index of each class by its name and by its token, the first where two have one name."""
        numbered = range(len(self.classes))
        names = dict(zip(reversed(self.classes), reversed(numbered), strict=True))
        return names | dict(zip(reversed(self.tokens), reversed(numbered), strict=True))

    def parse(self, label: object) -> int:
        """Return the index of a class; a whole number may be written as a float, as in public paraphrase files."""
        token, indices = str(label).strip(), self._indices
        if (index := indices.get(token)) is not None:
            return index
        number = _number(token)
        if number.is_integer() and (index := indices.get(str(int(number)))) is not None:
            return index
        if token == "":
            raise BadRowError("label is empty", "label is empty")
        classes = self.tokens
        shown = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
        reason = f"label {quote(label)} is not one of {shown}"
        if label is None:
            raise BadRowError("label is empty", reason)
        # a wrong number is no slip of the pen: that '-1' looks like '1' would only mislead
        raise BadRowError(
            "unknown label", reason, partial(did_you_mean, token, classes) if math.isnan(number) else None
        )


@dataclass(frozen=True)
class Classification(_OfClasses):
    """One of C classes: outputs [B, C], cross entropy.

    `labels` is a count (labels 0..C-1), the class names, or the name of each label that data files have.
    """

    labels: int | tuple[str, ...] | Mapping[str, str]
    trained_by: ClassLoss | None = field(default=None, repr=False)
    """What training descends in place of cross entropy."""
    out_of_scope: str | None = field(default=None, repr=False)
    """The class that means none of the others."""

    @property
    def outside(self) -> int | None:
        return None if self.out_of_scope is None else self.parse(self.out_of_scope)

    @property
    def outputs(self) -> int:
        return self.labels if isinstance(self.labels, int) else len(self.labels)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        if isinstance(self.labels, int):
            return tuple(str(i) for i in range(self.labels))
        return tuple(self.labels.values()) if isinstance(self.labels, Mapping) else self.labels

    @property
    def tokens(self) -> tuple[str, ...]:
        return tuple(self.labels) if isinstance(self.labels, Mapping) else self.classes

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        from torch.nn import functional

        _require(outputs, labels, self.outputs)
        return functional.cross_entropy(_wide(outputs), labels.long())

    @property
    def trains_otherwise(self) -> bool:
        return self.trained_by is not None

    def training_loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if self.trained_by is None:
            return self.loss(outputs, labels)
        _require(outputs, labels, self.outputs)
        return self.trained_by.of_labels(_wide(outputs), labels.long(), self.classes)

    @property
    def teacher_obstacle(self) -> str:
        return "focal loss is not defined for soft targets" if self.trained_by and self.trained_by.focal else ""

    def soft_loss(self, outputs: Tensor, labels: Tensor, teacher: Tensor, trust: float) -> Tensor:
        from torch.nn import functional

        if self.teacher_obstacle:
            raise ValueError(self.teacher_obstacle)
        if not trust:
            return self.training_loss(outputs, labels)
        _require(outputs, labels, self.outputs)
        _require_teacher(teacher, labels, self.outputs)
        logits = _wide(outputs)
        right = functional.one_hot(labels.long(), self.outputs)
        if self.trained_by is None:
            return functional.cross_entropy(logits, _mixed(right, teacher, trust, logits.dtype))
        smooth = self.trained_by.smoothed(right.to(logits.dtype))
        return self.trained_by.of_targets(logits, _mixed(smooth, teacher, trust, logits.dtype), self.classes)

    def decode(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(dim=-1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        return outputs.float().softmax(dim=-1)


@dataclass(frozen=True)
class Binary(_OfClasses):
    """Yes or no: outputs [B, 1], binary cross entropy with logits. `labels` names no and yes, in this order."""

    labels: tuple[str, str] = ("0", "1")

    @property
    def outputs(self) -> int:
        return 1

    @property
    def classes(self) -> tuple[str, ...]:
        return self.labels

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        from torch.nn import functional

        _require(outputs, labels, 1)
        logits = _wide(outputs)[:, 0]
        return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))

    def soft_loss(self, outputs: Tensor, labels: Tensor, teacher: Tensor, trust: float) -> Tensor:
        if not trust:
            return self.loss(outputs, labels)
        _require_teacher(teacher, labels, 2)
        return self.loss(outputs, _mixed(labels, teacher[:, 1], trust, _wide(outputs).dtype))

    def decode(self, outputs: Tensor) -> Tensor:
        return (outputs[:, 0] > 0).long()

    def probabilities(self, outputs: Tensor) -> Tensor:
        from torch import stack

        logits = outputs[:, 0].float()
        return stack([(-logits).sigmoid(), logits.sigmoid()], dim=1)  # 1 - p would lose the digits of a small one


@dataclass(frozen=True)
class Regression(Objective):
    """A number in [low, high]: outputs [B], mean squared error; predictions are clamped to the range."""

    low: float = 0.0
    high: float = 1.0

    @property
    def outputs(self) -> int:
        return 1

    def parse(self, label: object) -> float:
        value = _number(label)
        if not math.isfinite(value):
            kind: BadRowKind = "label is empty" if label in ("", None) else "label is not a number"
            raise BadRowError(kind, f"label {quote(label)} is not a finite number")
        if not self.low <= value <= self.high:
            reason = f"label {quote(label)} is outside {self.low:g} to {self.high:g}"
            raise BadRowError("label out of range", reason)
        return value

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        from torch.nn import functional

        _require(outputs, labels)
        values = _wide(outputs)
        return functional.mse_loss(values, labels.to(values.dtype))

    def soft_loss(self, outputs: Tensor, labels: Tensor, teacher: Tensor, trust: float) -> Tensor:
        if not trust:
            return self.loss(outputs, labels)
        _require_teacher(teacher, labels)
        return self.loss(outputs, _mixed(labels, teacher, trust, _wide(outputs).dtype))

    def decode(self, outputs: Tensor) -> Tensor:
        return outputs.float().clamp(self.low, self.high)


def _number(label: object) -> float:
    """Return the label as a number, nan where it is none; float() alone would take '1_0' for 10."""
    text = str(label)
    try:
        return math.nan if "_" in text else float(text)
    except ValueError:
        return math.nan


def _wide(outputs: Tensor) -> Tensor:
    """Return the outputs in fp32 at least: 16-bit numbers would lose digits in a loss, float64 keeps its own."""
    return outputs.float() if outputs.dtype.itemsize < 8 else outputs


def _require(outputs: Tensor, labels: Tensor, *width: int) -> None:
    """Raise ValueError unless outputs are [B, *width] for labels [B]."""
    if labels.ndim != 1:
        raise ValueError(f"labels have shape {list(labels.shape)}, the loss needs [B]")
    needed = [len(labels), *width]
    if list(outputs.shape) != needed:
        raise ValueError(f"outputs have shape {list(outputs.shape)}, the loss needs {needed}")


def _mixed(labels: Tensor, teacher: Tensor, trust: float, dtype: torch.dtype) -> Tensor:
    """Return the targets between labels and what a teacher said, of one shape."""
    return (1 - trust) * labels.to(dtype) + trust * teacher.to(dtype)


def _require_teacher(teacher: Tensor, labels: Tensor, *width: int) -> None:
    """Raise ValueError unless a teacher's rows are [B, *width] for labels [B]."""
    if list(teacher.shape) != [len(labels), *width]:
        raise ValueError(f"a teacher's rows have shape {list(teacher.shape)}, the loss needs {[len(labels), *width]}")
