"""A run directory and its checkpoints as ranks have them that do not write: they read what the first rank writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mtmeta.core.api.backbone import LoadedBackbone
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.run.directory import RunDir
from mtmeta.core.training.checkpoint import Checkpoints


@dataclass(frozen=True)
class FollowedDir(RunDir):
    """The directory of a run that another rank writes: what would write here does nothing."""

    def checkpoints(self, group: str, groups: int, keep: int = 2, *, frozen: bool = False) -> Checkpoints:
        theirs = super().checkpoints(group, groups, keep, frozen=frozen)
        return FollowedCheckpoints(theirs.folder, theirs.keep, theirs.root, theirs.frozen)

    def check_usable(self, recipe: Recipe, *, fresh: bool) -> bool:
        return False  # the first rank says

    def write(self, name: str, data: bytes | str) -> None:
        pass

    def begin(self, recipe: Recipe, lock: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        pass

    def clear(self) -> None:
        pass

    def check_own(self, *, appending: bool = False) -> None:
        pass

    def check_same(self, lock: Mapping[str, Any], files: Mapping[str, tuple[str, str]], **allowed: bool) -> None:
        pass

    def check_tokenizer(self, backbone: LoadedBackbone) -> None:
        pass


@dataclass(frozen=True)
class FollowedCheckpoints(Checkpoints):
    """Checkpoints that another rank writes; their names are known without looking."""

    def save(
        self,
        step: int,
        model: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        state: Mapping[str, Any],
        scheduled: Callable[[int], bool] = lambda step: True,
    ) -> Path:
        return self.folder / f"step-{step:08d}"

    def save_best(self, step: int, model: Mapping[str, Tensor], links: list[str]) -> str:
        return f"best-{step:08d}"

    def go_back(
        self, step: int, links: Mapping[str, str], scheduled: Callable[[int], bool] = lambda step: True
    ) -> None:
        pass

    def keep_frozen(self, weights: Mapping[str, Tensor]) -> str:
        return ""

    def check_space(self, *parts: Mapping[str, Tensor]) -> None:
        pass
