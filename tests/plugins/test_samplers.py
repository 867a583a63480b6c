"""Samplers by hand, draws by chi-square, and streams that no other task can disturb."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

import mtmeta
from mtmeta.core.data.dataset import Dataset, TokenStore
from mtmeta.core.data.feed import Feed
from mtmeta.plugins.samplers import Annealed, Fixed, Proportional, RoundRobin, Temperature, Uniform
from mtmeta.plugins.tasks.sst import Sst

SIZES = {"sst": 8544, "para": 141498, "sts": 6040}
START = mtmeta.Draw(0, 100)
DRAWS = 10_000


def dataset_of(name: str, size: int) -> Dataset:
    """Examples of one token each."""
    store = TokenStore(np.arange(size, dtype=np.int32), None, np.arange(size + 1))
    return Dataset(name, "train", "f", [f"{name}-{i}" for i in range(size)], np.zeros(size), (store,))


def feed_of(
    sizes: Mapping[str, int],
    sampler: mtmeta.Sampler | None = None,
    *,
    batch_size: int = 8,
    seed: int = 11,
    steps: int = DRAWS,
) -> Feed:
    tasks = {name: Sst(train="sample", batch_size=batch_size) for name in sizes}
    datasets = {name: dataset_of(name, size) for name, size in sizes.items()}
    feed = Feed(tasks, datasets, sampler or Uniform(), seed=seed)
    feed.steps = steps
    return feed


def draws(feed: Feed, steps: int = DRAWS, count: int = 1, **options: bool) -> list[list[str]]:
    found = []
    for feed.step in range(steps):
        found.append(feed.draw(count, **options))
    return found


def normalised(weights: Mapping[str, float]) -> dict[str, float]:
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def shares(sampler: mtmeta.Sampler, draw: mtmeta.Draw = START, sizes: Mapping[str, int] = SIZES) -> dict[str, float]:
    return normalised(sampler.probabilities(sizes, draw))


# ----------------------------------------------------------------------------------------------------------- by hand


def test_fixed() -> None:
    assert shares(Fixed(weights={"sst": 4.0, "para": 3.0, "sts": 3.0})) == {"sst": 0.4, "para": 0.3, "sts": 0.3}


def test_uniform() -> None:
    assert shares(Uniform()) == dict.fromkeys(SIZES, 1 / 3)


def test_proportional() -> None:
    assert shares(Proportional()) == {name: size / 156082 for name, size in SIZES.items()}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 5.0, 1e6])
def test_temperature(temperature: float) -> None:
    by_hand = normalised({name: size ** (1 / temperature) for name, size in SIZES.items()})
    assert shares(Temperature(temperature=temperature)) == pytest.approx(by_hand, rel=1e-12)


def test_temperature_one_is_proportional_and_a_high_one_nearly_uniform() -> None:
    assert shares(Temperature(temperature=1.0)) == pytest.approx(shares(Proportional()), rel=1e-12)
    assert shares(Temperature(temperature=1e9)) == pytest.approx(shares(Uniform()), rel=1e-6)


def test_small_temperatures_do_not_overflow() -> None:
    assert shares(Temperature(temperature=1e-3)) == {"sst": 0.0, "para": 1.0, "sts": 0.0}


@pytest.mark.parametrize("epochs", [2, 3, 25])
def test_annealed(epochs: int) -> None:
    total = 4 * epochs
    for index in range(total):
        e = index // 4 + 1
        exponent = 1 - 0.8 * (e - 1) / (epochs - 1)
        by_hand = normalised({name: size**exponent for name, size in SIZES.items()})
        assert shares(Annealed(epochs=epochs), mtmeta.Draw(index, total)) == pytest.approx(by_hand, rel=1e-9)
    assert shares(Annealed(epochs=epochs), mtmeta.Draw(0, total)) == pytest.approx(shares(Proportional()), rel=1e-12)
    last = normalised({name: size**0.2 for name, size in SIZES.items()})
    assert shares(Annealed(epochs=epochs), mtmeta.Draw(total - 1, total)) == pytest.approx(last, rel=1e-9)


def test_annealed_with_one_epoch_is_proportional_throughout() -> None:
    for index in (0, 50, 99):
        draw = mtmeta.Draw(index, 100)
        assert shares(Annealed(epochs=1), draw) == pytest.approx(shares(Proportional()), rel=1e-12)


def test_annealed_over_fewer_draws_than_epochs() -> None:
    for index, e in ((0, 1), (1, 13)):
        exponent = 1 - 0.8 * (e - 1) / 24
        by_hand = normalised({name: size**exponent for name, size in SIZES.items()})
        assert shares(Annealed(epochs=25), mtmeta.Draw(index, 2)) == pytest.approx(by_hand, rel=1e-9)


def test_round_robin_is_in_the_recipes_order() -> None:
    feed = feed_of(SIZES, RoundRobin(), steps=7)
    assert [name for (name,) in draws(feed, 7)] == ["sst", "para", "sts", "sst", "para", "sts", "sst"]


@pytest.mark.parametrize("weights", [(0.4, 0.3, 0.3), (5, 0, 1), (1, 1, 1), (0.7, 0.2, 0.1)])
def test_weighted_round_robin_is_as_planned_after_any_number_of_draws(weights: tuple[float, ...]) -> None:
    by_name = dict(zip(SIZES, weights, strict=True))
    sampler, counts = RoundRobin(weights=by_name), dict.fromkeys(SIZES, 0)
    for n in range(5000):
        shares = sampler.probabilities(SIZES, mtmeta.Draw(n, 5000))
        counts[max(shares, key=lambda name: shares[name])] += 1
        assert all(abs(counts[name] - (n + 1) * w / sum(weights)) <= 3 for name, w in by_name.items())
    feed = feed_of(SIZES, sampler, steps=100)
    drawn = Counter(name for (name,) in draws(feed, 100))
    assert all(abs(drawn[name] - 100 * w / sum(weights)) <= 2 for name, w in by_name.items())
    assert drawn == {name: feed.usage()[name]["draws"] for name in SIZES if feed.usage()[name]["draws"]}
    assert [round(feed.usage()[name]["planned_draws"]) for name in SIZES] == [drawn[name] for name in SIZES]


def test_weighted_round_robin_draws_another_task_second() -> None:
    feed = feed_of(SIZES, RoundRobin(weights={"sst": 0.8, "para": 0.1, "sts": 0.1}), steps=50)
    assert all(len(set(pair)) == 2 for pair in draws(feed, 50, count=2))


def test_fixed_names_what_does_not_fit() -> None:
    found = list(Fixed(weights={"sst": 0.0, "stt": 0.0}).check(["sst", "sts"]))
    assert found == [
        ("weights.stt", "names no task of this recipe; did you mean 'sts'?"),
        ("weights", "gives no weight for task 'sts'; add it, 0 leaves it out"),
        ("weights", "are all 0; give at least one task a positive weight"),
    ]
    assert list(Fixed(weights={"sst": 0.4, "sts": 0.0}).check(["sst", "sts"])) == []


# ------------------------------------------------------------------------------------------------------------- draws


SAMPLERS: list[mtmeta.Sampler] = [
    Fixed(weights={"sst": 0.4, "para": 0.3, "sts": 0.3}),
    Uniform(),
    Proportional(),
    Temperature(temperature=2.0),
]
SMALL = {"sst": 85, "para": 1414, "sts": 60}


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_draws_have_the_samplers_probabilities(sampler: mtmeta.Sampler) -> None:
    feed = feed_of(SMALL, sampler)
    counts = Counter(name for (name,) in draws(feed))
    expected = shares(sampler, sizes=SMALL)
    assert chisquare([counts[n] for n in SMALL], [DRAWS * expected[n] for n in SMALL]).pvalue > 0.001
    usage = feed.usage()
    for name in SMALL:
        assert usage[name]["draws"] == counts[name]
        assert usage[name]["planned_draws"] == pytest.approx(DRAWS * expected[name], rel=1e-9)


def test_annealed_draws_have_the_probabilities_of_their_epoch() -> None:
    sampler = Annealed(epochs=2)
    found = [name for (name,) in draws(feed_of(SMALL, sampler))]
    for part, index in ((found[: DRAWS // 2], 0), (found[DRAWS // 2 :], DRAWS - 1)):
        expected = shares(sampler, mtmeta.Draw(index, DRAWS), SMALL)
        counts = Counter(part)
        assert chisquare([counts[n] for n in SMALL], [len(part) * expected[n] for n in SMALL]).pvalue > 0.001


def test_draws_of_one_step_are_independent() -> None:
    pairs = Counter(map(tuple, draws(feed_of(SMALL, SAMPLERS[0]), count=2, with_replacement=True)))
    p = {"sst": 0.4, "para": 0.3, "sts": 0.3}
    names = list(SMALL)
    cells = [(a, b) for i, a in enumerate(names) for b in names[i:]]
    expected = [DRAWS * p[a] * p[b] * (1 if a == b else 2) for a, b in cells]
    assert chisquare([pairs[cell] for cell in cells], expected).pvalue > 0.001


def test_the_same_seed_gives_the_same_draws_and_another_seed_others() -> None:
    one, same, other = (draws(feed_of(SMALL, SAMPLERS[0], seed=seed), 200) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_draws_depend_on_the_step_alone() -> None:
    """A resumed run draws what the uninterrupted one would have drawn."""
    whole = draws(feed_of(SMALL, SAMPLERS[0]), 100, count=2)
    late = feed_of(SMALL, SAMPLERS[0])
    late.step = 60
    assert late.draw(2) == whole[60]


def test_draws_without_replacement_are_distinct_and_in_the_recipes_order() -> None:
    names = list(SMALL)
    orders = draws(feed_of(SMALL, SAMPLERS[0]), 500, count=2)
    assert {tuple(drawn) for drawn in orders} == {("sst", "para"), ("sst", "sts"), ("para", "sts")}
    assert draws(feed_of(SMALL, SAMPLERS[0]), 20, count=3) == [names] * 20
    for drawn in draws(feed_of(SMALL, SAMPLERS[0]), 200, count=4, with_replacement=True):
        assert drawn == sorted(drawn, key=names.index)


def test_a_task_of_weight_zero_is_never_drawn() -> None:
    sampler = Fixed(weights={"sst": 1.0, "para": 0.0, "sts": 1.0})
    assert {name for (name,) in draws(feed_of(SMALL, sampler), 500)} == {"sst", "sts"}
    assert draws(feed_of(SMALL, sampler), 20, count=2) == [["sst", "sts"]] * 20
    with pytest.raises(mtmeta.RecipeError, match="draws 3 different tasks, but only 2 have a weight above 0"):
        feed_of(SMALL, sampler).draw(3)


@dataclass(frozen=True)
class Broken(mtmeta.Sampler):
    """Gives what it is told."""

    name = "broken"
    weights: Any = None

    def probabilities(self, sizes: Mapping[str, int], draw: mtmeta.Draw) -> dict[str, float]:
        return dict(self.weights)


@pytest.mark.parametrize("weights", [{}, {"sst": 0.0}, {"sst": -1.0, "para": 2.0}, {"sst": math.nan}, {"cola": 1.0}])
def test_unusable_weights_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(mtmeta.PluginError, match=r"^sampler 'broken': sampler 'broken' gives unusable weights \{"):
        feed_of(SMALL, Broken(weights=weights)).draw()


# ----------------------------------------------------------------------------------------------------------- streams


def batches(feed: Feed, task: str, count: int) -> list[tuple[str, ...]]:
    return [feed.batch(task).ids for _ in range(count)]


def test_removing_a_task_leaves_the_others_batches_unchanged() -> None:
    whole, without = feed_of(SMALL), feed_of({"sst": SMALL["sst"], "sts": SMALL["sts"]})
    alone = feed_of({"sts": SMALL["sts"]})
    for name in ("sst", "sts"):
        wanted = batches(whole, name, 50)
        batches(whole, "para", 3)
        assert batches(without, name, 50) == wanted
        if name == "sts":
            assert batches(alone, name, 50) == wanted
    assert batches(feed_of(SMALL, seed=12), "sst", 50) != batches(feed_of(SMALL), "sst", 50)


@pytest.mark.parametrize(("size", "batch_size"), [(30, 8), (32, 8), (5, 8), (9, 1)])
def test_every_epoch_is_a_new_permutation_with_the_short_batch_kept(size: int, batch_size: int) -> None:
    feed = feed_of({"sst": size}, batch_size=batch_size)
    per_epoch = math.ceil(size / batch_size)
    assert feed.batches_per_epoch == {"sst": per_epoch}
    epochs: list[Sequence[str]] = []
    for _ in range(6):
        found = batches(feed, "sst", per_epoch)
        assert [len(ids) for ids in found] == [batch_size] * (size // batch_size) + [size % batch_size] * (
            size % batch_size > 0
        )
        epochs.append([i for ids in found for i in ids])
        assert sorted(epochs[-1]) == sorted(f"sst-{i}" for i in range(size))
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert [f"sst-{i}" for i in range(size)] not in epochs
    assert feed.usage()["sst"] | {"draws": 0, "planned_draws": 0.0} == {
        "planned_draws": 0.0,
        "draws": 0,
        "batches": 6 * per_epoch,
        "examples": 6 * size,
        "epochs": 6.0,
    }


def test_batch_membership_changes_every_epoch() -> None:
    feed = feed_of({"sst": 40})
    first, second = ({frozenset(ids) for ids in batches(feed, "sst", 5)} for _ in range(2))
    assert not first & second


def test_a_stream_goes_on_where_its_state_was_taken() -> None:
    feed = feed_of(SMALL)
    batches(feed, "sst", 13)
    draws(feed, 7)
    state = feed.state()
    wanted = batches(feed, "sst", 20)
    again = feed_of(SMALL)
    again.load_state(state)
    assert batches(again, "sst", 20) == wanted
    assert again.usage() == feed.usage()


def test_support_and_query_are_disjoint_and_within_one_epoch() -> None:
    feed = feed_of({"sst": 50})
    seen: list[str] = []
    for episode in range(8):
        support, query = feed.episode("sst", 2)
        ids = [i for batch in (*support, query) for i in batch.ids]
        assert len(ids) == len(set(ids)) == 24
        if episode % 2:  # two episodes fit an epoch of 50
            assert not set(ids) & set(seen)
        seen = ids
    with pytest.raises(mtmeta.DataError) as caught:
        feed.episode("sst", 6)
    assert str(caught.value) == (
        "task 'sst': needs 56 examples per episode (7 batches of 8), has 50; lower batch_size or inner_steps"
    )


def test_a_twin_of_a_support_example_is_no_query() -> None:
    feed = feed_of({"sst": 24})
    stream = feed.streams["sst"]
    ids = stream.dataset.ids
    assert isinstance(ids, list)
    ids[:] = [f"id-{i % 12}" for i in range(24)]
    for _ in range(5):
        support, query = feed.episode("sst", 1)
        assert not set(support[0].ids) & set(query.ids)
        assert 0 < len(query) <= 8
    ids[:] = ["same"] * 24
    with pytest.raises(mtmeta.DataError, match=r"^f: task 'sst': ids repeat so often that no query example is left$"):
        feed.episode("sst", 1)
