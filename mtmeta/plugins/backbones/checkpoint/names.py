"""Hugging Face's names for the tensors of our encoder, in each of the families it reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from mtmeta.plugins.backbones.checkpoint.config import BertConfig

Names = dict[str, tuple[str, ...]]

# of one layer: ours, and theirs below `encoder.layer.N.`, or `transformer.layer.N.` of DistilBERT
BERT: Names = {
    "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.out": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "up": ("intermediate.dense",),
    "down": ("output.dense",),
    "norm": ("output.LayerNorm",),
}
DISTILBERT: Names = {
    "attention.qkv": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    "attention.out": ("attention.out_lin",),
    "attention_norm": ("sa_layer_norm",),
    "up": ("ffn.lin1",),
    "down": ("ffn.lin2",),
    "norm": ("output_layer_norm",),
}
PREFIXES = {"xlm-roberta": "roberta."}  # of models with heads, where it is not the model type


def hugging_face_names(config: BertConfig) -> Names:
    """Map our tensor names to Hugging Face's: one each, three for the fused query, key and value."""
    names: Names = {
        "words.weight": ("embeddings.word_embeddings.weight",),
        "positions.weight": ("embeddings.position_embeddings.weight",),
    }
    if config.type_vocab_size:
        names["types.weight"] = ("embeddings.token_type_embeddings.weight",)
    names |= {f"norm.{kind}": (f"embeddings.LayerNorm.{kind}",) for kind in ("weight", "bias")}
    if config.embedded != config.hidden_size:
        names |= {f"projection.{kind}": (f"embeddings_project.{kind}",) for kind in ("weight", "bias")}
    distilled = config.model_type == "distilbert"
    stack, parts = ("transformer", DISTILBERT) if distilled else ("encoder", BERT)
    for i in range(config.num_hidden_layers):
        for kind in ("weight", "bias"):
            for our, theirs in parts.items():
                names[f"layers.{i}.{our}.{kind}"] = tuple(f"{stack}.layer.{i}.{their}.{kind}" for their in theirs)
    return names


def shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of Hugging Face's that `hugging_face_names` names, by its name."""
    hidden, wide, embedded = config.hidden_size, config.intermediate_size, config.embedded
    weights = {
        "words": (config.vocab_size, embedded),
        "positions": (config.max_position_embeddings, embedded),
        "types": (config.type_vocab_size, embedded),
        "norm": (embedded,),
        "projection": (hidden, embedded),
        "layers.attention.qkv": (hidden, hidden),
        "layers.attention.out": (hidden, hidden),
        "layers.attention_norm": (hidden,),
        "layers.up": (wide, hidden),
        "layers.down": (hidden, wide),
        "layers.norm": (hidden,),
    }
    by_name: dict[str, tuple[int, ...]] = {}
    for our, theirs in hugging_face_names(config).items():
        part, _, kind = our.rpartition(".")
        shape = weights[".".join(word for word in part.split(".") if not word.isdecimal())]
        by_name |= dict.fromkeys(theirs, shape if kind == "weight" else shape[:1])
    return by_name


def plain_names(state: dict[str, Tensor], model_type: str = "bert") -> dict[str, Tensor]:
    """Strip the model's prefix from Hugging Face's names and update those of LayerNorm (once gamma and beta)."""
    prefix, renamed = PREFIXES.get(model_type, f"{model_type}."), {}
    for name, tensor in state.items():
        name = name.removeprefix(prefix)
        name = name.removesuffix("gamma") + "weight" if name.endswith("LayerNorm.gamma") else name
        name = name.removesuffix("beta") + "bias" if name.endswith("LayerNorm.beta") else name
        renamed[name] = tensor
    return renamed
