"""Packing against a naive loop, over random lengths, one and two stores, with and without types."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtmeta.core.data.dataset import Dataset, TokenStore
from mtmeta.core.data.packing import by_tokens, pack, pack_sequences
from mtmeta.core.training.model import mean_pool


@dataclass(frozen=True)
class Case:
    """Sequences by store and example, as plain lists, and the dataset that holds them."""

    sequences: list[list[list[int]]]
    types: list[list[list[int]]] | None
    dataset: Dataset


@st.composite
def cases(draw: st.DrawFn) -> Case:
    count = draw(st.integers(1, 12))
    stores = draw(st.integers(1, 2))
    typed = draw(st.booleans())
    token = st.integers(0, 30_000)
    sequences = [[draw(st.lists(token, min_size=1, max_size=9)) for _ in range(count)] for _ in range(stores)]
    types = [[[draw(st.integers(0, 1)) for _ in one] for one in rows] for rows in sequences] if typed else None
    made = []
    for number, rows in enumerate(sequences):
        flat = None if types is None else np.array([t for row in types[number] for t in row], dtype=np.uint8)
        offsets = np.cumsum([0, *map(len, rows)])
        made.append(TokenStore(np.array([i for row in rows for i in row], dtype=np.int32), flat, offsets))
    labels = np.arange(count) / 8.0
    dataset = Dataset("t", "train", "f", [f"id-{i}" for i in range(count)], labels, tuple(made))
    return Case(sequences, types, dataset)


def indices_of(data: st.DataObject, case: Case) -> list[int]:
    """Some examples in any order; an example may come twice."""
    return data.draw(st.lists(st.integers(0, len(case.dataset) - 1), min_size=1, max_size=12))


@settings(max_examples=150, deadline=None)
@given(cases(), st.data())
def test_pack_sequences_equals_a_naive_loop(case: Case, data: st.DataObject) -> None:
    indices = indices_of(data, case)
    packed = pack_sequences(case.dataset.stores, np.array(indices))
    given_order = [
        (rows[i], case.types[number][i] if case.types else None)
        for number, rows in enumerate(case.sequences)
        for i in indices
    ]
    ids, positions, types = list[int](), list[int](), list[int]()
    lengths, place = list[int](), dict[int, int]()
    for length in range(1, 10):
        for number, (sequence, segments) in enumerate(given_order):
            if len(sequence) == length:
                place[number] = len(lengths)
                lengths.append(length)
                for position, token in enumerate(sequence):
                    ids.append(token)
                    positions.append(position)
                    types.append(segments[position] if segments else 0)
    assert packed.ids.tolist() == ids
    assert packed.positions.tolist() == positions
    assert (packed.types is None) == (case.types is None)
    assert packed.types is None or packed.types.tolist() == types
    assert packed.groups == tuple((lengths.count(n), n) for n in sorted(set(lengths)))
    assert packed.order.tolist() == [place[number] for number in range(len(given_order))]
    assert {t.dtype for t in (packed.ids, packed.positions, packed.order)} == {torch.int64}
    assert packed.to(torch.device("cpu")) is packed


@settings(max_examples=50, deadline=None)
@given(cases(), st.data())
def test_mean_pool_returns_each_mean_in_the_given_order(case: Case, data: st.DataObject) -> None:
    indices = indices_of(data, case)
    packed = pack_sequences(case.dataset.stores, np.array(indices))
    pooled = mean_pool(packed.ids.double()[:, None].expand(-1, 3), packed)
    wanted = [float(np.mean(rows[i])) for rows in case.sequences for i in indices]
    np.testing.assert_allclose(pooled.numpy(), np.array(wanted)[:, None].repeat(3, axis=1), rtol=1e-12)


@settings(max_examples=80, deadline=None)
@given(cases(), st.data(), st.integers(1, 15))
def test_pack_splits_a_batch_into_chunks_that_together_are_the_batch(case: Case, data: st.DataObject, n: int) -> None:
    indices = indices_of(data, case)
    batch = pack(case.dataset, np.array(indices), chunks=n)
    assert batch.task == "t"
    assert len(batch) == len(indices)
    assert batch.ids == tuple(f"id-{i}" for i in indices)
    sizes = [len(chunk.labels) for chunk in batch.chunks]
    assert len(sizes) == min(n, len(indices)) and max(sizes) - min(sizes) <= 1
    labels = torch.cat([chunk.labels for chunk in batch.chunks])
    assert labels.dtype == torch.float32
    assert labels.tolist() == [i / 8.0 for i in indices]
    start = 0
    for chunk, size in zip(batch.chunks, sizes, strict=True):
        alone = pack_sequences(case.dataset.stores, np.array(indices[start : start + size]))
        assert torch.equal(chunk.packed.ids, alone.ids) and torch.equal(chunk.packed.order, alone.order)
        assert chunk.packed.groups == alone.groups
        start += size


@settings(max_examples=150, deadline=None)
@given(cases(), st.integers(1, 60))
def test_by_tokens_covers_each_example_once_within_budget(case: Case, budget: int) -> None:
    lengths = [sum(len(rows[i]) for rows in case.sequences) for i in range(len(case.dataset))]
    parts = [part.tolist() for part in by_tokens(case.dataset, budget)]
    flat = [i for part in parts for i in part]
    # each example once, shortest first, equals in file order
    assert flat == sorted(range(len(lengths)), key=lambda i: lengths[i])
    for part, after in zip(parts, [*parts[1:], []], strict=True):
        total = sum(lengths[i] for i in part)
        assert total <= budget or len(part) == 1
        assert not after or total + lengths[after[0]] > budget  # no part is smaller than it need be


def test_by_tokens_of_one_large_example() -> None:
    store = TokenStore(np.arange(50, dtype=np.int32), None, np.array([0, 50]))
    dataset = Dataset("t", "dev", "f", ["a"], np.zeros(1), (store,))
    assert [part.tolist() for part in by_tokens(dataset, 1)] == [[0]]
