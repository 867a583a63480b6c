"""`mtmeta teach` and what learns of it: who labels what, what is heard in training, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import mtmeta
from mtmeta.core.api.objectives import Binary, Classification, Objective, Regression, has_soft_loss
from mtmeta.core.data.teachers import read_table, table_folder
from mtmeta.core.errors import CheckpointError, DataError, MtmetaError, Problems, RecipeError, UsageError
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.reports.comparison import as_markdown
from mtmeta.core.reports.terminal.plan import show_plan
from mtmeta.core.reports.terminal.teaching import show_teaching
from mtmeta.core.run.plan import plan
from mtmeta.core.run.request import RunRequest
from mtmeta.core.studies.adapt import adapt
from mtmeta.core.studies.adaptations import Shots
from mtmeta.core.studies.launching.placement import Placement
from mtmeta.core.studies.teach import teach
from mtmeta.plugins.algorithms.protonet import Protonet
from tests.robustness.small import ALGORITHMS, differences, make_backbone, make_data, outcome, train, write_recipe
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import quietly
from tests.support.parameters import some_quick
from tests.support.taught import make_labels, teachers

TASKS = ("sst", "para", "sts")
HEARING = [name for name in ALGORITHMS if name != "protonet"]  # which makes losses of its own
FAST: dict[str, Any] = {"steps": 4, "evaluate_every": 4, "checkpoint_every": 2}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with quietly():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data, weights, a recipe of three tasks, and what two fold models say: `data`, ..., `labels`."""
    folder = tmp_path_factory.mktemp("made")
    make_data(folder / "data")
    make_backbone(folder / "weights")
    recipe = write_recipe(folder / "alone.yaml", "individual", **common(folder, tasks=TASKS))
    with quietly():
        make_labels(recipe, folder / "labels")
    return folder


def common(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"data": folder / "data", "weights": str(folder / "weights"), **FAST, **changes}


def student(made: Path, folder: Path, base: str = "joint", /, **changes: Any) -> Path:
    """A recipe that learns of `labels`, by small data."""
    options = common(made, **{"teachers": teachers(made / "labels"), **changes})
    return write_recipe(folder / f"{base}.yaml", base, **options)


def weights(run: Path) -> dict[str, Tensor]:
    (newest,) = run.glob(f"checkpoints/**/step-{FAST['steps']:08d}/model.safetensors")
    return load_file(newest)


def spent(made: Path) -> int:
    """Example-forwards that the fold models took, by their events."""
    total = 0
    for fold in ("fold-1", "fold-2"):
        events = map(json.loads, (made / "labels" / fold / "events.jsonl").read_text().splitlines())
        steps = [event for event in events if event["type"] == "step" and event["step"] == FAST["steps"]]
        assert len(steps) == len(TASKS)
        total += sum(event["examples"] for event in steps)
    return total


def bits_differ(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return any(not first[name].equal(second[name]) for name in first)


# -------------------------------------------------------------------------------------------------- teaching


def test_the_command_trains_fold_models_once(made: Path, tmp_path: Path) -> None:
    """Through the pool of processes, with the bytes that runs in this process gave; again nothing is done."""
    said: list[str] = []
    request = RunRequest(made / "alone.yaml", out=tmp_path / "labels", device="cpu")
    document = teach(request, folds=2, placement=Placement(at_once=2), say=said.append)
    assert said[0] == f"2 fold models, 0 of them trained already, in {tmp_path / 'labels'}"
    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == ["fold-1", "fold-2", "teachers"]
    for row in document["tables"]:
        ours = read_table(made / "labels", row["task"])
        assert ours is not None and ours.sha256 == row["sha256"]
        assert (row["folds"], row["rows"], len(row["weights"])) == (2, len(ours), 2)
        assert row["training_examples"] == spent(made)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "labels").rglob("*")}
    assert teach(request, folds=2) == document
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "labels").rglob("*")} == before
    show_teaching(document)
    json.dumps(document, allow_nan=False)


def test_each_row_is_of_the_model_that_did_not_see_it(made: Path) -> None:
    lines = (made / "data" / "sst-train.tsv").read_text().splitlines()[1:]
    table = read_table(made / "labels", "sst")
    assert table is not None
    chances = [
        np.array([list((one.probabilities or {}).values()) for one in mtmeta.load(run).predict("sst", texts)])
        for texts in [[line.split("\t")[0] for line in lines]]
        for run in (made / "labels" / "fold-1", made / "labels" / "fold-2")
    ]
    near = np.array([np.abs(said - table.outputs).max(axis=1) < 1e-6 for said in chances])  # [2, N]
    assert (near.sum(axis=0) == 1).all()
    for fold, own in enumerate(near, 1):
        events = (made / "labels" / f"fold-{fold}" / "events.jsonl").read_text().splitlines()
        loaded = next(e for e in map(json.loads, events) if e.get("task") == "sst" and e.get("split") == "train")
        assert loaded["examples"] == len(lines) - own.sum()


def test_a_damaged_table_is_made_again(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "labels", tmp_path / "labels", symlinks=True)
    path = table_folder(tmp_path / "labels", "para") / "table.safetensors"
    before = path.read_bytes()
    path.write_bytes(before[:-1] + b"?")
    said: list[str] = []
    teach(RunRequest(made / "alone.yaml", out=tmp_path / "labels"), folds=2, say=said.append)
    assert said[1] == f"{path}: damaged (sha256 mismatch); it is made again"
    assert path.read_bytes() == before


def test_finished_runs_label_what_a_recipe_trains_on(made: Path, tmp_path: Path) -> None:
    runs = [tmp_path / "one", tmp_path / "two"]
    for seed, run in enumerate(runs):
        mtmeta.run(made / "alone.yaml", out=run, overrides=[f"seed={seed}"])
    recipe = student(made, tmp_path, teachers=teachers(*runs))
    document = teach(RunRequest(recipe))
    assert [(row["task"], row["folds"]) for row in document["tables"]] == [
        ("sst", 0),
        ("sst", 0),
        ("para", 0),
        ("para", 0),
    ]
    assert teach(RunRequest(recipe)) == document
    summary = mtmeta.run(recipe, out=tmp_path / "run")
    trained = 2 * 3 * FAST["steps"] * 4  # runs, tasks, steps, batch; then 2 x (36 + 30) labels
    assert summary["teacher_examples"] == trained + 2 * (36 + 30)
    assert summary["examples"] == FAST["steps"] * 4
    with pytest.raises(DataError, match=r"by a model that may have been trained on it, teachers.sst.folds is 2"):
        mtmeta.run(recipe, out=tmp_path / "folds", overrides=["teachers.sst.folds=2"])


@pytest.mark.slow
def test_the_cost_of_teachers_is_compared(made: Path, tmp_path: Path) -> None:
    recipe = student(made, tmp_path)
    plain = write_recipe(tmp_path / "plain.yaml", "joint", **common(made), name="plain")
    table = mtmeta.compare([recipe, plain], seeds=1, out=tmp_path / "runs")
    taught, alone = table["rows"]
    labelling = spent(made) + 36 + 30
    assert (alone["examples"], alone["teacher_examples"]) == (16, 0)
    assert (taught["examples"], taught["teacher_examples"]) == (16 + labelling, labelling)
    assert f"Among them those of its teachers, whom one run would need as well: joint {labelling:,}." in as_markdown(
        table
    )


def test_every_seed_may_have_teachers_of_its_own(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "labels", tmp_path / "labels-11")
    recipe = student(made, tmp_path, teachers=teachers(tmp_path / "labels-{seed}"))
    mtmeta.run(recipe, out=tmp_path / "named")
    mtmeta.run(student(made, tmp_path, teachers=teachers(made / "labels")), out=tmp_path / "same")
    assert not bits_differ(tmp_path / "named", tmp_path / "same")
    student(made, tmp_path, teachers=teachers(tmp_path / "labels-{seed}"))  # the same file again
    with pytest.raises(MtmetaError, match="labels-12: no labels of task 'sst' by a teacher"):
        mtmeta.run(recipe, out=tmp_path / "other", overrides=["seed=12"])
    said: list[str] = []
    teach(RunRequest(recipe), say=said.append)
    assert said == [f"{tmp_path / 'labels-11'} has labels of {task} already" for task in ("sst", "para")]


def test_the_plan_of_a_run_tells_it(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labelling = spent(made) + 36 + 30
    taught = plan(RunRequest(student(made, tmp_path), out=tmp_path / "run"), probe_steps=0)
    assert taught["teacher_examples"] == labelling
    show_plan(taught)
    assert f"teachers took  {labelling:,} example-forwards, to be trained and to label\n" in re.sub(
        "  +", "  ", capsys.readouterr().out
    )
    alone = write_recipe(tmp_path / "plain.yaml", "joint", **common(made), name="plain")
    plain = plan(RunRequest(alone, out=tmp_path / "plain"), probe_steps=0)
    assert plain["teacher_examples"] == 0
    show_plan(plain)
    assert "teachers took" not in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("algorithm", some_quick(sorted({*HEARING, "surgery"}), 4))
def test_every_algorithm_hears_them_in_training_alone(
    algorithm: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if algorithm == "surgery":
        pytest.importorskip("torchjd")
    changes = {} if algorithm in ALGORITHMS else {"optimizer": {"name": "sgd", "lr": 0.1}, "algorithm": algorithm}
    base = algorithm if algorithm in ALGORITHMS else "joint"
    heard: list[tuple[str, float]] = []
    for kind in (Classification, Binary):
        soft = kind.soft_loss

        def watched(
            self: Any, outputs: Tensor, labels: Tensor, teacher: Tensor, trust: float, soft: Any = soft
        ) -> Tensor:
            assert not torch.is_inference_mode_enabled(), "evaluation goes by labels"
            heard.append((type(self).__name__, trust))
            loss: Tensor = soft(self, outputs, labels, teacher, trust)
            return loss

        monkeypatch.setattr(kind, "soft_loss", watched)
    recipe = student(made, tmp_path, base, **changes)
    mtmeta.run(recipe, out=tmp_path / "taught")
    assert {name for name, _ in heard} == {"Classification", "Binary"}
    assert {trust for _, trust in heard} == {1.0, 0.75, 0.5, 0.25}
    mtmeta.run(recipe, out=tmp_path / "plain", overrides=["teachers=null"])
    if base != "individual":
        assert bits_differ(tmp_path / "taught", tmp_path / "plain")
    one, other = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("taught", "plain"))
    assert one["examples"] == other["examples"]


def test_a_budget_is_that_of_the_student(made: Path, tmp_path: Path) -> None:
    recipe = student(made, tmp_path, "joint", budget={"examples": 30})
    assert mtmeta.run(recipe, out=tmp_path / "run")["examples"] <= 30


def test_a_number_is_a_trust_that_stays(made: Path, tmp_path: Path) -> None:
    recipe = student(made, tmp_path, teachers=teachers(made / "labels", anneal=0))
    mtmeta.run(recipe, out=tmp_path / "deaf")
    mtmeta.run(recipe, out=tmp_path / "plain", overrides=["teachers=null"])
    assert not bits_differ(tmp_path / "deaf", tmp_path / "plain")
    mtmeta.run(recipe, out=tmp_path / "heard", overrides=["teachers.anneal=1"])
    assert bits_differ(tmp_path / "heard", tmp_path / "plain")


def test_a_finished_run_needs_its_teachers_no_more(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "labels", tmp_path / "labels", symlinks=True)
    mtmeta.run(student(made, tmp_path, teachers=teachers(tmp_path / "labels")), out=tmp_path / "run")
    shutil.rmtree(tmp_path / "labels")
    assert mtmeta.evaluate(tmp_path / "run")["tasks"]
    assert mtmeta.load(tmp_path / "run").predict("sst", ["good film"])


# --------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("algorithm", some_quick(HEARING, 4))
def test_it_goes_on_exactly(algorithm: str, made: Path, tmp_path: Path) -> None:
    recipe = student(made, tmp_path, algorithm)
    whole = train(recipe, tmp_path / "whole")
    cut = train(recipe, tmp_path / "cut", stop_after=3)
    assert train(recipe, tmp_path / "cut") == cut
    assert differences(outcome(whole), outcome(cut)) == []


@pytest.mark.parametrize("change", ["other", "flipped", "gone"])
def test_other_labels_than_it_began_with(change: str, made: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    shutil.copytree(made / "labels", labels, symlinks=True)
    recipe = student(made, tmp_path, teachers=teachers(labels))
    train(recipe, tmp_path / "cut", stop_after=3)
    path = table_folder(labels, "sst") / "table.safetensors"
    if change == "flipped":
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    shutil.rmtree(path.parent if change == "gone" else tmp_path / "nothing", ignore_errors=True)
    if change == "other":
        shutil.rmtree(labels)
        make_labels(write_recipe(tmp_path / "o.yaml", "individual", **common(made, seed=5)), labels)
    message = {"other": "changed since this run started", "flipped": "damaged", "gone": "no labels of task 'sst'"}
    with pytest.raises(DataError, match=message[change]) as error:
        train(recipe, tmp_path / "cut")
    assert "\n" not in str(error.value)
    if change == "other":
        mtmeta.run(recipe, out=tmp_path / "cut" / "out", allow_changed_data=True)


def test_runs_without_teachers_keep_their_digest(made: Path, tmp_path: Path) -> None:
    plain = student(made, tmp_path, teachers=None)
    mtmeta.run(plain, out=tmp_path / "run")
    lock = (tmp_path / "run" / "recipe.lock.yaml").read_text()
    assert "teachers" not in lock
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "teacher_examples" not in summary


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teachers=[sst]", "teachers must be a mapping, found a list of 1; write {TASK: {runs: [FOLDER]}}"),
        ("teachers={}", "teachers names no task; add TASK: {runs: [FOLDER]}, or leave the section out"),
        ("teachers={anneal: 0.5}", "teachers names no task; add TASK"),
        ("teachers={sts: {runs: [a]}}", "teachers names no task of this recipe: 'sts'; did you mean 'sst'?"),
        ("teachers={anneall: {runs: [a]}, sst: {runs: [a]}}", "'anneall'; did you mean 'anneal'?"),
        ("teachers={sst: runs/a}", "teachers.sst must be a mapping, found 'runs/a'; write {runs: [FOLDER]}"),
        ("teachers={sst: {}}", "teachers.sst needs 'runs'; add it"),
        ("teachers={sst: {runs: []}}", "teachers.sst.runs must be a list of at least 1, found an empty list"),
        ("teachers={sst: {runs: [a], fold: 5}}", "unknown key 'fold' in 'teachers.sst'; did you mean 'folds'?"),
        ("teachers={sst: {runs: [a], folds: 1}}", "teachers.sst.folds must be an integer from 2 to 100"),
        ("teachers={sst: {runs: [a]}, anneal: cosine}", "teachers.anneal must be a number from 0 to 1 or linear"),
        ("teachers={sst: {runs: [a]}, anneal: 1.5}", "teachers.anneal must be a number from 0 to 1 or linear"),
        (
            "data={leave_out: {folds: 3, fold: 4}}",
            "data.leave_out.fold must be from 1 to 3, the number of folds, found 4",
        ),
    ],
)
def test_wrong_sections(override: str, message: str, made: Path, tmp_path: Path) -> None:
    recipe = student(made, tmp_path, teachers=None)
    with pytest.raises(RecipeError) as error:
        mtmeta.run(recipe, out=tmp_path / "run", overrides=[override])
    key = override.partition("=")[0]
    assert message.removeprefix(f"{key} ") in str(error.value)
    assert str(error.value).startswith(f"--set {key}: ")
    assert not (tmp_path / "run").exists()


def test_wrong_keys_are_told_by_line(made: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "joint.yaml", "joint", **common(made))
    text = path.read_text()[:-1] + ',\n "teachers": {"sst": {"runs": ["a"]},\n  "parra": {"runs": ["a"]}}}'
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"joint.yaml:3:3: teachers names no task .*'parra'; did you mean 'para'"):
        mtmeta.run(path, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("kind", "message", "folds", "changes"),
    [
        (UsageError, "--folds: is needed, for the recipe has no section 'teachers'", None, {"teachers": None}),
        (UsageError, "--folds: is needed, for the recipe's teachers differ in folds", None, {"mixed": True}),
        (UsageError, "is no run and has no labels of task 'sst'; mtmeta teach", None, {"folder": "nowhere"}),
        (RecipeError, "data.leave_out: is what mtmeta teach sets", 2, {"data_options": {"folds": 2, "fold": 1}}),
        (UsageError, "holds 'backbone', which is not of mtmeta teach; choose another", 2, {"out": "labels/fold-1"}),
        (UsageError, "has no task 'sst'; did you mean 'sts'? (tasks: para, sts)", None, {"folder": "without"}),
        (UsageError, "its task 'sst' has other labels than that of the recipe", None, {"folder": "binary"}),
    ],
)
def test_what_cannot_be_taught(
    kind: type[MtmetaError], message: str, folds: int | None, changes: dict[str, Any], made: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {}
    if "mixed" in changes:
        given["teachers"] = {"sst": {"runs": ["a"], "folds": 2}, "para": {"runs": ["a"]}}
    if changes.get("folder") == "nowhere":
        given["teachers"] = teachers(tmp_path / "nowhere")
    elif "folder" in changes:
        tasks: Any = TASKS[1:]
        if changes["folder"] == "binary":
            task = {"task": "classification", "text": "sentence", "label": "sentiment"}
            files = {"train": "sst-train.tsv", "dev": "sst-dev.tsv"}
            tasks = {"sst": {**task, **files, "labels": ["4", "3", "2", "1", "0"]}}
        run = write_recipe(tmp_path / "other.yaml", "joint", **common(made, tasks=tasks))
        mtmeta.run(run, out=tmp_path / "run")
        given["teachers"] = teachers(tmp_path / "run")
    if "data_options" in changes:
        given["overrides"] = ["data.leave_out={folds: 2, fold: 1}"]
    if "teachers" in changes:
        given["teachers"] = None
    overrides = given.pop("overrides", [])
    recipe = student(made, tmp_path, **given)
    out = made / changes["out"] if "out" in changes else tmp_path / "out"
    with pytest.raises(kind) as error:
        teach(RunRequest(recipe, out=out, overrides=overrides), folds=folds)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unfinished_run_cannot_teach(made: Path, tmp_path: Path) -> None:
    train(write_recipe(tmp_path / "other.yaml", "joint", **common(made)), tmp_path / "cut", stop_after=3)
    recipe = student(made, tmp_path, teachers=teachers(tmp_path / "cut" / "out"))
    with pytest.raises(UsageError, match="is not finished, so it cannot teach"):
        teach(RunRequest(recipe))
    with pytest.raises(DataError, match="no labels of task 'sst' by a teacher"):
        mtmeta.run(recipe, out=tmp_path / "run")


def test_a_run_that_says_it_took_more_than_any_can(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "labels", tmp_path / "labels", symlinks=True)
    path = tmp_path / "labels" / "fold-2" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"examples": 2**63}))
    with pytest.raises(
        CheckpointError, match=r"fold-2/summary.json: says that training took 9,223,372,036,854,775,808"
    ):
        teach(RunRequest(made / "alone.yaml", out=tmp_path / "labels"), folds=2)


def test_another_recipe_in_the_folder(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "labels", tmp_path / "labels", symlinks=True)
    request = RunRequest(made / "alone.yaml", out=tmp_path / "labels", overrides=["seed=4"])
    with pytest.raises(CheckpointError, match=r"fold-1: was trained with recipe .*differs in: seed"):
        teach(request, folds=2)


def test_an_algorithm_that_makes_its_own_loss(made: Path, tmp_path: Path) -> None:
    """Prototypical networks have classes of the episode, not of the task."""
    algorithm = {"name": "protonet", "shots": 1, "queries": 1, "ways": 2}
    recipe = student(made, tmp_path, "joint", algorithm=algorithm, training={})
    with pytest.raises(Problems) as raised:
        load_recipe(recipe, build_registry())
    lines = raised.value.lines()
    assert len(lines) == 2 and all(line.startswith(f"error: {recipe}:1:") for line in lines)
    message = "algorithm 'protonet' makes the loss of task 'sst' by itself, without teachers; leave it out"
    assert lines[0].endswith(f" teachers.sst: {message}")


def test_an_algorithm_that_says_it_hears_them_and_does_not(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Protonet, "hears_teachers", True)
    algorithm = {"name": "protonet", "shots": 1, "queries": 1, "ways": 2}
    recipe = student(made, tmp_path, "joint", algorithm=algorithm, training={})
    with pytest.raises(
        RecipeError, match=r"algorithm 'protonet' makes the loss of task '(sst|para)' by itself, without"
    ):
        mtmeta.run(recipe, out=tmp_path / "run")


def test_an_objective_without_soft_loss(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Classification, "soft_loss")
    with pytest.raises(RecipeError, match="the objective of task 'sst' has no soft_loss for its loss, so it cannot"):
        mtmeta.run(student(made, tmp_path), out=tmp_path / "run")
    outputs, labels = torch.zeros(2, 3), torch.zeros(2)
    with pytest.raises(ValueError, match="Classification has no soft_loss, so it cannot be distilled"):
        Classification(labels=3).soft_loss(outputs, labels, torch.ones(2, 3) / 3, 0.5)


def test_a_soft_loss_goes_with_the_loss_it_was_made_for() -> None:
    class Sharper(Classification):
        def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
            return super().loss(2 * outputs, labels)

    class Whole(Sharper):
        def soft_loss(self, outputs: Tensor, labels: Tensor, teacher: Tensor, trust: float) -> Tensor:
            return super().soft_loss(2 * outputs, labels, teacher, trust)

    class Named(Whole):
        pass

    assert [has_soft_loss(kind) for kind in (Objective, Classification, Binary, Regression)] == [
        False,
        True,
        True,
        True,
    ]
    assert [has_soft_loss(kind) for kind in (Sharper, Whole, Named)] == [False, True, True]


def test_an_objective_without_probabilities(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Binary, "probabilities")
    with pytest.raises(RecipeError, match=r"tasks.para: the objective of task 'para' gives no probabilities"):
        teach(RunRequest(made / "alone.yaml", out=tmp_path / "out"), folds=2)


def test_adapting_has_no_teachers(made: Path, tmp_path: Path) -> None:
    mtmeta.run(student(made, tmp_path, teachers=None), out=tmp_path / "run")
    recipe = student(made, tmp_path, "fomaml")
    with pytest.raises(RecipeError, match="teachers: has no part in adapting"):
        adapt([tmp_path / "run"], RunRequest(recipe), Shots([1], 1))
