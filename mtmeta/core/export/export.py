"""`mtmeta export`: the best weights of a run as a folder that other libraries load, checked before it is there.

run directory -> packed model (what `mtmeta predict` runs) -> the backbone's `portable` padded twin -> files of a format
-> the same probes through both, compared -> model card, manifest -> one rename.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mtmeta.core.api.backbone import LoadedBackbone
from mtmeta.core.errors import UsageError
from mtmeta.core.export import check as checks
from mtmeta.core.export import text_classification, token_classification
from mtmeta.core.export.heads import Answer, at_temperature, check_rule, describe_tasks, head_tensors
from mtmeta.core.export.int8 import SCHEMES, Int8Loss, put_int8
from mtmeta.core.export.libraries import AdaptedEncoder, LibraryEncoder, check_tokenizer, load_peft, load_transformers
from mtmeta.core.export.model_card import Facts, card
from mtmeta.core.export.parts import Part, as_json, put_encoder, put_tensors
from mtmeta.core.export.peft_files import check_sums, peft_files
from mtmeta.core.machine import fitting_threads, memory_errors, own_settings
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.run.directory import RunDir
from mtmeta.core.run.evaluate import best_model, open_run, restore_backbone
from mtmeta.core.run.request import RunRequest
from mtmeta.core.run.session import Session
from mtmeta.core.storage.staging import Destination, StagingFolder, identity
from mtmeta.core.training.model import MultiTaskModel, separated
from mtmeta.core.wording import choose, did_you_mean, quote

SINGLE = {text_classification.FORMAT: text_classification, token_classification.FORMAT: token_classification}
"""Formats of which each task has a model of its own."""
LIMITS = {"transformers": 1e-5, **dict.fromkeys(SINGLE, 1e-5), "onnx": 1e-4}
LIMITS |= {"sentence-transformers": 1e-5, "peft": 1e-5}
"""Formats, and how far outputs may be from those of `mtmeta predict`."""
FORMATS = tuple(LIMITS)
ADAPTERS_ONLY = "peft"  # the format that only a run with adapters has
BUNDLED = Path(__file__).with_name("bundled")  # modules that go with an export as they stand; never imported


@own_settings()
def export(
    run: str | Path,
    form: str,
    *,
    tasks: Sequence[str] = (),
    out: str | Path | None = None,
    fresh: bool = False,
    int8: str | None = None,
    block: Sequence[str] = (),
    plugins: Sequence[Any] = (),
    warn: Callable[[str], None] = lambda text: None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Export the run in folder `run`; return the document of `--json`: folder, tasks, differences, files.

    `form` is one of FORMATS; `tasks` are all by default; `out` is RUN/export/FORMAT by default. Of an algorithm that
    trains several encoders each has a folder of its own, named after its tasks. `int8` is one of `int8.SCHEMES`, for
    format text-classification. Raises MtmetaError, and then leaves nothing behind.
    """
    if form not in FORMATS:
        raise UsageError("--format", f"{quote(form)} is no format{choose(form, FORMATS)}")
    _check_options(form, int8)
    if out is None:
        RunDir(Path(run)).check_is_run()
        RunDir(Path(run)).check_own()  # the export goes into it
    if load_transformers() is None:
        say("transformers is not installed: AutoModel and AutoTokenizer are not tried on what is exported")
    session = open_run(run, RunRequest(device="cpu", block=block, plugins=plugins, warn=warn))
    if form == ADAPTERS_ONLY:
        if form not in formats_of(session.recipe):
            raise UsageError("--format peft", "this run has no adapters; use --format transformers")
        if load_peft() is None:
            say("peft is not installed: it is not tried on what is exported; pip install 'mtmeta[peft]'")
    tasks = [own for name in tasks for own in _labels_of(session.recipe, name)]
    chosen = _choose_tasks(list(session.recipe.scored), tasks)
    check_labels(session.recipe, chosen)
    if form == ADAPTERS_ONLY:
        _check_adapters(session.recipe, chosen)
    if form in SINGLE:
        chosen = SINGLE[form].choose_tasks(session.recipe, chosen, named=bool(tasks))
    default = session.folder.path / "export" / "-".join([form, *(chosen if tasks else [])])
    place = Destination(Path(out) if out is not None else default, identity(session.folder.lock()), form, fresh=fresh)
    place.check()
    with place.staged() as draft, memory_errors("exporting", "close other programs"):
        facts = _write_models(draft, session, form, chosen, say, int8)
        told = {"tasks": chosen, "steps": facts.steps, "differences": facts.differences}
        told |= {"int8": {name: of_task.plain() for name, of_task in facts.int8.items()}} if facts.int8 else {}
        manifest = place.manifest(draft, told)
    document = {key: manifest[key] for key in ("format", *told)}
    return {"folder": str(place.path), **document, "files": {name: f["size"] for name, f in manifest["files"].items()}}


def _check_options(form: str, int8: str | None) -> None:
    """Raise UsageError for options that do not go together, MachineError for a package that is missing."""
    if int8 is not None and form != text_classification.FORMAT:
        raise UsageError("--int8", f"is for --format {text_classification.FORMAT}, not for {form}")
    if form == "onnx" or int8 is not None:
        from mtmeta.core.export.onnx_graphs import check_packages

        check_packages("--int8" if int8 is not None else "--format onnx")
    if int8 is not None:
        if int8 not in SCHEMES:
            raise UsageError("--int8", f"{quote(int8)} is no scheme{choose(int8, SCHEMES)}")


def formats_of(recipe: Recipe) -> list[str]:
    """Return the formats that a run of a recipe has."""
    lacking = [] if recipe.adapters is not None else [ADAPTERS_ONLY]
    lacking += [] if text_classification.tasks_with_head(recipe) else [text_classification.FORMAT]
    lacking += [] if token_classification.tasks_of_words(recipe) else [token_classification.FORMAT]
    return [form for form in FORMATS if form not in lacking]


def _check_adapters(recipe: Recipe, chosen: Sequence[str]) -> None:
    """Raise UsageError for a task that has none, as it trains the encoder itself: _base is all there is of it."""
    assert recipe.adapters is not None
    adapted = [name for name in chosen if recipe.adapters.adapts(name)]
    if without := [name for name in chosen if name not in adapted]:
        message = f"task {quote(without[0])} has no adapters, it trains the encoder itself; use --format transformers"
        others = " ".join(f"--task {name}" for name in adapted)
        raise UsageError("--format peft", f"{message}, or {others}" if others else message)


def _labels_of(recipe: Recipe, name: str) -> list[str]:
    """Return the labels of a task with several, each of which is a task in exports; else the task."""
    return list(recipe.tasks[name].parts if name in recipe.tasks else ()) or [name]


def check_labels(recipe: Recipe, chosen: Sequence[str]) -> None:
    """Raise UsageError for labels that lie behind adapters of their task's own: in exports they would be tasks."""
    if recipe.adapters is None or recipe.adapters.per != "task":
        return
    for name, task in recipe.tasks.items():
        if any(part in chosen for part in task.parts):
            raise UsageError(
                "--task", f"{quote(name)} has several labels behind adapters of its own, which no format has"
            )


def _choose_tasks(known: Sequence[str], tasks: Sequence[str]) -> list[str]:
    """Return the tasks to export in the order of the recipe. Raises UsageError for one that the run does not have."""
    for name in tasks:
        if name not in known:
            message = f"this run has no task {quote(name)}{did_you_mean(name, known)} (tasks: {', '.join(known)})"
            raise UsageError("--task", message)
    return [name for name in known if not tasks or name in tasks]


def _write_models(
    draft: StagingFolder,
    session: Session,
    form: str,
    chosen: Sequence[str],
    say: Callable[[str], None],
    int8: str | None,
) -> Facts:
    """Write the model of every group of tasks, checked, and the cards; return the facts that the cards state."""
    of_group = [
        (group, [own for name in group for own in _labels_of(session.recipe, name)]) for group in session.groups
    ]
    groups = [(group, names) for group, own in of_group if (names := [name for name in own if name in chosen])]
    base_of = _base_folders(session, [group for group, _ in groups]) if form == ADAPTERS_ONLY else {}
    if form in SINGLE or (session.recipe.adapters is not None and session.recipe.adapters.per == "task"):
        groups = [(group, [name]) for group, names in groups for name in names]  # each has an encoder of its own
    write = WRITERS[form]
    differences: dict[str, float] = {}
    steps: dict[str, int] = {}
    folders: dict[str, list[str]] = {}
    described: dict[str, dict[str, Any]] = {}
    losses: dict[str, Int8Loss] = {}
    heats: dict[str, float] = {}
    for group, names in groups:
        part = load_part(session, group, names, form, base_folder=base_of.get(group[0], ""))
        under = "+".join(names) if len(groups) > 1 and form != "onnx" else ""
        folders.setdefault(under, []).extend(names)
        described |= part.tasks
        heats |= part.temperatures
        with fitting_threads(part.backbone.encoder):
            differences_here = write(draft, f"{under}/" if under else "", part, LIMITS[form])
            if int8 is not None:
                losses |= (costs := put_int8(draft, f"{under}/" if under else "", session, part, int8))
                for name, cost in costs.items():
                    say(f"{name}: {cost.told()}")
        for name, value in differences_here.items():
            say(f"{name}: largest difference to mtmeta predict {value:.1e} (at most {LIMITS[form]:g})")
        differences |= differences_here
        steps |= dict.fromkeys(names, part.step)
    if form == "onnx":
        _describe_onnx(draft, described, part.backbone)
    summary = session.folder.finished()
    figures = summary.plain() if summary is not None else {}
    recipe = replace(session.recipe, tasks=session.recipe.scored)
    facts = Facts(recipe, session.folder.lock(), figures, steps, part.backbone.max_length, differences, losses)
    facts = replace(facts, temperatures=heats)
    facts = replace(
        facts, graphs=form in SINGLE and any(name.endswith(text_classification.GRAPH) for name in draft.files)
    )
    bases = {name: base for group, names in groups if (base := base_of.get(group[0])) for name in names}
    _write_cards(draft, form, facts, folders, described, bases)
    return facts


def _base_folders(session: Session, groups: Sequence[Sequence[str]]) -> dict[str, str]:
    """Return the folder of the encoder that a group's adapters belong to, by its first task; no task is called so."""
    shared = len(groups) == 1 or session.is_frozen or session.follow_first
    return {group[0]: "_base" if shared else "_base-" + "+".join(group) for group in groups}


def _write_cards(
    draft: StagingFolder,
    form: str,
    facts: Facts,
    folders: Mapping[str, Sequence[str]],
    described: Mapping[str, Mapping[str, Any]],
    bases: Mapping[str, str],
) -> None:
    """Write the card of every model, and one above them where they lie in folders of their own."""
    for under, names in folders.items():
        tasks = {name: described.get(name, {}) for name in names}
        base = _beside(under, bases.get(names[0], ""))
        draft.write(f"{under}/README.md" if under else "README.md", card(form, facts, names, tasks, base=base))
    if "" not in folders:
        chosen = [name for names in folders.values() for name in names]
        draft.write("README.md", card(form, facts, chosen, described, folders=folders))


def _beside(under: str, base: str) -> str:
    """Return the way from the folder of a model to that of its base."""
    return f"../{base}" if under and base else base


def load_part(session: Session, group: list[str], names: list[str], form: str, *, base_folder: str = "") -> Part:
    """Load the best weights of a group of tasks, of which `names` are to be exported, with the padded twin.

    With a `base_folder` the encoder without adapters is there too.
    """
    weights, step = session.checkpoints(group).best_and_step()
    backbone, to_portable = restore_backbone(session), session.recipe.backbone.portable
    model = separated(best_model(session, backbone, group, weights))
    tasks = {name: model.tasks[name] for name in names}
    heats = {name: heat for name, heat in session.temperatures.items() if name in names}
    heads = {name: at_temperature(model.heads[name], heats.get(name, 1.0)) for name in names}
    described: dict[str, dict[str, Any]] = {}
    if form == token_classification.FORMAT:
        described = token_classification.describe(names, model.objectives)
    elif form != "sentence-transformers":
        described = describe_tasks(tasks, heads, model.objectives, alone=len(session.recipe.tasks) == 1)
    whole = to_portable(merged_backbone(model, names[0], backbone))
    base = to_portable(backbone) if base_folder else None
    return Part(names, model, backbone, whole, described, step, heads, heats, base, base_folder)


def merged_backbone(model: MultiTaskModel, task: str, backbone: LoadedBackbone) -> LoadedBackbone:
    """Return a backbone whose encoder is the one that a task's sequences go through, adapters and all."""
    if model.adapters is None:
        return backbone
    return replace(backbone, encoder=model.adapters.merged_copy(task, model.encoder))


def _check(part: Part, name: str, answers: Callable[[Sequence[checks.Inputs]], checks.Outputs], limit: float) -> float:
    """Return how far the answers of what is exported are from those of the run. Raises MachineError if too far."""
    dataset, batches = checks.probes(part.model.tasks[name], part.backbone)
    expected = checks.expected(part.model, name, dataset, part.temperatures.get(name, 1.0))
    outputs = torch.from_numpy(expected[0]).float()
    check_rule(part.model.tasks[name], name, part.model.objectives[name], part.tasks[name], outputs)
    return checks.check(name, checks.difference(expected, answers(batches)), limit)


def _answer(part: Part, name: str) -> Answer:
    """Return the head of a task with its objective, as they are in what is exported."""
    return Answer(part.heads[name], part.model.tasks[name], part.model.objectives[name]).eval()


def _transformers(draft: StagingFolder, under: str, part: Part, limit: float) -> dict[str, float]:
    """Write AutoModel's files, the heads, and a module that puts the two together."""
    differences = {}
    for name in part.names:
        answer = _answer(part, name)
        differences[name] = _check(part, name, partial(checks.padded_answers, part.portable.encoder, answer), limit)
    put_encoder(draft, under, part.portable)
    _head_files(draft, under, part)
    loaded = _check_loaded(draft, under, part, limit)
    return {name: max(difference, loaded) for name, difference in differences.items()}


def _head_files(draft: StagingFolder, under: str, part: Part) -> None:
    put_tensors(draft, f"{under}heads.safetensors", head_tensors(part.heads))
    description = {"hidden_size": part.model.hidden_size, **_sequences(part.backbone), "tasks": part.tasks}
    draft.write(f"{under}heads.json", as_json(description))
    draft.write(f"{under}modeling.py", (BUNDLED / "modeling.py").read_bytes())


def _peft(draft: StagingFolder, under: str, part: Part, limit: float) -> dict[str, float]:
    """Write the adapters as peft has them, the heads, which it does not have, and once the encoder they belong to."""
    assert part.base is not None and part.model.adapters is not None
    below = f"{part.base_folder}/"
    if f"{below}config.json" not in draft.files:
        put_encoder(draft, below, part.base)
    files = peft_files(part.model.adapters, part.names[0], part.base)
    check_sums(files, part.base, part.portable)
    config = {**files.config, "base_model_name_or_path": _beside(under, part.base_folder)}
    draft.write(f"{under}adapter_config.json", as_json(config))
    put_tensors(draft, f"{under}adapter_model.safetensors", files.tensors)
    _head_files(draft, under, part)
    base = draft.folder / part.base_folder
    check_tokenizer(base, part.backbone)
    encoders = [part.portable.encoder]
    library, peft = load_transformers(), load_peft()
    if library is not None and peft is not None:
        encoders.append(AdaptedEncoder(library, peft, base, draft.folder / under, files.tensors))
    differences = {}
    for name in part.names:
        answer = _answer(part, name)
        checked = [_check(part, name, partial(checks.padded_answers, one, answer), limit) for one in encoders]
        differences[name] = max(checked)
    return differences


def _onnx(draft: StagingFolder, under: str, part: Part, limit: float) -> dict[str, float]:
    """Write one graph for each task, run by onnxruntime on every batch of the probes."""
    from mtmeta.core.export.onnx_graphs import run_choices, run_graph, task_graphs

    differences = {}
    heads = {name: head.eval() for name, head in part.heads.items()}
    for name, graph in task_graphs(part.portable.encoder, heads, {name: part.model.tasks[name] for name in part.names}):
        data = graph.SerializeToString()
        run = run_choices if part.model.tasks[name].inputs == "choices" else run_graph
        differences[name] = _check(part, name, partial(run, data), limit)
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
        kept = {key: value for key, value in task.items() if key not in ("head", "pooling")}  # the graph has them
        outputs = ["logits", "score" if task["objective"] in ("regression", "targets") else "probabilities"]
        outputs = ["score"] if task["inputs"] == "choices" else outputs
        tasks[name] = {"file": f"{name}.onnx", **kept, "outputs": outputs}
    draft.write("labels.json", as_json({**_sequences(backbone), "tasks": tasks}))
    draft.write("inference.py", (BUNDLED / "inference.py").read_bytes())


def _sentence_transformers(draft: StagingFolder, under: str, part: Part, limit: float) -> dict[str, float]:
    """Write AutoModel's files, and modules that mean-pool its hidden states."""
    put_encoder(draft, under, part.portable)
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling")))
    ]
    pooling = {"word_embedding_dimension": part.model.hidden_size, "pooling_mode_mean_tokens": True}
    pooling |= {f"pooling_mode_{kind}": False for kind in ("cls_token", "max_tokens", "mean_sqrt_len_tokens")}
    draft.write(f"{under}modules.json", as_json(modules))
    draft.write(f"{under}1_Pooling/config.json", as_json(pooling))
    # the tokenizer lowercases where it has to
    limits = {"max_seq_length": part.backbone.max_length, "do_lower_case": False}
    draft.write(f"{under}sentence_bert_config.json", as_json(limits))
    library: dict[str, Any] = {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    draft.write(f"{under}config_sentence_transformers.json", as_json(library))
    difference = checks.check(
        "encoder", checks.encoder_difference(part.model, part.names[0], part.portable.encoder, part.backbone), limit
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
    difference = checks.encoder_difference(part.model, part.names[0], encoder, part.backbone)
    return checks.check("AutoModel", difference, limit)


def _sequences(backbone: LoadedBackbone) -> dict[str, Any]:
    """Describe how token ids become sequences: prefix + a + suffix, or prefix + a + middle + b + suffix."""
    special = {name: list(getattr(backbone.tokenizer, name)) for name in ("prefix", "middle", "suffix")}
    return {"max_length": backbone.max_length, "special_tokens": special}


WRITERS = {"transformers": _transformers, "onnx": _onnx, "sentence-transformers": _sentence_transformers, "peft": _peft}
WRITERS |= {form: partial(module.write, graph_limit=LIMITS["onnx"]) for form, module in SINGLE.items()}
