"""Each algorithm against a computation by hand, on a tiny encoder without dropout."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from mtmeta import RecipeError
from mtmeta.core.api.optimizers import SGD, Adam, AdamW, NAdam, set_lr
from mtmeta.core.api.schedules import Constant, Step
from mtmeta.core.data.feed import Feed
from mtmeta.core.errors import DataError, DivergedError
from mtmeta.core.training.learner import Learner
from mtmeta.plugins.algorithms.fomaml import Fomaml
from mtmeta.plugins.algorithms.individual import Individual
from mtmeta.plugins.algorithms.joint import Joint
from mtmeta.plugins.algorithms.reptile import Reptile
from tests.support.tiny import Always, by_hand_gradient, by_hand_loss, gradients, load, tiny, values

Values = dict[str, Tensor]


def equal(one: Values, other: Values) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def close(one: Values, other: Values, atol: float = 1e-7) -> None:
    assert list(one) == list(other)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=atol)


def step(learner: Learner, feed: Feed, algorithm: Any, optimizer: Any, number: int = 0) -> None:
    """One turn of the loop: backward, then the optimizer."""
    feed.step = number
    learner.begin_step(number)
    algorithm.backward(learner, feed)
    optimizer.step()


def inner_loop(learner: Learner, feed: Feed, task: str, options: Any, steps: int) -> Values:
    """theta' by hand: plain torch on the model, then theta is put back."""
    theta = values(learner)
    optimizer = options.build(learner.parameters.items(), inner=True)
    for _ in range(steps):
        optimizer.zero_grad()
        by_hand_loss(learner, feed.batch(task)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    optimizer.zero_grad()
    adapted = values(learner)
    load(learner, theta)
    return adapted


# ---------------------------------------------------------------------------------------------------------- reptile


def test_reptile_with_one_inner_sgd_step_is_one_sgd_step_of_the_product_of_the_rates() -> None:
    a, e = 0.3, 0.5
    learner, feed = tiny("sst", inner_steps=1)
    theta = values(learner)
    algorithm = Reptile(inner_optimizer=SGD(lr=a), inner_schedule=Constant())
    step(learner, feed, algorithm, SGD(lr=e).build(learner.parameters.items()))
    reptile = values(learner)

    other, feed = tiny("sst", inner_steps=1)
    grads = by_hand_gradient(other, (1.0, feed.batch("sst")))
    close(reptile, {n: theta[n] if g is None else theta[n] - a * e * g for n, g in grads.items()})


@pytest.mark.parametrize("inner", [SGD(lr=0.1), AdamW(lr=1e-3), Adam(lr=1e-3), NAdam(lr=1e-3)])
@pytest.mark.parametrize("task", ["sst", "para", "sts"])
def test_reptile_with_outer_sgd_of_rate_1_ends_on_the_fine_tuned_weights(inner: Any, task: str) -> None:
    learner, feed = tiny(sampler=Always((task,)))
    step(
        learner,
        feed,
        Reptile(inner_optimizer=inner, inner_schedule=Constant()),
        SGD(lr=1.0).build(learner.parameters.items()),
    )
    other, feed = tiny()
    close(values(learner), inner_loop(other, feed, task, inner, 3))


@pytest.mark.parametrize("e", [0.1, 0.5, 1.0])
def test_reptile_with_outer_sgd_moves_theta_towards_the_fine_tuned_weights_with_error_zero(e: float) -> None:
    inner = AdamW(lr=1e-2)
    learner, feed = tiny(sampler=Always(("sts",)))
    theta = values(learner)
    step(
        learner,
        feed,
        Reptile(inner_optimizer=inner, inner_schedule=Constant()),
        SGD(lr=e).build(learner.parameters.items()),
    )
    other, feed = tiny()
    adapted = inner_loop(other, feed, "sts", inner, 3)
    # equation 4; torch.add is one rounding, as in the optimizer
    expected = {n: torch.add(theta[n], adapted[n] - theta[n], alpha=e) for n in theta}
    assert equal(values(learner), expected)
    assert not torch.equal(theta["heads.sts.dense.weight"], expected["heads.sts.dense.weight"])


def test_reptile_takes_the_mean_over_the_drawn_tasks() -> None:
    inner, e = SGD(lr=0.1), 0.5
    learner, feed = tiny(sampler=Always(("sst", "para", "sts")))
    theta = values(learner)
    algorithm = Reptile(tasks_per_step=3, inner_optimizer=inner, inner_schedule=Constant())
    step(learner, feed, algorithm, SGD(lr=e).build(learner.parameters.items()))
    other, feed = tiny()
    adapted = [inner_loop(other, feed, task, inner, 3) for task in ("sst", "para", "sts")]
    close(values(learner), {n: theta[n] + e * sum(t[n] - theta[n] for t in adapted) / 3 for n in theta})


def test_a_permutation_of_the_meta_batch_changes_nothing() -> None:
    results = []
    for order in (("sst", "para", "sts"), ("sts", "sst", "para"), ("para", "sts", "sst")):
        learner, feed = tiny(sampler=Always(order))
        algorithm = Reptile(tasks_per_step=3, inner_optimizer=AdamW(lr=1e-3), inner_schedule=Constant())
        step(learner, feed, algorithm, SGD(lr=0.7).build(learner.parameters.items()))
        results.append(values(learner))
    assert equal(results[0], results[1])
    assert equal(results[0], results[2])


@pytest.mark.parametrize("meta", [SGD(lr=1.0, momentum=0.9), Adam(lr=0.1), AdamW(lr=0.1), NAdam(lr=0.1)])
@pytest.mark.parametrize("kind", [Reptile, Fomaml])
def test_heads_of_tasks_that_were_not_drawn_stay_bit_identical_under_every_meta_optimizer(meta: Any, kind: Any) -> None:
    # para and sts come first, so that momentum and moments exist for their heads; then steps of sst alone
    learner, feed = tiny(sampler=Always(("para", "sts", "sst", "sst")))
    optimizer = meta.build(learner.parameters.items())
    algorithm = kind(inner_optimizer=SGD(lr=0.1), inner_schedule=Constant())
    for number in range(2):
        step(learner, feed, algorithm, optimizer, number)
    before = values(learner)
    for number in (2, 3):
        step(learner, feed, algorithm, optimizer, number)
        found = gradients(learner)
        assert [n for n, g in found.items() if g is None] == [
            n for n in found if n.startswith(("heads.p", "heads.sts"))
        ]
    after = values(learner)
    for name in after:
        assert torch.equal(before[name], after[name]) == name.startswith(("heads.para", "heads.sts")), name


def test_theta_is_restored_bit_for_bit_if_an_inner_loop_raises() -> None:
    learner, feed = tiny(sampler=Always(("sst",)))
    theta = values(learner)
    with pytest.raises(RuntimeError, match="in the middle"):
        with learner.excursion("sst", AdamW(lr=0.1), Constant()) as inner:
            inner.step(feed.batch("sst"))
            assert not equal(values(learner), theta)
            raise RuntimeError("in the middle")
    assert equal(values(learner), theta)
    assert learner.episodes["sst"] == 0
    assert all(grad is None for grad in gradients(learner).values())


def test_theta_is_restored_bit_for_bit_if_a_loss_becomes_nan() -> None:
    learner, feed = tiny(sampler=Always(("sst",)))
    theta = values(learner)
    batch = feed.batch("sst")
    with pytest.raises(DivergedError, match=r"loss became nan at meta-step 5, task 'sst', inner step 2"):
        with learner.excursion("sst", SGD(lr=0.1), Constant()) as inner:
            learner.step = 4
            inner.step(batch)
            with torch.no_grad():
                learner.parameters["heads.sst.out.bias"].fill_(float("nan"))
            inner.step(batch)
    assert equal(values(learner), theta)


@pytest.mark.parametrize("state", ["per_task", "shared", "reset"])
def test_inner_state_lives_on_per_task_across_tasks_or_not_at_all(state: Any) -> None:
    options, order = AdamW(lr=1e-2), ("sst", "sts", "sst", "sts")
    learner, feed = tiny(sampler=Always(order))
    algorithm = Reptile(inner_optimizer=options, inner_schedule=Constant(), inner_state=state)
    outer = SGD(lr=1.0).build(learner.parameters.items())
    for number in range(4):
        step(learner, feed, algorithm, outer, number)

    other, feed = tiny()
    kept: dict[str, Any] = {}
    for task in order:
        key = {"per_task": task, "shared": "all", "reset": f"{task}{len(kept)}"}[state]
        optimizer = kept.setdefault(key, options.build(other.parameters.items(), inner=True))
        theta = values(other)
        for _ in range(3):
            optimizer.zero_grad()
            by_hand_loss(other, feed.batch(task)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        adapted = values(other)
        load(other, {n: torch.sub(theta[n], theta[n] - adapted[n]) for n in theta})
    assert equal(values(learner), values(other))


def test_inner_schedule_counts_the_tasks_own_episodes() -> None:
    learner, feed = tiny(sampler=Always(("sst", "sst", "sts", "sst", "sst", "sst")))
    schedule, seen = Step(every=2, gamma=0.8), []
    for number in range(6):
        feed.step = number
        (task,) = feed.draw()
        with learner.excursion(task, SGD(lr=1.0), schedule) as inner:
            seen.append((task, inner.optimizer.param_groups[0]["lr"]))
    own = [1.0, 1.0, 0.8, 0.8, pytest.approx(0.64)]
    assert [lr for task, lr in seen if task == "sst"] == own
    assert [lr for task, lr in seen if task == "sts"] == [1.0]


def test_loss_weight_scales_a_tasks_share_of_the_outer_step() -> None:
    plain, feed = tiny(sampler=Always(("sst",)))
    step(plain, feed, Reptile(inner_optimizer=SGD(lr=0.1)), SGD(lr=1.0).build(plain.parameters.items()))
    weighted, feed = tiny(sampler=Always(("sst",)), weights={"sst": 0.5})
    step(weighted, feed, Reptile(inner_optimizer=SGD(lr=0.1)), SGD(lr=2.0).build(weighted.parameters.items()))
    close(values(plain), values(weighted))


def test_no_parameter_is_rebuilt_or_moved_by_an_excursion() -> None:
    learner, feed = tiny(sampler=Always(("sst",)))
    before = {name: (id(p), p.data_ptr()) for name, p in learner.parameters.items()}
    optimizer = SGD(lr=1.0).build(learner.parameters.items())
    buffers = []
    for number in range(3):
        step(learner, feed, Reptile(), optimizer, number)
        buffers.append([tensor.data_ptr() for tensor in learner._snapshot])
    assert {name: (id(p), p.data_ptr()) for name, p in learner.model.named_parameters()} == before
    assert buffers[0] == buffers[1] == buffers[2]  # one snapshot buffer


# ----------------------------------------------------------------------------------------------------------- fomaml


@pytest.mark.parametrize("support", ["own", "all"])
def test_fomaml_is_the_query_gradient_at_the_adapted_weights(support: Any) -> None:
    a = 0.2
    learner, feed = tiny(sampler=Always(("para",)), weights={"sst": 0.5, "para": 2.0})
    learner.begin_step(0)
    Fomaml(inner_steps=2, support=support, inner_optimizer=SGD(lr=a), inner_schedule=Constant()).backward(learner, feed)
    found = gradients(learner)

    other, feed = tiny(weights={"sst": 0.5, "para": 2.0})
    theta = values(other)
    batches, query = feed.episode("para", 2)
    for batch in batches:
        terms = [(1.0, batch)]
        if support == "all":  # the weighted mean over all tasks, equation 2
            terms = [(2.0 / 3, batch), (0.5 / 3, feed.batch("sst")), (1.0 / 3, feed.batch("sts"))]
        grads = by_hand_gradient(other, *terms)
        load(other, {n: p if grads[n] is None else p - a * grads[n] for n, p in values(other).items()})  # type: ignore[operator]
    expected = by_hand_gradient(other, (2.0, query))
    for name, grad in expected.items():
        assert (found[name] is None) == (grad is None), name
        if grad is not None:
            torch.testing.assert_close(found[name], grad, rtol=1e-5, atol=1e-7)
    assert equal(values(learner), theta)


@pytest.mark.parametrize(("steps", "lr"), [(0, 0.1), (3, 0.0)])
def test_fomaml_without_adaptation_is_the_plain_query_gradient(steps: int, lr: float) -> None:
    learner, feed = tiny(sampler=Always(("sts",)))
    learner.begin_step(0)
    algorithm = Fomaml(inner_steps=steps, inner_optimizer=SGD(lr=lr), inner_schedule=Constant())
    algorithm.backward(learner, feed)
    other, feed = tiny()
    _, query = feed.episode("sts", steps)
    for name, grad in by_hand_gradient(other, (1.0, query)).items():
        if grad is None:
            assert learner.parameters[name].grad is None
        else:
            torch.testing.assert_close(learner.parameters[name].grad, grad)


@pytest.mark.parametrize("support", ["own", "all"])
def test_fomaml_head_gradients_come_only_from_their_own_task(support: Any) -> None:
    learner, feed = tiny(sampler=Always(("sts",)))
    learner.begin_step(0)
    Fomaml(support=support, inner_optimizer=SGD(lr=0.1), inner_schedule=Constant()).backward(learner, feed)
    with_gradient = {n.split(".")[1] for n, g in gradients(learner).items() if g is not None and n.startswith("heads")}
    assert with_gradient == {"sts"}


def test_fomaml_support_and_query_are_disjoint_by_id_in_every_episode() -> None:
    _, feed = tiny("sst", batch_size=8, examples=90)
    seen: set[str] = set()
    for _ in range(40):  # several epochs of 90 examples
        support, query = feed.episode("sst", 3)
        taken = [i for batch in support for i in batch.ids]
        assert len(set(taken)) == len(taken) == 24
        assert len(query) == 8
        assert not set(taken) & set(query.ids)
        seen |= set(taken) | set(query.ids)
    assert len(seen) == 90


def test_fomaml_keeps_twins_of_support_ids_out_of_the_query() -> None:
    _, feed = tiny("sst", batch_size=8, examples=32, ids=[str(i // 2) for i in range(32)])
    for _ in range(10):
        support, query = feed.episode("sst", 2)
        assert not {i for batch in support for i in batch.ids} & set(query.ids)


def test_an_episode_larger_than_the_task_is_refused() -> None:
    _, feed = tiny("sst", batch_size=8, examples=30)
    with pytest.raises(DataError, match=r"task 'sst': needs 32 examples per episode .*has 30; lower"):
        feed.episode("sst", 3)


def test_fomaml_head_policy_reset_starts_every_episode_from_a_fresh_head() -> None:
    learner, feed = tiny(sampler=Always(("sst",)))
    theta = values(learner)
    learner.begin_step(0)
    options: Any = (SGD(lr=0.1), Constant())
    starts = []
    for _ in range(2):
        with learner.excursion("sst", *options, fresh_head=True) as inner:
            starts.append(learner.parameters["heads.sst.dense.weight"].detach().clone())
            inner.keep_gradient(feed.batch("sst"))
    assert not torch.equal(starts[0], theta["heads.sst.dense.weight"])
    assert not torch.equal(starts[0], starts[1])
    assert equal(values(learner), theta)
    assert all((g is None) == n.startswith("heads.") for n, g in gradients(learner).items())


# ------------------------------------------------------------------------------------------------------------ joint


def test_joint_sum_is_the_gradient_of_the_weighted_mean_of_losses() -> None:
    weights = {"sst": 0.5, "para": 2.0, "sts": 1.5}
    learner, feed = tiny(weights=weights)
    learner.begin_step(0)
    Joint().backward(learner, feed)
    other, feed = tiny(weights=weights)
    expected = by_hand_gradient(other, *[(weights[t] / 3, feed.batch(t)) for t in ("sst", "para", "sts")])
    for name, grad in expected.items():
        torch.testing.assert_close(learner.parameters[name].grad, grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("task", ["sst", "para", "sts"])
def test_accumulation_of_one_batch_of_32_equals_four_of_8(task: str) -> None:
    found = []
    for parts in (1, 4, 5):  # 5 does not divide 32: chunks of 7, 7, 6, 6, 6
        learner, feed = tiny(batch_size=32, grad_accumulation=parts)
        batch = feed.batch(task)
        assert len(batch.chunks) == parts
        learner.begin_step(0)
        loss = learner.gradient(batch)
        found.append((loss, gradients(learner)))
        assert learner.examples == 32
    for loss, grads in found[1:]:
        torch.testing.assert_close(loss, found[0][0], rtol=0, atol=1e-6)
        for name, grad in grads.items():
            whole = found[0][1][name]
            largest = (
                1.0 if whole is None else max(1.0, float(whole.abs().max()))
            )  # the types' is a sum over all tokens
            torch.testing.assert_close(grad, whole, rtol=0, atol=1e-6 * largest)


def test_joint_alternate_descends_one_sampled_task() -> None:
    learner, feed = tiny(sampler=Always(("para",)), weights={"para": 2.0})
    learner.begin_step(0)
    Joint(step="alternate").backward(learner, feed)
    other, feed = tiny()
    for name, grad in by_hand_gradient(other, (2.0, feed.batch("para"))).items():
        found = learner.parameters[name].grad
        assert (found is None) == (grad is None)
        if grad is not None:
            torch.testing.assert_close(found, grad)


def test_epoch_of_joint_is_the_mean_least_or_greatest_number_of_batches() -> None:
    batches = {"sst": 10, "para": 30, "sts": 5}
    assert [Joint(epoch=kind).steps_per_epoch(batches) for kind in ("mean", "min", "max")] == [15, 5, 30]


def test_losses_of_a_short_last_batch_are_means_over_the_examples_in_it() -> None:
    learner, feed = tiny("sst", batch_size=8, examples=20)
    batches = [feed.batch("sst") for _ in range(3)]
    assert [len(batch) for batch in batches] == [8, 8, 4]
    learner.begin_step(0)
    learner.gradient(batches[2])
    for name, grad in by_hand_gradient(learner, (1.0, batches[2])).items():
        torch.testing.assert_close(learner.parameters[name].grad, grad)


# ------------------------------------------------------------------------------------------------------- individual


def test_individual_is_one_group_per_task_and_plain_fine_tuning() -> None:
    assert Individual().groups(["sst", "para"]) == [["sst"], ["para"]]
    learner, feed = tiny("para")
    optimizer = Adam(lr=1e-3).build(learner.parameters.items())
    for number in range(3):
        step(learner, feed, Individual(), optimizer, number)
    other, feed = tiny("para")
    plain = torch.optim.Adam(other.model.parameters(), lr=1e-3, fused=True)
    for _ in range(3):
        plain.zero_grad()
        by_hand_loss(other, feed.batch("para")).backward()  # type: ignore[no-untyped-call]
        plain.step()
    assert equal(values(learner), values(other))


def test_meta_algorithms_have_no_epochs() -> None:
    with pytest.raises(RecipeError, match="counts steps, not epochs"):
        Reptile().steps_per_epoch({"sst": 3})


def test_tasks_per_step_needs_as_many_tasks_or_replacement() -> None:
    learner, _ = tiny("sst", "sts")
    assert list(Reptile(tasks_per_step=2).check(learner.tasks)) == []
    ((option, what),) = Fomaml(tasks_per_step=3).check(learner.tasks)
    assert (option, what) == ("tasks_per_step", "is 3 but only 2 tasks exist; set with_replacement: true or lower it")
    assert list(dataclasses.replace(Reptile(tasks_per_step=3), with_replacement=True).check(learner.tasks)) == []


def test_learning_rates_are_set_from_the_base_rate() -> None:
    learner, _ = tiny("sst")
    optimizer = AdamW(lr=0.1, head_lr=1.0).build(learner.parameters.items())
    set_lr(optimizer, 0.5)
    set_lr(optimizer, 0.5)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [0.05, 0.5]


def test_excursions_cannot_be_nested() -> None:
    learner, _ = tiny("sst")
    theta = values(learner)
    with pytest.raises(RuntimeError, match="cannot be nested"), learner.excursion("sst", SGD(lr=0.1), Constant()):
        with learner.excursion("sst", SGD(lr=0.1), Constant()):
            raise AssertionError("not reached")
    assert equal(values(learner), theta)


def test_a_task_without_weight_is_never_drawn() -> None:
    _, feed = tiny("sst", "para", sampler=Always(("sst",)))
    with pytest.raises(RecipeError, match="draws 2 different tasks, but only 1 have a weight above 0"):
        feed.draw(2)


def test_planned_draws_without_replacement_are_those_that_can_be_made() -> None:
    _, feed = tiny()
    for number in range(10):
        feed.step = number
        feed.draw(3)
    assert {name: used["planned_draws"] for name, used in feed.usage().items()} == pytest.approx(
        dict.fromkeys(("sst", "para", "sts"), 10.0), abs=5.0
    )
    assert sum(used["planned_draws"] for used in feed.usage().values()) == pytest.approx(30.0)


def test_reset_inner_state_leaves_nothing_to_checkpoint() -> None:
    learner, feed = tiny("sst")
    for state, kept in (("reset", 0), ("per_task", len(learner.parameters))):
        with learner.excursion("sst", AdamW(lr=0.1), Constant(), state=state) as inner:  # type: ignore[arg-type]
            inner.step(feed.batch("sst"))
        assert len(learner.inner_states()["sst"]) == kept


def one_inner_step_each(learner: Learner, feed: Feed, optimizer: AdamW) -> None:
    """A step in which sst and sts have an inner loop of one step each."""
    learner.begin_step(0)
    for task in ("sst", "sts"):
        with learner.excursion(task, optimizer, Constant()) as inner:
            inner.step(feed.batch(task))


def test_a_skipped_step_forgets_the_inner_states_it_used() -> None:
    learner, feed = tiny()
    one_inner_step_each(learner, feed, AdamW(lr=0.1))
    learner.begin_step(1)
    learner.gradient(feed.batch("sst"))
    learner.forget_inner_states()
    assert list(learner.inner_states()) == ["sts"]


def test_tasks_share_the_buffer_of_a_first_moment_that_is_the_last_gradient() -> None:
    learner, feed = tiny()
    one_inner_step_each(learner, feed, AdamW(lr=0.1))
    word = learner.parameters["encoder.words.weight"]
    one, other = (learner._inner[task].state[word] for task in ("sst", "sts"))
    assert one["exp_avg"] is other["exp_avg"] and one["exp_avg_sq"] is not other["exp_avg_sq"]


def test_a_gradient_that_was_not_finite_does_not_reach_other_tasks() -> None:
    """The buffers that tasks share are cleared; else 0 times NaN would enter the next task's step."""
    found = []
    for poisoned in (False, True):
        learner, feed = tiny()
        learner.begin_step(0)
        with learner.excursion("sts", AdamW(lr=0.1), Constant()) as inner:
            inner.step(feed.batch("sts"))
        learner.begin_step(1)
        if poisoned:
            with learner.excursion("sst", AdamW(lr=0.1), Constant()) as inner:
                inner.step(feed.batch("sst"))
                for buffer in learner._last_gradients.values():
                    buffer.fill_(float("nan"))
            learner.forget_inner_states()
        learner.begin_step(2)
        with learner.excursion("sts", AdamW(lr=0.1), Constant()) as inner:
            inner.step(feed.batch("sts"))
            found.append(values(learner))
    for name, value in found[0].items():
        assert bool(torch.isfinite(value).all()) and torch.equal(value, found[1][name]), name


def test_a_beta_above_zero_keeps_each_tasks_first_moment() -> None:
    learner, feed = tiny()
    one_inner_step_each(learner, feed, AdamW(lr=0.1, betas=(0.9, 0.999)))
    word = learner.parameters["encoder.words.weight"]
    one, other = (learner._inner[task].state[word]["exp_avg"] for task in ("sst", "sts"))
    assert one is not other and "exp_avg" in learner.inner_states()["sst"]["encoder.words.weight"]
