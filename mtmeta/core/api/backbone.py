"""The results of a backbone's methods: its tokenizer, its encoder with weights, and the encoder for other libraries.

Shapes: `S` tokens of a packed batch in all, `N` sequences, `T` tokens of a padded one, `D` hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn


class Tokenizer(Protocol):
    """A map from text to token ids without special tokens, which are in `prefix`, `middle` and `suffix`.

    One text becomes `prefix + a + suffix`, a pair in one sequence `prefix + a + middle + b + suffix`. Three members are
    optional: `size`, one more than the largest id, lets ids be stored in two bytes; `encode_flat(texts)` returns the
    ids of N texts as one int64 array [S], and the lengths of the texts, int64 [N]; `same_as(text)` says whether another
    tokenizer.json gives the same ids, for a run that goes on where the files differ.
    """

    prefix: tuple[int, ...]
    middle: tuple[int, ...]
    suffix: tuple[int, ...]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, untruncated."""


@dataclass(frozen=True)
class LoadedTokenizer:
    """A backbone's tokenizer, without the encoder that takes its ids."""

    tokenizer: Tokenizer
    max_length: int
    """Longest sequence, special tokens included."""
    files: Mapping[str, bytes]
    """tokenizer.json, as `LoadedBackbone.files` has it."""
    notes: tuple[str, ...] = ()
    """Lines on the tokenizer's files that a user should know, shown as warnings."""


@dataclass(frozen=True)
class LoadedBackbone:
    """An encoder with its weights, its tokenizer, and the small files that rebuild both."""

    encoder: nn.Module
    """Maps a `Packed` batch of S tokens to hidden states [S, D]; has an attribute `hidden_size`.

    A module whose usual operators have no second derivatives has an attribute `twice_differentiable`, False at first;
    while core sets it to True the module computes by operators that can be differentiated any number of times. Of
    PyTorch's own attention core then allows the one by plain products alone.
    """
    tokenizer: Tokenizer
    max_length: int
    """Longest sequence, special tokens included."""
    files: Mapping[str, bytes]
    """config.json and tokenizer.json, copied into the run directory."""
    identity: str
    """The name of the weights: their SHA-256, or a description with the seed."""
    kernels: str = "none"
    """Compiled code of the backbone's own that a CPU runs beside PyTorch's; another name means other last bits."""
    bf16_on_cpu: bool = False
    """Whether the encoder has a fast bf16 path on a CPU: `precision: auto` then means bf16 on processors with AMX. By
    PyTorch's own operators under autocast it has none, for their attention's backward is slower in bf16."""
    packages: tuple[str, ...] = ()
    """Distributions that compute, beside PyTorch; another version of one may mean other last bits."""
    notes: tuple[str, ...] = ()
    """Lines on the files that a user should know, shown as warnings where a run begins."""
    kernels_bf16: Callable[[], str] | None = None
    """Returns the name of the compiled code of runs in bf16, where that is other code; called by them alone."""


@dataclass(frozen=True)
class AdapterPlaces:
    """Where a layer of an encoder takes adapters, by the names of the encoder's own parameters.

    An encoder that can have adapters has a method `adapter_places()`, which returns these of each layer, the one next
    to the embeddings first. While a task's sequences go through it, other tensors of the same shape, which are no
    leaves of the graph, stand in for the parameters named; the encoder reads them anew in every pass.

    A method `forms_sums()` is optional. Where it returns True the next pass, one with gradients, forms the sums itself:
    what stands in for a weight has an attribute `low_rank_sum`, a `LowRankSum`, and no values but NaN.
    """

    matrices: Mapping[str, str]
    """The weight [out, in] of each of `qkv`, `out`, `up` and `down` that the layer has, under that word."""
    norms: Sequence[str] = ()
    """Gains and shifts of the layer's norms."""


@dataclass(frozen=True)
class SequenceHead:
    """The head that transformers' model for sequence classification puts onto an encoder of one family.

    It is Linear, an activation, Linear on the hidden state of the first token. An encoder of such a family has an
    attribute `sequence_head`, without which tasks cannot have `head: hf`.
    """

    architecture: str
    """The class, as config.json names it."""
    activation: Literal["tanh", "relu", "gelu"]
    encoder: str
    """What the class calls its encoder: the beginning of the names of its tensors."""
    dense: str
    """The first Linear, by its name in the class."""
    out: str = "classifier"
    """The last one."""


@dataclass(frozen=True)
class LowRankSum:
    """W + scale B A, for an encoder that forms it where its kernels read a weight anyway."""

    weight: Tensor
    """W [out, in]."""
    a: Tensor
    """A [rank, in]."""
    b: Tensor
    """B [out, rank]."""
    scale: float


@dataclass(frozen=True)
class Portable:
    """An encoder that other libraries load. It takes N sequences padded to T tokens."""

    encoder: nn.Module
    """Plain PyTorch: (input_ids, attention_mask, token_type_ids), each [N, T] int64, to hidden states [N, T, D]."""
    config: Mapping[str, Any]
    """config.json."""
    tensors: Mapping[str, Tensor]
    """model.safetensors, in fp32, under the names that transformers' AutoModel looks for."""
    files: Mapping[str, bytes]
    """tokenizer.json, tokenizer_config.json and all else that AutoTokenizer reads."""
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Where the parameters of the run's encoder stand in `tensors`, by their names there: under one name, or under
    several that each have an equal share of its rows. Wanted of encoders that have adapters, for format peft."""
    foreign: bool = False
    """True where the encoder is another library's code, which may not become an ONNX graph: `--dry-run` tries it."""
