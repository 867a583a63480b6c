"""Weights named by a hub id, `owner/name@revision`, from huggingface_hub's cache."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mtmeta

SCHEME = "hf://"
# only the few safe kinds of file are asked for, required ones last: then all else is settled when they are there
OPTIONAL = ("tokenizer_config.json", "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt")
CONFIG, TENSORS = "config.json", "model.safetensors"
INDEX = f"{TENSORS}.index.json"
SHARD, MOST_SHARDS = re.compile(r"model[\w.-]{0,200}\.safetensors", re.ASCII), 1000
TOKENIZERS = ("special_tokens_map.json", "added_tokens.json", "spiece.model", "sentencepiece.bpe.model", "spm.model")


def fetch(weights: str, sources: mtmeta.Sources, *, pretrained: bool = True) -> Path:
    """Return the folder of a hub id in the local cache, fetched if needed. Raises WeightsError, MachineError."""
    needed = (CONFIG, TENSORS) if pretrained else (CONFIG,)
    return sources.folder(weights.removesuffix(f"/{TENSORS}"), needed, OPTIONAL)


def fetch_any(weights: str, sources: mtmeta.Sources, *, pretrained: bool = True) -> Path:
    """Fetch the same for any encoder: weights may come in shards, and tokenizers are of more kinds."""
    whole = (TENSORS, INDEX) if pretrained else ()
    folder = sources.folder(weights, (CONFIG,), (*OPTIONAL, *TOKENIZERS, *whole))
    if not pretrained or (folder / TENSORS).is_file() or sources.planning:
        return folder
    if not (folder / INDEX).is_file():
        return sources.folder(weights, (CONFIG, TENSORS))  # which is refused by name
    try:
        shards = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
        if len(shards) > MOST_SHARDS or not all(isinstance(shard, str) and SHARD.fullmatch(shard) for shard in shards):
            raise ValueError("files of other names, or too many of them")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        message = f"is no index of shards ({mtmeta.safe(str(error))}); fetch it again"
        raise mtmeta.WeightsError(str(folder / INDEX), message) from error
    return sources.folder(weights, shards, (CONFIG, INDEX))
