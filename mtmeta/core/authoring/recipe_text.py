"""The text of a drafted recipe, each choice with its reason beside it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtmeta.core.authoring.task_guess import Choice, TaskGuess
from mtmeta.core.wording import safe

# anything that YAML of some version takes for other than text, or that a flow collection needs quoted, is quoted
PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")
CONSTANTS = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")
WIDTH, REASON_AT = 110, 48


def recipe_text(
    path: Path,
    name: str,
    root: str,
    backbone: tuple[str, str],
    tasks: Sequence[TaskGuess],
    settings: Sequence[Choice],
    inner: Mapping[str, int],
) -> str:
    """Write the recipe. `backbone` is its name and weights.

    `inner` holds the inner steps of each task where the algorithm has an inner loop.
    """
    (encoder, weights), choices = backbone, {choice.key: choice for choice in settings}
    longest = choices["max_length"]
    learning = f"{{name: adamw, lr: {'2e-4' if weights == 'embedded' else '3e-5'}, head_lr: 1e-3}}"
    shown = safe(shlex.quote(str(path)), 200)
    lines = [
        "# Written by `mtmeta new recipe`: what it guessed about the data, and why, stands beside each line.",
        "#",
        f"# Check:        mtmeta validate --data {shown}",
        f"# Launch:       mtmeta run {shown}",
        f"name: {scalar(name)}",
        "seed: 1",
        _line("data_root", root, "where the data files are; --data-root and MTMETA_DATA override it"),
        _raw(
            f"backbone: {{name: {scalar(encoder)}, weights: {scalar(weights)}, max_length: {longest.value}}}",
            longest.why,
        ),
        "tasks:",
    ]
    for task in tasks:
        lines += [f"  {task.name}:", *(f"    # {safe(note, 300)}" for note in task.notes)]
        for choice in task.choices:
            lines += _wrapped(choice)
        if task.name in inner:
            lines.append(_raw(f"    inner_steps: {inner[task.name]}", "of one episode"))
    if skip := choices.get("on_bad_rows"):
        lines.append(_raw("data: {on_bad_rows: skip}", skip.why))
    lines += _training(choices, learning, bool(inner), len(tasks))
    return "\n".join(lines) + "\n"


def _training(choices: Mapping[str, Choice], learning: str, inner: bool, tasks: int) -> Iterator[str]:
    algorithm, steps, every = choices["algorithm"], choices["steps"], choices["every"]
    if inner:
        if tasks > 1:
            yield _raw("sampler: {name: temperature, temperature: 2}", "large tasks more often, small ones not rarely")
        yield "algorithm:"
        yield _raw(f"  name: {scalar(algorithm.value)}", algorithm.why)
        yield f"  inner_optimizer: {learning}"
        yield "  inner_schedule: constant"
        if algorithm.value == "reptile":
            yield _raw("optimizer: {name: sgd, lr: 1.0}", "the meta optimizer: all the way to the adapted weights")
        else:
            yield _raw("optimizer: {name: adamw, lr: 1e-4, head_lr: 3e-3}", "the meta optimizer")
    else:
        yield _line("algorithm", algorithm.value, algorithm.why)
        yield _raw(f"optimizer: {learning}", "heads start from nothing and need larger steps")
    yield "schedule: cosine"
    yield _raw(f"training: {{steps: {steps.value}, clip: 1.0}}", steps.why)
    yield _raw(f"evaluation: {{every: {every.value}, select_on: dev, report_on: dev, select: mean}}", every.why)


def _wrapped(choice: Choice) -> list[str]:
    """Return the choice in one line, a list in several where one would be too long."""
    line = f"    {choice.key}: {scalar(choice.value)}"
    if len(line) <= WIDTH or not isinstance(choice.value, list):
        return [_raw(line, choice.why)]
    lines, current = [_raw(f"    {choice.key}: [", choice.why)], "      "
    for item in map(scalar, choice.value):
        if len(current) + len(item) > WIDTH and current.strip():
            lines.append(current.rstrip())
            current = "      "
        current += f"{item}, "
    return [*lines, current.rstrip(), "    ]"]


def _line(key: str, value: Any, why: str) -> str:
    return _raw(f"{key}: {scalar(value)}", why)


def _raw(text: str, why: str) -> str:
    return f"{text:{REASON_AT}}  # {safe(why, 300)}"


def scalar(value: Any) -> str:
    """Write a value as YAML that is read back unchanged."""
    if isinstance(value, str):
        plain = PLAIN.fullmatch(value) and value.lower() not in CONSTANTS
        return value if plain else json.dumps(value, ensure_ascii=not value.isprintable())
    if isinstance(value, dict):
        return "{" + ", ".join(f"{scalar(key)}: {scalar(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(scalar, value)) + "]"
    return json.dumps(value)
