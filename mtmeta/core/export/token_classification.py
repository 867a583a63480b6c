"""A task whose words have labels as AutoModelForTokenClassification, pipeline(), optimum and transformers.js load it.

Shapes: `N` sequences, `T` tokens of the longest, padding included, `D` hidden, `C` classes, `W` words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtmeta.core.api.backbone import Portable, SequenceHead
from mtmeta.core.api.heads import WordHead
from mtmeta.core.api.objectives import Objective
from mtmeta.core.data.dataset import Dataset, select
from mtmeta.core.errors import UsageError
from mtmeta.core.export import check as checks
from mtmeta.core.export.heads import TokenLogits
from mtmeta.core.export.libraries import LibraryTagger, check_tokenizer, load_transformers
from mtmeta.core.export.parts import Part, put_encoder, with_classifier
from mtmeta.core.export.text_classification import GRAPH, has_graph_packages, is_typed
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.registry.guard import fault
from mtmeta.core.storage.staging import StagingFolder
from mtmeta.core.training import evaluation
from mtmeta.core.wording import quote

FORMAT = "token-classification"


def tasks_of_words(recipe: Recipe) -> list[str]:
    """Return the tasks whose words have labels."""
    return [name for name, task in recipe.tasks.items() if task.objective.labelled == "words"]


def choose_tasks(recipe: Recipe, chosen: Sequence[str], *, named: bool) -> list[str]:
    """Return the tasks of `chosen` whose words have labels. Raises UsageError for one `named` that is another."""
    able = tasks_of_words(recipe)
    lacking = [name for name in chosen if name not in able]
    if lacking and (named or not able):
        message = f"{quote(lacking[0])} has one answer for a text, and none for each word; use another format"
        raise UsageError("--task" if named else f"task {quote(lacking[0])}", message)
    return [name for name in chosen if name in able]


def check_head(name: str, head: nn.Module, layout: object) -> SequenceHead:
    """Return the layout of the encoder's family. Raises UsageError where transformers has no model of such a head."""
    place = f"task {quote(name)}"
    if type(head) is not WordHead:  # not isinstance: a subclass may compute anything
        message = f"has a head of its own, {type(head).__name__}, where AutoModelForTokenClassification has one Linear"
        raise UsageError(place, f"{message}; it cannot be exported in this format")
    if not isinstance(layout, SequenceHead):
        message = "is for encoders of the families BERT, RoBERTa, XLM-RoBERTa, DistilBERT and ELECTRA"
        raise UsageError(f"--format {FORMAT}", f"{message}; use mtmeta predict")
    return layout


def write(draft: StagingFolder, under: str, part: Part, limit: float, *, graph_limit: float) -> dict[str, float]:
    """Write the folder of the one task of a part; return how far its logits are from those of the run, word by word.

    Each thing written is compared with the run: config and weights by transformers where it is installed, the graph by
    onnxruntime. Raises MtmetaError.
    """
    (name,) = part.names
    head, typed = part.heads[name].eval(), is_typed(part.portable)
    layout = check_head(name, head, getattr(part.model.encoder, "sequence_head", None))
    assert isinstance(head, WordHead)
    put_encoder(draft, under, _with_head(part.portable, layout, part.tasks[name]["labels"], head))
    check_tokenizer(draft.folder / under, part.backbone)
    dataset, batch = _probes(part, name)
    expected = _expected(part, name, dataset)

    def compared(answers: Callable[[checks.Inputs], Tensor], limit: float) -> float:
        with torch.inference_mode():
            logits = answers(batch).numpy()
        found = [logits[at, _places(dataset, at)] for at in range(len(dataset))]
        unit = max(1.0, max(float(np.abs(row).max()) for row in expected))
        errors = [float(np.abs(own - other).max()) for own, other in zip(expected, found, strict=True)]
        worst = max(errors) / unit if np.isfinite(errors).all() else float("inf")
        return checks.check(name, worst, limit)

    module = TokenLogits(part.portable.encoder, head.out, typed=typed).eval()
    inputs = len(module.inputs)
    difference = compared(lambda one: checks.run_module(module, one[:inputs]), limit)
    if (library := load_transformers()) is not None:
        tagger = LibraryTagger(library, draft.folder / under)
        difference = max(difference, compared(lambda one: checks.run_module(tagger, one), limit))
    if has_graph_packages():
        from mtmeta.core.export.onnx_graphs import logits_graph, run_graph

        graph = logits_graph(module).SerializeToString()
        by_graph = compared(lambda one: torch.from_numpy(run_graph(graph, [one[:inputs]])[0][0]), graph_limit)
        difference = max(difference, by_graph)
        draft.write(f"{under}{GRAPH}", graph)
    return {name: difference}


def describe(names: Iterable[str], objectives: Mapping[str, Objective]) -> dict[str, dict[str, Any]]:
    """Describe tasks as their cards have them."""
    return {name: {"inputs": "words", "labels": list(objectives[name].classes)} for name in names}


def _probes(part: Part, name: str) -> tuple[Dataset, checks.Inputs]:
    """Return texts that fit into one sequence, and their padded batch: of a longer one others have no second."""
    dataset, _ = checks.probes(part.model.tasks[name], part.backbone, words=True)
    (store,) = dataset.stores
    fitting = np.flatnonzero(store.lengths <= part.backbone.max_length)
    kept = replace(select(dataset, fitting), task=name)
    return kept, checks.pad(kept.stores, range(len(kept)))


def _places(dataset: Dataset, text: int) -> Any:
    """Return where the first pieces of a text's words stand in its sequence [W]."""
    parts = dataset.stores[0].parts
    assert parts is not None and parts.words is not None  # as words have labels
    return parts.words.firsts[parts.words.offsets[text] : parts.words.offsets[text + 1]]


@torch.inference_mode()
def _expected(part: Part, name: str, dataset: Dataset) -> list[Any]:
    """Return the logits [W, C] of each text by the run's own model. Raises PluginError for answers that are no argmax.

    pipeline() takes the greatest logit, and their softmax for probabilities.
    """
    task, objective = part.model.tasks[name], part.model.objectives[name]
    found: list[Any] = [None] * len(dataset)
    for at in range(len(dataset)):
        one = select(dataset, np.array([at]))
        ((_, _, outputs),) = evaluation.forward(part.model, one, batch_tokens=8192)
        chances = objective.probabilities(outputs)
        same = torch.equal(objective.decode(outputs), outputs.argmax(dim=-1))
        if chances is not None:
            same = same and torch.allclose(chances, outputs.float().softmax(dim=-1), atol=1e-6)
        if not same:
            message = f"the objective of task {quote(name)} does not go by the greatest logit of each word"
            raise fault(task, f"{message}, as models of transformers do; it cannot be exported in this format")
        found[at] = outputs.double().numpy()
    return found


def _with_head(portable: Portable, layout: SequenceHead, labels: list[str], head: WordHead) -> Portable:
    """Return config and tensors of the class of models that has a Linear on every token."""
    architecture = layout.architecture.replace("ForSequenceClassification", "ForTokenClassification")
    own = {"classifier": {"weight": head.out.weight, "bias": head.out.bias}}
    return with_classifier(portable, layout, architecture, labels, own)
