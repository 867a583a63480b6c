"""config.json: the numbers that shape an encoder, checked before anything is allocated."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import mtmeta
from mtmeta.plugins.backbones.checkpoint.settings import Settings, read_settings

MODEL_TYPES = ("bert", "distilbert", "electra", "roberta", "xlm-roberta")
ROBERTA = ("roberta", "xlm-roberta")
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")
MAX_PARAMETERS = 2_000_000_000
MAX_LAYERS = 1000  # every layer has tensors to be looked up, however small they are

# DistilBERT's names for the numbers of BERT; it has no token types, and its epsilon is fixed
_DISTILBERT = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "max_position_embeddings": "max_position_embeddings",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "initializer_range": "initializer_range",
}


@dataclass(frozen=True)
class BertConfig:
    """The numbers of config.json that shape the encoder, under BERT's names."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    model_type: str = "bert"
    pad_token_id: int = 0
    """Of RoBERTa, where it decides the first position."""
    embedding_size: int = 0
    """Of ELECTRA, whose embeddings may be narrower than its layers; 0 for the width of the layers."""
    numbers_pairs: bool = field(default=True, repr=False)
    """Of the tokenizer: whether the second text of a pair has a token type of its own."""

    @property
    def first_position(self) -> int:
        """The row of the position embeddings that a sequence begins with: RoBERTa counts from its padding id on."""
        return self.pad_token_id + 1 if self.model_type in ROBERTA else 0

    @property
    def positions(self) -> int:
        """Tokens of the longest sequence."""
        return self.max_position_embeddings - self.first_position

    @property
    def typed(self) -> bool:
        """True where the second text of a pair has a token type of its own."""
        return self.type_vocab_size > 1 and self.numbers_pairs

    @property
    def embedded(self) -> int:
        """Width of the embeddings."""
        return self.embedding_size or self.hidden_size

    @property
    def attended_dropout_prob(self) -> float:
        """Dropout of the output of attention; DistilBERT has none there."""
        return 0.0 if self.model_type == "distilbert" else self.hidden_dropout_prob

    @property
    def parameters(self) -> int:
        """Number of parameters, to refuse absurd sizes before anything is allocated."""
        d, i, e = self.hidden_size, self.intermediate_size, self.embedded
        embeddings = (self.vocab_size + self.max_position_embeddings + self.type_vocab_size + 2) * e
        projection = 0 if e == d else (e + 1) * d
        return embeddings + projection + self.num_hidden_layers * (4 * d * d + 2 * d * i + 9 * d + i)


def _keys(model_type: str) -> dict[str, str]:
    """Map our names to those of the numbers in the config.json of a model type."""
    if model_type == "distilbert":
        return _DISTILBERT
    own = {"model_type", "numbers_pairs"}
    if model_type not in ROBERTA:
        own.add("pad_token_id")
    if model_type != "electra":
        own.add("embedding_size")
    return {number.name: number.name for number in fields(BertConfig) if number.name not in own}


def config_json(config: BertConfig) -> str:
    """Return config.json as transformers and `read_config` take it."""
    values = asdict(config) | {"embedding_size": config.embedded}
    given = {key: values[name] for name, key in _keys(config.model_type).items()}
    return json.dumps({"model_type": config.model_type, **given}, indent=2) + "\n"


def read_config(path: Path) -> BertConfig:
    """Read config.json. Raises WeightsError if it is unsupported, incomplete or asks for absurd sizes."""
    return config_of(read_settings(path.parent))


def config_of(settings: Settings) -> BertConfig:
    """Return the numbers of a config.json. Raises WeightsError if it is unsupported, incomplete or of absurd sizes."""
    path, values = settings.path, settings.values
    if settings.code and values.get("model_type") is None:
        raise mtmeta.WeightsError(str(path), "'auto_map' asks for remote code, which is never run; name a model_type")
    kind = values.get("model_type", "bert")
    if kind not in MODEL_TYPES:
        known = f"{', '.join(MODEL_TYPES)}; for others use backbone hf"
        message = f"model_type {mtmeta.quote(kind)} is not supported ({known})"
        raise mtmeta.WeightsError(str(path), message)
    if values.get("position_embedding_type", "absolute") != "absolute":
        raise mtmeta.WeightsError(str(path), "position_embedding_type must be 'absolute'")
    if values.get("is_decoder") or values.get("add_cross_attention"):
        raise mtmeta.WeightsError(str(path), "describes a decoder; an encoder is needed")
    given: dict[str, Any] = {"model_type": kind}
    if kind == "distilbert":
        given["type_vocab_size"] = 0
    if kind in ROBERTA:
        given["pad_token_id"] = 1
    keys = _keys(kind)
    for number in fields(BertConfig):
        key = keys.get(number.name)
        if key in values:
            given[number.name] = _number(path, key, values[key], str(number.type), least=int(key != "pad_token_id"))
        elif key and number.default is MISSING:
            raise mtmeta.WeightsError(str(path), f"'{key}' is missing")
    config = BertConfig(**given)
    fault = _fault(config, keys)
    if fault:
        raise mtmeta.WeightsError(str(path), fault)
    return config


def _fault(c: BertConfig, keys: dict[str, str]) -> str | None:
    """Return why there can be no such encoder; `keys` are the file's names of its numbers."""
    if c.hidden_act not in ACTIVATIONS:
        return f"{keys['hidden_act']} {mtmeta.quote(c.hidden_act)} is not one of {', '.join(ACTIVATIONS)}"
    if c.hidden_size % c.num_attention_heads:
        return f"{keys['hidden_size']} {c.hidden_size} is not a multiple of {c.num_attention_heads} attention heads"
    if c.parameters > MAX_PARAMETERS:
        return f"asks for {c.parameters / 1e9:.4g} billion parameters (limit {MAX_PARAMETERS / 1e9:g} billion)"
    if c.num_hidden_layers > MAX_LAYERS:
        return f"asks for {c.num_hidden_layers} layers (limit {MAX_LAYERS})"
    if c.positions < 1:
        message = f"max_position_embeddings {c.max_position_embeddings} leaves no position after pad_token_id"
        return f"{message} {c.pad_token_id}"
    return None


def _number(path: Path, name: str, value: Any, kind: str, *, least: int = 1) -> Any:
    if kind == "str" and isinstance(value, str):
        return value
    if kind == "int" and isinstance(value, int) and not isinstance(value, bool) and least <= value < 10**9:
        return value
    if kind == "float" and isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1:
        return float(value)
    whole = "a positive integer" if least else "an integer from 0"
    expected = {"str": "text", "int": whole, "float": "a number from 0 to 1"}[kind]
    raise mtmeta.WeightsError(str(path), f"'{name}' must be {expected}, found {mtmeta.quote(value)}")
