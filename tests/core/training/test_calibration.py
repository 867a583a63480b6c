"""`evaluation.calibrate` and `--abstain`: temperatures beside other ways to them, and what predictions make of them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mtmeta
from benchmarks.export import differences
from mtmeta.cli import main
from mtmeta.core.api.heads import ChoiceHead, CosinePrototypeHead, MLPHead, PrototypeHead, SequenceClassificationHead
from mtmeta.core.errors import UsageError
from mtmeta.core.export.heads import at_temperature
from mtmeta.core.training.calibration import calibrated, calibration_error, fit_temperature, log_chances
from tests.robustness import small
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.quick import quick


def sample(classes: int, sharpness: float, size: int = 400, seed: int = 0) -> tuple[Any, Any]:
    """Logits that are `sharpness` times those by which labels were drawn."""
    draw = np.random.default_rng(seed)
    true = 2 * draw.standard_normal((size, classes))
    labels = np.array([draw.choice(classes, p=row) for row in np.exp(log_chances(true, 1.0))])
    return sharpness * true, labels


@pytest.mark.parametrize(("classes", "sharpness"), [(2, 3.0), (5, 0.4), (5, 4.0), (150, 2.0)])
def test_it_is_the_temperature_of_the_least_loss(classes: int, sharpness: float) -> None:
    """By torch: at it the loss has no slope, and beside it the loss is higher."""
    logits, labels = sample(classes, sharpness)
    found = fit_temperature(logits, labels)

    def loss(temperature: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(torch.tensor(logits) / temperature, torch.tensor(labels))

    at = torch.tensor(found, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(at), at)
    assert abs(float(slope)) < 1e-10
    assert float(loss(at * 1.01).detach()) > float(loss(at).detach()) < float(loss(at / 1.01).detach())
    assert found == pytest.approx(sharpness, rel=0.3)  # by which the logits are too sure
    assert calibrated(logits, labels).loss[1] == pytest.approx(float(loss(at).detach()), rel=1e-12)


def test_where_there_is_no_such_temperature_it_is_one() -> None:
    logits = np.array([[3.0, 1.0], [0.0, 2.0]])
    assert fit_temperature(logits, np.array([0, 1])) == 1.0  # all right: the surer the better
    assert fit_temperature(logits, np.array([1, 0])) == 1.0  # all wrong: the less sure the better


def test_calibration_error_by_hand() -> None:
    chances = np.array([[0.95, 0.05], [0.94, 0.06], [0.55, 0.45], [1.0, 0.0]])
    labels = np.array([0, 1, 0, 0])
    # bins (14/15, 1] with three, right 2/3 of the time at .9633 in the mean, and (8/15, 9/15] with one
    expected = (3 * abs((0.95 + 0.94 + 1.0) / 3 - 2 / 3) + abs(0.55 - 1.0)) / 4
    assert calibration_error(chances, labels) == pytest.approx(expected, rel=1e-12)


# ------------------------------------------------------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> mtmeta.Run:
    """A calibrated run of classes, of two classes with one logit, and of numbers."""
    folder = tmp_path_factory.mktemp("calibrated")
    given: dict[str, Any] = {"data": small.make_data(folder / "data"), "tasks": ("sst", "para", "sts"), "steps": 4}
    given |= {"weights": str(small.make_backbone(folder / "weights")), "schedule": "constant", "training": {}}
    given |= {"optimizer": {"name": "adamw", "lr": 0.05}, "evaluation": {"every": 4, "calibrate": True}}
    recipe = small.write_recipe(folder / "r.yaml", "joint", algorithm={"name": "joint"}, sampler="uniform", **given)
    return mtmeta.run(recipe, out=folder / "run")


TEXTS = ["good film", "bad plot", "not very dull"]


def logits_of(run: mtmeta.Run, task: str, texts: list[Any], temperature: float) -> Any:
    """Logarithms of the probabilities without the temperature."""
    return np.log(chances_of(run, task, texts)) * temperature


def chances_of(model: mtmeta.Run | mtmeta.Predictor, task: str, texts: list[Any]) -> Any:
    """The probabilities of all classes [N, C]."""
    return np.array([list((one.probabilities or {}).values()) for one in model.predict(task, texts)])


def test_predictions_are_at_the_temperature_of_the_run(run: mtmeta.Run, tmp_path: Path) -> None:
    assert set(run["calibration"]) == {"sst", "para"}
    for task, texts in (("sst", TEXTS), ("para", [("good film", "bad film"), ("a plot", "the plot")])):
        fitted = run["calibration"][task]
        temperature = fitted["temperature"]
        assert temperature != 1.0 and fitted["examples"] == {"sst": 12, "para": 6}[task]
        assert fitted["loss"][1] < fitted["loss"][0] == pytest.approx(run["tasks"][task]["loss"], rel=1e-5)
        found = chances_of(run, task, texts)
        raw = logits_of(run, task, texts, temperature)
        np.testing.assert_allclose(np.exp(log_chances(raw, temperature)), found, rtol=1e-5)
        plain = mtmeta.load(run.path)
        plain._session.temperatures = {}
        unscaled = chances_of(plain, task, texts)
        np.testing.assert_allclose(np.exp(log_chances(raw, 1.0)), unscaled, rtol=1e-4)
        assert [one.label for one in plain.predict(task, texts)] == [one.label for one in run.predict(task, texts)]


def test_below_the_threshold_there_is_no_label(run: mtmeta.Run, tmp_path: Path, capsys: Any) -> None:
    plain = run.predict("sst", TEXTS)
    scores = sorted(one.score for one in plain)  # type: ignore[type-var]
    threshold = scores[1]  # two reach it
    held = run.predict("sst", TEXTS, abstain=threshold)
    for before, now in zip(plain, held, strict=True):
        assert now.abstained == (before.score < threshold)  # type: ignore[operator]
        assert (now.score, now.probabilities) == (before.score, before.probabilities)
        assert now.label == (None if now.abstained else before.label)
        assert now.json().get("abstained", False) == now.abstained and ("label" in now.json()) != now.abstained
    assert [one.abstained for one in held].count(True) == 1
    assert run.predict("sst", TEXTS[0], abstain=1.0).abstained
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    arguments = ["predict", str(run.path), "--task", "sst", "--input", str(tmp_path / "texts.txt")]
    shown = {}
    for form in ("csv", "jsonl"):
        with pytest.raises(SystemExit, match="0"):
            main([*arguments, "--abstain", repr(threshold), "--format", form])
        shown[form] = capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO(shown["csv"])))
    assert [row["abstained"] for row in rows] == ["yes" if one.abstained else "no" for one in held]
    assert [row["label"] for row in rows] == [one.label or "" for one in held]
    assert [json.loads(line).get("label") for line in shown["jsonl"].splitlines()] == [one.label for one in held]


@pytest.mark.parametrize(
    ("task", "threshold", "message"),
    [
        ("sst", 0.0, "abstain: must be a probability above 0 and at most 1, found '0.0'"),
        ("sst", 1.5, "abstain: must be a probability above 0 and at most 1, found '1.5'"),
        ("sts", 0.5, "abstain: needs one of several classes, task 'sts' predicts others; leave it out"),
    ],
)
def test_what_is_no_threshold(task: str, threshold: float, message: str, run: mtmeta.Run) -> None:
    texts: Any = [("a film", "a plot")] if task == "sts" else TEXTS
    for given in (texts, texts[0]):
        with pytest.raises(UsageError) as caught:
            run.predict(task, given, abstain=threshold)
        assert str(caught.value) == message


# ------------------------------------------------------------------------------------- objectives without a temperature


class Margin(mtmeta.Classification):
    """Classes by a loss of one's own."""

    takes_temperature = False

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.multi_margin_loss(outputs.float(), labels.long())


class Grade(mtmeta.Task):
    """A task by it."""

    name = "grade"
    objective = Margin(labels=("no", "yes"))
    metrics = ("accuracy",)

    def read(self, file: mtmeta.DataFile) -> Any:
        for row in file.rows("sentence", "label"):
            yield mtmeta.Example(row["sentence"], label=row["label"], id=row.id, line=row.line)


class Heated(Grade):
    """The same with a temperature."""

    name = "heated"
    objective = mtmeta.Classification(labels=("no", "yes"))  # type: ignore[assignment]


def calibrating(folder: Path, *tasks: str) -> dict[str, Any]:
    recipe = json.loads(quick(folder).read_text())
    files = {key: recipe["tasks"]["kind"][key] for key in ("train", "dev", "batch_size")}
    options: dict[str, Any] = {
        "ordinal": {"labels": ["no", "yes"]},
        "regression": {"low": 0, "high": 5, "label": "score"},
    }
    recipe["tasks"] = {name: files | options.get(name, {}) for name in tasks}
    recipe["evaluation"] = {"calibrate": True}
    return dict(recipe)


@pytest.mark.parametrize("task", ["grade", "ordinal", "regression"])
def test_a_recipe_that_calibrates_nothing_is_refused(task: str, tmp_path: Path) -> None:
    recipe = calibrating(tmp_path, task)
    (problem,) = mtmeta.validate(recipe, plugins=[Grade]).problems
    assert "evaluation.calibrate: no task of this recipe has probabilities that a temperature can be" in str(problem)
    recipe["evaluation"] = {}
    assert not mtmeta.validate(recipe, plugins=[Grade]).problems


def test_a_task_that_is_left_as_it_is_is_told(tmp_path: Path) -> None:
    said: list[Any] = []
    recipe = calibrating(tmp_path, "heated", "grade", "regression")
    run = mtmeta.run(recipe, out=tmp_path / "run", device="cpu", plugins=[Grade, Heated], on_event=said.append)
    assert set(run["calibration"]) == {"heated"}
    (line,) = [event.text for event in said if event.type == "warning" and "calibrate" in event.text]
    left = "evaluation.calibrate: the probabilities of task 'grade' stay as they are"
    assert line == f"{left}, for its objective takes no temperature"


# -------------------------------------------------------------------------------------------------------------- exports


@pytest.mark.parametrize("form", ["transformers", "onnx"])
def test_exports_have_the_probabilities_of_predict(form: Any, run: mtmeta.Run, tmp_path: Path) -> None:
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    exported = mtmeta.export(run.path, form, tasks=["sst", "para"], out=tmp_path / form)
    given: dict[str, Any] = {"sst": TEXTS, "para": [("good film", "bad film"), ("a plot", "the plot")]}
    found = differences(run.path, form, Path(exported.folder), given)
    for task, figures in found.items():
        assert figures["answers"] < 1e-6, task
        assert figures["outputs"] > 1e-3  # logits are at the temperature, too
    card = (Path(exported.folder) / "README.md").read_text()
    heat = run["calibration"]["sst"]["temperature"]
    assert f"probabilities of `sst` are those at the temperature {heat:.4g}, fitted on dev" in " ".join(card.split())


def test_models_of_transformers_have_the_probabilities_of_predict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By softmax of their logits, which is what pipeline() takes; one of two classes has one logit in the run."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr("mtmeta.core.export.text_classification.has_graph_packages", lambda: False)
    recipe = json.loads(quick(tmp_path).read_text())
    rows = "".join(f"{i}\tword {i}\tword {i + i % 2}\t{1 - i % 2}\n" for i in range(12))
    (tmp_path / "pairs.tsv").write_text("id\tsentence1\tsentence2\tis_duplicate\n" + rows)
    files = {"train": "pairs.tsv", "dev": "pairs.tsv", "batch_size": 4, "pair_mode": "cross"}
    recipe["tasks"] = {"kind": {**recipe["tasks"]["kind"], "head": "hf"}, "para": {**files, "head": "hf"}}
    recipe["evaluation"] = {"calibrate": True}
    run = mtmeta.run(recipe, out=tmp_path / "run", device="cpu")
    assert all(abs(run["calibration"][task]["temperature"] - 1) > 1e-3 for task in ("kind", "para"))
    exported = mtmeta.export(run.path, "text-classification")
    for task, texts in (("kind", TEXTS), ("para", [("word 1", "word 2"), ("word 3", "a plot")])):
        tokenizer = transformers.AutoTokenizer.from_pretrained(Path(exported.folder) / task)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(Path(exported.folder) / task).eval()
        columns = [list(column) for column in zip(*texts, strict=True)] if task == "para" else [list(texts)]
        with torch.inference_mode():
            logits = model(**tokenizer(*columns, padding=True, return_tensors="pt")).logits
        assert np.abs(logits.softmax(-1).numpy() - chances_of(run, task, texts)).max() < 1e-6


def test_a_head_at_a_temperature_has_its_outputs_divided() -> None:
    torch.manual_seed(3)
    means, pooled = torch.randn(3, 8), torch.randn(5, 1, 8)
    heads = [
        *(MLPHead(8, outputs=3), ChoiceHead(8), PrototypeHead(means), CosinePrototypeHead(means, temperature=0.3)),
        SequenceClassificationHead(8, activation="tanh", outputs=3),
    ]
    for head in heads:
        before = head(pooled).detach()
        torch.testing.assert_close(at_temperature(head, 2.5)(pooled), before / 2.5, rtol=1e-5, atol=1e-6)
        assert torch.equal(head(pooled), before) and at_temperature(head, 1.0) is head
