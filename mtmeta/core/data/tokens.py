"""Blocks of texts to flat arrays of token ids; no Python code runs for a token.

Shapes: `N` texts of a block, `S` tokens of them all, `V` sequences an example.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import chain, pairwise
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from mtmeta.core.api.backbone import LoadedBackbone, LoadedTokenizer, Tokenizer
from mtmeta.core.api.option_types import Inputs, LongText
from mtmeta.core.storage.cache import Writer

NO_WORD = re.compile(r"\W+")
BLOCK = 8192  # examples handled at once: bounds memory, and keeps the tokenizer's threads busy
Ints = NDArray[np.int64]
WithTokenizer = LoadedBackbone | LoadedTokenizer


class Ids(Sequence[str]):
    """Example ids [N] as one run of bytes; a string is made when it is asked for."""

    def __init__(self, data: NDArray[np.uint8], offsets: Ints) -> None:
        self._data, self._offsets = data, offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self[i] for i in range(len(self))[at]]
        i = range(len(self))[at]  # IndexError, and indices from the end
        return _decode(self._data[self._offsets[i] : self._offsets[i + 1]].tobytes())

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), BLOCK):
            offsets = self._offsets[start : start + BLOCK + 1]
            data = self._data[offsets[0] : offsets[-1]].tobytes()
            for begin, end in pairwise((offsets - offsets[0]).tolist()):
                yield _decode(data[begin:end])


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")  # a plugin's own reader may let lone surrogates through


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def append_names(writer: Writer, names: Sequence[str]) -> None:
    """Append example ids, from which `Ids` is made."""
    encoded = [_encode(name) for name in names]
    writer.append("names", np.frombuffer(b"".join(encoded), dtype=np.uint8))
    writer.append_lengths("name-offsets", _lengths(encoded))


def hashes(*columns: Sequence[str]) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each text [N, V], by which texts are compared without being kept.

    Letter case, punctuation and spacing do not count: two texts of the same words are duplicates of each other.
    """
    digests = [b"".join(blake2b(_encode(_words(text)), digest_size=8).digest() for text in texts) for texts in columns]
    return np.stack([np.frombuffer(column, dtype="<u8") for column in digests], axis=1).astype(np.uint64)


def _words(text: str) -> str:
    return NO_WORD.sub(" ", text.lower()).strip() or text  # what has no words at all is itself


class _Part(NamedTuple):
    """The first `kept` [N] tokens of each text; `ids` [S] are all tokens of texts of `lengths` [N]."""

    ids: Ints
    lengths: Ints
    kept: Ints


def append_texts(
    writer: Writer,
    inputs: Inputs,
    backbone: WithTokenizer,
    texts: Sequence[str],
    *others: Sequence[str],
    long: LongText | None,
    both_orders: bool,
) -> None:
    """Append the ids of examples as they enter the encoder: cut to `max_length`, or in windows."""
    if long is None:
        append_tokens(writer, inputs, backbone, texts, *others, both_orders=both_orders)
    else:
        append_windows(writer, backbone, texts, long)


def append_tokens(
    writer: Writer,
    inputs: Inputs,
    backbone: WithTokenizer,
    texts: Sequence[str],
    *others: Sequence[str],
    both_orders: bool = False,
) -> None:
    """Append the ids of the examples, special tokens in place, cut to `max_length` (pairs: the longer text first).

    `others` are the second texts of pairs [N], or of each choice those of all examples [N]. `cut` tells how many texts
    of each example were cut [N]; the two of one sequence count as one. With `both_orders` a pair in one sequence has a
    second, the one that the pair swapped would have.
    """
    tokenizer = backbone.tokenizer
    prefix, suffix = tuple(tokenizer.prefix), tuple(tokenizer.suffix)
    columns = [_flat(tokenizer, column) for column in (texts, *(others if inputs != "single" else ()))]
    cut = np.zeros(len(texts), dtype=np.uint8)
    if inputs == "cross":
        for number, (one, two) in enumerate([columns, columns[::-1]][: 1 + both_orders]):
            cut = _append_pairs(writer, number, backbone, one, two)
    elif inputs == "choices":
        for number, choice in enumerate(columns[1:]):
            cut += _append_pairs(writer, number, backbone, columns[0], choice)
    else:
        special = len(prefix) + len(suffix)
        room = max(0, backbone.max_length - special)
        for number, (ids, lengths) in enumerate(columns):
            _append(writer, number, tokenizer, prefix, _Part(ids, lengths, np.minimum(lengths, room)), suffix)
            writer.append(f"full-{number}", (lengths + special).astype(np.int32))
            cut += lengths > room
    writer.append("cut", cut)


def _append_pairs(
    writer: Writer, store: int, backbone: WithTokenizer, one: tuple[Ints, Ints], two: tuple[Ints, Ints]
) -> NDArray[np.uint8]:
    """Append pairs in one sequence, of ids and lengths [N] of the texts on each side; return which were cut [N]."""
    tokenizer, ((first, lengths), (second, others)) = backbone.tokenizer, (one, two)
    prefix, middle, suffix = map(tuple, (tokenizer.prefix, tokenizer.middle, tokenizer.suffix))
    special = len(prefix) + len(middle) + len(suffix)
    room = max(0, backbone.max_length - special)
    cut = lengths + others > room
    kept_b = np.where(cut, np.minimum(others, np.maximum(room // 2, room - lengths)), others)
    kept_a = np.where(cut, room - kept_b, lengths)
    kept = _Part(first, lengths, kept_a), _Part(second, others, kept_b)
    _append(writer, store, tokenizer, prefix, kept[0], middle, kept[1], suffix)
    counts = np.stack([len(prefix) + kept_a + len(middle), kept_b + len(suffix)], axis=1).reshape(-1)
    writer.append(f"full-{store}", (lengths + others + special).astype(np.int32))
    writer.append(f"types-{store}", np.repeat(np.tile(np.array([0, 1], dtype=np.uint8), len(lengths)), counts))
    return cut.astype(np.uint8)


def append_windows(writer: Writer, backbone: WithTokenizer, texts: Sequence[str], long: LongText) -> None:
    """Append the ids of texts in windows that overlap, special tokens in place: each is a sequence.

    Windows begin every `long.stride` tokens until one reaches the end of the text; a text that takes more than
    `long.most` of them is cut after that many, and counted in `cut`.
    """
    tokenizer = backbone.tokenizer
    prefix, suffix = tuple(tokenizer.prefix), tuple(tokenizer.suffix)
    special = len(prefix) + len(suffix)
    room = long.window - special
    ids, lengths = _flat(tokenizer, texts)
    wanted = 1 + np.maximum(0, -(-(lengths - room) // long.stride))  # [N]
    counts = np.minimum(wanted, long.most)
    begins = ramp(np.zeros_like(counts), counts) * long.stride  # [windows], within its text
    kept = np.minimum(np.repeat(lengths, counts) - begins, room)
    starts = np.repeat(np.cumsum(lengths) - lengths, counts) + begins
    inner = ids[ramp(starts, kept)]
    sizes = kept + special  # [windows]
    _append(writer, 0, tokenizer, prefix, _Part(inner, kept, kept), suffix, firsts=np.cumsum(counts) - counts)
    writer.append("part-lengths", sizes.astype(np.int32))
    writer.append_lengths("part-offsets", counts)
    writer.append("full-0", (lengths + special).astype(np.int32))
    writer.append("cut", (wanted > counts).astype(np.uint8))


def append_words(writer: Writer, backbone: WithTokenizer, texts: Sequence[str]) -> int:
    """Append the ids of texts whose words have labels, word by word, in as many sequences as they take.

    A text that is longer than `max_length` goes on in a further sequence, with special tokens of its own, where a word
    begins: no word is left out. A word longer than a whole sequence is cut, and counted in `cut`. One that the
    tokenizer makes nothing of is read as `?`; returns how many there were.
    """
    tokenizer = backbone.tokenizer
    prefix, suffix = np.array(tokenizer.prefix, dtype=np.int64), np.array(tokenizer.suffix, dtype=np.int64)
    room = max(1, backbone.max_length - len(prefix) - len(suffix))
    split = [text.split() for text in texts]
    # a word's pieces are those that it has after a space, as in the whole text
    ids, lengths = _flat(tokenizer, [f" {word}" if at else word for words in split for at, word in enumerate(words)])
    unreadable = int((lengths == 0).sum())
    if unreadable:
        mark = np.array(tokenizer.encode(["?"])[0][:1], dtype=np.int64)
        ids = np.insert(ids, (np.cumsum(lengths) - lengths)[lengths == 0], mark)
        lengths = np.maximum(lengths, 1)
    kept = np.minimum(lengths, room)
    starts = np.cumsum(lengths) - lengths
    done, parts, runs, firsts, cut, full = 0, [], [], [], np.zeros(len(texts), dtype=np.uint8), []
    counts = []
    for number, words in enumerate(split):
        here = slice(done, done + len(words))
        done += len(words)
        sizes, before, run, count = kept[here], 0, [], 0
        cut[number] = bool((lengths[here] > room).any())
        for first, last in _cuts(sizes, room):
            pieces = ids[ramp(starts[here][first:last], sizes[first:last])]
            firsts.append(before + len(prefix) + np.cumsum(sizes[first:last]) - sizes[first:last])
            parts.append(len(prefix) + len(pieces) + len(suffix))
            run += [prefix, pieces, suffix]
            before += parts[-1]
            count += 1
        counts.append(count)
        full.append(int(lengths[here].sum()) + len(prefix) + len(suffix))
        runs.append(np.concatenate(run))
    _append(writer, 0, tokenizer, _Part(np.concatenate(runs), _lengths(runs), _lengths(runs)))
    writer.append("part-lengths", np.array(parts, dtype=np.int32))
    writer.append_lengths("part-offsets", np.array(counts, dtype=np.int64))
    writer.append("firsts", np.concatenate(firsts).astype(np.int32))
    writer.append_lengths("word-offsets", _lengths(split))
    writer.append("full-0", np.array(full, dtype=np.int32))
    writer.append("cut", cut)
    return unreadable


def _cuts(sizes: Ints, room: int) -> list[tuple[int, int]]:
    """Return first word and the word after the last of each sequence that words of these sizes take."""
    if sizes.sum() <= room:
        return [(0, len(sizes))]
    cuts, first, taken = [], 0, 0
    for at, size in enumerate(sizes.tolist()):
        if taken + size > room:
            cuts.append((first, at))
            first, taken = at, 0
        taken += size
    return [*cuts, (first, len(sizes))]


def _append(
    writer: Writer, store: int, tokenizer: Tokenizer, *parts: tuple[int, ...] | _Part, firsts: Ints | None = None
) -> None:
    """Append sequences that are made of the parts in order; ids alone stand in every sequence.

    Several sequences are one text where `firsts` [N] says which is the first of each.
    """
    sizes = [part.kept if isinstance(part, _Part) else np.int64(len(part)) for part in parts]
    totals: Ints = np.sum(np.broadcast_arrays(*sizes), axis=0, dtype=np.int64)
    ids = np.empty(totals.sum(), dtype=np.int64)
    at = np.cumsum(totals) - totals  # where the next part of each sequence goes
    for part, size in zip(parts, sizes, strict=True):
        if isinstance(part, _Part):
            is_cut = part.kept.sum() < len(part.ids)
            starts = np.cumsum(part.lengths) - part.lengths
            ids[ramp(at, part.kept)] = part.ids[ramp(starts, part.kept)] if is_cut else part.ids
        else:
            for offset, number in enumerate(part):
                ids[at + offset] = number
        at = at + size
    vocabulary = getattr(tokenizer, "size", None)
    dtype = np.uint16 if isinstance(vocabulary, int) and vocabulary <= 2**16 else np.int32
    limit = np.iinfo(dtype).max
    if len(ids) and not 0 <= ids.min() <= ids.max() <= limit:
        raise ValueError(f"token ids from {ids.min()} to {ids.max()}, expected 0 to {limit}")
    writer.append(f"ids-{store}", ids.astype(dtype))
    writer.append_lengths(f"offsets-{store}", totals if firsts is None else np.add.reduceat(totals, firsts))


def ramp(starts: Ints, lengths: Ints) -> Ints:
    """Return every index of the runs that start at `starts` [N], one run after the other [S]."""
    ends = np.cumsum(lengths)
    indices: Ints = np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)
    return indices


def _lengths(values: Sequence[Any]) -> Ints:
    return np.fromiter(map(len, values), dtype=np.int64, count=len(values))


def _flat(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[Ints, Ints]:
    """Return the ids of all texts [S], and how many each has [N]."""
    if (encode := getattr(tokenizer, "encode_flat", None)) is not None:  # of ours; a plugin's need not have it
        ids, lengths = encode(texts)
        return ids, lengths
    values = tokenizer.encode(texts)
    lengths = _lengths(values)
    return np.fromiter(chain.from_iterable(values), dtype=np.int64, count=lengths.sum()), lengths
