"""`adapters`: low-rank weights of each task beside the encoder's, with their gradients, in runs and in exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.func import functional_call

import mtmeta
from mtmeta.core.data.loading import from_texts
from mtmeta.core.data.packing import pack_sequences
from mtmeta.core.errors import CheckpointError, RecipeError, UsageError
from mtmeta.core.export.export import export
from mtmeta.core.methods.adapters import Adapters
from mtmeta.core.rng import derive
from mtmeta.core.run.evaluate import open_run, restore_backbone
from mtmeta.core.training.model import MultiTaskModel, mean_pool
from mtmeta.testing.tiny import tiny_learner
from tests.core.run.test_run import weights, write_recipe
from tests.support.parameters import some_quick
from tests.support.tiny import gradients

ON = {"rank": 3, "alpha": 6.0}
ONE_TASKS: dict[str, Any] = {**ON, "trained_by": ["para"]}


def stirred(**options: Any) -> Any:
    """A learner whose adapters are no longer what they begin as."""
    learner, feed = tiny_learner(adapters={**ON, **options})
    with torch.no_grad():
        for name, parameter in learner.parameters.items():
            if name.startswith("adapters."):
                generator = torch.Generator().manual_seed(derive(0, name))
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return learner, feed


@pytest.mark.parametrize("task", ["sst", "para", "sts"])
def test_the_first_step_is_that_of_the_plain_encoder(task: str) -> None:
    plain, feed = tiny_learner()
    adapted, _ = tiny_learner(adapters=ON)
    batch = feed.batch(task)
    assert plain.gradient(batch).equal(adapted.gradient(batch))
    of_plain, of_adapted = gradients(plain), gradients(adapted)
    for name, grad in of_plain.items():
        other = of_adapted[name]
        if ".norm." in name or "attention_norm" in name:
            assert other is None or "layers" not in name  # the task's own stand in
        else:
            assert (grad is None) == (other is None), name
            assert grad is None or (other is not None and grad.equal(other)), name


def test_gradients_are_those_of_the_explicit_form() -> None:
    learner, feed = stirred()
    batch = feed.batch("sst")
    learner.gradient(batch)
    found = gradients(learner)
    adapters: Adapters = learner.model.adapters
    encoder, (chunk,) = learner.model.encoder, batch.chunks
    parts = dict(adapters.named_parameters())
    explicit = {}
    for name, weight in encoder.named_parameters():
        stem = f"sst.{name.removesuffix('.weight')}"
        if f"{stem}.A" in parts:
            explicit[name] = weight + 2.0 * parts[f"{stem}.B"] @ parts[f"{stem}.A"]
        elif f"sst.{name}" in parts:
            explicit[name] = parts[f"sst.{name}"]
    hidden = functional_call(encoder, explicit, (chunk.packed,))
    pooled = mean_pool(hidden, chunk.packed)[:, None]
    loss = learner.tasks["sst"].objective.loss(learner.model.heads["sst"](pooled), chunk.labels)
    names = list(learner.parameters)
    expected = torch.autograd.grad(loss, [learner.parameters[name] for name in names], allow_unused=True)
    for name, grad in zip(names, expected, strict=True):
        own = found[name]
        assert (grad is None) == (own is None), name
        if grad is not None and own is not None:
            torch.testing.assert_close(own, grad, rtol=1e-4, atol=1e-7)
    assert all(found[name] is None for name in names if name.startswith(("adapters.para.", "adapters.sts.")))
    assert found["adapters.sst.layers.0.up.A"] is not None


def test_a_frozen_encoder_is_no_parameter_and_takes_no_gradient() -> None:
    learner, feed = stirred(encoder="frozen")
    assert not [name for name in learner.parameters if name.startswith("encoder.")]
    learner.gradient(feed.batch("para"))
    assert all(parameter.grad is None for parameter in learner.model.encoder.parameters())
    grad = learner.parameters["adapters.para.layers.1.down.B"].grad
    assert grad is not None and float(grad.abs().sum()) > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_where_one_task_trains_the_encoder_the_gradients_are_the_same_but_stop_at_the_adapters(precision: str) -> None:
    (plain, feed), (alike, _), (apart, _) = tiny_learner(), stirred(), stirred(trained_by=["para"])
    assert not [name for name in apart.parameters if name.startswith("adapters.para.")]
    for learner in (plain, alike, apart):
        learner._precision = precision
    for task in ("sst", "para", "sts"):
        reference, batch = plain if task == "para" else alike, feed.batch(task)
        for learner in (reference, apart):
            learner.begin_step(0)  # from which dropout is drawn
            learner.gradient(batch)
        expected, found = gradients(reference), gradients(apart)
        assert any(grad is not None for name, grad in expected.items() if name.startswith("encoder."))
        for name, own in found.items():
            grad = None if name.startswith("encoder.") and task != "para" else expected.get(name)
            assert (grad is None) == (own is None), name
            assert grad is None or (own is not None and grad.equal(own)), name


@pytest.mark.parametrize("algorithm", some_quick(["joint", "reptile", "fomaml", "maml"], 2))
def test_an_encoder_that_one_task_trains(algorithm: str, tmp_path: Path) -> None:
    changes = (
        {"algorithm": {"name": "maml", "inner_optimizer": {"name": "sgd", "lr": 0.01}}} if algorithm == "maml" else {}
    )
    recipe = write_recipe(tmp_path, "joint" if changes else algorithm, adapters=ONE_TASKS, **changes)
    done = mtmeta.run(recipe, out=tmp_path / "run", overrides=["optimizer.lr=0.01"])
    scored = mtmeta.evaluate(tmp_path / "run")
    for task in ("sst", "para", "sts"):
        assert scored["tasks"][task]["value"] == done["tasks"][task]["value"]
    out = export(tmp_path / "run", form="transformers", out=tmp_path / "export")  # which compares it with `predict`
    assert sorted(out["tasks"]) == ["para", "sst", "sts"]
    with pytest.raises(UsageError, match=r"task 'para' has no adapters, .* or --task sst --task sts"):
        export(tmp_path / "run", form="peft", out=tmp_path / "peft")
    assert export(tmp_path / "run", form="peft", tasks=["sst", "sts"], out=tmp_path / "peft")["tasks"] == ["sst", "sts"]


def test_tasks_alone_follow_the_encoder_that_one_of_them_has_trained(tmp_path: Path) -> None:
    following = mtmeta.run(write_recipe(tmp_path, "individual", adapters=ONE_TASKS), out=tmp_path / "run")
    alone = mtmeta.run(write_recipe(tmp_path, "individual"), out=tmp_path / "alone")
    best = {
        (run, task): load_file(tmp_path / run / "checkpoints" / task / "best" / "model.safetensors")
        for run in ("run", "alone")
        for task in ("sst", "para", "sts")
    }
    of_para = best["run", "para"]
    assert of_para.keys() == best["alone", "para"].keys()  # trained as without the others, bit for bit
    assert all(tensor.equal(best["alone", "para"][name]) for name, tensor in of_para.items())
    assert following["tasks"]["para"] == alone["tasks"]["para"]
    encoder = load_file(tmp_path / "run" / "encoder" / "model.safetensors")
    assert encoder.keys() == {name for name in of_para if name.startswith("encoder.")}
    assert all(tensor.equal(of_para[name]) for name, tensor in encoder.items())
    for task in ("sst", "sts"):
        own = best["run", task]
        assert not [name for name in own if name.startswith("encoder.")]
        moved = [float(tensor.abs().sum()) > 0 for name, tensor in own.items() if name.endswith(".up.B")]
        assert moved == [True, True]
    sizes = {name: tensor.numel() for task in ("sst", "para", "sts") for name, tensor in best["run", task].items()}
    assert following["parameters"] == sum(sizes.values())
    assert following["encodings"] == 3


@pytest.mark.parametrize("form", ["transformers", "peft"])
def test_what_follows_is_evaluated_and_exported_beside_that_encoder(form: str, tmp_path: Path) -> None:
    done = mtmeta.run(write_recipe(tmp_path, "individual", adapters=ONE_TASKS), out=tmp_path / "run")
    scored = mtmeta.evaluate(tmp_path / "run")
    assert {name: of["value"] for name, of in scored["tasks"].items()} == {
        name: of["value"] for name, of in done["tasks"].items()
    }
    tasks = ["sst", "sts"] if form == "peft" else ["sst", "para", "sts"]
    out = export(tmp_path / "run", form=form, tasks=tasks, out=tmp_path / "export")
    assert sorted(out["tasks"]) == sorted(tasks)


def test_surgery_is_refused_where_a_task_has_no_gradient_of_the_encoder(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "joint", adapters=ONE_TASKS, algorithm={"name": "surgery", "method": "pcgrad"})
    with pytest.raises(RecipeError, match=r"task 'sst' has none of; leave adapters.trained_by out"):
        mtmeta.run(recipe, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trained_by": ["paar"]}, "adapters.trained_by names no task of this recipe: 'paar'; did you mean 'para'?"),
        ({"trained_by": ["para"], "encoder": "frozen"}, "adapters.trained_by: the encoder is frozen; leave it out"),
        ({"trained_by": []}, "adapters.trained_by"),
        ({"trained_by": ["sts", "para"], "algorithm": "individual"}, "'individual' trains 2 encoders for these tasks"),
        ({"trained_by": ["sts", "para", "sst"]}, "adapters.trained_by: leaves no task that has adapters"),
    ],
)
def test_who_cannot_train_the_encoder(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as raised:
        algorithm = changes.pop("algorithm", "joint")
        mtmeta.run(write_recipe(tmp_path, algorithm, adapters={**ON, **changes}), out=tmp_path / "run")
    assert message in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("encoder", ["trained", "frozen"])
@pytest.mark.parametrize("algorithm", ["joint", "individual"])
def test_what_is_evaluated_again_and_exported_is_what_was_trained(algorithm: str, encoder: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, algorithm, adapters={**ON, "encoder": encoder})
    done = mtmeta.run(recipe, out=tmp_path / "run", overrides=["optimizer.lr=0.01"])
    scored = mtmeta.evaluate(tmp_path / "run")
    for task in ("sst", "para", "sts"):
        assert scored["tasks"][task]["value"] == done["tasks"][task]["value"]
    sizes = {path: path.stat().st_size for path in (tmp_path / "run").rglob("model.safetensors")}
    if encoder == "frozen":
        whole = (tmp_path / "run" / "encoder" / "model.safetensors").stat().st_size
        others = [size for path, size in sizes.items() if path.parent.name.startswith(("step-", "best-"))]
        assert others and max(others) < whole
    out = export(tmp_path / "run", form="transformers", out=tmp_path / "export")
    assert sorted(out["tasks"]) == ["para", "sst", "sts"]
    files = sorted((tmp_path / "export").rglob("model.safetensors"))
    assert len(files) == 3 and len({path.read_bytes() for path in files}) == 3


def test_a_merged_encoder_gives_the_outputs_of_the_adapters() -> None:
    learner, feed = stirred()
    model = learner.model.eval()
    (chunk,) = feed.batch("para").chunks
    with torch.no_grad():
        before = model("para", chunk.packed)
        other = model("sts", feed.batch("sts").chunks[0].packed)
        assert model("para", chunk.packed).equal(before)  # whatever another task had in between
        encoder = model.adapters.merged_copy("para", model.encoder)
        plain = MultiTaskModel(encoder, model.tasks, 0)
        plain.heads.load_state_dict(model.heads.state_dict())
        assert plain.eval()("para", chunk.packed).equal(before) and other.isfinite().all()
        assert encoder.words.weight.data_ptr() == model.encoder.words.weight.data_ptr()  # what has none is shared


def test_predict_uses_the_tasks_own_adapters(tmp_path: Path) -> None:
    """Its answers are those of the encoder with W + s B A and the task's norms, formed from the files by hand."""
    recipe = write_recipe(tmp_path, "joint", adapters=ON)
    mtmeta.run(recipe, out=tmp_path / "run", overrides=["optimizer.lr=0.01", "training.precision=fp32"])
    run = open_run(tmp_path / "run")
    saved = run.checkpoints(run.groups[0]).best()
    texts = ["a film that nobody will forget", "dull , long and loud", "good"]
    answers = {}
    for owner in ("sst", "para"):  # its own, and another task's
        backbone = restore_backbone(run)
        explicit = {name.removeprefix("encoder."): t for name, t in saved.items() if name.startswith("encoder.")}
        for name in list(explicit):
            stem = f"adapters.{owner}.{name.removesuffix('.weight')}"
            if f"{stem}.A" in saved:
                explicit[name] = explicit[name] + 2.0 * saved[f"{stem}.B"] @ saved[f"{stem}.A"]
            explicit[name] = saved.get(f"adapters.{owner}.{name}", explicit[name])
        backbone.encoder.load_state_dict(explicit)
        plain = MultiTaskModel(backbone.encoder, {"sst": run.recipe.tasks["sst"]}, 0).eval()
        heads = {name.removeprefix("heads."): t for name, t in saved.items() if name.startswith("heads.sst.")}
        plain.heads.load_state_dict(heads)
        dataset = from_texts("sst", run.recipe.tasks["sst"], texts, [], backbone)
        with torch.inference_mode():
            answers[owner] = plain("sst", pack_sequences(dataset.stores, np.arange(3))).softmax(dim=-1)
    predictions = mtmeta.load(tmp_path / "run", device="cpu").predict("sst", texts)
    found = torch.tensor([list((prediction.probabilities or {}).values()) for prediction in predictions])
    torch.testing.assert_close(found, answers["sst"], rtol=0, atol=1e-6)
    assert float((found - answers["para"]).abs().max()) > 1e-3


def test_a_flipped_bit_in_the_frozen_encoder_is_noticed(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "joint", adapters={**ON, "encoder": "frozen"})
    mtmeta.run(recipe, out=tmp_path / "run")
    path = tmp_path / "run" / "encoder" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="sha256 mismatch"):
        mtmeta.evaluate(tmp_path / "run")


def test_two_runs_give_the_same_bits(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "reptile", adapters=ON)
    for name in ("one", "two"):
        mtmeta.run(recipe, out=tmp_path / name)
    assert weights(tmp_path / "one") == weights(tmp_path / "two")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 999}, "adapters.rank is 999, no rank of a matrix whose narrower side is 32; lower it"),
        ({"layers": "last 9"}, "adapters.layers are the last 9, the encoder has 2 layers; write `all`"),
    ],
)
def test_what_the_encoder_has_no_room_for(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as raised:
        mtmeta.run(write_recipe(tmp_path, "joint", adapters=options), out=tmp_path / "run")
    assert message in str(raised.value).replace(": ", " "), json.dumps(str(raised.value))
