"""What a search may choose: ranges and choices for any key of `--set`, in strict YAML, and on which choices they hang.

optimizer.lr: {low: 1e-5, high: 1e-3, log: true}
tasks.sst.inner_steps: {low: 2, high: 16, step: 2}
algorithm.name: {choices: [reptile, fomaml, joint]}
algorithm.tasks_per_step: {choices: [1, 2, 4], when: {algorithm.name: [reptile, fomaml]}}
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtmeta.core.errors import MtmetaError, Problems, RecipeError, raise_all
from mtmeta.core.recipe import strict_yaml
from mtmeta.core.recipe.strict_yaml import Document
from mtmeta.core.recipe.validation import describe_value
from mtmeta.core.wording import choose, did_you_mean, plural, quote, safe

KEYS = ("low", "high", "step", "log", "choices", "when")
FIXED = {
    "seed": "the seeds of a trial are those of --seeds",
    "name": "mtmeta tune names its trials",
    "format": "it says how a recipe is written",
    "data_root": "all trials read the same data",
    "reporters": "they change no result",
    "checkpoint": "it changes no result",
    "evaluation.select": "trials are compared by one value",
    "evaluation.select_on": "trials are compared on dev",
    "evaluation.report_on": "trials are compared on dev",
}
"""Keys that a search may not choose, and why."""
GRID = 1e-9  # how far off the grid of its steps the upper end of a range may be, in steps


@dataclass(frozen=True)
class Dimension:
    """One key: a range from `low` to `high`, both in it, or `choices`; in play where all of `when` holds."""

    key: str
    place: str
    """`space.yaml:line:column` of what was given."""
    low: float | int = 0
    high: float | int = 0
    step: float | int | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()
    when: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Texts of the choices of other keys with which this one is in play."""

    @property
    def whole(self) -> bool:
        """Return whether it is a range of whole numbers."""
        return not self.choices and isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def texts(self) -> list[str]:
        """Return the choices as they are typed after `--set KEY=`."""
        return [text_of(choice) for choice in self.choices]

    @property
    def ends(self) -> list[Any]:
        """Return the values by which it is checked: the ends of a range, or every choice."""
        return list(self.choices) or [self.low, self.high]

    def holds(self, texts: Mapping[str, str]) -> bool:
        """Return whether it is in play with these texts of the values of other keys."""
        return all(texts.get(key) in wanted for key, wanted in self.when.items())

    def plain(self) -> dict[str, Any]:
        """Return it as plain data, the same for two files that say the same."""
        given: dict[str, Any] = {"choices": self.texts} if self.choices else {"low": self.low, "high": self.high}
        given |= {"step": self.step} if self.step is not None else {}
        given |= {"log": True} if self.log else {}
        return given | ({"when": {key: list(texts) for key, texts in self.when.items()}} if self.when else {})


@dataclass(frozen=True)
class Space:
    """The dimensions of a search, those that others hang on before these."""

    name: str
    dimensions: tuple[Dimension, ...]

    @property
    def switches(self) -> list[Dimension]:
        """Return the dimensions that others hang on."""
        named = {key for dimension in self.dimensions for key in dimension.when}
        return [dimension for dimension in self.dimensions if dimension.key in named]

    def in_play(self, texts: Mapping[str, str]) -> list[Dimension]:
        """Return the dimensions in play with these texts of the values of switches."""
        known: dict[str, str] = {}
        found = []
        for dimension in self.dimensions:
            if dimension.holds(known):
                found.append(dimension)
                if dimension.key in texts:
                    known[dimension.key] = texts[dimension.key]
        return found

    def plain(self) -> dict[str, Any]:
        """Return the space as plain data, to tell whether two are the same."""
        return {dimension.key: dimension.plain() for dimension in self.dimensions}


def text_of(value: Any) -> str:
    """Return a value as it is typed after `--set KEY=`, so that it is read back as the same."""
    if isinstance(value, str):
        try:
            plain = strict_yaml.parse_value(value, "") == value and value == value.strip()
        except MtmetaError:
            plain = False
        return value if plain else json.dumps(value, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False)


def read_space(path: str | Path) -> Space:
    """Read a search space. Raises RecipeError, or Problems with all that is wrong with it."""
    try:
        document = strict_yaml.read_file(path)
    except MtmetaError as error:
        problems = error.problems if isinstance(error, Problems) else [error]
        raise_all([RecipeError(one.place, _of_a_space(one.message)) for one in problems])
        raise AssertionError from error
    return _Reader(document).read()


def _of_a_space(message: str) -> str:
    """Return what is wrong with a file of YAML in the words of a space, not of a recipe."""
    if message.startswith("empty recipe"):
        return "empty; write a range or choices for a key, such as optimizer.lr: {low: 1e-5, high: 1e-3, log: true}"
    for words, other in (("a recipe file", "a space file"), ("a recipe is", "a space is"), (" in recipes", " here")):
        message = message.replace(words, other)
    return message


class _Reader:
    """One pass over one space, collecting problems."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[MtmetaError] = []

    def fail(self, path: tuple[str | int, ...], message: str, *, key: bool = False) -> None:
        """Add a problem at `path`."""
        self.problems.append(RecipeError(self.document.place(path, key=key), message))

    def read(self) -> Space:
        """Return the space. Raises all problems together."""
        data = self.document.data
        if not data:
            self.fail((), _of_a_space("empty recipe"))
        found = {key: self.dimension(key, entry) for key, entry in data.items()}
        dimensions = {key: dimension for key, dimension in found.items() if dimension is not None}
        for key, dimension in dimensions.items():
            self.check_conditions(key, dimension, dimensions)
        for key in data:
            for other in data:
                if other.startswith(f"{key}."):
                    message = f"{other} lies within {key}, which the space chooses as a whole; leave one of them out"
                    self.fail((other,), message, key=True)
        raise_all(self.problems)
        return Space(self.document.name, tuple(self.ordered(dimensions)))

    def dimension(self, key: str, entry: Any) -> Dimension | None:
        """Return one key's dimension, None where something is wrong with it."""
        before = len(self.problems)
        if not all(key.split(".")):
            self.fail((key,), f"key {quote(key)} is none of --set; write one such as optimizer.lr", key=True)
            return None
        for fixed, why in FIXED.items():
            if key == fixed or key.startswith(f"{fixed}."):
                self.fail((key,), f"{key} is not to be chosen: {why}; leave it out", key=True)
        if not isinstance(entry, dict):
            shape = "{low: 1e-5, high: 1e-3} or {choices: [a, b]}"
            self.fail((key,), f"{safe(key)} must be a mapping, found {describe_value(entry)}; write {shape}")
            return None
        for name in entry:
            if name not in KEYS:
                self.fail((key, name), f"unknown key {quote(name)} in {quote(key)}{choose(name, KEYS)}", key=True)
        when = self.conditions(key, entry.get("when", {}))
        if len(self.problems) > before:  # what else it lacks may be what that was meant to be
            return None
        if ("choices" in entry) == ("low" in entry or "high" in entry):
            what = "both a range and choices" if "choices" in entry else "neither a range nor choices"
            self.fail((key,), f"{safe(key)} has {what}; give low and high, or choices")
            return None
        options = self.choices(key, entry) if "choices" in entry else self.range(key, entry)
        if len(self.problems) > before:
            return None
        return Dimension(key, self.document.place((key,)), when=when, **options)

    def choices(self, key: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Return the choices of an entry."""
        given, path = entry["choices"], (key, "choices")
        for name in ("step", "log"):
            if name in entry:
                self.fail((key, name), f"{safe(key)} has choices, which have no {name}; leave it out", key=True)
        if not isinstance(given, list):
            self.fail(path, f"choices must be a list, found {describe_value(given)}; write [a, b]")
        elif len(given) < (1 if "when" in entry else 2):
            fix = "give two or more, or --set it" if "when" not in entry else "give one or more"
            self.fail(path, f"{safe(key)} has {plural(len(given), 'choice')}; {fix}")
        else:
            texts = [text_of(value) for value in given]
            for number, text in enumerate(texts):
                if text in texts[:number]:
                    self.fail((*path, number), f"choice {safe(text)} is given twice; leave one out")
        return {"choices": tuple(given) if isinstance(given, list) else ()}

    def range(self, key: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Return the range of an entry."""
        numbers: dict[str, Any] = {}
        for name in ("low", "high", "step"):
            if name not in entry:
                if name != "step" and ("low" in entry or "high" in entry):
                    self.fail((key,), f"{safe(key)} needs {quote(name)}; add it")
                continue
            value = entry[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                hint = "; remove the quotes" if isinstance(value, str) and strict_yaml.NUMBER.fullmatch(value) else ""
                self.fail((key, name), f"{name} must be a finite number, found {describe_value(value)}{hint}")
            elif isinstance(value, int) and abs(value) >= 2**53:
                self.fail((key, name), f"{name} {value} is too large; write a smaller one")
            else:
                numbers[name] = value
        log = entry.get("log", False)
        if not isinstance(log, bool):
            self.fail((key, "log"), f"log must be true or false, found {describe_value(log)}")
        elif {"low", "high"} <= numbers.keys():
            self.check_range(key, numbers, log, stepped="step" in entry)
        whole = all(isinstance(numbers.get(name), int) for name in ("low", "high"))
        ends = {} if whole else {name: float(value) for name, value in numbers.items()}
        return {**numbers, **ends, "log": log}

    def check_range(self, key: str, numbers: Mapping[str, Any], log: bool, *, stepped: bool) -> None:
        """Check that a range is one, and that its steps lead from end to end."""
        low, high, step = numbers["low"], numbers["high"], numbers.get("step")
        if low >= high:
            self.fail((key, "low"), f"low {low} is not below high {high}; exchange them, or --set {safe(key)}")
        elif log and low <= 0:
            self.fail((key, "low"), f"low must be above 0 on a log scale, found {low}")
        elif log and stepped:
            self.fail((key, "step"), "a log scale has no steps; leave 'step' or 'log' out", key=True)
        elif step is not None and step <= 0:
            self.fail((key, "step"), f"step must be above 0, found {step}")
        elif step is not None and isinstance(low, int) and isinstance(high, int) and not isinstance(step, int):
            self.fail((key, "step"), f"low and high are whole numbers and step {step} is none; write {float(low)}")
        elif step is not None:
            steps = (high - low) / step
            if steps < 1 or abs(steps - round(steps)) > GRID * max(1.0, steps):
                last = low + math.floor(steps) * step
                nearest = (
                    f"write {last:g} or {last + step:g}" if steps > 1 else f"write {low + step:g} or a smaller step"
                )
                self.fail((key, "high"), f"high {high} is no number of steps of {step} from {low}; {nearest}")

    def conditions(self, key: str, when: Any) -> dict[str, tuple[str, ...]]:
        """Return the texts of the choices that a key hangs on, by key."""
        if not isinstance(when, dict) or (not when and when != {}):
            self.fail((key, "when"), f"when must be a mapping, found {describe_value(when)}; write {{KEY: [a, b]}}")
            return {}
        found = {}
        for other, values in when.items():
            if not isinstance(values, list) or not values:
                message = f"when.{safe(other)} must be a list of choices, found {describe_value(values)}; write [a, b]"
                self.fail((key, "when", other), message)
                continue
            found[other] = tuple(map(text_of, values))
        return found

    def check_conditions(self, key: str, dimension: Dimension, dimensions: Mapping[str, Dimension]) -> None:
        """Check that what a key hangs on are choices of other keys."""
        for other, texts in dimension.when.items():
            path = (key, "when", other)
            if other not in self.document.data:
                message = f"when names no key of this space: {quote(other)}"
                self.fail(path, message + did_you_mean(other, self.document.data), key=True)
                continue
            if (switch := dimensions.get(other)) is None:
                continue  # something is wrong with it, and said
            if not switch.choices:
                self.fail(path, f"when hangs on {safe(other)}, which is a range; it must have choices", key=True)
                continue
            for number, text in enumerate(texts):
                if text not in switch.texts:
                    message = f"{safe(text)} is no choice of {safe(other)}{choose(text, switch.texts)}"
                    self.fail((*path, number), message)

    def ordered(self, dimensions: Mapping[str, Dimension]) -> Iterator[Dimension]:
        """Yield the dimensions, each after those that it hangs on. Raises RecipeError for a circle."""
        waiting = dict(dimensions)
        while waiting:
            ready = [one for one in waiting.values() if not any(key in waiting for key in one.when)]
            if not ready:
                one = next(iter(waiting.values()))
                around = " and ".join(map(safe, waiting))
                raise RecipeError(self.document.place((one.key, "when"), key=True), f"{around} hang on each other")
            for one in ready:
                del waiting[one.key]
                yield one
