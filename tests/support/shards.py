"""Weights split into shards with an index, and headers of safetensors rewritten, for tests of what is read of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

INDEX = "model.safetensors.index.json"


def split(folder: Path, count: int = 3) -> list[str]:
    """Replace model.safetensors by `count` shards and their index; returns the names of the shards."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    where = {tensor: names[i * count // len(state)] for i, tensor in enumerate(sorted(state))}
    for name in names:
        save_file({t: values for t, values in state.items() if where[t] == name}, folder / name, {"format": "pt"})
    total = sum(values.numel() * values.element_size() for values in state.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}))
    return names


def change_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / INDEX).read_text())
    change(values)
    (folder / INDEX).write_text(json.dumps(values))


def change_tensors(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    state = load_file(path)
    change(state)
    save_file(state, path, {"format": "pt"})
