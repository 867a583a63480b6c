"""Backbone `bert`: our own encoder for folders of BERT, RoBERTa, DistilBERT and ELECTRA in Hugging Face layout.

A folder holds config.json, model.safetensors or its shards with their index, and a tokenizer: tokenizer.json, or
vocab.txt, or vocab.json with merges.txt; sentence-transformers' folders are such too. Everything is checked before
anything runs: the architecture against an allow-list, sizes against a budget, tensors for missing, misshaped or
non-finite.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

import mtmeta
from mtmeta.plugins.backbones import hub
from mtmeta.plugins.backbones.checkpoint.config import ROBERTA, BertConfig, config_json, config_of, read_config
from mtmeta.plugins.backbones.checkpoint.modules import find_encoder
from mtmeta.plugins.backbones.checkpoint.settings import read_settings
from mtmeta.plugins.backbones.checkpoint.shards import PICKLE
from mtmeta.plugins.backbones.checkpoint.tensors import read_tensors
from mtmeta.plugins.backbones.embedded import EMBEDDED, describe_embedded, embedded_folder
from mtmeta.plugins.backbones.tokenizers.bytelevel import ByteLevel
from mtmeta.plugins.backbones.tokenizers.fast import FastTokenizer
from mtmeta.plugins.backbones.tokenizers.folder import TokenizerFolder
from mtmeta.plugins.backbones.tokenizers.wordpiece import WordPiece

if TYPE_CHECKING:
    from mtmeta.plugins.backbones.encoder.encoder import Encoder

TINY: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
TINY_POSITIONS = 128
BUILT_IN = (EMBEDDED, "tiny")


@dataclass(frozen=True, kw_only=True)
class Bert(mtmeta.Backbone):
    """A BERT, RoBERTa, XLM-RoBERTa, DistilBERT or ELECTRA encoder on packed batches; for others there is `hf`.

    `embedded` and `tiny` are inside the package. `embedded` is mtmeta-mini, a small pretrained encoder for English.
    `tiny` is for trying things out: a vocabulary made from the sample data, random values from the recipe's seed.
    """

    name = "bert"

    weights: Annotated[str, Field(min_length=1)] = "embedded"
    """`embedded`, `tiny`, a folder in Hugging Face layout, or a hub id (`hf://` may stand before it), best pinned as
    id@revision with the whole commit hash."""
    pretrained: bool = True
    """false: random values from the recipe's seed in place of those in the folder; shape and tokenizer stay."""
    max_length: Annotated[int, Field(ge=4, le=1_000_000)] = 128
    """Longest sequence in tokens, special tokens included; longer texts are cut."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Dropout of hidden states and attention; default: what config.json says."""

    def fetch(self, sources: mtmeta.Sources) -> Bert:
        if self.weights == "tiny":
            return self
        return replace(self, weights=str(find_folder(self.weights, sources, pretrained=self.pretrained)))

    def load(self, seed: int) -> mtmeta.LoadedBackbone:
        if self.weights == "tiny":
            return self._tiny(seed)
        place = find_encoder(find_folder(self.weights, mtmeta.Sources(), pretrained=self.pretrained))
        folder, settings = place.folder, read_settings(place.folder)
        config = config_of(settings)
        files = _files(folder, config)
        vocabulary, notes = files.text(), (*files.notes(), *settings.notes)
        if self.pretrained:
            state, weights = read_tensors(folder, config, strict=settings.code)
            encoder, loaded = self._assemble(config, vocabulary, str(folder), f"sha256:{weights.identity}")
            encoder.load_state_dict(state)
            notes = (*notes, *weights.notes)
        else:
            shape = hashlib.sha256(f"{config} {vocabulary}".encode()).hexdigest()
            loaded = self._random(config, vocabulary, str(folder), f"random values, shape {shape}", seed)
        return replace(loaded, notes=(*notes, *place.notes(self.max_length, loaded.tokenizer.encode)))

    def load_tokenizer(self) -> mtmeta.LoadedTokenizer:
        notes: tuple[str, ...] = ()
        if self.weights == "tiny":
            from mtmeta import sample

            place, config = "tiny", BertConfig(1, max_position_embeddings=TINY_POSITIONS, **TINY)
            vocabulary = WordPiece.from_vocabulary(sample.vocabulary()).json()
        else:
            folder = find_encoder(find_folder(self.weights, mtmeta.Sources(), pretrained=False)).folder
            place, config = str(folder), read_config(folder / "config.json")
            files = _files(folder, config)
            vocabulary, notes = files.text(), files.notes()
        self._check_length(place, config.positions)
        tokenizer = _tokenizer(vocabulary, config, place)
        return mtmeta.LoadedTokenizer(tokenizer, self.max_length, {"tokenizer.json": vocabulary.encode()}, notes)

    def _check_length(self, place: str, positions: int) -> None:
        if self.max_length > positions:
            message = f"max_length {self.max_length} exceeds {place}'s {positions} positions; lower it"
            raise mtmeta.RecipeError("backbone.max_length", message)

    @classmethod
    def about(cls) -> list[str]:
        return describe_embedded()

    def restore(self, folder: Path) -> mtmeta.LoadedBackbone:
        config = read_config(folder / "config.json")
        vocabulary = _files(folder, config).text()
        return self._assemble(config, vocabulary, str(folder), "")[1]

    def portable(self, loaded: mtmeta.LoadedBackbone) -> mtmeta.Portable:
        from mtmeta.plugins.backbones.encoder.padded import portable

        return portable(loaded)

    def _tiny(self, seed: int) -> mtmeta.LoadedBackbone:
        from mtmeta import sample

        vocabulary = sample.vocabulary()
        config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=TINY_POSITIONS, **TINY)
        return self._random(config, WordPiece.from_vocabulary(vocabulary).json(), "tiny", "tiny", seed)

    def _random(
        self, config: BertConfig, vocabulary: str, place: str, identity: str, seed: int
    ) -> mtmeta.LoadedBackbone:
        encoder, loaded = self._assemble(config, vocabulary, place, f"{identity}, seed {seed}")
        encoder.initialise(int.from_bytes(hashlib.sha256(f"encoder {seed}".encode()).digest()[:7], "big"))
        return loaded

    def _assemble(
        self, config: BertConfig, vocabulary: str, place: str, identity: str
    ) -> tuple[Encoder, mtmeta.LoadedBackbone]:
        from mtmeta.plugins.backbones.encoder.encoder import Encoder

        self._check_length(place, config.positions)
        tokenizer = _tokenizer(vocabulary, config, place)
        if tokenizer.size > config.vocab_size:
            message = f"has {tokenizer.size} entries, embeddings have {config.vocab_size}; they do not belong together"
            raise mtmeta.WeightsError(f"{place}: tokenizer", message)
        files = {"config.json": config_json(config).encode(), "tokenizer.json": vocabulary.encode()}
        if self.dropout is not None:
            config = replace(config, hidden_dropout_prob=self.dropout, attention_probs_dropout_prob=self.dropout)
        if config.type_vocab_size > 1:
            config = replace(config, numbers_pairs=tokenizer.typed)
        encoder = Encoder(config)
        options: Any = {"kernels": encoder.kernels_identity, "bf16_on_cpu": encoder.has_bf16_kernels}
        options["kernels_bf16"] = lambda: encoder.bf16_kernels_identity
        return encoder, mtmeta.LoadedBackbone(encoder, tokenizer, self.max_length, files, identity, **options)


def _family(config: BertConfig) -> type[FastTokenizer]:
    """Return the tokenizer whose special tokens count where a vocabulary alone says nothing of them."""
    return ByteLevel if config.model_type in ROBERTA else WordPiece


def _files(folder: Path, config: BertConfig) -> TokenizerFolder:
    return TokenizerFolder(folder, config.model_type, family=_family(config))


def _tokenizer(vocabulary: str, config: BertConfig, place: str) -> FastTokenizer:
    return _family(config).from_json(vocabulary, f"{place}/tokenizer.json")


def find_folder(weights: str, sources: mtmeta.Sources, *, pretrained: bool = True) -> Path:
    """Find the folder `weights` names: the one inside the package, a local one, or that of a hub id, in its cache."""
    if weights == EMBEDDED:
        return embedded_folder()
    if weights.startswith(hub.SCHEME):
        return hub.fetch(weights, sources, pretrained=pretrained)
    folder = Path(weights).expanduser()
    if folder.is_dir():
        return folder
    if folder.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl") and folder.is_file():
        raise mtmeta.WeightsError(weights, PICKLE)
    if folder.exists():
        raise mtmeta.WeightsError(weights, "is a file, expected a folder with config.json and model.safetensors")
    if weights.startswith((".", "/", "~")) or weights.count("/") > 1 or "\\" in weights:
        raise mtmeta.WeightsError(weights, "no such folder; give a folder in Hugging Face layout or `embedded`")
    if "/" not in weights and (hint := mtmeta.did_you_mean(weights, BUILT_IN)):
        raise mtmeta.WeightsError(weights, f"no such folder{hint}")
    return hub.fetch(weights, sources, pretrained=pretrained)
