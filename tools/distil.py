"""Distillation of a BERT encoder into a smaller one: student and teacher read the same sentences.

Their vocabularies may differ, so tokens cannot be matched; words can. A word's state is the mean over its pieces, and
[CLS] and [SEP] are words too. The loss has four parts, none of which knows a label:

- last layer: ||s - t||^2 / ||t||^2 over the states of the words;
- layers: the same where a student's layer was taken from a teacher's (Jiao et al. 2020, "TinyBERT", equation 8);
- pooled: 1 - cosine of the mean-pooled vectors of a sentence (Reimers and Gurevych 2020, with the cosine);
- relations: (cos(s_i, s_j) - cos(t_i, t_j))^2 over pairs of sentences of a batch (Park et al. 2019, with the cosine).

Shapes: `S` tokens, `W` words, `N` sentences, `D` hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mtmeta.core.api.batch import Packed
from mtmeta.core.data.dataset import TokenStore
from mtmeta.core.data.packing import pack_sequences
from mtmeta.core.rng import permutation
from mtmeta.core.training.model import mean_pool
from mtmeta.plugins.backbones.encoder.encoder import Encoder
from mtmeta.plugins.backbones.tokenizers.wordpiece import WordPiece

__all__ = ["WEIGHTS", "Encoded", "batches", "encode", "losses", "make_student"]

WEIGHTS = {"last": 1.0, "layers": 0.3, "pooled": 3.0, "relations": 3.0}
MAX_LENGTH = 128


@dataclass(frozen=True)
class Encoded:
    """N sentences in the tokens of one tokenizer."""

    tokens: TokenStore
    words: TokenStore
    """The number of each token's word in its sentence, 0 for [CLS]; offsets are those of `tokens`."""
    word_counts: NDArray[np.int64]
    """[N]"""

    def chosen(self, indices: NDArray[np.int64]) -> tuple[Packed, Tensor]:
        """Return the sentences `indices` as a packed batch, and each token's word, numbered through the batch [S]."""
        packed, numbers = (pack_sequences([store], indices) for store in (self.tokens, self.words))
        counts = self.word_counts[indices]
        firsts = torch.from_numpy(np.cumsum(counts) - counts)  # of each sentence's words, in the order given
        by_length = torch.empty_like(packed.order)
        by_length[packed.order] = torch.arange(len(by_length))  # sentence that stands at each place of the batch
        return packed, numbers.ids + torch.repeat_interleave(firsts[by_length], packed.lengths)


def encode(texts: Sequence[str], tokenizer: WordPiece, continues: NDArray[np.bool_]) -> Encoded:
    """Encode the tokens and words of each text. `continues` says of each piece whether it goes on with a word."""
    flat, lengths = tokenizer.encode_flat(texts)
    offsets = np.concatenate([[0], np.cumsum(lengths + 2)])
    ids = np.full(offsets[-1], tokenizer.suffix[0], dtype=np.int32)
    ids[offsets[:-1]] = tokenizer.prefix[0]
    inner = np.ones(len(ids), dtype=bool)
    inner[offsets[:-1]] = inner[offsets[1:] - 1] = False
    ids[inner] = flat
    begins = np.cumsum(~continues[ids])  # words up to here, over all sentences
    words = (begins - np.repeat(begins[offsets[:-1]], lengths + 2)).astype(np.int32)
    return Encoded(TokenStore(ids, None, offsets), TokenStore(words, None, offsets), words[offsets[1:] - 1] + 1)


def batches(groups: Sequence[NDArray[np.int64]], counts: Sequence[int], seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield batches for ever: `counts[g]` sentences out of each group, each group shuffled anew when it is through."""
    streams = [_stream(group, seed, number) for number, group in enumerate(groups)]
    while True:
        drawn = [next(stream) for stream, count in zip(streams, counts, strict=True) for _ in range(count)]
        yield np.array(drawn, dtype=np.int64)


def _stream(group: NDArray[np.int64], seed: int, number: int) -> Iterator[int]:
    epoch = 0
    while True:
        yield from group[permutation(len(group), seed, "text", number, epoch)].tolist()
        epoch += 1


def make_student(teacher: Encoder, layers: Sequence[int], intermediate: int, pieces: NDArray[np.int64]) -> Encoder:
    """Make an encoder of the teacher's `layers` (from 0) and `pieces`, its `intermediate` strongest neurons a layer.

    The strength of a neuron of the feed-forward part is the product of the norms of its input and output weights.
    """
    config = replace(
        teacher.config,
        vocab_size=len(pieces),
        num_hidden_layers=len(layers),
        intermediate_size=intermediate,
        max_position_embeddings=min(MAX_LENGTH, teacher.config.max_position_embeddings),
    )
    state = {name: tensor for name, tensor in teacher.state_dict().items() if not name.startswith("layers.")}
    state["words.weight"] = state["words.weight"][torch.from_numpy(pieces)]
    state["positions.weight"] = state["positions.weight"][: config.max_position_embeddings]
    for number, source in enumerate(layers):
        own = teacher.layers[source].state_dict()
        strength = own["up.weight"].norm(dim=1) * own["down.weight"].norm(dim=0)
        strongest = strength.topk(intermediate).indices.sort().values
        own["up.weight"], own["up.bias"] = own["up.weight"][strongest], own["up.bias"][strongest]
        own["down.weight"] = own["down.weight"][:, strongest]
        state |= {f"layers.{number}.{name}": tensor for name, tensor in own.items()}
    student = Encoder(config)
    student.load_state_dict(state)
    return student


def losses(
    student: Encoder,
    teacher: Encoder,
    layers: Sequence[int],
    given: tuple[Packed, Tensor],
    wanted: tuple[Packed, Tensor],
) -> dict[str, Tensor]:
    """Compute the four parts of the loss on a batch, (packed, words) of the student's and of the teacher's tokens."""
    with torch.inference_mode():
        taught = list(teacher.hidden_states(wanted[0]))
        targets = [_word_states(taught[layer + 1], wanted[1]) for layer in layers[:-1]]
        last, pooled = _word_states(taught[-1], wanted[1]), functional.normalize(mean_pool(taught[-1], wanted[0]))
    targets, last, pooled = [t.clone() for t in targets], last.clone(), pooled.clone()  # now autograd may see them
    hidden = list(student.hidden_states(given[0]))
    states = [_word_states(x, given[1]) for x in hidden[1:]]
    own = functional.normalize(mean_pool(hidden[-1], given[0]))
    inner = [_relative(x, t) for x, t in zip(states[:-1], targets, strict=True)]
    return {
        "last": _relative(states[-1], last),
        "layers": torch.stack(inner).mean() if inner else last.new_zeros(()),
        "pooled": (1 - (own * pooled).sum(1)).mean(),
        "relations": ((own @ own.t()) - (pooled @ pooled.t())).square().mean(),
    }


def _word_states(x: Tensor, words: Tensor) -> Tensor:
    """Compute the mean over each word's tokens: [S, D] -> [W, D]."""
    counts = torch.bincount(words)
    return x.new_zeros(len(counts), x.shape[1]).index_add_(0, words, x) / counts[:, None]


def _relative(x: Tensor, target: Tensor) -> Tensor:
    return (x - target).square().sum() / target.square().sum()
