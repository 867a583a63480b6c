"""The BERT encoder (Devlin et al. 2018) on packed batches: no padding in any Linear, LayerNorm or attention.

Shapes: `S` packed tokens, `n` sequences of `T` tokens in one group of equal length, `D` hidden, `H` heads, `d` = D / H,
`I` intermediate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

import mtmeta

__all__ = ["ACTIVATIONS", "BertConfig", "Encoder", "hugging_face_names", "plain_names"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}


@dataclass(frozen=True)
class BertConfig:
    """The numbers of config.json that shape the encoder, under Hugging Face's names."""

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

    @property
    def parameters(self) -> int:
        """Number of parameters, to refuse absurd sizes before anything is allocated."""
        d, i = self.hidden_size, self.intermediate_size
        embeddings = (self.vocab_size + self.max_position_embeddings + self.type_vocab_size + 2) * d
        return embeddings + self.num_hidden_layers * (4 * d * d + 2 * d * i + 9 * d + i)


class Attention(nn.Module):
    """Multi-head self-attention within each sequence: [S, D] -> [S, D]."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)  # one matrix product instead of three
        self.out = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = config.attention_probs_dropout_prob

    def forward(self, x: Tensor, groups: tuple[tuple[int, int], ...]) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        # split, not slices: the backward of a split is one concatenation, that of slices one full-size buffer each
        parts = torch.split(self.qkv(x), [n * t for n, t in groups])  # [n * T, 3 * D] each
        mixed = []
        for part, (n, t) in zip(parts, groups, strict=True):
            q, k, v = part.view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()  # [n, H, T, d] each
            y = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
            mixed.append(y.transpose(1, 2).reshape(n * t, -1))  # [n, H, T, d] -> [n * T, D]
        projected: Tensor = self.out(torch.cat(mixed))
        return projected


class Layer(nn.Module):
    """Attention and feed-forward, each with dropout, residual and LayerNorm after (post-norm): [S, D] -> [S, D]."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor, groups: tuple[tuple[int, int], ...]) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, groups)))
        x = self.norm(x + self.dropout(self.down(self.activation(self.up(x)))))  # [S, D] -> [S, I] -> [S, D]
        return x


class Encoder(nn.Module):
    """Embeddings and layers: a packed batch of S tokens to hidden states [S, D]."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.hidden_size = config.hidden_size
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.types = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, packed: mtmeta.Packed) -> Tensor:
        types = self.types.weight[0] if packed.types is None else self.types(packed.types)
        x: Tensor = self.dropout(self.norm(self.words(packed.ids) + self.positions(packed.positions) + types))  # [S, D]
        for layer in self.layers:
            x = layer(x, packed.groups)
        return x

    def initialise(self, seed: int) -> None:
        """BERT's initialisation: normal weights, zero biases, unit LayerNorm; a function of `seed` alone."""
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                with torch.no_grad():
                    module.weight.normal_(0.0, self.config.initializer_range, generator=generator)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)


def hugging_face_names(config: BertConfig) -> dict[str, tuple[str, ...]]:
    """Our tensor names to Hugging Face's: one each, three for the fused query, key and value."""
    names = {
        "words.weight": "embeddings.word_embeddings.weight",
        "positions.weight": "embeddings.position_embeddings.weight",
        "types.weight": "embeddings.token_type_embeddings.weight",
        "norm.weight": "embeddings.LayerNorm.weight",
        "norm.bias": "embeddings.LayerNorm.bias",
    }
    pairs = {
        "attention.out": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "up": "intermediate.dense",
        "down": "output.dense",
        "norm": "output.LayerNorm",
    }
    found: dict[str, tuple[str, ...]] = {our: (their,) for our, their in names.items()}
    for i in range(config.num_hidden_layers):
        for kind in ("weight", "bias"):
            theirs = f"encoder.layer.{i}."
            fused = tuple(f"{theirs}attention.self.{part}.{kind}" for part in ("query", "key", "value"))
            found[f"layers.{i}.attention.qkv.{kind}"] = fused
            found |= {f"layers.{i}.{our}.{kind}": (f"{theirs}{their}.{kind}",) for our, their in pairs.items()}
    return found


def plain_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's tensors without the prefix `bert.` and with today's LayerNorm names (once gamma and beta)."""
    renamed = {}
    for name, tensor in state.items():
        name = name.removeprefix("bert.")
        name = name.removesuffix("gamma") + "weight" if name.endswith("LayerNorm.gamma") else name
        name = name.removesuffix("beta") + "bias" if name.endswith("LayerNorm.beta") else name
        renamed[name] = tensor
    return renamed
