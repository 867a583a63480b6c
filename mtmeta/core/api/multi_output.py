"""Several labels of one text, each with an objective of its own, as one objective: one pass of the encoder for all.

A label is the row of all labels, a prediction the row of all predictions, and the head's outputs stand side by side, in
the order of the objectives. An example may lack labels: these are nan. Shapes: `B` batch, `L` numbers in a row, `P`
labels of a text, `n_p` examples of the batch that have the label p.

    L = sum_p lambda_p / n_p * sum of L_p over the examples that have the label p
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mtmeta.core.api.objectives import Objective
from mtmeta.core.tables.bad_rows import BadRowError, is_missing

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MultiOutput(Objective):
    """P labels of each example, by name: the sum of their losses, each the mean over the examples that have the label.

    Outputs are [B, C], those of all `objectives` side by side. None of these may be of words, or have parts itself.
    """

    objectives: Mapping[str, Objective]
    weights: Mapping[str, float] = field(default_factory=dict, repr=False)
    """lambda_p, where it is not 1."""
    counts: tuple[int, ...] = field(default=(), repr=False)
    """n_p, where losses are of a part of a batch."""

    labelled = "row"
    partial = True

    @property
    def width(self) -> int:
        return sum(each.width for each in self.objectives.values())

    @property
    def outputs(self) -> int:
        return sum(each.outputs for each in self.objectives.values())

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the numbers of a row: that of the label, and of one that is a row its own names after it."""
        found: list[str] = []
        for name, each in self.objectives.items():
            own = (each.targets or each.classes) if each.labelled == "row" else ()
            found += [f"{name}_{one}" for one in own] if own else [name]
        return tuple(found)

    def parse(self, label: object) -> tuple[float, ...]:
        """Return the row of a tuple with the label of each objective, or of what `show` writes; nan where it lacks one.

        Missing is None, or a mark such as an empty text, NA or -, where that is none of the objective's labels. Raises
        ValueError for a label that is neither, naming it, and where all are missing.
        """
        values = json.loads(label) if isinstance(label, str) else label
        if isinstance(values, dict):
            values = list(values.values())
        if not isinstance(values, list | tuple) or len(values) != len(self.objectives):
            found = len(values) if isinstance(values, list | tuple) else "no"
            raise ValueError(f"{found} labels, expected {len(self.objectives)}")
        row: list[float] = []
        for (name, objective), value in zip(self.objectives.items(), values, strict=True):
            row += [math.nan] * objective.width if _is_absent(objective, value) else _parsed(name, objective, value)
        if all(map(math.isnan, row)):
            raise BadRowError("label is empty", "all labels are empty")
        return tuple(row)

    def absent(self, label: Sequence[Any]) -> list[str]:
        """Return which labels are missing, of a label as `parse` takes it."""
        pairs = zip(self.objectives.items(), label, strict=True)
        return [name for (name, objective), value in pairs if _is_absent(objective, value)]

    def show(self, prediction: Any) -> str:
        """Return a row as JSON: each label by its name as data files write it, null where it is missing."""
        row = [float(number) for number in prediction]
        shown = {}
        for name, at in self.columns.items():
            own = row[at]
            objective = self.objectives[name]
            missing = all(map(math.isnan, own))
            shown[name] = None if missing else objective.show(own if objective.labelled == "row" else own[0])
        return json.dumps(shown, ensure_ascii=False)

    @property
    def columns(self) -> dict[str, slice]:
        """Where the numbers of each label stand in a row."""
        return _side_by_side({name: each.width for name, each in self.objectives.items()})

    def outputs_of(self, outputs: Tensor) -> dict[str, Tensor]:
        """Return the outputs of each objective as its own head would give them: [B], of a number, or [B, C]."""
        if outputs.ndim != 2 or outputs.shape[1] != self.outputs:
            raise ValueError(f"outputs have shape {list(outputs.shape)}, the loss needs [B, {self.outputs}]")
        places = _side_by_side({name: each.outputs for name, each in self.objectives.items()})
        found = {name: outputs[:, at] for name, at in places.items()}
        return {name: own[:, 0] if is_number(self.objectives[name]) else own for name, own in found.items()}

    def given(self, outputs: Tensor, labels: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield name, outputs and labels of each objective, of those of B examples that have the label."""
        if list(labels.shape) != [len(outputs), self.width]:
            raise ValueError(f"labels have shape {list(labels.shape)}, the loss needs {[len(outputs), self.width]}")
        found, columns = self.outputs_of(outputs), self.columns
        for name, objective in self.objectives.items():
            own = labels[:, columns[name]]
            there = ~own.isnan().all(dim=1)
            own = own[there]
            yield name, found[name][there], own if objective.labelled == "row" else own[:, 0]

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return self._summed("loss", outputs, labels)

    @property
    def trains_otherwise(self) -> bool:
        return any(each.trains_otherwise for each in self.objectives.values())

    def training_loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return self._summed("training_loss", outputs, labels)

    def _summed(self, kind: str, outputs: Tensor, labels: Tensor) -> Tensor:
        total = outputs.new_zeros(())
        for at, (name, own, known) in enumerate(self.given(outputs, labels)):
            if not len(known):
                continue
            weight = self.weights.get(name, 1.0)
            if self.counts:
                weight *= len(known) / self.counts[at]
            total = total + weight * getattr(self.objectives[name], kind)(own, known)
        return total

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of the losses of each objective over the examples that have its label [P], that of `loss`."""
        import torch

        found = []
        for name, own, known in self.given(outputs, labels):
            summed = self.objectives[name].loss(own, known) * len(known) if len(known) else outputs.new_zeros(())
            found.append(summed.float())
        return torch.stack(found)

    def within(self, labels: Tensor) -> MultiOutput:
        """Return the same objective whose losses of parts of a batch add up to that of the batch with these labels."""
        return replace(self, counts=tuple(self.counted(labels).values()))

    def counted(self, labels: Any) -> dict[str, int]:
        """Return how many of the examples have each label, of labels [B, L] of whatever library."""
        return {name: int((labels[:, at] == labels[:, at]).any(1).sum()) for name, at in self.columns.items()}

    def decode(self, outputs: Tensor) -> Tensor:
        import torch

        found = self.outputs_of(outputs)
        decoded = [each.decode(found[name]).float() for name, each in self.objectives.items()]
        return torch.cat([each if each.ndim == 2 else each[:, None] for each in decoded], dim=1)

    @property
    def tunes(self) -> bool:
        return any(each.tunes for each in self.objectives.values())

    def tune(self, outputs: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """Return the numbers of each objective that has some, as NAME.NUMBER."""
        found: dict[str, Tensor] = {}
        for name, own, known in self.given(outputs, labels):
            if self.objectives[name].tunes and len(known):
                found |= {f"{name}.{key}": value for key, value in self.objectives[name].tune(own, known).items()}
        return found

    def tuned(self, numbers: Mapping[str, Tensor]) -> MultiOutput:
        found = dict(self.objectives)
        for name, objective in self.objectives.items():
            own = {key.removeprefix(f"{name}."): numbers[key] for key in numbers if key.startswith(f"{name}.")}
            found[name] = objective.tuned(own) if own else objective
        return replace(self, objectives=found)


def is_number(objective: Objective) -> bool:
    """Return whether an objective's outputs are [B]: of a number for each example."""
    return not objective.classes and objective.outputs == 1 and objective.labelled == "one"


def _is_absent(objective: Objective, value: Any) -> bool:
    """Return whether a label is missing: None, or marks of what is missing which the objective does not take."""
    marks = value if isinstance(value, list | tuple) and value else [value]
    if not all(map(is_missing, marks)):
        return False
    try:
        return value is None or objective.parse(value) is None
    except ValueError:
        return True


def _parsed(name: str, objective: Objective, value: Any) -> list[float]:
    """Return the numbers of one label. Raises ValueError, naming it."""
    try:
        parsed = objective.parse(value)
    except BadRowError as error:
        raise BadRowError(error.kind, f"{name}: {error.reason}", error.hint) from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return [float(number) for number in parsed] if objective.labelled == "row" else [float(parsed)]


def _side_by_side(widths: Mapping[str, int]) -> dict[str, slice]:
    found, start = {}, 0
    for name, width in widths.items():
        found[name] = slice(start, start + width)
        start += width
    return found
