"""The README.md of an export, by `model_card_template.md`: the model, its figures, its use, how it was made.

Its YAML front matter is for the Hugging Face Hub.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mtmeta.core.api.option_types import Carve
from mtmeta.core.recipe.resolved import describe, dump
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.studies.adapted_runs import origin

TEMPLATE = Path(__file__).with_name("model_card_template.md")
PIPELINES = {"sentence-transformers": "sentence-similarity", "transformers": "feature-extraction"}
SINGLE = ("A joy from start to end.", "Two hours I will not get back.")
PAIRS = (("A dog runs.", "A dog is running."), ("It rains.", "The sun shines."))
INPUTS = {"single": "a text", "cross": "a pair in one sequence", "separate": "a pair, two sequences"}


@dataclass(frozen=True)
class Facts:
    """A run and its export: recipe, lock and summary, the step of each task's weights, differences by the check."""

    recipe: Recipe
    lock: Mapping[str, Any]
    summary: Mapping[str, Any] | None
    steps: Mapping[str, int]
    max_length: int
    differences: Mapping[str, float]

    @property
    def scores(self) -> Mapping[str, Any]:
        """The summary's scores by task; none of a run that is not finished."""
        scores: Mapping[str, Any] = (self.summary or {}).get("tasks", {})
        return scores


def card(
    form: str,
    facts: Facts,
    names: Sequence[str],
    described: Mapping[str, Mapping[str, Any]],
    *,
    folders: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Return the card for tasks `names`; `folders` are those of models that each have a card of their own.

    Of a run that is not finished there are no figures yet, and the card says so.
    """
    recipe, lock, summary = facts.recipe, facts.lock, facts.summary
    many = f"{len(recipe.tasks)} tasks" if len(recipe.tasks) > 1 else "one task"
    described = {name: described[name] for name in names if described.get(name)}
    plugins = lock.get("plugins")
    recipe_text = dump(_without_paths(recipe)).rstrip()
    rendered = ModelCard.from_template(
        _metadata(form, facts, names),
        template_path=str(TEMPLATE),
        form=form,
        recipe=recipe,
        lock=lock,
        summary=summary,
        folders=folders,
        trained_on=f"{many} ({_codes(recipe.tasks)})",
        held=_codes(names),
        figures=_figures(facts, names),
        adapted=bool(lock.get("adapted")),
        described=described,
        inputs=INPUTS,
        max_length=facts.max_length,
        texts=_literal(list(SINGLE)),
        calls=[f"model.predict({_literal(name)}, {_literal(_texts(task))})" for name, task in described.items()],
        steps=", ".join(f"{_code(name)} {facts.steps[name]:,}" for name in names),
        origin=origin(lock),
        versions=", ".join(f"{key} {lock[key]}" for key in ("mtmeta", "torch", "tokenizers", "python") if key in lock),
        plugins=", ".join(f"{_text(name)} {_text(number)}" for name, number in plugins.items())
        if isinstance(plugins, dict)
        else "",
        data_files=[item for item in dict(lock.get("data", {})).items() if item[0].rpartition("-")[0] in names],
        difference=max(facts.differences.values(), default=0.0),
        recipe_text=recipe_text,
        fence=_fence(recipe_text),
        text=_text,
        code=_code,
    )
    return f"{rendered}\n"


# -------------------------------------------------------------------------------------------------------- front matter


def _metadata(form: str, facts: Facts, names: Sequence[str]) -> ModelCardData:
    recipe = facts.recipe
    weights = str(getattr(recipe.backbone, "weights", ""))
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", weights) and not Path(weights).exists()
    results = [result for name in names if name in facts.scores for result in _results(facts, name)]
    return ModelCardData(
        library_name=form,
        pipeline_tag=PIPELINES.get(form),
        base_model=weights.partition("@")[0] if on_hub else None,
        tags=["mtmeta", "multi-task-learning", recipe.algorithm.name, *(_kind(recipe, name) for name in names)],
        model_name=recipe.name if results else None,
        eval_results=results or None,
    )


def _kind(recipe: Recipe, name: str) -> str:
    """Return the name that the Hub has for a task."""
    task = recipe.tasks[name]
    if task.objective.classes:
        return "text-classification"
    return "text-regression" if task.inputs == "single" else "sentence-similarity"


def _results(facts: Facts, name: str) -> list[EvalResult]:
    """Return every metric of a task as the Hub's model index has it."""
    score, split = facts.scores[name], str((facts.summary or {})["split"])
    task = facts.recipe.tasks[name]
    file = getattr(task, split, None) or name
    file = task.train if isinstance(file, Carve) else file  # what it was taken out of
    return [
        EvalResult(
            task_type=_kind(facts.recipe, name),
            task_name=name,
            dataset_type=name,
            dataset_name=Path(file).name,
            dataset_split=split,
            metric_type=metric,
            metric_name=metric,
            metric_value=round(value, 4),
        )
        for metric, value in {score["metric"]: score["value"], **score["others"]}.items()
    ]


# ---------------------------------------------------------------------------------------------------------------- body


def _figures(facts: Facts, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return rows of task, metric, value, interval, examples and split."""
    rows: list[tuple[str, ...]] = []
    for name in names:
        if name not in facts.scores:
            continue
        score, split = facts.scores[name], str((facts.summary or {})["split"])
        interval = "" if score["low"] is None else f"{score['low']:.4f} to {score['high']:.4f}"
        metrics = [(score["metric"], score["value"], interval), *((*other, "") for other in score["others"].items())]
        for metric, value, interval in metrics:
            rows.append((_code(name), metric, f"{value:.4f}", interval, f"{score['examples']:,}", split))
    return rows


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


def _texts(task: Mapping[str, Any]) -> list[Any]:
    return list(SINGLE) if task["inputs"] == "single" else list(PAIRS)


def _literal(value: Any) -> str:
    """Return a Python literal with double quotes; pairs are tuples."""
    if isinstance(value, list | tuple):
        opened, closed = "[]" if isinstance(value, list) else "()"
        return opened + ", ".join(map(_literal, value)) + closed
    return json.dumps(value, ensure_ascii=True)


def _text(value: Any) -> str:
    """Return a user's words so that Markdown shows them as they are."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~&])", r"\\\1", " ".join(str(value).split()))


def _code(value: Any) -> str:
    return f"`{' '.join(str(value).replace('`', chr(39)).replace('|', '/').split())}`"


def _codes(values: Iterable[str]) -> str:
    return ", ".join(map(_code, values))


def _fence(text: str) -> str:
    """Return the fence of a code block, longer than any in the text."""
    return "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
