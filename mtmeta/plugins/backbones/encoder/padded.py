"""Encoders on padded batches, in plain modules, for exports: our own, and those of transformers.

Shapes: `N` sequences of `T` tokens, padding included, `D` hidden, `H` heads, `d` = D / H.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import mtmeta
from mtmeta.plugins.backbones.checkpoint.names import hugging_face_names
from mtmeta.plugins.backbones.encoder.encoder import Encoder
from mtmeta.plugins.backbones.encoder.repacked import Repacked
from mtmeta.plugins.backbones.tokenizers.portable import TYPES, tokenizer_files

ARCHITECTURES = {
    "bert": "BertModel",
    "distilbert": "DistilBertModel",
    "electra": "ElectraModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
}
POOLED = ("bert", "roberta", "xlm-roberta")
TOLERANCE = 1e-5  # of hidden states with padding behind them, in units of the largest where that is above 1


class PaddedEncoder(nn.Module):
    """Token ids, attention mask (1 at tokens, 0 at padding) and segments, each [N, T], to hidden states [N, T, D]."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = _with_own_parameters(encoder)
        self.config = encoder.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        c, e = self.config, self.encoder
        x: Tensor = e.words(input_ids) + e.positions(self._positions(input_ids))
        if c.type_vocab_size:
            x = x + (e.types(token_type_ids) if c.typed else e.types.weight[0])
        x = e.norm(x)
        if c.embedded != c.hidden_size:
            x = e.projection(x)
        bias = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min  # [N, 1, 1, T]
        for layer in e.layers:
            x = self._layer(layer, x, bias)
        return x

    def _positions(self, input_ids: Tensor) -> Tensor:
        """Number the positions. RoBERTa counts from its padding id on and leaves out tokens that have this id."""
        c = self.config
        if not c.first_position:
            return torch.arange(input_ids.shape[1], device=input_ids.device)
        real = (input_ids != c.pad_token_id).long()
        return real.cumsum(1) * real + c.pad_token_id

    def _layer(self, layer: Any, x: Tensor, bias: Tensor) -> Tensor:
        """Attention and feed-forward (post-norm): [N, T, D] -> [N, T, D]."""
        heads = self.config.num_attention_heads
        parts = layer.attention.qkv(x).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # [3, N, H, T, d]
        q, k, v = parts.unbind()
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]) + bias  # [N, H, T, T]
        mixed = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)  # [N, H, T, d] -> [N, T, D]
        x = layer.attention_norm(x + layer.attention.out(mixed))
        y: Tensor = layer.norm(x + layer.down(layer.activation(layer.up(x))))
        return y


class PaddedModel(nn.Module):
    """A model of transformers, with the same inputs and outputs."""

    def __init__(self, model: nn.Module, *, typed: bool) -> None:
        super().__init__()
        self.model, self.typed = _with_own_parameters(model), typed

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        given = {TYPES: token_type_ids} if self.typed else {}
        hidden: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **given).last_hidden_state
        return hidden


def _with_own_parameters(module: Any) -> Any:
    """Copy a module; the values are the same, in fp32 on the CPU, and not copied where they are so already."""
    own: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().float().cpu(), requires_grad=False) for p in module.parameters()
    }
    own |= {id(buffer): buffer.cpu() for buffer in module.buffers()}
    return copy.deepcopy(module, own).eval()


def portable(loaded: mtmeta.LoadedBackbone) -> mtmeta.Portable:
    """Convert our encoder and its tokenizer for other libraries, in the layout of its own family."""
    encoder = loaded.encoder
    assert isinstance(encoder, Encoder)
    c = encoder.config
    padded = PaddedEncoder(encoder)
    state, tensors, names = padded.encoder.state_dict(), {}, hugging_face_names(c)
    for ours, theirs in names.items():
        for name, tensor in zip(theirs, state[ours].chunk(len(theirs)), strict=True):
            tensors[name] = tensor.contiguous()
    if c.model_type in POOLED:
        tensors |= _pooler({"pooler.dense.weight": (c.hidden_size,) * 2, "pooler.dense.bias": (c.hidden_size,)})
    text = loaded.files["tokenizer.json"].decode()
    files, padding = tokenizer_files(text, loaded.tokenizer, loaded.max_length, typed=c.typed)
    config = {"architectures": [ARCHITECTURES[c.model_type]], **json.loads(loaded.files["config.json"])}
    config.setdefault("pad_token_id", padding)  # RoBERTa's own decides the first position
    return mtmeta.Portable(padded, config, tensors, files, names)


def portable_model(loaded: mtmeta.LoadedBackbone, place: str) -> mtmeta.Portable:
    """Convert an encoder of transformers as it is. Raises WeightsError if padding changes its hidden states."""
    encoder = loaded.encoder
    assert isinstance(encoder, Repacked)
    padded = PaddedModel(encoder.model, typed=encoder.typed)
    model: Any = padded.model
    kind = type(model).__name__
    if encoder.shortest > 1:
        message = f"{kind} takes no text of fewer than {encoder.shortest} tokens, so that we fill them up"
        raise mtmeta.WeightsError(place, f"{message}; it cannot be exported, use `mtmeta predict`")
    error = _padding_error(padded, loaded.tokenizer)
    if error > TOLERANCE:  # not so of a model whose values are not finite, which is another matter
        message = f"{kind} mixes padding into the hidden states of texts (they differ by {error:.2g})"
        raise mtmeta.WeightsError(place, f"{message}; it cannot be exported, use `mtmeta predict`")
    tensors = _saved(model)
    missing = _missing(model)
    if other := next((name for name in missing if "pooler" not in name), None):
        message = f"AutoModel would draw {mtmeta.quote(other)} of its {kind} at random; it cannot be exported"
        raise mtmeta.WeightsError(place, f"{message}, use `mtmeta predict`")
    config = json.loads(model.config.to_json_string())
    config |= {"architectures": [kind], "dtype": "float32"}
    for name in ("auto_map", "quantization_config", "_name_or_path"):
        config.pop(name, None)
    given = loaded.files.get("tokenizer_config.json")
    options: dict[str, Any] = {"typed": encoder.typed, "config": json.loads(given) if given else None}
    text = loaded.files["tokenizer.json"].decode()
    files, _ = tokenizer_files(text, loaded.tokenizer, loaded.max_length, **options)
    return mtmeta.Portable(padded, config, tensors | _pooler(missing), files, foreign=True)


@torch.inference_mode()
def _padding_error(encoder: nn.Module, tokenizer: mtmeta.Tokenizer) -> float:
    """Return how far the hidden states of a short sequence are from its own where padding follows it."""
    words = tokenizer.encode(["a probe of one short text that stands beside nothing else"])[0]
    short, longer = ([*tokenizer.prefix, *words[:count], *tokenizer.suffix] for count in (2, len(words)))
    alone = torch.tensor([short])
    wanted = encoder(alone, torch.ones_like(alone), torch.zeros_like(alone))[0]
    beside = torch.tensor([[*short, *[0] * (len(longer) - len(short))], longer])
    mask = torch.ones_like(beside)
    mask[0, len(short) :] = 0
    hidden = encoder(beside, mask, torch.zeros_like(beside))[0, : len(short)]
    return float((hidden - wanted).abs().max()) / max(1.0, float(wanted.abs().max()))


def _saved(model: Any) -> dict[str, Tensor]:
    """Return the tensors of a model under the names that transformers saves them by; of two that are one, the first."""
    state: dict[str, Tensor] = {}
    places: set[tuple[int, int]] = set()
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.numel())
        if place not in places or not tensor.numel():
            state[name] = tensor
        places.add(place)
    # some models have other names in memory than in files
    core = importlib.import_module("transformers.core_model_loading")
    if revert := getattr(core, "revert_weight_conversion", None):
        state = revert(model, state)
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _missing(model: Any) -> dict[str, tuple[int, ...]]:
    """Return name and shape of what AutoModel makes beside the model's own tensors: a pooler, which we leave out."""
    if "add_pooling_layer" not in inspect.signature(type(model).__init__).parameters:
        return {}
    with torch.device("meta"):
        whole = type(model)(model.config)
    own = model.state_dict()
    return {name: tuple(tensor.shape) for name, tensor in whole.state_dict().items() if name not in own}


def _pooler(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return an identity for a pooler, which no task of ours uses; without one transformers draws one at random."""
    return {name: torch.eye(*shape) if len(shape) == 2 else torch.zeros(shape) for name, shape in shapes.items()}
