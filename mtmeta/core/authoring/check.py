"""`mtmeta validate`: one recipe checked, on request with its data files and its weights, and never trained.

Imports stand inside the functions that need them: numpy and the data layer take longer to load than a recipe to check.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mtmeta.core.errors import DataError, MtmetaError, Problems
from mtmeta.core.recipe.from_python import PLACE, RecipeSource
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.registry.registry import Registry

if TYPE_CHECKING:
    from mtmeta.core.storage.download import Watcher


@dataclass
class RecipeCheck:
    """The outcome of checking one recipe."""

    recipe: str
    """The path or name that was given."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The facts on its data files, as `inspect` gives them; empty where they were not read."""
    problems: list[MtmetaError] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return the outcome as plain data, for `--json`."""
        texts = [str(error) for error in Problems(self.problems).problems] if self.problems else []
        data = {"data": self.facts} if self.facts else {}
        return {"recipe": self.recipe, "ok": not texts, "problems": texts, **data}


def check_recipe(
    source: RecipeSource,
    registry: Registry,
    *,
    overrides: Sequence[str] = (),
    data_root: str | None = None,
    data: bool = False,
    strict: bool = False,
    weights: bool = False,
    warn: Callable[[str], None] = lambda text: None,
    watcher: Watcher | None = None,
) -> RecipeCheck:
    """Read a recipe, with `weights` load its backbone, with `data` inspect its data files; collect every problem.

    `strict` makes duplicates and overlap with the training file problems as well. `watcher` follows downloads. Raises
    no MtmetaError.
    """
    check = RecipeCheck(PLACE if isinstance(source, Mapping | Recipe) else str(source))
    told: set[str] = set()  # the backbone and the inspection of the data both look at the tokenizer

    def tell(text: str) -> None:
        if text not in told:
            told.add(text)
            warn(text)

    try:
        recipe = load_recipe(source, registry, overrides=overrides, data_root=data_root)
        recipe.algorithm.require()
        if data or weights:
            from mtmeta.core.storage.artifacts import remedy
            from mtmeta.core.storage.sources import Sources

            sources = Sources(watcher=watcher, remedy=remedy(check.recipe))
        if weights:
            from mtmeta.core.run.fetch import bring, local_backbone

            bring(recipe, (), sources)
            for note in getattr(local_backbone(recipe, sources).load(recipe.seed), "notes", ()):
                tell(note)
        if data:
            from mtmeta.core.authoring.inspection import doubts, inspect

            check.facts, check.problems = inspect(recipe, warn=tell, sources=sources)
            if strict:
                check.problems += [DataError(file, message) for file, message in doubts(check.facts)]
    except MtmetaError as error:
        check.problems.append(error)
    return check
