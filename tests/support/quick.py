"""Runs that take a fraction of a second, and what of a run must be the same however often it was cut."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import mtmeta

LABELS = ("no", "yes")
ALGORITHMS: dict[str, dict[str, Any]] = {
    "individual": {"algorithm": "individual", "optimizer": {"name": "adam", "lr": 1e-3}},
    "joint": {"algorithm": "joint", "optimizer": {"name": "adamw", "lr": 1e-3}, "schedule": "linear"},
    "reptile": {
        "algorithm": {"name": "reptile", "inner_optimizer": {"name": "adamw", "lr": 1e-3}},
        "optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0.5},
    },
    "fomaml": {
        "algorithm": {"name": "fomaml", "inner_optimizer": {"name": "adamw", "lr": 1e-3}},
        "optimizer": {"name": "nadam", "lr": 1e-3},
        "schedule": {"name": "plateau", "patience": 0},
    },
}
TIMES = ("seconds", "total_seconds", "time", "peak_memory_bytes", "path", "run")  # and where the run lies


class Killed(BaseException):
    """Stands in for SIGKILL: nothing in the package may catch it."""


@contextmanager
def killed_before_step(step: int) -> Iterator[None]:
    """Within it, a training that has made `step` steps is killed, as it must be; then all is as it was."""
    from mtmeta.core.training.trainer import Trainer

    one_step = Trainer._one_step

    def killed(self: Trainer) -> None:
        if self.step == step:
            raise Killed
        one_step(self)

    with mock.patch.object(Trainer, "_one_step", killed), pytest.raises(Killed):
        yield


def quick(folder: Path, algorithm: str = "joint", **changes: Any) -> Path:
    """A recipe of two tasks on a dozen examples, `folder`/quick.yaml; keyword arguments replace its sections."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, word in (("train", "word"), ("dev", "other")):
        rows = "".join(f"{i}\t{word} {i} {'good' * (i % 2)}\t{LABELS[i % 2]}\t{i % 6}\n" for i in range(12))
        (folder / f"{name}.tsv").write_text("id\tsentence\tlabel\tscore\n" + rows)
    files = {"train": "train.tsv", "dev": "dev.tsv", "batch_size": 4, "inner_steps": 1}
    recipe = {
        "name": "quick",
        "seed": 5,
        "data_root": str(folder),
        "backbone": {"name": "bert", "weights": "tiny", "max_length": 16},
        "tasks": {
            "kind": {"task": "classification", "labels": list(LABELS), **files},
            "grade": {"task": "regression", "low": -5, "high": 5, "label": "score", **files},
        },
        "training": {"steps": 4},
        "evaluation": {"every": 1},
        "checkpoint": {"every": 2, "keep": 2},
        "reporters": ["jsonl"],
        **ALGORITHMS[algorithm],
        **changes,
    }
    path = folder / "quick.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path


def quick_beside(folder: Path, name: str, task: dict[str, Any], files: dict[str, str], suffix: str = ".tsv") -> Path:
    """A recipe of a task, whose `files` are texts by split, beside the one of two classes of `quick`; it selects."""
    path = quick(folder)
    recipe = json.loads(path.read_text())
    for split, text in files.items():
        (folder / f"{name}-{split}{suffix}").write_text(text)
    own = {"batch_size": 8, "inner_steps": 1, **{split: f"{name}-{split}{suffix}" for split in files}}
    recipe["tasks"] = {name: {**task, **own}, "kind": recipe["tasks"]["kind"]}
    recipe["optimizer"] = {"name": "adamw", "lr": 1e-2}
    recipe["training"] = {"steps": 6, "precision": "fp32"}
    recipe["evaluation"] = {"every": 3, "select": name}
    path.write_text(json.dumps(recipe))
    return path


def outcome(run: Path) -> dict[str, Any]:
    """Every file of a run and where links point, without times; events and states as data."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.name == "events.jsonl":
            found[name] = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.name in ("state.json", "summary.json"):
            found[name] = _timeless(json.loads(path.read_text()))
        elif path.name == "MANIFEST.json" and path.parent.name.startswith("step-"):
            found[name] = sorted(json.loads(path.read_text())["files"])  # it holds the hash of state.json
        elif path.is_file() and name not in (
            ".lock",
            ".lease",
        ):  # they name a process, and a kill as the last act leaves them
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in TIMES}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def assert_kills_change_nothing(recipe: Path, whole: Path, out: Path, steps: tuple[int, ...] = (2, 4)) -> None:
    """Kill a run of a recipe before each of the steps, let it end, and compare weights and predictions with `whole`."""
    for step in steps:
        with killed_before_step(step):
            mtmeta.run(recipe, out=out, device="cpu")
    mtmeta.run(recipe, out=out, device="cpu")
    expected, cut = outcome(whole), outcome(out)
    for name, value in expected.items():
        if name.endswith((".safetensors", ".csv")):
            assert cut[name] == value, name


def assert_adapts(run: Path, recipe: Path, task: str, refusal: str, *, shots: int = 2, lowest: float = 0) -> None:
    """A task of a recipe is learned from few examples, and scored from `lowest` to 1; not by prototypes."""
    document = json.loads(recipe.read_text())
    document["tasks"] = {task: document["tasks"][task]}
    document["evaluation"], document["training"]["steps"] = {}, 2
    found = mtmeta.adapt([run], document, shots=[shots], seeds=1)
    assert all(lowest <= row["value"] <= 1 for row in found.records())
    with pytest.raises(mtmeta.UsageError, match=refusal):
        mtmeta.adapt([run], document, shots=[shots], seeds=1, head="prototype")


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV or TSV file."""
    return list(csv.DictReader(io.StringIO(path.read_text()), delimiter="\t" if path.suffix == ".tsv" else ","))
