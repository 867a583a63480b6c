"""Labels by teachers, made in this process: fold models first, then `mtmeta teach`, which finds them finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mtmeta
from mtmeta.core.run.request import RunRequest
from mtmeta.core.studies.teach import teach

__all__ = ["make_labels", "teachers"]


def make_labels(recipe: Path, out: Path, folds: int = 2, **options: Any) -> dict[str, Any]:
    """Write what fold models of a recipe say of its training sets; returns the document of `--json`."""
    for fold in range(1, folds + 1):
        left_out = f"data.leave_out={{folds: {folds}, fold: {fold}}}"
        mtmeta.run(recipe, out=out / f"fold-{fold}", overrides=["teachers=null", left_out])
    return teach(RunRequest(recipe, out=out, **options), folds=folds)


def teachers(*folders: Path, tasks: tuple[str, ...] = ("sst", "para"), **common: Any) -> dict[str, Any]:
    """The section `teachers` of tasks that all learn of the same folders."""
    return {**{task: {"runs": [str(folder) for folder in folders]} for task in tasks}, **common}
