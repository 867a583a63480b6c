"""A padded model behind core's packed batches: sequences of nearly equal length are padded together, then packed again.

Shapes: `S` packed tokens, `n` sequences of at most `T` tokens in one padded block, `D` hidden.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import mtmeta
from mtmeta.plugins.backbones.checkpoint.sequence_heads import SEQUENCE_HEADS

LEAST = 8  # tokens of a sequence that every encoder takes
TOLERANCE = 1e-5  # of hidden states in fp32, relative to the largest
Groups = Sequence[tuple[int, int]]
# cost of one more call, in tokens: little beside the products on a CPU, much on a GPU, which waits for its launches
CALL = {"cpu": 32, "cuda": 8192}


def blocks(groups: Groups, call: int) -> list[list[tuple[int, int]]]:
    """Split groups (count, length) of rising length into runs to pad together, at the least cost in tokens.

    The cost of a run is its tokens, padding included, and `call`.
    """
    ends = [0, *accumulate(count for count, _ in groups)]
    best: list[tuple[int, int]] = [(0, 0)]  # cost of the first j groups, and where their last block begins
    for j in range(1, len(groups) + 1):
        length = groups[j - 1][1]
        best.append(min((best[i][0] + (ends[j] - ends[i]) * length + call, i) for i in range(j)))
    runs, j = [], len(groups)
    while j:
        i = best[j][1]
        runs.append(list(groups[i:j]))
        j = i
    return runs[::-1]


class Mates(enum.Enum):
    """What the other sequences of a batch change in the hidden states of one."""

    APART = "nothing"
    PADDED = "something, through the padding up to a longer one"
    MIXED = "something, also at equal length"
    RANDOM = "unknown: they are never the same"


class Repacked(nn.Module):
    """A model of transformers on packed batches: S tokens to hidden states [S, D]."""

    one_length = False
    """Whether only sequences of one length are computed together, for padding is not without effect."""
    shortest = 1
    """Tokens that a sequence is padded to at least, for the model takes no fewer."""

    def __init__(self, model: Any, *, typed: bool) -> None:
        super().__init__()
        self.model = model
        self.hidden_size = int(model.config.hidden_size)
        self.sequence_head = SEQUENCE_HEADS.get(model.config.model_type)
        self.typed = typed
        self._pad = _pad(model)

    def forward(self, packed: mtmeta.Packed) -> Tensor:
        hidden, start = [], 0
        call = CALL.get(packed.ids.device.type, CALL["cuda"])
        for block in [[group] for group in packed.groups] if self.one_length else blocks(packed.groups, call):
            hidden.append(self._block(packed, block, start))
            start += sum(count * length for count, length in block)
        return torch.cat(hidden)

    def _block(self, packed: mtmeta.Packed, block: Groups, start: int) -> Tensor:
        """Compute the hidden states [s, D] of the s tokens of a block, which begin at `start`."""
        device, longest = packed.ids.device, max(block[-1][1], self.shortest)
        if len(block) == 1 and longest == block[0][1]:
            end = start + block[0][0] * longest
            return self._hidden(packed, torch.arange(start, end, device=device).view(-1, longest), None).flatten(0, 1)
        lengths = np.repeat([length for _, length in block], [count for count, _ in block])[:, None]  # [n, 1]
        position = np.arange(longest)
        real = position < lengths  # [n, T]
        where = np.where(real, start + np.cumsum(lengths, axis=0) - lengths + position, start)
        arrays = where, real, np.flatnonzero(real)
        at, mask, rows = (torch.from_numpy(array).to(device, non_blocking=True) for array in arrays)
        return self._hidden(packed, at, mask).flatten(0, 1).index_select(0, rows)  # [n, T, D] -> [s, D]

    def _hidden(self, packed: mtmeta.Packed, at: Tensor, mask: Tensor | None) -> Tensor:
        """Compute the hidden states [n, T, D] of the tokens `at` [n, T]; where `mask` [n, T] is False, is padding."""
        given: dict[str, Tensor] = {"input_ids": packed.ids[at]}
        if self.typed and packed.types is not None:
            given["token_type_ids"] = packed.types[at]
        if mask is not None:
            given = {name: ids.masked_fill(~mask, self._pad * (name == "input_ids")) for name, ids in given.items()}
        given["attention_mask"] = torch.ones_like(at) if mask is None else mask.long()
        hidden: Tensor = self.model(**given).last_hidden_state
        return hidden

    def check(self, tokenizer: mtmeta.Tokenizer) -> None:
        """Raise ValueError unless a sequence becomes one vector a token, and find the shortest that does."""
        ids = [*tokenizer.prefix, *tokenizer.encode(["probe"])[0], *tokenizer.suffix] * LEAST
        fewest = len(tokenizer.prefix) + len(tokenizer.suffix)  # of a text without tokens
        for length in range(fewest, max(fewest, LEAST) + 1):
            try:
                self._check_shape(torch.tensor([ids[:length]]))
            except (RuntimeError, IndexError):  # Funnel pools away what is shorter than its blocks
                if length >= LEAST:
                    raise
            else:
                self.shortest = length if length > fewest else 1
                return

    def _check_shape(self, at: Tensor) -> None:
        output: object = self.model(input_ids=at, attention_mask=torch.ones_like(at))
        hidden = getattr(output, "last_hidden_state", None)
        wanted = [*at.shape, self.hidden_size]
        if not isinstance(hidden, Tensor) or list(hidden.shape) != wanted:
            given = f"shape {list(hidden.shape)}" if isinstance(hidden, Tensor) else "nothing"
            raise ValueError(f"last_hidden_state: found {given}, expected shape {wanted}")

    def mates(self, tokenizer: mtmeta.Tokenizer, longest: int, size: int) -> Mates:
        """Compare a short sequence alone, beside one of its length, and beside one of `longest` tokens.

        Their ids are below `size`. The model is in evaluation mode and fp32.
        """
        first, last = tokenizer.prefix, tokenizer.suffix
        special = {*first, *last, self._pad}
        ids = [i for i in range(size) if i not in special][:: max(1, size // 997)] or [0]
        room = longest - len(first) - len(last)

        def sequence(start: int, count: int) -> list[int]:
            return [*first, *(ids[(start + 7 * i) % len(ids)] for i in range(count)), *last]

        short, other, long = sequence(0, min(2, room)), sequence(3, min(2, room)), sequence(5, room)
        with torch.random.fork_rng(devices=[]):
            alone = self._padded([short])
            scale = max(1.0, float(alone.abs().max()))

            def far(hidden: Tensor, tolerance: float) -> bool:  # also where there are no numbers
                return not float((hidden - alone).abs().max()) <= tolerance * scale

            if far(self._padded([short]), TOLERANCE):
                return Mates.RANDOM
            if far(self._padded([short, other]), 10 * TOLERANCE):
                return Mates.MIXED
            return Mates.PADDED if far(self._padded([short, long]), TOLERANCE) else Mates.APART

    def _padded(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Compute the hidden states [t, D] of the first of some sequences, padded together."""
        longest = max(self.shortest, *map(len, sequences))
        ids = torch.tensor([[*one, *[self._pad] * (longest - len(one))] for one in sequences])
        mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in sequences])
        hidden: Tensor = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return hidden[0, : len(sequences[0])]


def _pad(model: Any) -> int:
    """Return the id that stands for padding. RoBERTa counts positions by it; to others it is as good as any."""
    number = getattr(model.config, "pad_token_id", None)
    rows = model.get_input_embeddings().weight.shape[0]
    return number if isinstance(number, int) and 0 <= number < rows else 0
