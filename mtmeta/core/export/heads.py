"""Heads and objectives as data, and as modules on padded inputs, for programs without mtmeta.

Shapes: `N` sequences or examples, `T` tokens of the longest, padding included, `D` hidden, `C` outputs, `K` classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtmeta.core.api.contracts import Task
from mtmeta.core.api.heads import CosineHead, CosinePrototypeHead, LinearHead, MLPHead, PrototypeHead
from mtmeta.core.api.objectives import Binary, Classification, Regression
from mtmeta.core.errors import MtmetaError, PluginError, raise_all
from mtmeta.core.registry.guard import fault, unguarded
from mtmeta.core.wording import quote


def describe_tasks(tasks: Mapping[str, Task], heads: Mapping[str, nn.Module]) -> dict[str, dict[str, Any]]:
    """Describe each task as heads.json does. Raises PluginError where only a plugin's code knows head or objective."""
    problems: list[MtmetaError] = []
    descriptions = {}
    for name, task in tasks.items():
        try:
            head = _head(name, task, heads[name])
            descriptions[name] = {"inputs": task.inputs, "head": head, **_objective(name, task)}
        except PluginError as error:
            problems.append(error)
    raise_all(problems)
    return descriptions


def _head(name: str, task: Task, head: nn.Module) -> dict[str, Any]:
    vectors = 2 if task.inputs == "separate" else 1
    kind = type(head)  # not isinstance: a subclass may compute anything
    if kind is MLPHead:
        return {"kind": "mlp", "outputs": task.objective.outputs, "vectors": vectors}
    if kind in (LinearHead, PrototypeHead):
        outputs = 1 if kind is LinearHead else task.objective.outputs
        return {"kind": "linear", "outputs": outputs, "vectors": vectors}
    if kind is CosineHead:
        return {"kind": "cosine", "scale": head.scale, "activation": head.activation}
    if kind is CosinePrototypeHead:
        classes, options = len(task.objective.classes), {"temperature": head.temperature, "binary": head.binary}
        return {"kind": "cosine_prototypes", "classes": classes, "vectors": vectors, **options}
    raise _refusal(name, task, f"a head of its own, {kind.__name__}")


def _objective(name: str, task: Task) -> dict[str, Any]:
    objective = task.objective
    kind = unguarded(type(objective))
    if kind in (Classification, Binary):
        labels = list(objective.classes)
        return {"objective": "binary" if kind is Binary else "classification", "labels": labels}
    if isinstance(objective, Regression) and kind is Regression:
        return {"objective": "regression", "low": objective.low, "high": objective.high}
    raise _refusal(name, task, f"an objective of its own, {kind.__name__}")


def _refusal(name: str, task: Task, obstacle: str) -> PluginError:
    return fault(task, f"task {quote(name)} has {obstacle}, which cannot be exported; use --task")


def head_tensors(heads: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the heads' weights as heads.safetensors has them: TASK.dense.weight and so on, fp32."""
    return {
        f"{name}.{key}": tensor.detach().float().cpu().contiguous()
        for name, head in heads.items()
        for key, tensor in head.state_dict().items()
    }


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the tokens that are no padding: [N, T, D], [N, T] -> [N, D]."""
    weights = mask[:, :, None].to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


class Vector(nn.Module):
    """Ids, attention mask and segments of sequences [N, T] to their mean-pooled vectors [N, D]."""

    inputs = ("input_ids", "attention_mask", "token_type_ids")
    outputs = ("vector",)

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        return masked_mean(self.encoder(input_ids, attention_mask, token_type_ids), attention_mask)


class Answer(nn.Module):
    """The vectors of one sequence, or of two, [N, D] each, to the answers of a task.

    These are (logits [N, C], probabilities of all classes [N, K]); of a regression (its output [N, 1], the number [N]).
    """

    def __init__(self, head: nn.Module, task: Task) -> None:
        super().__init__()
        self.head, self.objective = head, task.objective
        self.inputs = ("first", "second") if task.inputs == "separate" else ("first",)
        self.outputs = ("logits", "probabilities") if task.objective.classes else ("logits", "score")

    def forward(self, first: Tensor, second: Tensor | None = None) -> tuple[Tensor, ...]:
        outputs = self.head(torch.stack([first] if second is None else [first, second], dim=1))
        probabilities = self.objective.probabilities(outputs)
        if probabilities is None:
            return outputs[:, None], self.objective.decode(outputs)
        return outputs, probabilities
