"""Backbone `hf`: any encoder that transformers' AutoModel knows, for those that `bert` does not read.

transformers is an extra and loaded when a model is. A folder holds config.json, model.safetensors (or shards of it with
their index) and a tokenizer. No code of a folder is run, no pickle is read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

import mtmeta
from mtmeta.plugins.backbones.bert import find_folder
from mtmeta.plugins.backbones.checkpoint.modules import find_encoder
from mtmeta.plugins.backbones.checkpoint.settings import read_settings
from mtmeta.plugins.backbones.checkpoint.untrusted import MAX_CONFIG_BYTES, read_limited

TOKENIZER_CONFIG = "tokenizer_config.json"
TINY = "tiny"


@dataclass(frozen=True, kw_only=True)
class HuggingFace(mtmeta.Backbone):
    """Any encoder that transformers' AutoModel knows, such as ModernBERT, DeBERTa or MPNet.

    It needs transformers: pip install 'mtmeta[hf]'. Sequences are padded, together with others of nearly their length.
    What backbone `bert` reads trains faster there, by about 1.5 times on a CPU.
    """

    name = "hf"

    weights: Annotated[str, Field(min_length=1)]
    """A folder in Hugging Face layout, a hub id, best pinned as id@revision, or `embedded`."""
    pretrained: bool = True
    """false: random values from the recipe's seed in place of those in the folder; shape and tokenizer stay."""
    max_length: Annotated[int, Field(ge=4, le=1_000_000)] = 128
    """Longest sequence in tokens, special tokens included; longer texts are cut."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Every dropout of the encoder; default: what config.json says."""

    @classmethod
    def about(cls) -> list[str]:
        from importlib.metadata import PackageNotFoundError, version

        try:
            return [f"transformers {version('transformers')} is installed"]
        except PackageNotFoundError:
            return ["transformers is not installed; pip install 'mtmeta[hf]'"]

    def fetch(self, sources: mtmeta.Sources) -> HuggingFace:
        if self.weights == TINY:
            return self
        return replace(self, weights=str(find_folder(self.weights, sources, pretrained=self.pretrained)))

    def load(self, seed: int) -> mtmeta.LoadedBackbone:
        from mtmeta.plugins.backbones.automodel import Source

        if self.weights == TINY:
            message = "is of backbone bert alone; give a folder in Hugging Face layout, a hub id or `embedded`"
            raise mtmeta.WeightsError(self.weights, message)
        place = find_encoder(find_folder(self.weights, mtmeta.Sources(), pretrained=self.pretrained))
        source = Source(place.folder)
        if self.dropout is not None:
            source.set_dropout(self.dropout)
        tokenizer = source.tokenizer()
        model, identity = source.pretrained() if self.pretrained else source.random(seed, tokenizer)
        files = {"config.json": source.settings.data, "tokenizer.json": tokenizer.encode()}
        extra = place.folder / TOKENIZER_CONFIG
        if extra.is_file():  # for whoever exports the run
            files[TOKENIZER_CONFIG] = read_limited(extra, MAX_CONFIG_BYTES, TOKENIZER_CONFIG)
        loaded = source.assembled(model, tokenizer, self.max_length, files, identity)
        return replace(loaded, notes=(*loaded.notes, *place.notes(self.max_length, loaded.tokenizer.encode)))

    def load_tokenizer(self) -> mtmeta.LoadedTokenizer | None:
        from mtmeta.plugins.backbones.tokenizers.fast import AnyTokenizer
        from mtmeta.plugins.backbones.tokenizers.folder import TokenizerFolder

        if self.weights == TINY:
            return None  # `load` says why not
        folder = find_encoder(find_folder(self.weights, mtmeta.Sources(), pretrained=False)).folder
        values = read_settings(folder).values
        files = TokenizerFolder(folder, str(values.get("model_type", "")))
        if not files.is_ours:  # transformers has it, which loads PyTorch
            return None
        positions = values.get("max_position_embeddings")
        if isinstance(positions, int) and self.max_length > positions:  # `load` counts those that a sequence may have
            message = f"max_length {self.max_length} exceeds {folder}'s {positions} positions; lower it"
            raise mtmeta.RecipeError("backbone.max_length", message)
        text = files.text()
        tokenizer = AnyTokenizer.from_json(text, f"{folder}/tokenizer.json")
        return mtmeta.LoadedTokenizer(tokenizer, self.max_length, {"tokenizer.json": text.encode()}, files.notes())

    def restore(self, folder: Path) -> mtmeta.LoadedBackbone:
        from mtmeta.plugins.backbones.automodel import APART, Source
        from mtmeta.plugins.backbones.tokenizers.fast import read_vocabulary

        source = Source(folder)
        tokenizer = read_vocabulary(folder / "tokenizer.json")
        if self.dropout is not None:
            source.set_dropout(self.dropout)
        model, _ = source.random(0, tokenizer)
        files = {"config.json": source.settings.data, "tokenizer.json": tokenizer.encode()}
        for name in (TOKENIZER_CONFIG, APART):
            if (folder / name).is_file():
                files[name] = read_limited(folder / name, MAX_CONFIG_BYTES, name)
        return source.assembled(model, tokenizer, self.max_length, files, "")

    def portable(self, loaded: mtmeta.LoadedBackbone) -> mtmeta.Portable:
        from mtmeta.plugins.backbones.encoder.padded import portable_model

        return portable_model(loaded, "backbone 'hf'")
