"""Backbone `bert`: our own encoder for any BERT-family folder in Hugging Face layout.

A folder holds config.json, model.safetensors, and tokenizer.json or vocab.txt. Everything is checked before anything
runs: the architecture against an allow-list, sizes against a budget, tensors for missing, misshaped or non-finite.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

import mtmeta
from mtmeta.plugins.backbones import hub
from mtmeta.plugins.backbones.embedded import EMBEDDED, describe_embedded, embedded_folder
from mtmeta.plugins.backbones.tensors import PICKLE, check_regular, read_weights
from mtmeta.plugins.backbones.wordpiece import WordPiece, tokenizer_json

if TYPE_CHECKING:
    from mtmeta.plugins.backbones.encoder import BertConfig, Encoder

ARCHITECTURES = ("bert",)  # roberta, distilbert, electra would each add a name map beside from_hugging_face
MAX_PARAMETERS = 2_000_000_000
MAX_LAYERS = 1000  # every layer has tensors to be looked up, however small they are
MAX_CONFIG_BYTES = 1_000_000
TINY: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
TINY_POSITIONS, DEFAULT_POSITIONS = 128, 512
POSITIONS = "max_position_embeddings"
BUILT_IN = (EMBEDDED, "tiny")


@dataclass(frozen=True, kw_only=True)
class Bert(mtmeta.Backbone):
    """A BERT encoder on packed batches.

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
        folder = find_folder(self.weights, mtmeta.Sources(), pretrained=self.pretrained)
        config = read_config(folder / "config.json")
        vocabulary = tokenizer_json(folder)
        if not self.pretrained:
            shape = hashlib.sha256(f"{config} {vocabulary}".encode()).hexdigest()
            return self._random(config, vocabulary, str(folder), f"random values, shape {shape}", seed)
        state, identity = read_weights(folder / "model.safetensors", config)
        encoder, loaded = self._assemble(config, vocabulary, str(folder), f"sha256:{identity}")
        encoder.load_state_dict(state)
        return loaded

    def load_tokenizer(self) -> mtmeta.LoadedTokenizer:
        if self.weights == "tiny":
            from mtmeta import sample

            place, positions = "tiny", TINY_POSITIONS
            vocabulary = WordPiece.from_vocabulary(sample.vocabulary()).json()
        else:
            folder = find_folder(self.weights, mtmeta.Sources(), pretrained=False)
            place, vocabulary = str(folder), tokenizer_json(folder)
            path = folder / "config.json"
            positions = _number(path, POSITIONS, _json_object(path).get(POSITIONS, DEFAULT_POSITIONS), "int")
        self._check_length(place, positions)
        tokenizer = WordPiece.from_json(vocabulary, f"{place}/tokenizer.json")
        return mtmeta.LoadedTokenizer(tokenizer, self.max_length, {"tokenizer.json": vocabulary.encode()})

    def _check_length(self, place: str, positions: int) -> None:
        if self.max_length > positions:
            what = f"max_length {self.max_length} exceeds {place}'s {positions} positions; lower it"
            raise mtmeta.RecipeError("backbone.max_length", what)

    @classmethod
    def about(cls) -> list[str]:
        return describe_embedded()

    def restore(self, folder: Path) -> mtmeta.LoadedBackbone:
        config = read_config(folder / "config.json")
        return self._assemble(config, tokenizer_json(folder), str(folder), "")[1]

    def portable(self, loaded: mtmeta.LoadedBackbone) -> mtmeta.Portable:
        from mtmeta.plugins.backbones.padded import portable

        return portable(loaded)

    def _tiny(self, seed: int) -> mtmeta.LoadedBackbone:
        from mtmeta import sample
        from mtmeta.plugins.backbones.encoder import BertConfig

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
        from mtmeta.plugins.backbones.encoder import Encoder

        self._check_length(place, config.max_position_embeddings)
        tokenizer = WordPiece.from_json(vocabulary, f"{place}/tokenizer.json")
        if tokenizer.size > config.vocab_size:
            what = f"has {tokenizer.size} entries, embeddings have {config.vocab_size}; they do not belong together"
            raise mtmeta.WeightsError(f"{place}: tokenizer", what)
        config_json = json.dumps({"model_type": "bert", **asdict(config)}, indent=2) + "\n"
        if self.dropout is not None:
            values = asdict(config) | {
                "hidden_dropout_prob": self.dropout,
                "attention_probs_dropout_prob": self.dropout,
            }
            config = type(config)(**values)
        encoder = Encoder(config)
        files = {"config.json": config_json.encode(), "tokenizer.json": vocabulary.encode()}
        return encoder, mtmeta.LoadedBackbone(
            encoder, tokenizer, self.max_length, files, identity, encoder.kernels_identity
        )


def find_folder(weights: str, sources: mtmeta.Sources, *, pretrained: bool = True) -> Path:
    """The folder `weights` names: the one inside the package, a local one, or that of a hub id, in its cache."""
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


def read_config(path: Path) -> BertConfig:
    """config.json as a BertConfig. Raises WeightsError for what is unknown, unsupported or absurdly large."""
    from mtmeta.plugins.backbones.encoder import ACTIVATIONS, BertConfig

    values = _json_object(path)
    if "auto_map" in values:
        raise mtmeta.WeightsError(str(path), "'auto_map' asks for remote code, which is never run; remove it")
    kind = values.get("model_type", "bert")
    if kind not in ARCHITECTURES:
        what = f"model_type {mtmeta.quote(kind)} is not supported ({', '.join(ARCHITECTURES)})"
        raise mtmeta.WeightsError(str(path), what)
    if values.get("position_embedding_type", "absolute") != "absolute":
        raise mtmeta.WeightsError(str(path), "position_embedding_type must be 'absolute'")
    if values.get("is_decoder") or values.get("add_cross_attention"):
        raise mtmeta.WeightsError(str(path), "describes a decoder; an encoder is needed")
    given: dict[str, Any] = {}
    for field in fields(BertConfig):
        value = values.get(field.name)
        if field.name in values:
            given[field.name] = _number(path, field.name, value, str(field.type))
        elif field.default.__class__.__name__ == "_MISSING_TYPE":
            raise mtmeta.WeightsError(str(path), f"'{field.name}' is missing")
    config = BertConfig(**given)
    if config.hidden_act not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise mtmeta.WeightsError(str(path), f"hidden_act {mtmeta.quote(config.hidden_act)} is not one of {known}")
    if config.hidden_size % config.num_attention_heads:
        what = f"hidden_size {config.hidden_size} is not a multiple of {config.num_attention_heads} attention heads"
        raise mtmeta.WeightsError(str(path), what)
    if config.parameters > MAX_PARAMETERS:
        what = f"asks for {config.parameters / 1e9:.4g} billion parameters (limit {MAX_PARAMETERS / 1e9:g} billion)"
        raise mtmeta.WeightsError(str(path), what)
    if config.num_hidden_layers > MAX_LAYERS:
        raise mtmeta.WeightsError(str(path), f"asks for {config.num_hidden_layers} layers (limit {MAX_LAYERS})")
    return config


def _number(path: Path, name: str, value: Any, kind: str) -> Any:
    if kind == "str" and isinstance(value, str):
        return value
    if kind == "int" and isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**9:
        return value
    if kind == "float" and isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1:
        return float(value)
    expected = {"str": "text", "int": "a positive integer", "float": "a number from 0 to 1"}[kind]
    raise mtmeta.WeightsError(str(path), f"'{name}' must be {expected}, found {mtmeta.quote(value)}")


def _json_object(path: Path) -> dict[str, Any]:
    check_regular(path)
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise mtmeta.WeightsError(str(path), "is larger than a config.json can be")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise mtmeta.WeightsError(str(path), f"is not JSON ({mtmeta.safe(str(error))}); fetch it again") from error
    if not isinstance(values, dict):
        raise mtmeta.WeightsError(str(path), "is not a JSON object")
    return values
