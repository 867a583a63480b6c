"""The document of a server's interface, /openapi.json: each task with its own labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote as escaped

from mtmeta.core.api.contracts import Task, count_texts
from mtmeta.core.api.objectives import Regression
from mtmeta.core.serving.questions import Limits

Described = Mapping[str, Mapping[str, Any]]


def describe(tasks: Mapping[str, Task]) -> dict[str, dict[str, Any]]:
    """Return what the page and the document say of each task: how many texts, labels, or the range of its number."""
    described: dict[str, dict[str, Any]] = {}
    for name, task in tasks.items():
        objective = task.objective
        if task.parts:
            described[name] = {"texts": count_texts(task), "labels": [], "outputs": describe(task.parts)}
            continue
        described[name] = {"texts": count_texts(task), "labels": list(objective.classes)}
        several = objective.labelled == "row" and bool(objective.classes)
        described[name] |= {"several": several, "words": objective.labelled == "words"}
        if isinstance(objective, Regression):
            described[name] |= {"low": objective.low, "high": objective.high}
        if objective.targets:
            described[name]["targets"] = list(objective.targets)
    return described


def document(title: str, version: str, described: Described, limits: Limits) -> dict[str, Any]:
    """Return the document."""
    paths: dict[str, Any] = {
        f"/predict/{escaped(name, safe='')}": _predict(name, described[name], limits) for name in described
    }
    paths["/health"] = {"get": _get("Whether the server is ready", "application/json", {"type": "object"})}
    paths["/metrics"] = {"get": _get("Counts and times for Prometheus", "text/plain", {"type": "string"})}
    error = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    info = {"title": title, "version": version, "description": "Predictions of a run of mtmeta."}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": {"Error": error}}}


def _get(summary: str, kind: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": {"description": summary, "content": {kind: {"schema": schema}}}}}


def _predict(name: str, task: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    text: dict[str, Any] = {"type": "string", "minLength": 1}
    if (count := task["texts"]) > 1:
        text = {"type": "array", "items": text, "minItems": count, "maxItems": count}
    several = {"type": "array", "items": text, "minItems": 1, "maxItems": limits.texts}
    body = {
        "type": "object",
        "properties": {"text": text, "texts": several},
        "oneOf": [{"required": ["text"]}, {"required": ["texts"]}],
        "additionalProperties": False,
    }
    answer = {"type": "object", "properties": {"task": {"const": name}, "predictions": _predictions(task)}}
    responses: dict[str, Any] = {
        "200": {"description": "A prediction for each text, in their order", "content": _json(answer)}
    }
    for status, why in (
        ("400", "the body is no JSON"),
        ("404", "no such task"),
        ("408", "the body did not come in time"),
        ("413", "too long, or too many texts"),
        ("415", "not application/json"),
        ("422", "not what the task takes"),
        ("503", "too many texts wait; try again"),
    ):
        responses[status] = {"description": why, "content": _json({"$ref": "#/components/schemas/Error"})}
    kind = {1: "texts", 2: "pairs of texts"}.get(count, "texts with their choices")
    request = {"required": True, "content": _json(body)}
    operation = f"predict_{name}"
    return {
        "post": {
            "summary": f"Predict {name} for {kind}",
            "operationId": operation,
            "requestBody": request,
            "responses": responses,
        }
    }


def _predictions(task: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": _prediction(task)}


def _prediction(task: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any]
    if outputs := task.get("outputs"):
        each = {name: _prediction(own) for name, own in outputs.items()}
        fields = {"outputs": {"type": "object", "properties": each}}
    elif task["words"]:
        words = {"type": "array", "items": {"type": "string"}}
        place = {"type": "integer", "minimum": 0}
        span = {"label": {"type": "string"}, "start": place, "end": place, "text": {"type": "string"}}
        fields = {
            "words": words,
            "labels": {"type": "array", "items": {"type": "string", "enum": task["labels"]}},
            "spans": {"type": "array", "items": {"type": "object", "properties": span}},
        }
    elif labels := task["labels"]:
        chance = {"type": "number", "minimum": 0, "maximum": 1}
        label = {"type": "string", "enum": labels}
        answer = {"labels": {"type": "array", "items": label}} if task["several"] else {"label": label, "score": chance}
        fields = {**answer, "probabilities": {"type": "object", "properties": dict.fromkeys(labels, chance)}}
    elif targets := task.get("targets"):
        numbers = {name: {"type": "number"} for name in targets}
        fields = {"scores": {"type": "object", "properties": numbers}}
    else:
        bounds = {key: task[bound] for key, bound in (("minimum", "low"), ("maximum", "high")) if bound in task}
        fields = {"score": {"type": "number", **bounds}}
    return {"type": "object", "properties": fields}


def _json(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def page(template: str, title: str, described: Described) -> str:
    """Return the page of a server: the template with its title and what it is to know of the tasks."""
    data = json.dumps(described, ensure_ascii=True).replace("<", "\\u003c")
    return template.replace("@TASKS@", data).replace("@TITLE@", _html(title))


def _html(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
