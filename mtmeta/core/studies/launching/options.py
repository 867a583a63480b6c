"""`--on NAME --set launcher.KEY=VALUE`: a launcher with its options, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtmeta.core.api.contracts import Launcher
from mtmeta.core.errors import UsageError, raise_all
from mtmeta.core.recipe import strict_yaml
from mtmeta.core.recipe.document import RecipeDocument
from mtmeta.core.recipe.validation import convert
from mtmeta.core.registry.registry import Registry
from mtmeta.core.wording import safe

SECTION = "launcher"
LOCAL = "local"
"""The launcher that is taken where none is named."""


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the overrides of the launcher, and those of recipes."""
    of_launcher = [text for text in overrides if text.partition("=")[0].strip().startswith(f"{SECTION}.")]
    return of_launcher, [text for text in overrides if text not in of_launcher]


def read_launcher(registry: Registry, name: str, overrides: Sequence[str]) -> tuple[Launcher, dict[str, Any]]:
    """Return a launcher, and its options as they were given. Raises RecipeError or PluginError."""
    part = registry.get(SECTION, name, "--on")
    document = RecipeDocument(strict_yaml.Document("--set", {}, {}, {}), overrides)
    raise_all(document.problems)
    given = document.data.get(SECTION, {})
    launcher, faults = convert(part, given, (SECTION,))
    for path, message, key in faults:
        document.fail(path, message, key=key)
    raise_all(document.problems)
    return launcher, given


def launcher_of(registry: Registry, name: str, options: Mapping[str, Any], place: str) -> Launcher:
    """Return the launcher that a record names. Raises UsageError where its options are no longer valid."""
    part = registry.get(SECTION, name, place)
    launcher, faults = convert(part, dict(options), (SECTION,))
    if launcher is None:
        raise UsageError(place, f"{safe(faults[0][1])}; remove it to submit the run anew")
    return launcher  # type: ignore[no-any-return]
