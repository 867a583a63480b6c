"""`mtmeta export`: the best weights of a run as a folder that other libraries load, checked before it is there.

run directory -> packed model (what `mtmeta predict` runs) -> the backbone's `portable` padded twin -> files of a format
-> the same probes through both, compared -> model card, manifest -> one rename.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtmeta.core.api.backbone import LoadedBackbone, Portable
from mtmeta.core.errors import UsageError
from mtmeta.core.export import check as checks
from mtmeta.core.export.heads import Answer, describe_tasks, head_tensors
from mtmeta.core.export.libraries import LibraryEncoder, check_tokenizer, load_transformers
from mtmeta.core.export.model_card import Facts, card
from mtmeta.core.machine import fitting_threads, memory_errors, own_settings
from mtmeta.core.run.directory import RunDir
from mtmeta.core.run.evaluate import best_model, open_run, restore_backbone
from mtmeta.core.run.request import RunRequest
from mtmeta.core.run.session import Session
from mtmeta.core.storage.disk import write_tensors
from mtmeta.core.storage.staging import Destination, StagingFolder, identity
from mtmeta.core.training.model import MultiTaskModel
from mtmeta.core.wording import choose, did_you_mean, quote

LIMITS = {"transformers": 1e-5, "onnx": 1e-4, "sentence-transformers": 1e-5}
"""Formats, and how far outputs may be from those of `mtmeta predict`."""
FORMATS = tuple(LIMITS)
BUNDLED = Path(__file__).with_name("bundled")  # modules that go with an export as they stand; never imported


@dataclass(frozen=True)
class Part:
    """A group of tasks that share an encoder: its model, as the run has it and as others will."""

    names: list[str]
    model: MultiTaskModel
    backbone: LoadedBackbone
    portable: Portable
    tasks: dict[str, dict[str, Any]]
    """The description of each task in heads.json; empty where no heads are exported."""
    step: int


@own_settings()
def export(
    run: str | Path,
    form: str,
    *,
    tasks: Sequence[str] = (),
    out: str | Path | None = None,
    fresh: bool = False,
    block: Sequence[str] = (),
    warn: Callable[[str], None] = lambda text: None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Export the run in folder `run`; return the document of `--json`: folder, tasks, differences, files.

    `form` is one of FORMATS; `tasks` are all by default; `out` is RUN/export/FORMAT by default. Of an algorithm that
    trains several encoders each has a folder of its own, named after its tasks. Raises MtmetaError, and then leaves
    nothing behind.
    """
    if form not in FORMATS:
        raise UsageError("--format", f"{quote(form)} is no format{choose(form, FORMATS)}")
    if form == "onnx":
        from mtmeta.core.export.onnx_graphs import check_packages

        check_packages()
    if out is None:
        RunDir(Path(run)).check_is_run()
        RunDir(Path(run)).check_own()  # the export goes into it
    if load_transformers() is None:
        say("transformers is not installed: AutoModel and AutoTokenizer are not tried on what is exported")
    session = open_run(run, RunRequest(device="cpu", block=block, warn=warn))
    chosen = _choose_tasks(list(session.recipe.tasks), tasks)
    default = session.folder.path / "export" / "-".join([form, *(chosen if tasks else [])])
    place = Destination(Path(out) if out is not None else default, identity(session.folder.lock()), form, fresh=fresh)
    place.check()
    with place.staged() as draft, memory_errors("exporting", "close other programs"):
        facts = _write_models(draft, session, form, chosen, say)
        manifest = place.manifest(draft, {"tasks": chosen, "steps": facts.steps, "differences": facts.differences})
    document = {key: manifest[key] for key in ("format", "tasks", "steps", "differences")}
    return {"folder": str(place.path), **document, "files": {name: f["size"] for name, f in manifest["files"].items()}}


def _choose_tasks(known: Sequence[str], tasks: Sequence[str]) -> list[str]:
    """Return the tasks to export in the order of the recipe. Raises UsageError for one that the run does not have."""
    for name in tasks:
        if name not in known:
            message = f"this run has no task {quote(name)}{did_you_mean(name, known)} (tasks: {', '.join(known)})"
            raise UsageError("--task", message)
    return [name for name in known if not tasks or name in tasks]


def _write_models(
    draft: StagingFolder, session: Session, form: str, chosen: Sequence[str], say: Callable[[str], None]
) -> Facts:
    """Write the model of every group of tasks, checked, and the cards; return the facts that the cards state."""
    groups = [(group, names) for group in session.groups if (names := [name for name in group if name in chosen])]
    if session.recipe.adapters is not None and session.recipe.adapters.per == "task":
        groups = [(group, [name]) for group, names in groups for name in names]  # each has an encoder of its own
    write = {"transformers": _transformers, "onnx": _onnx, "sentence-transformers": _sentence_transformers}[form]
    differences: dict[str, float] = {}
    steps: dict[str, int] = {}
    folders: dict[str, list[str]] = {}
    described: dict[str, dict[str, Any]] = {}
    for group, names in groups:
        part = load_part(session, group, names, heads=form != "sentence-transformers")
        under = "+".join(names) if len(groups) > 1 and form != "onnx" else ""
        folders.setdefault(under, []).extend(names)
        described |= part.tasks
        with fitting_threads(part.backbone.encoder):
            differences_here = write(draft, f"{under}/" if under else "", part, LIMITS[form])
        for name, value in differences_here.items():
            say(f"{name}: largest difference to mtmeta predict {value:.1e} (at most {LIMITS[form]:g})")
        differences |= differences_here
        steps |= dict.fromkeys(names, part.step)
    if form == "onnx":
        _describe_onnx(draft, described, part.backbone)
    summary = session.folder.finished()
    figures = summary.plain() if summary is not None else {}
    facts = Facts(session.recipe, session.folder.lock(), figures, steps, part.backbone.max_length, differences)
    for under, names in folders.items():
        text = card(form, facts, names, {name: described.get(name, {}) for name in names})
        draft.write(f"{under}/README.md" if under else "README.md", text)
    if "" not in folders:
        draft.write("README.md", card(form, facts, chosen, described, folders=folders))
    return facts


def load_part(session: Session, group: list[str], names: list[str], *, heads: bool) -> Part:
    """Load the best weights of a group of tasks, of which `names` are to be exported, with the padded twin."""
    weights, step = session.checkpoints(group).best_and_step()
    backbone = restore_backbone(session)
    model = best_model(session, backbone, group, weights)
    if model.adapters is not None:
        _merge_adapters(model, names[0])
    portable = session.recipe.backbone.portable(backbone)
    tasks = {name: model.tasks[name] for name in names}
    described = describe_tasks(tasks, {name: model.heads[name] for name in names}) if heads else {}
    return Part(names, model, backbone, portable, described, step)


def _merge_adapters(model: MultiTaskModel, task: str) -> None:
    """Write a task's encoder, adapters and all, into the encoder itself; what is left of them adds nothing more."""
    adapters = model.adapters
    assert adapters is not None
    parameters = dict(model.encoder.named_parameters())
    with torch.no_grad():
        merged = {name: tensor.clone() for name, tensor in adapters.merged(task, model.encoder).items()}
        for name, tensor in merged.items():
            parameters[name].copy_(tensor)
    model.adapters = None


def _check(part: Part, name: str, answers: Callable[[Sequence[checks.Inputs]], checks.Outputs], limit: float) -> float:
    """Return how far the answers of what is exported are from those of the run. Raises MachineError if too far."""
    dataset, batches = checks.probes(part.model.tasks[name], part.backbone)
    expected = checks.expected(part.model, name, dataset)
    return checks.check(name, checks.difference(expected, answers(batches)), limit)


def _transformers(draft: StagingFolder, under: str, part: Part, limit: float) -> dict[str, float]:
    """Write AutoModel's files, the heads, and a module that puts the two together."""
    differences = {}
    for name in part.names:
        answer = Answer(part.model.heads[name], part.model.tasks[name]).eval()
        differences[name] = _check(part, name, partial(checks.padded_answers, part.portable.encoder, answer), limit)
    _encoder_files(draft, under, part.portable)
    _tensors(draft, f"{under}heads.safetensors", head_tensors({name: part.model.heads[name] for name in part.names}))
    description = {"hidden_size": part.model.hidden_size, **_sequences(part.backbone), "tasks": part.tasks}
    draft.write(f"{under}heads.json", _json(description))
    draft.write(f"{under}modeling.py", (BUNDLED / "modeling.py").read_bytes())
    loaded = _check_loaded(draft, under, part, limit)
    return {name: max(difference, loaded) for name, difference in differences.items()}


def _onnx(draft: StagingFolder, under: str, part: Part, limit: float) -> dict[str, float]:
    """Write one graph for each task, run by onnxruntime on every batch of the probes."""
    from mtmeta.core.export.onnx_graphs import run_graph, task_graphs

    differences = {}
    heads = {name: part.model.heads[name].eval() for name in part.names}
    for name, graph in task_graphs(part.portable.encoder, heads, {name: part.model.tasks[name] for name in part.names}):
        data = graph.SerializeToString()
        differences[name] = _check(part, name, partial(run_graph, data), limit)
        draft.write(f"{under}{name}.onnx", data)
    for name, text in part.portable.files.items():
        if name not in draft.files:  # every group has the same tokenizer
            draft.write(name, text)
    check_tokenizer(draft.folder, part.backbone)
    return differences


def _describe_onnx(draft: StagingFolder, described: dict[str, dict[str, Any]], backbone: LoadedBackbone) -> None:
    """Write labels.json, with inputs and outputs of the graphs, and a module that runs them."""
    tasks = {}
    for name, task in described.items():
        kept = {key: value for key, value in task.items() if key != "head"}
        outputs = ["logits", "score" if task["objective"] == "regression" else "probabilities"]
        tasks[name] = {"file": f"{name}.onnx", **kept, "outputs": outputs}
    draft.write("labels.json", _json({**_sequences(backbone), "tasks": tasks}))
    draft.write("inference.py", (BUNDLED / "inference.py").read_bytes())


def _sentence_transformers(draft: StagingFolder, under: str, part: Part, limit: float) -> dict[str, float]:
    """Write AutoModel's files, and modules that mean-pool its hidden states."""
    _encoder_files(draft, under, part.portable)
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling")))
    ]
    pooling = {"word_embedding_dimension": part.model.hidden_size, "pooling_mode_mean_tokens": True}
    pooling |= {f"pooling_mode_{kind}": False for kind in ("cls_token", "max_tokens", "mean_sqrt_len_tokens")}
    draft.write(f"{under}modules.json", _json(modules))
    draft.write(f"{under}1_Pooling/config.json", _json(pooling))
    # the tokenizer lowercases where it has to
    limits = {"max_seq_length": part.backbone.max_length, "do_lower_case": False}
    draft.write(f"{under}sentence_bert_config.json", _json(limits))
    library: dict[str, Any] = {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    draft.write(f"{under}config_sentence_transformers.json", _json(library))
    difference = checks.check(
        "encoder", checks.encoder_difference(part.model, part.portable.encoder, part.backbone), limit
    )
    return {"encoder of " + ", ".join(part.names): max(difference, _check_loaded(draft, under, part, limit))}


def _check_loaded(draft: StagingFolder, under: str, part: Part, limit: float) -> float:
    """Load what was written as AutoTokenizer and AutoModel do, where transformers is installed, and compare.

    Returns the largest difference of a vector. Raises MachineError for other ids, or too large a difference.
    """
    folder = draft.folder / under
    library = load_transformers()
    check_tokenizer(folder, part.backbone)
    if library is None:
        return 0.0
    encoder = LibraryEncoder(library, folder)
    return checks.check("AutoModel", checks.encoder_difference(part.model, encoder, part.backbone), limit)


def _sequences(backbone: LoadedBackbone) -> dict[str, Any]:
    """Describe how token ids become sequences: prefix + a + suffix, or prefix + a + middle + b + suffix."""
    special = {name: list(getattr(backbone.tokenizer, name)) for name in ("prefix", "middle", "suffix")}
    return {"max_length": backbone.max_length, "special_tokens": special}


def _encoder_files(draft: StagingFolder, under: str, portable: Portable) -> None:
    draft.write(f"{under}config.json", _json(dict(portable.config)))
    _tensors(draft, f"{under}model.safetensors", dict(portable.tensors))
    for name, data in portable.files.items():
        draft.write(f"{under}{name}", data)


def _tensors(draft: StagingFolder, name: str, tensors: dict[str, Tensor]) -> None:
    draft.files[name] = write_tensors(draft.path(name), tensors, {"format": "pt"})


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
