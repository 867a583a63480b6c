"""The same encoder on padded batches, in plain modules under Hugging Face's names, for exports.

Shapes: `N` sequences of `T` tokens, padding included, `D` hidden, `H` heads, `d` = D / H.
"""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, processors
from torch import Tensor, nn

import mtmeta
from mtmeta.plugins.backbones.checkpoint.config import BertConfig
from mtmeta.plugins.backbones.checkpoint.names import hugging_face_names
from mtmeta.plugins.backbones.encoder.encoder import ACTIVATIONS, Encoder


class PaddedLayer(nn.Module):
    """Attention and feed-forward (post-norm): [N, T, D] -> [N, T, D]."""

    def __init__(self, c: BertConfig) -> None:
        super().__init__()
        d, wide = c.hidden_size, c.intermediate_size
        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict({name: nn.Linear(d, d) for name in ("query", "key", "value")}),
                "output": _dense_and_norm(d, c),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(d, wide)})
        self.output = _dense_and_norm(wide, c)
        self.activation = ACTIVATIONS[c.hidden_act]
        self.shape = (c.num_attention_heads, d // c.num_attention_heads)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        first: Any = self.attention["self"]
        out: Any = self.attention["output"]
        last: Any = self.output
        parts = (first[name](x) for name in ("query", "key", "value"))
        q, k, v = (part.unflatten(2, self.shape).transpose(1, 2) for part in parts)  # [N, T, D] -> [N, H, T, d]
        scores = q @ k.transpose(2, 3) / math.sqrt(self.shape[1]) + bias  # [N, H, T, T]
        mixed = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)  # [N, H, T, d] -> [N, T, D]
        x = out["LayerNorm"](x + out["dense"](mixed))
        wide = self.activation(self.intermediate["dense"](x))
        y: Tensor = last["LayerNorm"](x + last["dense"](wide))
        return y


class PaddedEncoder(nn.Module):
    """Token ids, attention mask (1 at tokens, 0 at padding) and segments, each [N, T], to hidden states [N, T, D]."""

    def __init__(self, c: BertConfig) -> None:
        super().__init__()
        d = c.hidden_size
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(c.vocab_size, d),
                "position_embeddings": nn.Embedding(c.max_position_embeddings, d),
                "token_type_embeddings": nn.Embedding(c.type_vocab_size, d),
                "LayerNorm": nn.LayerNorm(d, eps=c.layer_norm_eps),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(PaddedLayer(c) for _ in range(c.num_hidden_layers))})

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        embeddings: Any = self.embeddings
        layers: Any = self.encoder["layer"]
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = embeddings["word_embeddings"](input_ids) + embeddings["position_embeddings"](positions)
        x = embeddings["LayerNorm"](x + embeddings["token_type_embeddings"](token_type_ids))
        bias = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min  # [N, 1, 1, T]
        for layer in layers:
            x = layer(x, bias)
        hidden: Tensor = x
        return hidden


def _dense_and_norm(wide: int, c: BertConfig) -> nn.ModuleDict:
    norm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
    return nn.ModuleDict({"dense": nn.Linear(wide, c.hidden_size), "LayerNorm": norm})


def portable(loaded: mtmeta.LoadedBackbone) -> mtmeta.Portable:
    """Convert our encoder and its tokenizer for other libraries. Raises WeightsError if there is no such model type."""
    encoder = loaded.encoder
    assert isinstance(encoder, Encoder)
    if encoder.config.model_type != "bert":
        message = f"model_type '{encoder.config.model_type}' cannot be exported, only bert; use `mtmeta predict`"
        raise mtmeta.WeightsError("backbone 'bert'", message)
    values = json.loads(loaded.files["config.json"])
    state, tensors = encoder.state_dict(), {}
    for ours, theirs in hugging_face_names(encoder.config).items():
        for name, tensor in zip(theirs, state[ours].detach().float().cpu().chunk(len(theirs)), strict=True):
            tensors[name] = tensor.contiguous()
    with torch.device("meta"):
        padded = PaddedEncoder(encoder.config)
    padded.load_state_dict(tensors, assign=True)
    width = encoder.config.hidden_size
    # BertModel has a pooler, which no task of ours uses; without one in the file transformers would draw one at random
    tensors |= {"pooler.dense.weight": torch.eye(width), "pooler.dense.bias": torch.zeros(width)}
    files, padding = _tokenizer_files(loaded.files["tokenizer.json"].decode(), loaded.max_length)
    config = {"architectures": ["BertModel"], **values, "pad_token_id": padding}
    return mtmeta.Portable(padded.eval(), config, tensors, files)


def _tokenizer_files(text: str, max_length: int) -> tuple[dict[str, bytes], int]:
    """Return the tokenizer, which adds [CLS] and [SEP] itself, AutoTokenizer's other files, and the id of padding."""
    tokenizer = Tokenizer.from_str(text)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ids = {token: tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]")}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=list(ids.items())
    )
    if tokenizer.decoder is None:
        tokenizer.decoder = decoders.WordPiece()
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    names = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
    special = {f"{name}_token": token for name, token in names.items() if token in vocabulary}
    # a vocabulary without [PAD] can be filled up with any token, the mask hides it
    special.setdefault("pad_token", special["sep_token"])
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        **special,
    }
    files = {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": _json(settings),
        "special_tokens_map.json": _json(special),
    }
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    if all(vocabulary[token] == number and "\n" not in token for number, token in enumerate(tokens)):
        files["vocab.txt"] = "".join(f"{token}\n" for token in tokens).encode()
    return files, vocabulary[special["pad_token"]]


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
