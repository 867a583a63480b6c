"""What of a run could not be exported, found before it is trained: for `mtmeta run --dry-run`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from mtmeta.core.api.backbone import LoadedBackbone, Portable
from mtmeta.core.errors import DivergedError, MtmetaError, Problems
from mtmeta.core.export import check as checks
from mtmeta.core.export import text_classification, token_classification
from mtmeta.core.export.export import FORMATS, LIMITS, check_labels, formats_of, merged_backbone
from mtmeta.core.export.heads import Answer, describe_tasks
from mtmeta.core.export.libraries import check_tokenizer
from mtmeta.core.export.peft_files import check_sums, peft_files
from mtmeta.core.run.session import Session
from mtmeta.core.training.model import MultiTaskModel, separated

HEADED = ("transformers", "text-classification", "onnx", "peft")  # formats that hold heads


def obstacles(session: Session) -> dict[str, str]:
    """Return the formats that a session's model could not be exported in, each with why; empty where it could be.

    The encoder is taken as it is now, with the first adapters there are; heads and adapters are made anew. A run
    without adapters has none for peft, which is no obstacle. Nothing is written but a temporary folder.
    """
    found: dict[str, str] = {}
    loaded, recipe = session.backbone, session.recipe

    @contextmanager
    def noting(*formats: str) -> Iterator[None]:
        try:
            yield
        except DivergedError:
            pass  # of weights that the probe of a dry run spoilt: they say nothing of the format
        except MtmetaError as error:
            first = error.problems[0] if isinstance(error, Problems) else error
            for name in formats:
                found.setdefault(name, str(first))

    models = [separated(session.model(loaded.encoder, group)) for group in session.groups]
    first, task = _adapted(models, session.groups)
    formats = formats_of(recipe)
    with noting(*formats):
        check_labels(recipe, list(recipe.scored))
        portable = recipe.backbone.portable(merged_backbone(first, task, loaded))
        _try_tokenizer(portable, loaded)
    heads = {name: model.heads[name] for model in models for name in model.tasks}
    with noting(*(name for name in HEADED if name in formats)):
        described = describe_tasks(recipe.scored, heads, alone=len(recipe.scored) == 1)
        with noting(*(form for form in formats if form == text_classification.FORMAT)):
            for name in text_classification.tasks_with_head(recipe):
                text_classification.check_head(name, described[name])
    with noting(*(form for form in formats if form == token_classification.FORMAT)):
        for name in token_classification.tasks_of_words(recipe):
            token_classification.check_head(name, heads[name], getattr(loaded.encoder, "sequence_head", None))
    if "onnx" not in found:
        with noting("onnx"):
            _try_onnx(portable, loaded, session, heads)
    if "peft" in formats and "peft" not in found:
        with noting("peft"):
            assert first.adapters is not None
            base = recipe.backbone.portable(loaded)
            check_sums(peft_files(first.adapters, task, base), base, portable)
    return {name: found[name] for name in FORMATS if name in found}


def _adapted(models: Sequence[MultiTaskModel], groups: Sequence[Sequence[str]]) -> tuple[MultiTaskModel, str]:
    """Return the first model with a task that has adapters, and this task; the very first ones where none has."""
    each = [(model, name) for model, group in zip(models, groups, strict=True) for name in group]
    return next((one for one in each if one[0].adapters is not None and one[0].adapters.has(one[1])), each[0])


def _try_tokenizer(portable: Portable, loaded: LoadedBackbone) -> None:
    with tempfile.TemporaryDirectory(prefix="mtmeta-") as folder:
        for name, data in {"config.json": json.dumps(dict(portable.config)).encode(), **portable.files}.items():
            (Path(folder) / name).write_bytes(data)
        check_tokenizer(Path(folder), loaded)


def _try_onnx(portable: Portable, loaded: LoadedBackbone, session: Session, heads: dict[str, nn.Module]) -> None:
    """Make a graph of another library's encoder and the first task's head, and run it."""
    from mtmeta.core.export.onnx_graphs import check_packages, check_size, run_graph, task_graphs

    check_size(portable.encoder)
    if not portable.foreign:
        return
    check_packages()
    name, task = next(iter(session.recipe.scored.items()))
    head = heads[name].eval()
    _, batches = checks.probes(task, loaded)
    for _, graph in task_graphs(portable.encoder, {name: head}, {name: task}):
        wanted = checks.padded_answers(portable.encoder, Answer(head, task).eval(), batches)
        whole = wanted[-1]  # the last batch is all of them
        checks.check(name, checks.difference(whole, run_graph(graph.SerializeToString(), batches)), LIMITS["onnx"])
