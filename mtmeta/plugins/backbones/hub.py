"""Weights named by a hub id, `owner/name@revision`, from huggingface_hub's cache."""

from __future__ import annotations

from pathlib import Path

import mtmeta
from mtmeta.plugins.backbones.checkpoint.modules import LIMITS, MODULES, PROMPTS
from mtmeta.plugins.backbones.checkpoint.shards import INDEX, MAX_HEADER, read_index
from mtmeta.plugins.backbones.checkpoint.shards import WHOLE as TENSORS
from mtmeta.plugins.backbones.checkpoint.untrusted import json_object, read_limited

SCHEME = "hf://"
CONFIG = "config.json"
# only the few safe kinds of file are asked for, required ones last: then all else is settled when they are there
TOKENIZERS = (
    "tokenizer_config.json", "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "spiece.model", "sentencepiece.bpe.model", "spm.model",
)  # fmt: skip
OPTIONAL = (*TOKENIZERS, MODULES, "1_Pooling/config.json", PROMPTS, LIMITS[0])


def fetch(weights: str, sources: mtmeta.Sources, *, pretrained: bool = True) -> Path:
    """Return the folder of a hub id in the local cache, fetched if needed. Raises WeightsError, MachineError."""
    name = weights.removesuffix(f"/{TENSORS}")
    folder = sources.folder(name, (CONFIG,), (*OPTIONAL, *((TENSORS, INDEX) if pretrained else ())))
    if not pretrained or (folder / TENSORS).is_file() or sources.planning:
        return folder
    if not (folder / INDEX).is_file():
        return sources.folder(name, (CONFIG, TENSORS))  # which is refused by name
    index = folder / INDEX
    values = json_object(read_limited(index, MAX_HEADER, "index"), index, fix="; fetch it again")
    return sources.folder(name, sorted(set(read_index(index, values).values())), (CONFIG, INDEX))
