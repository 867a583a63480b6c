"""From the settings of a trial to its recipe; and the check, before the first trial, that a space gives recipes."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtmeta.core.api.option_types import SAMPLE
from mtmeta.core.errors import MtmetaError, Problems, RecipeError, UsageError, raise_all
from mtmeta.core.recipe import strict_yaml
from mtmeta.core.recipe.document import RecipeDocument
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.resolved import describe, dump
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.recipe.shipped import find_recipe
from mtmeta.core.registry.registry import Registry
from mtmeta.core.rng import derive
from mtmeta.core.run.request import RunRequest, file_of
from mtmeta.core.storage.addresses import is_remote
from mtmeta.core.studies.comparable import check_alike
from mtmeta.core.studies.tuning.space import Dimension, Space, text_of
from mtmeta.core.wording import safe

Settings = Mapping[str, Any]
"""The values of a trial by key, of all dimensions in play."""
DRAWS = 50
"""Draws of a whole space that are checked."""
MOST_BRANCHES = 64
"""Combinations of switches that are checked."""
REPORT = "evaluation.report_on=dev"
"""So that no trial looks at the split that the recipe reports on."""


@dataclass(frozen=True)
class Recipes:
    """The recipe that a search begins with, and those that its space makes of it."""

    request: RunRequest
    space: Space
    registry: Registry
    base: Recipe
    """As it is given."""

    @classmethod
    def of(cls, request: RunRequest, space: Space, registry: Registry) -> Recipes:
        """Read the recipe. Raises RecipeError where it selects on another split than dev, or a key is given twice."""
        base = load_recipe(request.recipe, registry, overrides=request.overrides, data_root=request.data_root)
        if base.evaluation.select_on != "dev":
            message = "is test, on which nothing may be chosen; --set evaluation.select_on=dev"
            raise RecipeError("evaluation.select_on", message)
        for text in request.overrides:
            key = text.partition("=")[0].strip()
            for dimension in space.dimensions:
                one, other = f"{key}.", f"{dimension.key}."
                if one.startswith(other):
                    raise UsageError(
                        f"--set {safe(key)}", f"is for the space to choose ({dimension.place}); leave it out"
                    )
        recipes = cls(request, space, registry, base)
        recipes.read({})  # on dev alone it is a recipe, too
        return recipes

    def overrides(self, settings: Settings) -> list[str]:
        """Return the `--set` of a trial.

        Another name for a part, such as `algorithm.name`, leaves out the options that the recipe has for its own.
        """
        described = describe(self.base)
        texts = []
        for key, value in sorted(settings.items(), key=lambda item: not item[0].endswith(".name")):
            part = key.removesuffix(".name")
            if part != key and value != _at(described, key):
                texts.append(f"{part}={{name: {text_of(value)}}}")
            else:
                texts.append(f"{key}={text_of(value)}")
        return texts

    def read(self, settings: Settings) -> Recipe:
        """Return the recipe of a trial, which reports on dev. Raises RecipeError or Problems, PluginError."""
        overrides = [*self.request.overrides, *self.overrides(settings), REPORT]
        request = self.request
        return load_recipe(request.recipe, self.registry, overrides=overrides, data_root=request.data_root)

    def trial(self, settings: Settings, name: str) -> Recipe:
        """Return the recipe of a trial as it is run: by its own name, without lines of progress.

        Raises RecipeError at the place in the space that it comes from, where it can be told.
        """
        try:
            recipe = self.read(settings)
        except MtmetaError as error:
            raise_all([_placed(one, self.space, settings) for one in _each(error)])
            raise AssertionError from error
        self._check_alike(recipe, settings)
        return replace(recipe, name=name)

    def _check_alike(self, recipe: Recipe, settings: Settings) -> None:
        """Raise RecipeError for settings that change what is measured, and not only how it is learned."""
        changed = ""
        try:
            check_alike([replace(self.base, evaluation=recipe.evaluation, name="the recipe"), recipe])
        except RecipeError as error:
            changed = error.message.partition(";")[0].replace(f"'{recipe.name}'", "this one")
        for name, task in self.base.tasks.items():
            if not changed and (task.dev, task.dialect) != (recipe.tasks[name].dev, recipe.tasks[name].dialect):
                changed = f"reads other examples for tasks.{name}.dev"
        if changed:
            within = [one for one in self.space.dimensions if one.key in settings and one.key in changed]
            within += [one for one in self.space.dimensions if one.key in settings and one.key.startswith("tasks")]
            place = within[0].place if within else self.space.name
            key = f"{within[0].key} " if within else ""
            raise RecipeError(place, f"{key}decides what is measured (the recipe {changed}); leave it out")

    def text(self, recipe: Recipe) -> str:
        """Return the file of a trial's recipe, every default written out; its only reporter is events.jsonl."""
        return dump(describe(recipe) | {"reporters": [{"name": "jsonl"}]})

    def best(self, settings: Settings, heading: Sequence[str]) -> str:
        """Return the file of the recipe with the best settings: what the user's own says, these settings on top."""
        path = find_recipe(file_of(self.request))
        document = RecipeDocument(strict_yaml.read_file(path), [*self.request.overrides, *self.overrides(settings)])
        raise_all(document.problems)
        base = self.base
        data = {"name": f"{base.name[:120]}-best"} | {k: v for k, v in document.data.items() if k != "name"}
        files = [getattr(task, split) for task in base.tasks.values() for split in ("train", "dev", "test")]
        if any(isinstance(file, str) and file != SAMPLE and not is_remote(file) for file in files):
            data["data_root"] = base.data_root  # which may have come from elsewhere, such as --data-root
        return "".join(f"# {safe(line, 300)}\n" for line in heading) + dump(data)

    # -- before the first trial

    def check(self) -> None:
        """Check the recipes that the space gives: in every branch each end and choice, and draws of the whole.

        Raises the problems, each once, at their places in the space. What is wrong only in some combination may pass;
        a trial of it fails, and says why.
        """
        problems: dict[str, MtmetaError] = {}
        for settings in itertools.chain(self._corners(), self._draws()):
            try:
                self.trial(settings, "trial")
            except MtmetaError as error:
                for one in _each(error):
                    problems.setdefault(one.place, one)
        raise_all(list(problems.values()) or [*self._fractions()])

    def _branches(self) -> Iterator[dict[str, Any]]:
        """Yield settings of the switches alone, in all combinations that there are."""
        seen = set()
        switches = self.space.switches
        for values in itertools.islice(itertools.product(*(one.choices for one in switches)), 16 * MOST_BRANCHES):
            chosen = dict(zip([one.key for one in switches], values, strict=True))
            texts = {key: text_of(value) for key, value in chosen.items()}
            there = {one.key for one in self.space.in_play(texts)}
            kept = {key: value for key, value in chosen.items() if key in there}
            if (mark := str(sorted((key, text_of(value)) for key, value in kept.items()))) not in seen:
                seen.add(mark)
                yield kept
            if len(seen) == MOST_BRANCHES:
                return

    def _corners(self) -> Iterator[dict[str, Any]]:
        for branch in self._branches():
            dimensions = self.space.in_play({key: text_of(value) for key, value in branch.items()})
            settings = {one.key: branch.get(one.key, one.ends[0]) for one in dimensions}
            yield settings
            for one in dimensions:
                if one.key not in branch:
                    yield from (settings | {one.key: value} for value in one.ends[1:])

    def _draws(self) -> Iterator[dict[str, Any]]:
        """Yield draws of the whole space, the same every time."""
        draw = random.Random(derive(0, "tune", "check"))
        for _ in range(DRAWS):
            yield self.drawn(draw)

    def drawn(self, draw: random.Random) -> dict[str, Any]:
        """Draw settings of all dimensions that come into play."""
        settings: dict[str, Any] = {}
        for one in self.space.dimensions:
            if one.holds({key: text_of(value) for key, value in settings.items()}):
                settings[one.key] = _value(one, draw)
        return settings

    def _fractions(self) -> Iterator[MtmetaError]:
        """Yield an error for each range of whole numbers of what takes others too, unless it says that it has steps."""
        for one in self.space.dimensions:
            draw = random.Random(derive(0, "tune", "whole"))
            settings = next((found for _ in range(DRAWS) if one.key in (found := self.drawn(draw))), None)
            if not one.whole or one.step is not None or settings is None:
                continue
            try:
                self.read(settings | {one.key: one.low + 0.5})
            except MtmetaError:
                continue
            message = f"{one.key} takes fractions, and low and high are whole numbers"
            fix = f"write {float(one.low)}, or step: 1 if you mean whole numbers"
            yield RecipeError(one.place, f"{message}; {fix}")


def _value(dimension: Dimension, draw: random.Random) -> Any:
    if dimension.choices:
        return draw.choice(dimension.choices)
    low, high, step = dimension.low, dimension.high, dimension.step
    if dimension.whole:
        return draw.randrange(int(low), int(high) + 1, int(step or 1))
    if step is not None:
        return low + step * draw.randint(0, round((high - low) / step))
    return float(low * (high / low) ** draw.random()) if dimension.log else draw.uniform(low, high)


def _each(error: MtmetaError) -> Sequence[MtmetaError]:
    return error.problems if isinstance(error, Problems) else [error]


def _at(data: Any, key: str) -> Any:
    for part in key.split("."):
        data = data.get(part) if isinstance(data, dict) else None
    return data


def _placed(error: MtmetaError, space: Space, settings: Settings) -> MtmetaError:
    """Return an error of a trial's recipe at the place in the space where it comes from, or of the settings at all."""
    if not isinstance(error, UsageError):
        return error
    option = error.place.removeprefix("--set ")
    for dimension in space.dimensions:
        if dimension.key in settings and option in (dimension.key, dimension.key.removesuffix(".name")):
            if option != error.place:
                value = safe(text_of(settings[dimension.key]))
                return RecipeError(dimension.place, f"{dimension.key}={value}: {error.message}")
    shown = ", ".join(f"{key}={safe(text_of(value))}" for key, value in settings.items())
    return RecipeError(space.name, f"with {safe(shown, 300)}: {error}")


def best_path(folder: Path) -> Path:
    """Return where the best recipe of a study stands."""
    return folder / "best.yaml"
