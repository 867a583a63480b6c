"""The BERT encoder (Devlin et al. 2018) on packed batches: no padding in any Linear, LayerNorm or attention.

RoBERTa, DistilBERT and ELECTRA are the same encoder: they differ in where positions begin, in token types, in the width
of the embeddings, and in one dropout (`config.py`).

Shapes: `S` packed tokens, `n` sequences of `T` tokens in one group of equal length, `D` hidden, `H` heads, `d` = D / H,
`I` intermediate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import mtmeta
from mtmeta.plugins.backbones.checkpoint.config import BertConfig
from mtmeta.plugins.backbones.checkpoint.sequence_heads import SEQUENCE_HEADS
from mtmeta.plugins.backbones.encoder import bf16, compiled, kernels, matrix_unit
from mtmeta.plugins.backbones.encoder.attention import Sequences
from mtmeta.plugins.backbones.encoder.fused import Noise, attend, drop, feed_forward
from mtmeta.plugins.backbones.encoder.kernels import Kernels
from mtmeta.plugins.backbones.encoder.kernels_bf16 import Bf16Kernels, low_rank_sum
from mtmeta.plugins.backbones.encoder.tiles import Tiles

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}


class Attention(nn.Module):
    """Multi-head self-attention within each sequence: [S, D] -> [S, D]."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)  # one matrix product instead of three
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, sequences: Sequences, p: float) -> Tensor:
        mixed: Tensor = self.out(sequences.attention(self.qkv(x), self.heads, p))
        return mixed


class Layer(nn.Module):
    """Attention and feed-forward, each with dropout, residual and LayerNorm after (post-norm): [S, D] -> [S, D]."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.config = config

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        c, p = self.config, self.config.hidden_dropout_prob
        mixed = self.attention(x, sequences, c.attention_probs_dropout_prob * self.training)
        x = self.attention_norm(x + functional.dropout(mixed, c.attended_dropout_prob, self.training))
        wide = self.activation(self.up(x))  # [S, D] -> [S, I]
        x = self.norm(x + functional.dropout(self.down(wide), p, self.training))  # [S, I] -> [S, D]
        return x

    @property
    def is_plain(self) -> bool:
        """True where nobody has changed the parts whose weights are taken: put others in, dropped a bias, hooked."""
        d, wide, own = self.config.hidden_size, self.config.intermediate_size, self.attention
        parts: tuple[Any, ...] = own.qkv, own.out, self.up, self.down, self.attention_norm, self.norm
        shapes = (3 * d, d), (d, d), (wide, d), (d, wide), (d,), (d,)
        kinds = [Layer, Attention, *[nn.Linear] * 4, *[nn.LayerNorm] * 2]
        known = [type(part) for part in (self, own, *parts)] == kinds
        if not known or own.heads != self.config.num_attention_heads or self.activation is not functional.gelu:
            return False
        whole = all(
            part.weight.shape == shape and part.bias is not None and _is_whole(part.weight)
            for part, shape in zip(parts, shapes, strict=True)
        ) and all(tensor.dtype == torch.float32 for part in parts for tensor in (part.weight, part.bias))
        return whole and not any(_hooked(module) for module in (self, own, *parts))

    def fused(self, x: Tensor, tiles: Tiles, weight_noise: Noise | None, noise: Noise | None) -> Tensor:
        """Compute the same in fp32 on a CPU, faster."""
        attended = noise if self.config.attended_dropout_prob else None
        x = self.attention_norm(attend(x, self.attention.qkv, self.attention.out, tiles, weight_noise, attended))
        x = self.norm(feed_forward(x, self.up, self.down, noise))
        return x

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """What has weights, in the order of computing."""
        return self.attention.qkv, self.attention.out, self.attention_norm, self.up, self.down, self.norm

    def compiled(
        self, x: Tensor, functions: Kernels, span: compiled.Span, weight_noise: Noise | None, noise: Noise | None
    ) -> Tensor:
        """Compute the same by `csrc/`, faster still."""
        a, attended = self.attention, noise if self.config.attended_dropout_prob else None
        x = compiled.attend(functions, x, a.qkv, a.out, self.attention_norm, a.heads, span, weight_noise, attended)
        return compiled.feed_forward(functions, x, self.up, self.down, self.norm, noise)


def _is_whole(weight: Tensor) -> bool:
    return weight.is_contiguous() or low_rank_sum(weight) is not None


def _hooked(module: nn.Module) -> bool:
    m = module
    return bool(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)


class Encoder(nn.Module):
    """Embeddings and layers: a packed batch of S tokens to hidden states [S, D]."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.hidden_size = config.hidden_size
        self.sequence_head = SEQUENCE_HEADS.get(config.model_type)
        self.words = _embedding(config.vocab_size, config.embedded)
        self.positions = _embedding(config.max_position_embeddings, config.embedded)
        if config.type_vocab_size:
            self.types = _embedding(config.type_vocab_size, config.embedded)
        self.norm = nn.LayerNorm(config.embedded, eps=config.layer_norm_eps)
        if config.embedded != config.hidden_size:
            self.projection = nn.Linear(config.embedded, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self._casts = bf16.Casts()
        self.twice_differentiable = False
        """Whether to compute by operators that have second derivatives, slower; core sets it where it asks for them."""

    def forward(self, packed: mtmeta.Packed) -> Tensor:
        for x in self.hidden_states(packed):  # noqa: B007  # the last
            pass
        return x if x.dtype == torch.float64 else x.float()

    def hidden_states(self, packed: mtmeta.Packed) -> Iterator[Tensor]:
        """Yield the hidden states [S, D] after the embeddings and after each layer, in fp32 or bf16."""
        x = self._embedded(packed)
        if self._can_fuse(x):
            if not torch.is_autocast_enabled("cpu"):
                return self._fused(x, packed)
            if functions := self._bf16_kernels():
                return self._bf16(x, packed, functions)
        return self._plain(x, packed)

    def _embedded(self, packed: mtmeta.Packed) -> Tensor:
        """Embed the tokens, before dropout: [S, E], E being D but in an ELECTRA that projects."""
        c = self.config
        x: Tensor = self.words(packed.ids) + self.positions(self._positions(packed))
        if c.type_vocab_size:
            x = x + (self.types(packed.types) if c.typed and packed.types is not None else self.types.weight[0])
        x = self.norm(x)
        return x

    def _positions(self, packed: mtmeta.Packed) -> Tensor:
        """Number the positions [S]. RoBERTa counts from its padding id on and leaves out tokens that have this id."""
        c = self.config
        if not c.first_position:
            return packed.positions
        padding = packed.ids == c.pad_token_id  # a text may well say <pad>
        before = padding.cumsum(0)
        begins = torch.arange(len(before), device=before.device) - packed.positions
        inside = before - (before - padding.long())[begins]
        return torch.where(padding, c.pad_token_id, packed.positions + c.first_position - inside)

    def _projected(self, x: Tensor) -> Tensor:
        """Project the embeddings to the width of the layers: [S, E] -> [S, D]."""
        return x if self.config.embedded == self.config.hidden_size else self.projection(x)

    def _plain(self, x: Tensor, packed: mtmeta.Packed) -> Iterator[Tensor]:
        x = self._projected(functional.dropout(x, self.config.hidden_dropout_prob, self.training))
        yield x
        sequences = Sequences(packed, twice_differentiable=self.twice_differentiable)
        for layer in self.layers:
            x = layer(x, sequences)
            yield x

    def _fused(self, x: Tensor, packed: mtmeta.Packed) -> Iterator[Tensor]:
        """Apply dropout and the layers, by compiled kernels if they can be had."""
        c, functions = self.config, self._kernels()
        dropouts = c.hidden_dropout_prob, c.attention_probs_dropout_prob
        noise, weight_noise = (Noise(p) if p and self.training else None for p in dropouts)
        x = self._projected(drop(x, noise))
        yield x
        if functions:
            span = compiled.span_of(packed.lengths, len(x))
            for layer in self.layers:
                x = layer.compiled(x, functions, span, weight_noise, noise)  # type: ignore[operator]
                yield x
            return
        tiles = Tiles(packed.groups, c.num_attention_heads)
        for layer in self.layers:
            x = layer.fused(x, tiles, weight_noise, noise)  # type: ignore[operator]
            yield x

    def _bf16(self, x: Tensor, packed: mtmeta.Packed, functions: Bf16Kernels) -> Iterator[Tensor]:
        """Apply dropout and the layers in bf16."""
        c = self.config
        dropouts = c.hidden_dropout_prob, c.attention_probs_dropout_prob
        noise, weight_noise = (Noise(p) if p and self.training else None for p in dropouts)
        x = self._projected(drop(x, noise)).to(torch.bfloat16)
        yield x
        by_unit = self._by_unit(functions)
        tokens, lengths = len(x), packed.lengths
        if more := bf16.missing(
            tokens, by_unit=by_unit
        ):  # one sequence of zeros, last, so that it moves nobody's random bits
            x, lengths = functional.pad(x, (0, 0, 0, more)), torch.cat([lengths, lengths.new_tensor([more])])
        span = compiled.span_of(lengths, len(x))
        attended = noise if c.attended_dropout_prob else None
        plan = bf16.Plan(functions, by_unit, span, c.num_attention_heads, weight_noise, attended, noise)
        parts: list[Any] = [layer.parts for layer in self.layers]
        weights = [(qkv, out, up, down) for qkv, out, _, up, down, _ in parts]
        casts = self._casts.of(weights, functions if by_unit else None)
        for own, cast in zip(parts, casts, strict=True):
            x = bf16.layer(x, own, cast, plan)
            yield x[:tokens]

    def _by_unit(self, functions: Bf16Kernels) -> bool:
        widths = self.config.hidden_size, self.config.intermediate_size
        return functions.multiplies and not any(width % matrix_unit.ROWS for width in widths)

    def forms_sums(self) -> bool:
        """Return whether the next pass, one with gradients, would form low-rank sums itself."""
        if not (torch.is_autocast_enabled("cpu") and self._can_fuse(self.words.weight)):
            return False
        functions = self._bf16_kernels()
        return functions is not None and self._by_unit(functions)

    def adapter_places(self) -> list[mtmeta.AdapterPlaces]:
        """Return where each layer takes adapters."""
        matrices = {"qkv": "attention.qkv", "out": "attention.out", "up": "up", "down": "down"}
        return [
            mtmeta.AdapterPlaces(
                {kind: f"layers.{i}.{part}.weight" for kind, part in matrices.items()},
                [f"layers.{i}.{norm}.{kind}" for norm in ("attention_norm", "norm") for kind in ("weight", "bias")],
            )
            for i in range(len(self.layers))
        ]

    def train(self, mode: bool = True) -> Encoder:
        self._casts.forget()
        return super().train(mode)

    @property
    def has_bf16_kernels(self) -> bool:
        """Whether bf16 on a CPU goes by compiled kernels; they are not compiled for the answer."""
        c = self.config
        fits = Bf16Kernels.fits(c.hidden_size, c.num_attention_heads, c.intermediate_size)
        return fits and kernels.load() is not None and all(layer.is_plain for layer in self.layers)

    @property
    def bf16_kernels_identity(self) -> str:
        """The compiled kernels that bf16 on a CPU goes by."""
        functions = self._bf16_kernels()
        return functions.identity if functions else "none"

    def _bf16_kernels(self) -> Bf16Kernels | None:
        c = self.config
        widths = c.hidden_size, c.num_attention_heads, c.intermediate_size
        found = kernels.load(Bf16Kernels) if Bf16Kernels.fits(*widths) else None
        return found if isinstance(found, Bf16Kernels) else None

    @property
    def kernels_identity(self) -> str:
        """The compiled kernels that fp32 on a CPU goes by."""
        functions = self._kernels()
        return functions.identity if functions else "none"

    def _kernels(self) -> Kernels | None:
        c = self.config
        return kernels.load() if Kernels.fits(c.hidden_size, c.num_attention_heads, c.intermediate_size) else None

    def _can_fuse(self, x: Tensor) -> bool:
        plain = x.device.type == "cpu" and x.dtype == torch.float32 and not self.twice_differentiable
        cast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") != torch.bfloat16
        return (
            plain
            and not cast
            and all(
                isinstance(layer, Layer)
                and layer.is_plain
                and layer.training == self.training
                and layer.config == self.config
                for layer in self.layers
            )
        )

    def initialise(self, seed: int) -> None:
        """Initialise as BERT does: normal weights, zero biases, unit LayerNorm; a function of `seed` alone."""
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                with torch.no_grad():
                    module.weight.normal_(0.0, self.config.initializer_range, generator=generator)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)


def _embedding(rows: int, width: int) -> nn.Embedding:
    """Make zeros, to be filled. PyTorch's random start takes a while, on the meta device three seconds of imports."""
    return nn.Embedding(rows, width, _weight=torch.zeros(rows, width))
