"""What a backbone gives for `mtmeta export`: its encoder in Hugging Face's layout, and as a plain padded module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Portable"]


@dataclass(frozen=True)
class Portable:
    """An encoder that other libraries load. Shapes: `N` sequences of `T` tokens, padding included, `D` hidden."""

    encoder: nn.Module
    """Plain PyTorch: (input_ids, attention_mask, token_type_ids), each [N, T] int64, to hidden states [N, T, D]."""
    config: Mapping[str, Any]
    """config.json."""
    tensors: Mapping[str, Tensor]
    """model.safetensors, in fp32, under the names that transformers' AutoModel looks for."""
    files: Mapping[str, bytes]
    """tokenizer.json, tokenizer_config.json and what else AutoTokenizer reads."""
