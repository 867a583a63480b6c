"""The README.md of an export, by `model_card_template.md`: the model, its figures, its use, how it was made.

Its YAML front matter is for the Hugging Face Hub.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mtmeta.core.api.option_types import Carve
from mtmeta.core.export.int8 import Int8Loss
from mtmeta.core.recipe.resolved import describe, dump
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.studies.adapted_runs import origin
from mtmeta.core.wording import markdown, visible

TEMPLATE = Path(__file__).with_name("model_card_template.md")
PIPELINES = {
    "sentence-transformers": "sentence-similarity",
    "transformers": "feature-extraction",
    "text-classification": "text-classification",
    "token-classification": "token-classification",
    "peft": "feature-extraction",
}
SINGLE = ["A joy from start to end.", "Two hours I will not get back."]
PAIRS = [("A dog runs.", "A dog is running."), ("It rains.", "The sun shines.")]
INPUTS = {
    "single": "a text",
    "cross": "a pair in one sequence",
    "separate": "a pair, two sequences",
    "both": "a pair in one sequence, and swapped in a second",
    "choices": "a text and its choices, a sequence for each choice",
}


@dataclass(frozen=True)
class Facts:
    """A run and its export; `summary` is empty while the run is not finished, `steps` are those of the weights."""

    recipe: Recipe
    lock: Mapping[str, Any]
    summary: Mapping[str, Any]
    steps: Mapping[str, int]
    max_length: int
    differences: Mapping[str, float]
    int8: Mapping[str, Int8Loss] = field(default_factory=dict)
    graphs: bool = False
    """Whether models of one task have ONNX graphs beside them."""
    temperatures: Mapping[str, float] = field(default_factory=dict)
    """Those that were fitted, by task."""


def card(
    form: str,
    facts: Facts,
    names: Sequence[str],
    described: Mapping[str, Mapping[str, Any]],
    *,
    folders: Mapping[str, Sequence[str]] | None = None,
    base: str = "",
) -> str:
    """Return the card for tasks `names`; `folders` are those of models that each have a card of their own.

    `base` is the way to the encoder that adapters belong to. Of a run that is not finished there are no figures yet, as
    the card says.
    """
    recipe, lock = facts.recipe, facts.lock
    many = f"{len(recipe.tasks)} tasks" if len(recipe.tasks) > 1 else "one task"
    described = {name: described[name] for name in names if described.get(name)}
    recipe_text = visible(dump(_without_paths(recipe)).rstrip())
    rendered = ModelCard.from_template(
        _metadata(form, facts, names),
        template_path=str(TEMPLATE),
        form=form,
        recipe=recipe,
        lock=lock,
        summary=facts.summary,
        folders=folders,
        base=base,
        trained_on=f"{many} ({_codes(recipe.tasks)})",
        held=_codes(names),
        names=names,
        adapted=bool(lock.get("adapted")),
        described=described,
        inputs=INPUTS,
        max_length=facts.max_length,
        texts=_literal(SINGLE),
        pipeline_input=_pipeline_input(described.get(names[0], {})),
        int8={name: facts.int8[name] for name in names if name in facts.int8},
        graphs=facts.graphs,
        temperatures=[
            (name, facts.temperatures[name]) for name in names if name in facts.temperatures and name in described
        ],
        calls=[f"model.predict({_literal(name)}, {_literal(_texts(task))})" for name, task in described.items()],
        steps=", ".join(f"{_code(name)} {facts.steps[name]:,}" for name in names),
        origin=origin(lock),
        data_files=[item for item in dict(lock.get("data", {})).items() if item[0].rpartition("-")[0] in names],
        difference=max(facts.differences.values(), default=0.0),
        recipe_text=recipe_text,
        fence=_fence(recipe_text),
        text=markdown,
        code=_code,
    )
    return f"{rendered}\n"


def _texts(described: Mapping[str, Any]) -> list[Any]:
    """Return texts as a task takes them."""
    if described["inputs"] == "choices":
        choices = ["The street is wet.", "A dog runs.", *["The sun shines."] * len(described["labels"])]
        return [("It rains.", *choices[: len(described["labels"])])]
    return SINGLE if described["inputs"] == "single" else PAIRS


def _pipeline_input(described: Mapping[str, Any]) -> str:
    """Return what pipeline() is given in the example: a text, or a pair as it takes one."""
    if described.get("inputs") != "cross":
        return _literal(SINGLE[0])
    first, second = map(_literal, PAIRS[0])
    return f'{{"text": {first}, "text_pair": {second}}}'


def _metadata(form: str, facts: Facts, names: Sequence[str]) -> ModelCardData:
    recipe = facts.recipe
    weights = str(getattr(recipe.backbone, "weights", ""))
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", weights) and not Path(weights).exists()
    scores = facts.summary.get("tasks", {})
    results = [result for name in names if name in scores for result in _results(facts, name)]
    return ModelCardData(
        library_name="transformers" if form in ("text-classification", "token-classification") else form,
        pipeline_tag=PIPELINES.get(form),
        base_model=weights.partition("@")[0] if on_hub else None,
        tags=["mtmeta", "multi-task-learning", recipe.algorithm.name, *(_kind(recipe, name) for name in names)],
        model_name=recipe.name if results else None,
        eval_results=results or None,
    )


def _kind(recipe: Recipe, name: str) -> str:
    """Return the name that the Hub has for a task."""
    task = recipe.tasks[name]
    if task.objective.labelled == "words":
        return "token-classification"
    if task.objective.classes:
        return "text-classification"
    return "text-regression" if task.inputs == "single" else "sentence-similarity"


def _results(facts: Facts, name: str) -> list[EvalResult]:
    """Return every metric of a task as the Hub's model index has it."""
    score, split = facts.summary["tasks"][name], _line(facts.summary["split"])
    task = facts.recipe.tasks[name]
    file = getattr(task, split, None) or name
    file = task.train if isinstance(file, Carve) else file  # what it was taken out of
    return [
        EvalResult(
            task_type=_kind(facts.recipe, name),
            task_name=name,
            dataset_type=name,
            dataset_name=_line(Path(file).name),
            dataset_split=split,
            metric_type=_line(metric),
            metric_name=_line(metric),
            metric_value=round(value, 4),
        )
        for metric, value in {score["metric"]: score["value"], **score["others"]}.items()
    ]


def _without_paths(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as data, without where data and weights lay: that is the user's own affair."""
    data = describe(recipe)
    data["data_root"] = "DATA"
    weights = data["backbone"].get("weights")
    if isinstance(weights, str) and (weights.startswith(("/", "~", ".")) or "\\" in weights):
        data["backbone"]["weights"] = Path(weights.rstrip("/")).name or "FOLDER"
    for task in data["tasks"].values():
        task |= {key: Path(task[key]).name for key in ("train", "dev", "test") if isinstance(task.get(key), str)}
    return data


def _literal(value: Any) -> str:
    """Return a Python literal with double quotes; pairs are tuples."""
    if isinstance(value, list | tuple):
        opened, closed = "[]" if isinstance(value, list) else "()"
        return opened + ", ".join(map(_literal, value)) + closed
    return json.dumps(value, ensure_ascii=True)


def _code(value: Any) -> str:
    return f"`{_line(value).replace('`', chr(39)).replace('|', '/')}`"


def _line(value: Any) -> str:
    """Return a user's words in one line: a line of its own could end the front matter, or begin a heading."""
    return visible(" ".join(str(value).split()))


def _codes(values: Iterable[str]) -> str:
    return ", ".join(map(_code, values))


def _fence(text: str) -> str:
    """Return the fence of a code block, longer than any in the text."""
    return "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
