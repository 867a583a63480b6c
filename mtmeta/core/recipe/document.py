"""A recipe as plain data: its file with the overrides on top, the place every value came from, and the problems."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mtmeta.core.errors import MtmetaError, RecipeError
from mtmeta.core.recipe import strict_yaml
from mtmeta.core.recipe.strict_yaml import KeyPath
from mtmeta.core.wording import quote, safe


class RecipeDocument:
    """The data of a recipe file, to which the `a.b=c` strings of `--set` have been applied, and the problems so far."""

    def __init__(self, file: strict_yaml.Document, overrides: Sequence[str]) -> None:
        self.file = file
        self.data = file.data
        self.problems: list[MtmetaError] = []
        self._overridden: dict[KeyPath, str] = {}  # the last one given first
        for override in overrides:
            try:
                self._override(override)
            except RecipeError as error:
                self.problems.append(error)

    def _override(self, text: str) -> None:
        """Apply one `a.b=c`. Raises RecipeError."""
        key, equals, value = text.partition("=")
        path = tuple(key.strip().split("."))
        if not equals or not all(path):
            raise RecipeError(f"--set {quote(text)}", "expected KEY=VALUE, such as training.steps=100")
        place = f"--set {safe(key.strip())}"
        node = self.data
        for depth, part in enumerate(path[:-1], 1):
            child = node.get(part)
            if isinstance(child, str):  # `schedule: cosine` is short for `schedule: {name: cosine}`
                child = {"name": child}
            node[part] = child = {} if child is None else child
            if not isinstance(child, dict):
                raise RecipeError(place, f"{safe('.'.join(path[:depth]))} is not a mapping; override it as a whole")
            node = child
        node[path[-1]] = strict_yaml.parse_value(value, place)
        self._overridden = {path: place} | self._overridden

    def place(self, path: KeyPath, *, key: bool = False) -> str:
        """Return where the value at `path` was given: by the `--set` for it, for a mapping around it or for an entry
        of it, else in the file."""
        for given, place in self._overridden.items():
            if path[: len(given)] == given or (given[: len(path)] == path and path not in self.file.values):
                return place
        return self.file.place(path, key=key)

    def fail(self, path: KeyPath, message: str, *, key: bool = False) -> None:
        """Add a problem at `path`."""
        place = self.place(path, key=key)
        option = place.removeprefix("--set ")  # the place names the option already
        self.problems.append(RecipeError(place, message.removeprefix(f"{option}: ").removeprefix(f"{option} ")))

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Add the errors that a part's own checks raise."""
        try:
            yield
        except MtmetaError as error:
            self.problems.append(error)
