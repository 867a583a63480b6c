"""Small data, a very small encoder, recipes of all algorithms, and what must be equal of two runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

__all__ = [
    "ALGORITHMS",
    "TIMES",
    "differences",
    "make_backbone",
    "make_data",
    "outcome",
    "resign",
    "train",
    "write_recipe",
]

WORDS = "good bad fine dull film plot very not a the".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# keys whose values are times, memory, or tell that a run was resumed
TIMES = ("seconds", "total_seconds", "time", "peak_memory_bytes", "resumed_at")

# Between them: every kind of optimizer state, outer and inner, per task and shared; a schedule that answers to a
# metric; samplers that depend on sizes and on the step; dropout and accumulation; one group of tasks and several.
ALGORITHMS: dict[str, dict[str, Any]] = {
    "individual": {
        "algorithm": "individual",
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "schedule": {"name": "plateau", "patience": 1},
    },
    "joint": {
        "algorithm": {"name": "joint", "step": "alternate"},
        "sampler": {"name": "temperature", "temperature": 3.0},
        "optimizer": {"name": "nadam", "lr": 1e-3, "head_lr": 1e-2},
        "schedule": "cosine",
        "training": {"grad_accumulation": 2, "clip": 0.5},
    },
    "reptile": {
        "algorithm": {
            "name": "reptile",
            "inner_optimizer": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.999]},
            "inner_schedule": {"name": "step", "every": 2, "gamma": 0.8},
            "inner_state": "per_task",
            "tasks_per_step": 2,
        },
        "sampler": {"name": "annealed", "epochs": 4},
        "optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0.5},
        "schedule": "one_cycle",
    },
    "fomaml": {
        "algorithm": {
            "name": "fomaml",
            "inner_optimizer": {"name": "nadam", "lr": 1e-2},
            "inner_schedule": "cosine",
            "inner_state": "shared",
            "head_policy": "reset",
            "support": "all",
        },
        "sampler": "proportional",
        "optimizer": {"name": "adam", "lr": 1e-3},
        "schedule": {"name": "linear", "warmup": 3},
        "training": {"on_nonfinite": "skip"},
    },
    "averaged": {
        "algorithm": "joint",
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "training": {"average": {"kind": "ema", "decay": 0.8, "from": 0.4}},
    },
    "anil": {
        "algorithm": {"name": "anil", "inner_lr": 0.1, "tasks_per_step": 2},
        "optimizer": {"name": "adamw", "lr": 1e-3},
    },
    "maml": {
        "algorithm": {"name": "maml", "order": 2, "inner_optimizer": {"name": "sgd", "lr": 1e-2}},
        "optimizer": {"name": "adamw", "lr": 1e-3},
    },
    "metasgd": {
        "algorithm": {"name": "metasgd", "inner_lr": 1e-2},
        "optimizer": {"name": "adamw", "lr": 1e-3, "head_lr": 1e-2},
    },
    "protonet": {
        "algorithm": {"name": "protonet", "shots": 2, "queries": 2},
        "optimizer": {"name": "adamw", "lr": 1e-3},
    },
    "adapters": {
        "algorithm": {"name": "reptile", "inner_optimizer": {"name": "adamw", "lr": 1e-2}},
        "adapters": {"rank": 2, "encoder": "frozen"},
        "optimizer": {"name": "sgd", "lr": 1.0},
    },
    "adapters_trained": {
        "algorithm": {"name": "joint"},
        "adapters": {"rank": 2},
        "optimizer": {"name": "adamw", "lr": 1e-3, "adapter_lr": 1e-2},
    },
    "surgery": {  # a moving average, and orders that are drawn
        "algorithm": {"name": "surgery", "method": {"name": "gradvac", "beta": 0.5}},
        "optimizer": {"name": "adamw", "lr": 1e-3},
    },
    "weighting": {  # an optimizer of its own, which steps after the outer step
        "algorithm": {"name": "weighting", "method": "famo"},
        "optimizer": {"name": "adamw", "lr": 1e-3},
    },
}


def make_data(folder: Path) -> Path:
    """Small files of three tasks, of different sizes so that samplers differ. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(5)

    def text() -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(2, 6)))

    def write(task: str, split: str, header: str, rows: list[str]) -> None:
        (folder / f"{task}-{split}.tsv").write_text("\n".join([header, *rows]) + "\n")

    for split, size in (("train", 36), ("dev", 12)):
        write("sst", split, "sentence\tsentiment", [f"{text()}\t{i % 5}" for i in range(size)])
        rows = [f"{text()}\t{text()}\t{i % 2}" for i in range(size - 6)]
        write("para", split, "sentence1\tsentence2\tis_duplicate", rows)
        rows = [f"{text()}\t{text()}\t{i % 6}" for i in range(size // 2 + 6)]
        write("sts", split, "sentence1\tsentence2\tsimilarity", rows)
    return folder


def make_backbone(folder: Path) -> Path:
    """A folder of random weights for an encoder of a thousand parameters, so that checkpoints are a few kB."""
    import torch
    from safetensors.torch import save_file

    from mtmeta.plugins.backbones.checkpoint.config import BertConfig
    from mtmeta.plugins.backbones.checkpoint.names import hugging_face_names
    from mtmeta.plugins.backbones.encoder.encoder import Encoder
    from mtmeta.plugins.backbones.tokenizers.wordpiece import WordPiece

    vocabulary = [*SPECIAL, *WORDS]
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=32,
    )
    encoder = Encoder(config)
    encoder.initialise(0)
    state = encoder.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    for our, theirs in hugging_face_names(config).items():
        tensors |= dict(zip(theirs, (part.clone() for part in state[our].chunk(len(theirs))), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    values = {field: getattr(config, field) for field in BertConfig.__dataclass_fields__}
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **values}))
    (folder / "tokenizer.json").write_text(WordPiece.from_vocabulary(vocabulary).json())
    return folder


def write_recipe(
    path: Path,
    algorithm: str,
    /,
    *,
    data: Path,
    weights: str = "tiny",
    tasks: tuple[str, ...] | dict[str, Any] = ("sst", "para"),
    steps: int = 12,
    evaluate_every: int = 3,
    checkpoint_every: int = 2,
    **changes: Any,
) -> Path:
    """A recipe of `ALGORITHMS[algorithm]` on `make_data`'s files; `changes` replace sections."""
    recipe = {
        "name": algorithm,
        "seed": 11,
        "data_root": str(data),
        "backbone": {"name": "bert", "weights": weights, "max_length": 16},
        "tasks": tasks if isinstance(tasks, dict) else {task: _task(task) for task in tasks},
        "evaluation": {"every": evaluate_every},
        "checkpoint": {"every": checkpoint_every, "keep": 2},
        "reporters": ["jsonl"],
        **ALGORITHMS[algorithm],
        **changes,
    }
    recipe["training"] = {"steps": steps, **recipe.get("training", {})}
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path


def _task(name: str) -> dict[str, Any]:
    return {"train": f"{name}-train.tsv", "dev": f"{name}-dev.tsv", "batch_size": 4, "inner_steps": 2}


def train(recipe: Path, folder: Path, *, stop_after: int | None = None) -> Path:
    """Run in this process with `folder` as the working directory; returns the run directory.

    With `stop_after` the run is cut off before the meta-step after that many, as by a library user's Ctrl-C.
    """
    import mtmeta
    from mtmeta.core.training.trainer import Trainer

    one_step, done = Trainer._one_step, 0

    def step(trainer: Trainer) -> None:
        nonlocal done
        if done == stop_after:
            raise KeyboardInterrupt
        done += 1
        one_step(trainer)

    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder), mock.patch.object(Trainer, "_one_step", step):
        if stop_after is None:
            mtmeta.run(recipe, out="out")
        else:
            with pytest.raises(KeyboardInterrupt):
                mtmeta.run(recipe, out="out")
    return folder / "out"


def resign(checkpoint: Path) -> None:
    """Bring a checkpoint's manifest up to date with its files, as if they had been saved like that."""
    manifest = json.loads((checkpoint / "MANIFEST.json").read_bytes())
    for name, entry in manifest["files"].items():
        data = (checkpoint / name).read_bytes()
        entry |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (checkpoint / "MANIFEST.json").write_text(json.dumps(manifest, indent=1))


def outcome(run: Path) -> dict[str, Any]:
    """All of a finished run that must be equal, killed or not: every file, byte for byte but for times.

    Weights and optimizer states by SHA-256, links by where they point, events and summary without `TIMES`. Manifests
    are left out: they hold the hash of a file with a time in it.
    """
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_dir() or path.name == "MANIFEST.json" or _is_lock(path):
            continue
        elif path.name == "events.jsonl":
            found[name] = [timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".json":
            found[name] = timeless(json.loads(path.read_bytes()))
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _is_lock(path: Path) -> bool:
    """A file that says which process holds the directory; one that is killed when its run is over leaves its lease."""
    return path.parent.name != "checkpoints" and path.name.endswith(("lock", ".lease"))


def timeless(value: Any) -> Any:
    """JSON without times."""
    if isinstance(value, Mapping):
        return {key: timeless(item) for key, item in value.items() if key not in TIMES}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def differences(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """Names of what differs between two outcomes, to be shown when they should be equal."""
    names = sorted({*one, *two})
    missing = object()
    return [name for name in names if one.get(name, missing) != two.get(name, missing)]
