"""The README.md of an export: what the model is, how good, how it is used, how it was made.

Its YAML front matter is what the Hugging Face Hub reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mtmeta.core.api.option_types import Carve
from mtmeta.core.recipe.resolved import describe, dump
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.studies.adapted_runs import origin

__all__ = ["Facts", "card"]

LIBRARY = {"transformers": "transformers", "onnx": "onnx", "sentence-transformers": "sentence-transformers"}
KINDS = {"regression": "text-scoring", "binary": "text-classification", "classification": "text-classification"}
SINGLE = ("A joy from start to end.", "Two hours I will not get back.")
PAIRS = (("A dog runs.", "A dog is running."), ("It rains.", "The sun shines."))


@dataclass(frozen=True)
class Facts:
    """What there is to say of a run and its export."""

    recipe: Recipe
    lock: Mapping[str, Any]
    summary: Mapping[str, Any] | None
    steps: Mapping[str, int]
    max_length: int
    differences: Mapping[str, float]


def card(
    form: str,
    facts: Facts,
    names: Sequence[str],
    described: Mapping[str, Mapping[str, Any]],
    *,
    folders: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """The card for tasks `names`; `folders` are those of models that each have a card of their own.

    Of a run that is not finished there are no figures yet, and the card says so.
    """
    recipe = facts.recipe
    lines = ["---", yaml.safe_dump(_front(form, facts, names), sort_keys=False, allow_unicode=True).rstrip(), "---", ""]
    lines += [f"# {_text(recipe.name)}", "", _what(form, facts, names), ""]
    lines += ["## Figures", "", *_figures(facts, names), ""]
    if folders:
        lines += ["## Models", "", "Each task has an encoder of its own, in a folder with a card of its own:", ""]
        lines += [f"- [{_text(under)}]({under}/README.md)" for under in folders]
    else:
        lines += ["## Use", "", *_use(form, facts, names, described)]
    lines += ["", "## How it was made", "", *_made(facts, names), ""]
    return "\n".join(lines)


def _front(form: str, facts: Facts, names: Sequence[str]) -> dict[str, Any]:
    kinds = [_kind(facts, name) for name in names]
    front: dict[str, Any] = {"library_name": LIBRARY[form]}
    if form == "sentence-transformers":
        front["pipeline_tag"] = "sentence-similarity"
    elif form == "transformers":
        front["pipeline_tag"] = "feature-extraction"
    weights = getattr(facts.recipe.backbone, "weights", "")
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", str(weights)) and not Path(weights).exists():
        front["base_model"] = weights.partition("@")[0]
    front["tags"] = list(dict.fromkeys(["mtmeta", "multi-task-learning", facts.recipe.algorithm.name, *kinds]))
    results = [_result(facts, name) for name in names if name in _scores(facts)]
    if results:
        front["model-index"] = [{"name": facts.recipe.name, "results": results}]
    return front


def _kind(facts: Facts, name: str) -> str:
    task = facts.recipe.tasks[name]
    return (
        "text-classification"
        if task.objective.classes
        else "sentence-similarity"
        if task.inputs != "single"
        else "text-regression"
    )


def _scores(facts: Facts) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (facts.summary or {}).get("tasks", {})
    return found


def _result(facts: Facts, name: str) -> dict[str, Any]:
    score, split = _scores(facts)[name], str((facts.summary or {})["split"])
    task = facts.recipe.tasks[name]
    file = getattr(task, split, None) or name
    file = task.train if isinstance(file, Carve) else file  # what it was taken out of
    metrics = {score["metric"]: score["value"], **score["others"]}
    return {
        "task": {"type": _kind(facts, name), "name": name},
        "dataset": {"type": name, "name": Path(file).name, "split": split},
        "metrics": [{"type": metric, "value": round(value, 4), "name": metric} for metric, value in metrics.items()],
    }


def _what(form: str, facts: Facts, names: Sequence[str]) -> str:
    recipe = facts.recipe
    many = f"{len(recipe.tasks)} tasks" if len(recipe.tasks) > 1 else "one task"
    trained = (
        f"A BERT-family encoder trained with mtmeta on {many} "
        f"({', '.join(map(_code, recipe.tasks))}) by the algorithm {_code(recipe.algorithm.name)}."
    )
    held = {
        "transformers": "This folder holds the encoder, as AutoModel loads it, and the heads of ",
        "onnx": "This folder holds ONNX graphs, encoder and head together, of ",
        "sentence-transformers": "This folder holds the encoder with mean pooling, without the heads; it learned ",
    }[form]
    return f"{trained} {held}{', '.join(map(_code, names))}."


def _figures(facts: Facts, names: Sequence[str]) -> list[str]:
    summary = facts.summary
    if summary is None:
        return ["The run is not finished: these are its best weights so far, and there are no figures yet."]
    rows = ["| task | metric | value | 95% interval | examples | split |", "|---|---|---|---|---|---|"]
    for name in names:
        if name not in summary["tasks"]:
            continue
        score = summary["tasks"][name]
        span = "" if score["low"] is None else f"{score['low']:.4f} to {score['high']:.4f}"
        cells = (
            _code(name),
            score["metric"],
            f"{score['value']:.4f}",
            span,
            f"{score['examples']:,}",
            summary["split"],
        )
        rows.append(f"| {' | '.join(map(str, cells))} |")
        for metric, value in score["others"].items():
            rows.append(f"| {_code(name)} | {metric} | {value:.4f} |  | {score['examples']:,} | {summary['split']} |")
    selected = summary["selected_on"]
    same = ", the split reported here, so the figures are optimistic" if selected == summary["split"] else ""
    how = "Nothing was selected" if facts.lock.get("adapted") else f"Weights were selected on {selected}{same}"
    return [*rows, "", f"Intervals are bootstrap over the examples of the split, of one seed. {how}."]


def _made(facts: Facts, names: Sequence[str]) -> list[str]:
    recipe, lock, summary = facts.recipe, facts.lock, facts.summary
    steps = ", ".join(f"{_code(name)} {facts.steps[name]:,}" for name in names)
    lines = [f"- seed {recipe.seed}; weights of step: {steps}"]
    lines += [f"- {_text(line)}" for line in origin(lock)]
    if summary is not None:
        lines.append(f"- {summary['examples']:,} example-forwards in training, {summary['steps']:,} steps in all")
    versions = ", ".join(f"{key} {lock[key]}" for key in ("mtmeta", "torch", "tokenizers", "python") if key in lock)
    lines.append(f"- trained with {versions}; precision {lock.get('precision', 'fp32')}, exported in fp32")
    plugins = lock.get("plugins")
    if isinstance(plugins, dict) and plugins:
        lines.append(f"- plugins: {', '.join(f'{_text(name)} {_text(number)}' for name, number in plugins.items())}")
    lines.append(f"- pretrained weights: {_code(str(lock.get('backbone')))}")
    for key, value in dict(lock.get("data", {})).items():
        if key.rpartition("-")[0] in names:
            lines.append(f"- {_text(key)} file: sha256 {_code(str(value))}")
    worst = max(facts.differences.values(), default=0.0)
    lines.append(f"- outputs compared with `mtmeta predict` at export: largest difference {worst:.1e}")
    data = describe(recipe)
    data["data_root"] = "DATA"  # where data and weights lay is the user's own affair
    weights = data["backbone"].get("weights")
    if isinstance(weights, str) and (weights.startswith(("/", "~", ".")) or "\\" in weights):
        data["backbone"]["weights"] = Path(weights.rstrip("/")).name or "FOLDER"
    for task in data["tasks"].values():
        task |= {key: Path(task[key]).name for key in ("train", "dev", "test") if isinstance(task.get(key), str)}
    return [*lines, "", "The recipe, every default written out:", "", *_fenced(dump(data).rstrip(), "yaml")]


# ------------------------------------------------------------------------------------------------------------------ use


def _use(form: str, facts: Facts, names: Sequence[str], described: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if form == "transformers":
        return _use_transformers(facts, names, described)
    if form == "onnx":
        return _use_onnx(facts, names, described)
    code = [
        "from sentence_transformers import SentenceTransformer",
        "",
        'model = SentenceTransformer(".")  # this folder',
        f"vectors = model.encode({_literal(list(SINGLE))})",
        "print(model.similarity(vectors, vectors))",
    ]
    return [f"Texts are cut to {facts.max_length} tokens.", "", *_fenced("\n".join(code), "python")]


def _use_transformers(facts: Facts, names: Sequence[str], described: Mapping[str, Mapping[str, Any]]) -> list[str]:
    encoder = [
        "from transformers import AutoModel, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained(".")  # this folder',
        'encoder = AutoModel.from_pretrained(".")',
        f"texts = {_literal(list(SINGLE))}",
        'batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")',
        "hidden = encoder(**batch).last_hidden_state",
        'weights = batch["attention_mask"][:, :, None]',
        "vectors = (hidden * weights).sum(1) / weights.sum(1)  # what the heads take: the mean over tokens",
        "print(vectors.shape)",
    ]
    heads = [
        "from modeling import MultiTaskModel",
        "",
        'model = MultiTaskModel.from_folder(".")',
        *(f"print(model.predict({_literal(name)}, {_literal(_texts(described[name]))}))" for name in names),
    ]
    return [
        "Encoder and heads: `modeling.py` is a short file in plain PyTorch, to read, copy and change; it predicts",
        "what `mtmeta predict` does, truncation of pairs included. `heads.json` says what each head takes and gives.",
        "",
        *_fenced("\n".join(heads), "python"),
        "",
        "The encoder alone. Its pooler is the identity before the tanh; no head uses it.",
        "",
        *_fenced("\n".join(encoder), "python"),
    ]


def _use_onnx(facts: Facts, names: Sequence[str], described: Mapping[str, Mapping[str, Any]]) -> list[str]:
    found = [
        "Inputs are int64 [batch, length], both sizes free: `input_ids`, `attention_mask` (0 at padding) and",
        "`token_type_ids`; where both texts of a pair are encoded apart, three more for the second, ending in `_2`.",
        "`labels.json` names the classes of each graph, or the range of its number. Texts are cut to "
        f"{facts.max_length} tokens.",
        "",
        "| graph | takes | gives |",
        "|---|---|---|",
    ]
    for name in names:
        message = described[name]
        takes = {"single": "a text", "cross": "a pair in one sequence", "separate": "a pair, two sequences"}[
            message["inputs"]
        ]
        gives = (
            "`logits`, and `score`, the same within its range"
            if message["objective"] == "regression"
            else f"`logits`, `probabilities` of {len(message['labels'])} classes"
        )
        found.append(f"| `{name}.onnx` | {takes} | {gives} |")
    code = [
        "from inference import OnnxModel",
        "",
        'model = OnnxModel(".")  # this folder',
        *(f"print(model.predict({_literal(name)}, {_literal(_texts(described[name]))}))" for name in names),
    ]
    return [
        *found,
        "",
        "`inference.py` is a short file on NumPy, tokenizers and onnxruntime, to read, copy and change; it predicts",
        "what `mtmeta predict` does. Of a pair in one sequence the longer text is cut first, as there; truncation by",
        "tokenizer.json itself may leave one token more to the other text.",
        "",
        *_fenced("\n".join(code), "python"),
    ]


def _texts(message: Mapping[str, Any]) -> list[Any]:
    return list(SINGLE) if message["inputs"] == "single" else list(PAIRS)


def _literal(value: Any) -> str:
    """A Python literal with double quotes; pairs are tuples."""
    if isinstance(value, list | tuple):
        opened, closed = "[]" if isinstance(value, list) else "()"
        return opened + ", ".join(map(_literal, value)) + closed
    return json.dumps(value, ensure_ascii=True)


# --------------------------------------------------------------------------------------------------------------- words


def _text(value: Any) -> str:
    """A user's words as Markdown shows them as they are."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~&])", r"\\\1", " ".join(str(value).split()))


def _code(value: str) -> str:
    return f"`{' '.join(value.replace('`', chr(39)).replace('|', '/').split())}`"


def _fenced(text: str, language: str) -> list[str]:
    """A code block whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", text, fence]
