"""What `mtmeta validate` calls ok, `mtmeta run` trains: every algorithm and method beside it, by every kind of task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mtmeta
from mtmeta.core.registry.registry import build_registry
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.parameters import some_quick

ROWS = 24
FILES = {"train": "rows.jsonl", "dev": "rows.jsonl", "batch_size": 4, "inner_steps": 1}
PAIR = {"text": "text", "pair": "other"}
KINDS: dict[str, dict[str, Any]] = {
    "one": {"task": "classification", "labels": ["a", "b"], "text": "text", "label": "kind"},
    "weighted": {
        "task": "classification",
        "labels": 2,
        "text": "text",
        "label": "yes",
        "loss": {"weights": "balanced"},
    },
    "windows": {
        "task": "classification",
        "labels": ["a", "b"],
        "text": "text",
        "label": "kind",
        "long": {"window": 10, "stride": 3},
    },
    "hf": {"task": "classification", "labels": ["a", "b"], "text": "text", "label": "kind", "head": "hf"},
    "pair": {"task": "pair_classification", "labels": ["a", "b"], **PAIR, "label": "kind"},
    "cross": {"task": "pair_classification", "labels": ["a", "b"], **PAIR, "label": "kind", "pair_mode": "cross"},
    "both": {
        "task": "pair_classification",
        "labels": ["a", "b"],
        **PAIR,
        "label": "kind",
        "pair_mode": "cross",
        "orders": "both",
    },
    "near": {"task": "similarity", **PAIR, "label": "score"},
    "number": {"task": "regression", "low": 0, "high": 5, "text": "text", "label": "score"},
    "numbers": {"task": "regression", "low": 0, "high": 5, "text": "text", "label": ["score", "yes"]},
    "order": {"task": "ordinal", "labels": 6, "text": "text", "label": "score"},
    "several": {
        "task": "multi_output",
        "text": "text",
        "labels": {
            "mood": {"labels": ["a", "b"], "label": "kind"},
            "rank": {"task": "ordinal", "labels": 6, "label": "score"},
        },
    },
    "sets": {"task": "multi_label", "labels": ["a", "b"], "text": "text", "label": "set"},
    "choice": {"task": "multiple_choice", "question": "text", "choices": ["other", "third"], "label": "yes"},
    "words": {"task": "tagging", "labels": ["X"], "word": "text", "tag": "tags"},
    "texts": {"task": "ranking", "anchor": "text", "positive": "other"},
    "triplets": {"task": "ranking", "anchor": "text", "positive": "other", "negatives": "third", "dim": 4},
}


class Whole(mtmeta.Task):
    """A class by a head that takes whole sequences."""

    name = "whole"
    objective = mtmeta.Classification(labels=("a", "b"))
    metrics = ("accuracy",)
    head_takes = "sequence"

    def read(self, file: mtmeta.DataFile) -> Any:
        for row in file.rows("text", "kind"):
            yield mtmeta.Example(row["text"], label=row["kind"], id=row.id, line=row.line)

    def build_head(self, hidden_size: int) -> Any:
        from torch import nn

        class First(nn.Module):
            takes = "sequence"

            def __init__(self) -> None:
                super().__init__()
                self.out = nn.Linear(hidden_size, 2)

            def forward(self, hidden: Any, packed: mtmeta.Packed) -> Any:
                return self.out(hidden[(packed.lengths.cumsum(0) - packed.lengths)[packed.order]])

        return First()


KINDS["whole"] = {"task": "whole"}
ALGORITHMS = [name for name in build_registry().names("algorithm") if name not in ("surgery", "weighting")]
METHODS: dict[str, dict[str, Any]] = {
    **{name: {"algorithm": {"name": name}} for name in ALGORITHMS},
    "maml-1": {"algorithm": {"name": "maml", "order": 1}},
    "anil-1": {"algorithm": {"name": "anil", "order": 1}},
    "pcgrad": {"algorithm": {"name": "surgery", "method": "pcgrad"}},
    "uw": {"algorithm": {"name": "weighting", "method": "uw"}},
    "famo": {"algorithm": {"name": "weighting", "method": "famo"}},
    "adapters": {"adapters": {"rank": 2}},
    "average": {"training": {"steps": 1, "average": {"kind": "ema", "decay": 0.5}}},
    "shards": {"training": {"steps": 1, "shards": 2}},
    "accumulation": {"training": {"steps": 1, "grad_accumulation": 2}},
    "calibrated": {"evaluation": {"calibrate": True}},
    "gradients": {"evaluation": {"gradients": True, "every": 1}},
    "share": {"data": {"train_fraction": 0.9}},
    "fold": {"data": {"leave_out": {"folds": 3, "fold": 1}}},
    "budget": {"budget": {"examples": 500}},
}
REFUSED = {
    "anil": ["words", "texts", "whole"],
    "anil-1": ["words", "texts", "whole"],
    "protonet": [
        "weighted",
        "near",
        "number",
        "numbers",
        "order",
        "several",
        "sets",
        "choice",
        "words",
        "texts",
        "triplets",
    ],
    "shards": ["texts", "triplets"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {
            "text": f"a word {i} and some more of them",
            "other": f"other {i}",
            "third": f"the third {i % 5}",
            "kind": "ab"[i % 2],
            "yes": i % 2,
            "score": i % 6,
            "set": ["a", "b"][: 1 + i % 2],
            "tags": ["O", "B-X", "I-X", "O", "O", "O", "O", "O"],
        }
        for i in range(ROWS)
    ]
    path = tmp_path_factory.mktemp("data")
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_of(folder: Path, kinds: list[str], **changes: Any) -> dict[str, Any]:
    return {
        "name": "all",
        "data_root": str(folder),
        "backbone": {"name": "bert", "weights": "tiny", "max_length": 16},
        "tasks": {name: {**KINDS[name], **FILES} for name in dict.fromkeys(kinds)},
        "algorithm": "joint",
        "optimizer": {"name": "sgd", "lr": 1e-3},
        "training": {"steps": 1},
        "evaluation": {"every": None},
        "reporters": [],
        **changes,
    }


def refused(recipe: dict[str, Any]) -> list[str]:
    """What validate says, of the recipe with each of its tasks."""
    return [str(problem) for problem in mtmeta.validate(recipe, plugins=[Whole]).problems]


@pytest.mark.parametrize("method", some_quick(METHODS, 8))
def test_what_validate_takes_run_takes(method: str, folder: Path, tmp_path: Path) -> None:
    able = [kind for kind in KINDS if not refused(recipe_of(folder, ["one", "pair", kind], **METHODS[method]))]
    assert "one" in able
    assert [kind for kind in KINDS if kind not in able] == REFUSED.get(method, [])
    run = mtmeta.run(recipe_of(folder, able, **METHODS[method]), out=tmp_path / "run", device="cpu", plugins=[Whole])
    assert list(run.tasks) == [
        name for kind in able for name in (KINDS[kind]["labels"] if kind == "several" else [kind])
    ]
