"""Heads and objectives as data, and as modules on padded inputs, for programs without mtmeta.

Shapes: `N` sequences or examples, `T` tokens of the longest, padding included, `D` hidden, `C` outputs, `K` classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtmeta.core.api.contracts import Task, count_sequences
from mtmeta.core.api.heads import (
    ChoiceHead,
    CoralHead,
    CosineHead,
    CosinePrototypeHead,
    LinearHead,
    MLPHead,
    PrototypeHead,
    SequenceClassificationHead,
    VectorHead,
    WordHead,
    mean_over,
)
from mtmeta.core.api.objectives import Binary, Classification, Objective, Regression
from mtmeta.core.api.option_types import Pooling
from mtmeta.core.errors import MtmetaError, PluginError, raise_all
from mtmeta.core.registry.guard import fault, unguarded
from mtmeta.core.wording import exception_line, quote


class _Unfit(Exception):
    """What a task has that no export holds, and what to do."""

    def __init__(self, obstacle: str, fix: str = "") -> None:
        super().__init__(obstacle)
        self.fix = fix


def describe_tasks(
    tasks: Mapping[str, Task],
    heads: Mapping[str, nn.Module],
    objectives: Mapping[str, Objective] | None = None,
    *,
    alone: bool,
) -> dict[str, dict[str, Any]]:
    """Describe each task as heads.json does. Raises PluginError where only a plugin's code knows head or objective.

    `objectives` are the tasks', with the numbers that were tuned for them; `alone` is whether the run has one task.
    """
    objectives = objectives or {name: task.objective for name, task in tasks.items()}
    problems: list[MtmetaError] = []
    descriptions = {}
    for name, task in tasks.items():
        try:
            head = _head(task, heads[name])
            descriptions[name] = {
                "inputs": task.inputs,
                **({"orders": "both"} if task.both_orders else {}),
                "pooling": task.pooling,
                "head": head,
                **_objective(name, task, objectives[name]),
            }
        except _Unfit as error:
            fix = error.fix or ("" if alone else "leave it out with --task")
            message = f"task {quote(name)} has {error}, which cannot be exported"
            problems.append(fault(task, f"{message}; {fix}" if fix else message))
        except PluginError as error:
            problems.append(error)
    raise_all(problems)
    return descriptions


def _head(task: Task, head: nn.Module) -> dict[str, Any]:
    vectors = 2 if task.inputs == "separate" else 1
    if task.long is not None:
        raise _Unfit("texts that are read in windows")
    if getattr(head, "takes", "pooled") != "pooled":
        fix = "use --format token-classification" if type(head) is WordHead else ""
        raise _Unfit(f"a head that takes whole sequences, {type(head).__name__}", fix)
    kind = type(head)  # not isinstance: a subclass may compute anything
    if kind is MLPHead:
        return {"kind": "mlp", "outputs": task.objective.outputs, "vectors": vectors}
    if kind is ChoiceHead:
        return {"kind": "choice"}
    if kind is VectorHead:
        return {"kind": "vectors", "outputs": getattr(head.dense, "out_features", None)}
    if kind is CoralHead:
        return {"kind": "coral", "outputs": task.objective.outputs, "vectors": vectors}
    if kind in (LinearHead, PrototypeHead):
        outputs = 1 if kind is LinearHead else task.objective.outputs
        return {"kind": "linear", "outputs": outputs, "vectors": vectors}
    if kind is CosineHead:
        return {"kind": "cosine", "scale": head.scale, "activation": head.activation}
    if kind is SequenceClassificationHead:
        return {"kind": "hf", "outputs": task.objective.outputs or 1, "activation": head.activation}
    if kind is CosinePrototypeHead:
        classes, options = len(task.objective.classes), {"temperature": head.temperature, "binary": head.binary}
        return {"kind": "cosine_prototypes", "classes": classes, "vectors": vectors, **options}
    raise _Unfit(f"a head of its own, {kind.__name__}")


def _objective(name: str, task: Task, objective: Objective) -> dict[str, Any]:
    kind = unguarded(type(objective))
    if kind in (Classification, Binary):
        labels = list(objective.classes)
        return {"objective": "binary" if kind is Binary else "classification", "labels": labels}
    if isinstance(objective, Regression) and kind is Regression:
        return {"objective": "regression", "low": objective.low, "high": objective.high}
    if (own := objective.export()) is not None:
        if own.get("objective") not in RULES:
            message = f"task {quote(name)} exports the rule {quote(str(own.get('objective')))}"
            raise fault(task, f"{message}; one of {', '.join(RULES)}")
        return dict(own)
    raise _Unfit(f"an objective of its own, {kind.__name__}")


def _one_of(outputs: Tensor, rule: Mapping[str, Any]) -> Ruled:
    return outputs.argmax(dim=-1), outputs.softmax(dim=-1)


def _yes_or_no(outputs: Tensor, rule: Mapping[str, Any]) -> Ruled:
    logits = outputs[:, 0]
    return (logits > 0).long(), torch.stack([(-logits).sigmoid(), logits.sigmoid()], dim=1)


def _number(outputs: Tensor, rule: Mapping[str, Any]) -> Ruled:
    return outputs.clamp(rule["low"], rule["high"]), None


def _numbers(outputs: Tensor, rule: Mapping[str, Any]) -> Ruled:
    return outputs.clamp(outputs.new_tensor(rule["low"]), outputs.new_tensor(rule["high"])), None


def _any_of(outputs: Tensor, rule: Mapping[str, Any]) -> Ruled:
    return (outputs > outputs.new_tensor(rule["thresholds"])).long(), outputs.sigmoid()


def _in_order(outputs: Tensor, rule: Mapping[str, Any]) -> Ruled:
    above = outputs.sigmoid()
    whole = torch.cat([torch.ones_like(above[:, :1]), above, torch.zeros_like(above[:, :1])], dim=1)
    chances = (whole[:, :-1] - whole[:, 1:]).clamp(min=0)
    return (outputs > 0).sum(dim=-1), chances / chances.sum(dim=1, keepdim=True)


def _cosine(outputs: Tensor, rule: Mapping[str, Any]) -> Ruled:
    return (outputs[:, 0] * outputs[:, 1]).sum(dim=-1), None


Ruled = tuple[Tensor, Tensor | None]
"""Predictions and probabilities."""
RULES: dict[str, Callable[[Tensor, Mapping[str, Any]], Ruled]] = {
    "classification": _one_of,
    "binary": _yes_or_no,
    "regression": _number,
    "targets": _numbers,
    "multi_label": _any_of,
    "ordinal": _in_order,
    "cosine": _cosine,
}
"""What the modules in bundled/ do with raw outputs, by the name of the rule; an export of its own names one."""


def check_rule(task: Task, name: str, objective: Objective, rule: Mapping[str, Any], outputs: Tensor) -> None:
    """Raise PluginError unless an objective's own export gives the answers that the objective gives, of raw outputs."""
    if objective.export() is None:
        return
    try:
        predictions, chances = RULES[rule["objective"]](outputs.float(), rule)
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        message = f"the export of task {quote(name)} does not go with its rule {quote(rule['objective'])}"
        raise fault(task, f"{message} ({exception_line(error)}); mend `export`") from error
    own, wanted = objective.probabilities(outputs), objective.decode(outputs)
    same = (own is None) == (chances is None) and torch.equal(predictions.double(), wanted.double())
    if own is not None and chances is not None:
        same = same and own.shape == chances.shape and torch.allclose(own.float(), chances, atol=1e-6)
    if not same:
        message = f"the export of task {quote(name)} gives other answers than its objective"
        raise fault(task, f"{message} by the rule {quote(rule['objective'])}; mend `export`")


def at_temperature(head: nn.Module, temperature: float) -> nn.Module:
    """Return the head whose outputs are those of `head` divided by a temperature, in its weights: a copy, or itself."""
    if temperature == 1.0:
        return head
    divided = copy.deepcopy(head)
    if isinstance(divided, CosinePrototypeHead):
        divided.temperature *= temperature
    elif isinstance(out := getattr(divided, "out", None), nn.Linear):  # the last layer of all others
        with torch.no_grad():
            for parameter in out.parameters():
                parameter.div_(temperature)
    return divided


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
    """Ids, attention mask and segments of sequences [N, T] to their vectors [N, D], by the mean or the first token."""

    inputs = ("input_ids", "attention_mask", "token_type_ids")
    outputs = ("vector",)

    def __init__(self, encoder: nn.Module, pooling: Pooling = "mean") -> None:
        super().__init__()
        self.encoder, self.pooling = encoder, pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        hidden = self.encoder(input_ids, attention_mask, token_type_ids)
        return hidden[:, 0] if self.pooling == "first" else masked_mean(hidden, attention_mask)


class Answer(nn.Module):
    """The vectors of one sequence, of two, or of one for each choice, [N, D] each, to the answers of a task.

    These are (logits [N, C], probabilities of all classes [N, K]); of a regression (its output [N, 1], the number [N]);
    of several numbers (outputs [N, L], the numbers [N, L]); of texts that belong together (vectors [N, 2, C], cosines
    [N]).
    """

    def __init__(self, head: nn.Module, task: Task, objective: Objective | None = None) -> None:
        """`objective` is the task's, with the numbers that were tuned for the head."""
        super().__init__()
        self.head, self.objective, self.pooling = head, objective or task.objective, task.pooling
        self.views = task.views
        self.inputs = ("first", "second") if count_sequences(task) == 2 and task.inputs != "choices" else ("first",)
        self.outputs = ("logits", "probabilities") if task.objective.classes else ("logits", "score")

    def forward(self, first: Tensor, second: Tensor | None = None, *others: Tensor) -> tuple[Tensor, ...]:
        pooled = torch.stack([first] if second is None else [first, second, *others], dim=1)
        outputs = mean_over(self.head, self.views(pooled))
        probabilities = self.objective.probabilities(outputs)
        if probabilities is None:
            return outputs[:, None] if outputs.ndim == 1 else outputs, self.objective.decode(outputs)
        return outputs, probabilities


class ChoiceScore(nn.Module):
    """The vectors of questions with one choice each [N, D] to the scores [N, 1] that a softmax goes over."""

    inputs = ("first",)
    outputs = ("score",)

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, first: Tensor) -> Tensor:
        scores: Tensor = self.head(first[:, None])
        return scores


class Logits(nn.Module):
    """Ids and attention mask of sequences [N, T], and segments where the tokenizer has them, to logits [N, K].

    Of a regression K is 1. A binary task has two logits, (0, z) of the run's one, z: their softmax is its sigmoid.
    `divider` is the token between the texts of a pair. A pair whose segments are all 0 then has those that its ids
    say: no tokenizer that knows segments gives such ones, and transformers.js, which passes none unless it is told to,
    fills them up with zeros.
    """

    outputs = ("logits",)

    def __init__(
        self, encoder: nn.Module, head: nn.Module, *, binary: bool, typed: bool, divider: int | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.binary, self.divider = encoder, head, binary, divider
        self.inputs = Vector.inputs if typed else Vector.inputs[:2]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        if self.divider is not None:
            divides = (input_ids == self.divider).long()
            behind = ((divides.cumsum(1) - divides) > 0).long() * attention_mask  # 1 in the second text
            types = torch.where(types.amax(1, keepdim=True) > 0, types, behind)
        hidden = self.encoder(input_ids, attention_mask, types)  # [N, T, D]
        outputs: Tensor = self.head(hidden[:, None, 0])  # the first token, [N, 1, D]
        outputs = outputs[:, None] if outputs.ndim == 1 else outputs
        return torch.cat([torch.zeros_like(outputs), outputs], dim=1) if self.binary else outputs


class TokenLogits(nn.Module):
    """Ids and attention mask of sequences [N, T], and segments where the tokenizer has them, to logits [N, T, C]."""

    outputs = ("logits",)

    def __init__(self, encoder: nn.Module, out: nn.Linear, *, typed: bool) -> None:
        super().__init__()
        self.encoder, self.out = encoder, out
        self.inputs = Vector.inputs if typed else Vector.inputs[:2]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        logits: Tensor = self.out(self.encoder(input_ids, attention_mask, types))
        return logits
