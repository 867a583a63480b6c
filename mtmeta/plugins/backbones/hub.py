"""Weights named by a hub id, `owner/name@revision`, from huggingface_hub's cache."""

from __future__ import annotations

from pathlib import Path

import mtmeta

__all__ = ["SCHEME", "fetch"]

SCHEME = "hf://"
# only the few safe kinds of file are asked for, what must be there last: then all else is settled when it is there
OPTIONAL = ("tokenizer_config.json", "tokenizer.json", "vocab.txt")
CONFIG, TENSORS = "config.json", "model.safetensors"


def fetch(weights: str, sources: mtmeta.Sources, *, pretrained: bool = True) -> Path:
    """The folder of a hub id in the local cache, fetched if needed. Raises WeightsError, MachineError."""
    needed = (CONFIG, TENSORS) if pretrained else (CONFIG,)
    return sources.folder(weights.removesuffix(f"/{TENSORS}"), needed, OPTIONAL)
