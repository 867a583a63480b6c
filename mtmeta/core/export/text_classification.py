"""A task as AutoModelForSequenceClassification, pipeline(), optimum and transformers.js load it.

Shapes: `N` examples, `T` tokens of the longest, padding included, `D` hidden, `K` logits.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtmeta.core.api.backbone import Portable, SequenceHead
from mtmeta.core.api.contracts import Task
from mtmeta.core.api.objectives import Objective
from mtmeta.core.errors import UsageError
from mtmeta.core.export import check as checks
from mtmeta.core.export.heads import Logits, Vector
from mtmeta.core.export.libraries import LibraryClassifier, check_tokenizer, load_transformers
from mtmeta.core.export.parts import Part, put_encoder, with_classifier
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.storage.staging import StagingFolder
from mtmeta.core.wording import quote

FORMAT = "text-classification"
PROBLEMS = {
    "classification": "single_label_classification",
    "binary": "single_label_classification",
    "regression": "regression",
    "multi_label": "multi_label_classification",
}
"""Of each kind of objective, what config.json calls it: pipeline() applies softmax, sigmoid or nothing by it."""
GRAPH = "onnx/model.onnx"  # where transformers.js looks, and optimum


def tasks_with_head(recipe: Recipe) -> list[str]:
    """Return the tasks that have the head which such a model has."""
    return [name for name, task in recipe.tasks.items() if task.head == "hf"]


def choose_tasks(recipe: Recipe, chosen: Sequence[str], *, named: bool) -> list[str]:
    """Return the tasks of `chosen` that have the head. Raises UsageError for one `named` that has not, and for none."""
    able = tasks_with_head(recipe)
    lacking = [name for name in chosen if name not in able]
    if lacking and (named or not able):
        message = f"{quote(lacking[0])} has a head that AutoModelForSequenceClassification has not"
        raise UsageError("--task" if named else f"task {quote(lacking[0])}", f"{message}; train with head: hf")
    return [name for name in chosen if name in able]


def check_head(name: str, described: Mapping[str, Any]) -> None:
    """Raise UsageError where one pass of the head that the task asks for is not its answer, by heads.json."""
    if described["head"]["kind"] != "hf":
        message = "has a head of the algorithm's own in the place of head: hf; use --format transformers"
        raise UsageError(f"task {quote(name)}", message)
    if described.get("orders") == "both":
        message = "answers by the mean over both orders of a pair, and this format reads one; use --format transformers"
        raise UsageError(f"task {quote(name)}", message)


def has_graph_packages() -> bool:
    """Return whether the packages that write and run ONNX graphs are installed."""
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


def write(draft: StagingFolder, under: str, part: Part, limit: float, *, graph_limit: float) -> dict[str, float]:
    """Write the folder of the one task of a part; return how far its answers are from those of the run.

    Each thing written is compared with the run: config and weights by transformers where it is installed, the graph by
    onnxruntime. Raises MtmetaError.
    """
    (name,) = part.names
    task, head = part.model.tasks[name], part.heads[name].eval()
    objective, described = part.model.objectives[name], part.tasks[name]
    check_head(name, described)
    typed, layout = is_typed(part.portable), part.model.encoder.sequence_head
    assert isinstance(layout, SequenceHead)  # or there was no head
    divider = _divider(part, task) if typed else None
    binary = described["objective"] == "binary"
    logits = Logits(part.portable.encoder, head, binary=binary, typed=typed, divider=divider).eval()
    put_encoder(draft, under, _with_head(part.portable, layout, name, described, head))
    check_tokenizer(draft.folder / under, part.backbone)
    dataset, batches = checks.probes(task, part.backbone)
    expected = checks.expected(part.model, name, dataset, part.temperatures.get(name, 1.0))

    def compared(answers: Callable[[checks.Inputs], Tensor], limit: float) -> float:
        with torch.inference_mode():
            found = [_answer(objective, answers(batch)) for batch in batches]
        return checks.check(name, checks.difference(expected, found), limit)

    models: list[nn.Module] = [logits]
    if (library := load_transformers()) is not None:
        models.append(LibraryClassifier(library, draft.folder / under))
    difference = max(compared(partial(checks.run_module, model), limit) for model in models)
    if has_graph_packages():
        from mtmeta.core.export.onnx_graphs import logits_graph, run_graph

        graph = logits_graph(logits).SerializeToString()
        inputs = len(logits.inputs)

        def by_graph(batch: checks.Inputs) -> Tensor:
            return torch.from_numpy(run_graph(graph, [batch[:inputs]])[0][0])

        difference = max(difference, compared(by_graph, graph_limit))
        if divider is not None:
            untyped = compared(lambda batch: by_graph([*batch[:2], np.zeros_like(batch[2])]), graph_limit)
            difference = max(difference, untyped)
        draft.write(f"{under}{GRAPH}", graph)
    return {name: difference}


def is_typed(portable: Portable) -> bool:
    """Return whether the tokenizer of an encoder gives segments."""
    settings = json.loads(portable.files["tokenizer_config.json"])
    return Vector.inputs[2] in settings.get("model_input_names", Vector.inputs)


def _divider(part: Part, task: Task) -> int | None:
    """Return the token that stands between the texts of a pair, where it is one."""
    tokenizer = part.backbone.tokenizer
    return tokenizer.middle[0] if task.inputs == "cross" and len(tokenizer.middle) == 1 else None


def _answer(objective: Objective, logits: Tensor) -> list[Any]:
    """Return what `checks.expected` has of the run, from the logits [N, K] of what was exported."""
    outputs = outputs_of(objective, logits)
    chances = objective.probabilities(outputs)
    parts = [outputs[:, None], objective.decode(outputs)] if chances is None else [outputs, chances]
    return [part.double().numpy() for part in parts]


def outputs_of(objective: Objective, logits: Tensor) -> Tensor:
    """Return the raw outputs that the run's own head would have, of the logits [N, K] of an export."""
    if len(objective.classes) == 2 and objective.outputs == 1:
        return logits[:, 1:] - logits[:, :1]
    return logits if objective.classes else logits[:, 0]


def _with_head(portable: Portable, layout: SequenceHead, name: str, described: dict[str, Any], head: Any) -> Portable:
    """Return config and tensors of the class of models that has this head."""
    out = {"weight": head.out.weight, "bias": head.out.bias}
    if described["objective"] == "binary":
        out = {key: torch.cat([torch.zeros_like(value), value]) for key, value in out.items()}
    own = {layout.dense: {"weight": head.dense.weight, "bias": head.dense.bias}, layout.out: out}
    kind, labels = PROBLEMS[described["objective"]], described.get("labels", [name])
    return with_classifier(portable, layout, layout.architecture, labels, own, problem_type=kind)
