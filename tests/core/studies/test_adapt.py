"""`mtmeta adapt`: which examples, from which weights, with which head, and figures that are right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import mtmeta
from mtmeta.cli import main
from mtmeta.core.api.heads import PrototypeHead
from mtmeta.core.data.dataset import Dataset
from mtmeta.core.data.loading import load_split
from mtmeta.core.data.packing import pack
from mtmeta.core.data.subsets import draw_shots, strata
from mtmeta.core.errors import DataError, RecipeError, UsageError
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.reports.adaptation import notes_of
from mtmeta.core.reports.html.adaptation import write_page
from mtmeta.core.reports.terminal.adaptation import show_adaptation
from mtmeta.core.run.directory import RunDir
from mtmeta.core.run.evaluate import open_run, restore_backbone
from mtmeta.core.run.request import RunRequest
from mtmeta.core.run.session import Session
from mtmeta.core.studies import adaptations as module
from mtmeta.core.studies.adapt import adapt, means_over_tasks
from mtmeta.core.studies.adaptations import Shots
from mtmeta.core.studies.fine_tune import Tuned, fine_tune
from mtmeta.core.training.model import MultiTaskModel
from mtmeta.core.training.statistics import over_seeds
from tests.core.run.test_run import write_recipe
from tests.support import tiny

# ------------------------------------------------------------------------------------------------------------- examples


def data(task: str, examples: int = 96) -> Dataset:
    _, feed = tiny.tiny(task, examples=examples)
    return feed.datasets[task]


@pytest.mark.parametrize("task", ["sst", "para"])
def test_k_examples_of_every_class(task: str) -> None:
    whole = data(task)
    classes = sorted(set(whole.labels.tolist()))
    few = draw_shots(whole, 4, 3, task, 0)
    assert sorted(few.labels.tolist()) == sorted(classes * 4)
    assert set(few.ids) <= set(whole.ids)
    order = [list(whole.ids).index(name) for name in few.ids]
    assert order == sorted(order)  # that of the file
    assert len(set(order)) == len(order)


def test_of_a_task_without_classes_k_of_every_fifth_of_the_ranking() -> None:
    whole = data("sts", 100)
    few = draw_shots(whole, 3, 3, "sts", 0)
    ranks = {name: rank for rank, name in enumerate(np.array(whole.ids)[np.argsort(whole.labels, kind="stable")])}
    fifths = sorted(ranks[name] * 5 // 100 for name in few.ids)
    assert fifths == [fifth for fifth in range(5) for _ in range(3)]


def test_draws_are_nested_seeded_and_different() -> None:
    whole = data("sst")
    drawn = {k: set(draw_shots(whole, k, 3, "sst", 0).ids) for k in (1, 4, 16)}
    assert drawn[1] < drawn[4] < drawn[16]
    again = draw_shots(whole, 4, 3, "sst", 0)
    assert set(again.ids) == drawn[4]
    assert set(draw_shots(whole, 4, 3, "sst", 1).ids) != drawn[4]
    assert set(draw_shots(whole, 4, 4, "sst", 0).ids) != drawn[4]


def test_a_class_with_fewer_gives_all_it_has() -> None:
    whole = data("sst")
    sizes = {label: len(members) for label, members in strata(whole).items()}
    few = draw_shots(whole, 1000, 3, "sst", 0)
    assert len(few) == len(whole) == sum(sizes.values())


# --------------------------------------------------------------------------------------------------------------- heads


def test_a_prototype_head_prefers_the_nearest_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(4, 6, generator=generator)
    pooled = torch.randn(50, 2, 3, generator=generator)  # [B, V, D]
    logits = PrototypeHead(means)(pooled)
    distances = -torch.cdist(pooled.flatten(1), means).square()
    # up to what all classes share, |x|^2
    torch.testing.assert_close(logits - logits[:, :1], distances - distances[:, :1], rtol=1e-4, atol=1e-4)
    binary = PrototypeHead(means[:2], binary=True)(pooled)
    torch.testing.assert_close(binary[:, 0], distances[:, 1] - distances[:, 0], rtol=1e-4, atol=1e-4)
    assert binary.shape == (50, 1)


def test_one_step_of_fine_tuning_by_hand(tmp_path: Path) -> None:
    learner, feed = tiny.tiny("sst", examples=8)
    few, recipe = feed.datasets["sst"], new_tasks(tmp_path, "optimizer={name: sgd, lr: 0.1}", "training.steps=1")
    start = tiny.values(learner)
    fine_tune(learner.model, few, recipe)
    after = tiny.values(learner)
    other, _ = tiny.tiny("sst", examples=8)
    for name, grad in tiny.by_hand_gradient(other, (1.0, pack(few, np.arange(8)))).items():
        expected = start[name] if grad is None else start[name] - 0.1 * grad
        torch.testing.assert_close(after[name], expected, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in learner.parameters.values())


def test_clipping_is_the_recipes(tmp_path: Path) -> None:
    moved = []
    for clip in (1e-3, 2e-3):
        learner, feed = tiny.tiny("sst", examples=8)
        start = tiny.values(learner)
        options = ("optimizer={name: sgd, lr: 1.0}", "training.steps=1", f"training.clip={clip}")
        fine_tune(learner.model, feed.datasets["sst"], new_tasks(tmp_path, *options))
        moved.append(float(torch.cat([(v - start[n]).flatten() for n, v in tiny.values(learner).items()]).norm()))
    assert moved == pytest.approx([1e-3, 2e-3], rel=1e-3)


# ---------------------------------------------------------------------------------------------------------- whole runs

NEW = {
    "name": "new",
    "seed": 9,
    "backbone": {"name": "bert", "weights": "tiny", "max_length": 64},
    "tasks": {
        "mood": {"task": "sst", "train": "sample", "dev": "sample", "batch_size": 8},
        "same": {"task": "para", "train": "sample", "dev": "sample", "batch_size": 8},
        "near": {"task": "sts", "train": "sample", "dev": "sample", "batch_size": 8},
    },
    "algorithm": "individual",
    "optimizer": {"name": "adamw", "lr": 1e-3},
    "training": {"steps": 2},
}


def new_tasks(folder: Path, *overrides: str) -> Any:
    path = folder / "new.yaml"
    path.write_text(json.dumps(NEW))
    return load_recipe(path, build_registry(), overrides=overrides)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapt")
    for name in ("reptile", "joint", "individual"):
        mtmeta.run(write_recipe(folder, name), out=folder / name)
    (folder / "new.yaml").write_text(json.dumps(NEW))
    return folder


def few(runs: Path, *names: str, **options: Any) -> dict[str, Any]:
    plan = Shots(options.pop("shots", (2, 4)), options.pop("draws", 3), options.pop("head", "reset"))
    request = RunRequest(runs / "new.yaml", overrides=options.pop("overrides", ()))
    given = {"tasks": ["mood"], **options}
    return adapt([runs / name for name in names or ("reptile",)], request, plan, **given)


def test_figures_are_means_intervals_and_paired_gains(runs: Path) -> None:
    found = few(runs, "reptile", "joint", tasks=["mood", "near"])
    assert found["starts"] == ["pretrained", "reptile", "joint"]
    assert [(cell["task"], cell["shots"]) for cell in found["cells"]] == [
        ("mood", 2), ("mood", 4), ("near", 2), ("near", 4)
    ]  # fmt: skip
    assert len(found["adapted"]) == 2 * 2 * 3 * 3
    for cell in found["cells"]:
        values = {}
        for start in found["starts"]:
            rows = [
                row for row in found["adapted"]
                if (row["task"], row["shots"], row["start"]) == (cell["task"], cell["shots"], start)
            ]  # fmt: skip
            assert [row["draw"] for row in rows] == [0, 1, 2]
            assert {row["examples"] for row in rows} == {cell["shots"] * 5}  # five classes, or fifths
            values[start] = [row["value"] for row in rows]
            made = cell["starts"][start]
            assert (made["mean"], made["low"], made["high"]) == over_seeds(values[start])
        for start in ("reptile", "joint"):
            gained = [a - b for a, b in zip(values[start], values["pretrained"], strict=True)]
            gain = cell["starts"][start]["gain"]
            assert (gain["mean"], gain["low"], gain["high"]) == over_seeds(gained)
        assert "gain" not in cell["starts"]["pretrained"]
        assert cell["best"] == max(values, key=lambda start: sum(values[start]))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_mean_over_tasks_is_paired_by_draw(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of draws that every task has, and of tasks that are measured alike; the table and the page show it."""
    plan, request = Shots((2, 4), 3, baseline="joint"), RunRequest(runs / "new.yaml")
    found = adapt([runs / "joint", runs / "reptile"], request, plan, tasks=["mood", "same"])
    assert [(cell["task"], cell["shots"], cell["draws"]) for cell in found["means"]] == [
        ("mean of 2 tasks", 2, 3), ("mean of 2 tasks", 4, 3)
    ]  # fmt: skip
    # the second draw of four shots is missing in one task, as a fixed sample may be
    missing = {"task": "same", "shots": 4, "draw": 1}
    some = [one for one in found["adapted"] if not missing.items() <= one.items()]
    for draws, (_, cell) in (([0, 1, 2], found["means"]), ([0, 2], means_over_tasks(found | {"adapted": some}))):
        values = {
            start: [
                fmean(
                    one["value"]
                    for one in found["adapted"]
                    if (one["shots"], one["draw"], one["start"]) == (4, draw, start)
                )
                for draw in draws
            ]
            for start in found["starts"]
        }
        gained = [one - other for one, other in zip(values["reptile"], values["pretrained"], strict=True)]
        beside = [one - other for one, other in zip(values["reptile"], values["joint"], strict=True)]
        column = cell["starts"]["reptile"]
        assert column["values"] == values["reptile"] and cell["draws"] == len(draws)
        assert (column["gain"]["mean"], column["gain"]["low"], column["gain"]["high"]) == over_seeds(gained)
        assert (column["beside"]["mean"], column["beside"]["low"], column["beside"]["high"]) == over_seeds(beside)
        assert "beside" not in cell["starts"]["joint"] and cell["best"] == max(values, key=lambda s: sum(values[s]))
    gone = found | {"means": means_over_tasks(found | {"adapted": some})}
    assert notes_of(gone)[1:] == [
        "mean of 2 tasks, 4 shots: 2 draws, those that every task has; so not the mean of the rows above."
    ]
    none_left = [one for one in found["adapted"] if (one["shots"], one["task"]) != (4, "same")]
    gone = found | {"means": means_over_tasks(found | {"adapted": none_left})}
    assert notes_of(gone)[1:] == ["No mean over tasks of 4 shots: there is no draw that every task has."]
    assert notes_of(found)[1:] == []
    show_adaptation(found)
    page = write_page(found, tmp_path / "adapt.html").read_text(encoding="utf-8")
    mean = f"{found['means'][0]['starts']['reptile']['mean']:.4f}"
    assert all("mean of 2 tasks" in text and mean in text for text in (capsys.readouterr().out, page))
    assert few(runs, tasks=["mood", "near"], shots=(2,), draws=1)["means"] == []  # accuracy and pearson
    assert few(runs, shots=(2,), draws=1)["means"] == []


def timeless(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found["adapted"]]


def test_every_adaptation_begins_anew(runs: Path) -> None:
    """The same figures again, in company of another run, and with fewer draws: nothing is carried over."""
    alone, beside = timeless(few(runs, "reptile")), timeless(few(runs, "joint", "reptile"))
    assert alone == timeless(few(runs, "reptile"))
    assert alone == [row for row in beside if row["start"] != "joint"]
    assert [row for row in alone if row["draw"] == 0] == timeless(few(runs, "reptile", draws=1))


def test_it_starts_from_the_best_weights_and_from_the_pretrained_ones(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def look(model: MultiTaskModel, *arguments: Any, **options: Any) -> Tuned:
        seen.append({name: value.clone() for name, value in model.encoder.state_dict().items()})
        return Tuned()

    monkeypatch.setattr(module, "fine_tune", look)
    few(runs, shots=(2,), draws=1)
    run = open_run(runs / "reptile")
    plain = run.recipe.backbone.load(run.recipe.seed).encoder.state_dict()
    best = run.checkpoints(run.groups[0]).best()
    assert all(value.equal(plain[name]) for name, value in seen[0].items())
    assert all(value.equal(best[f"encoder.{name}"]) for name, value in seen[1].items())


@pytest.mark.parametrize(("per", "encoder"), [("task", "trained"), ("task", "frozen"), ("all", "frozen")])
def test_it_starts_from_a_tasks_own_adapters(
    per: str, encoder: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that the run has: from W + s B A and its norms, by hand; a new one: from W, or from adapters of all."""
    options = {"rank": 3, "alpha": 6.0, "per": per, "encoder": encoder}
    recipe = write_recipe(tmp_path, "reptile", adapters=options)
    mtmeta.run(recipe, out=tmp_path / "run")
    seen: dict[tuple[str, int], dict[str, torch.Tensor]] = {}
    monkeypatch.setattr("mtmeta.core.studies.adapt.copies_for", lambda *arguments: 0)  # where it can be looked at

    def look(model: MultiTaskModel, few: Dataset, *arguments: Any, **options: Any) -> Tuned:
        number = sum(task == few.task for task, _ in seen)
        seen[few.task, number] = {name: value.clone() for name, value in model.encoder.state_dict().items()}
        return Tuned()

    monkeypatch.setattr(module, "fine_tune", look)
    new = json.loads(json.dumps(NEW))
    new["tasks"]["sst"] = new["tasks"]["mood"]
    (tmp_path / "new.yaml").write_text(json.dumps(new))
    warned: list[str] = []
    request = RunRequest(tmp_path / "new.yaml", warn=warned.append)
    adapt([tmp_path / "run"], request, Shots((2,), 1), tasks=["sst", "mood"])
    run = open_run(tmp_path / "run")
    plain = run.recipe.backbone.load(run.recipe.seed).encoder.state_dict()
    best = run.checkpoints(run.groups[0]).best()
    weights = {name.removeprefix("encoder."): t for name, t in best.items() if name.startswith("encoder.")}
    for task, owner in (("sst", "all" if per == "all" else "sst"), ("mood", "all")):  # of `per: task` nobody is `all`
        moved = 0
        for name, weight in weights.items():
            stem, expected = f"adapters.{owner}.{name.removesuffix('.weight')}", weight
            if f"{stem}.A" in best:
                expected = weight + 2.0 * best[f"{stem}.B"] @ best[f"{stem}.A"]
            expected = best.get(f"adapters.{owner}.{name}", expected)
            torch.testing.assert_close(seen[task, 1][name], expected, rtol=0, atol=1e-7)
            assert seen[task, 0][name].equal(plain[name])
            moved += not expected.equal(plain[name])
        assert (moved > 0) == (task == "sst" or per == "all" or encoder == "trained")
    told = [line for line in warned if "no adapters for" in line]
    line = "run run has no adapters for mood and its encoder was frozen: it starts there as pretrained does"
    assert told == ([f"{line}; adapters of `per: all` would be used"] if (per, encoder) == ("task", "frozen") else [])


def test_prototypes_classify_by_the_nearest_mean(runs: Path) -> None:
    """With a learning rate of almost nothing the figures are those of a nearest-mean classifier, by hand."""
    options = ["optimizer.lr=1e-30", "training.steps=1", "training.precision=fp32"]
    found = few(runs, shots=(4,), draws=1, tasks=["mood", "same"], head="prototype", overrides=options)
    run = open_run(runs / "reptile")
    recipe = load_recipe(runs / "new.yaml", build_registry())
    session = Session(recipe, run.registry, run.folder, run.device, print)
    session.backbone = restore_backbone(run)
    weights = run.checkpoints(run.groups[0]).best()
    session.backbone.encoder.load_state_dict(
        {name.removeprefix("encoder."): v for name, v in weights.items() if name.startswith("encoder.")}
    )
    for task in ("mood", "same"):
        model = MultiTaskModel(session.backbone.encoder, {task: recipe.tasks[task]}, 0).eval()

        def vectors(dataset: Dataset, task: str = task, model: MultiTaskModel = model) -> torch.Tensor:
            with torch.no_grad():
                return torch.cat(
                    [
                        model.pooled(task, pack(dataset, np.array([i])).chunks[0].packed).flatten(1)
                        for i in range(len(dataset))
                    ]
                )

        drawn = draw_shots(session.read_split(task, "train"), 4, recipe.seed, task, 0)
        test = session.read_split(task, "dev")
        labels = torch.tensor(drawn.labels.tolist()).long()
        hot = functional.one_hot(labels).float()
        means = hot.T @ vectors(drawn) / hot.sum(dim=0)[:, None]
        made = torch.cdist(vectors(test), means).argmin(dim=1).numpy()
        (value,) = [row["value"] for row in found["adapted"] if row["task"] == task and row["start"] == "reptile"]
        assert value == pytest.approx(float((made == test.labels).mean()), abs=2 / len(test))  # ties to the last bit


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({"tasks": ["mod"]}, UsageError, r"--task: the recipe has no task 'mod'"),
        ({"shots": ()}, UsageError, "--shots: takes different whole numbers from 1"),
        ({"shots": (4, 4)}, UsageError, "--shots: takes different whole numbers from 1"),
        ({"shots": (0,)}, UsageError, "--shots: takes different whole numbers from 1"),
        ({"draws": 0}, UsageError, "--seeds: must be at least 1"),
        ({"overrides": ["schedule=plateau"]}, RecipeError, "schedule: plateau answers to a metric"),
        ({"overrides": ["adapters={rank: 2}"]}, RecipeError, "adapters: have no part in adapting"),
        ({"overrides": ["training={epochs: 2}"]}, RecipeError, "training.steps: recipe 'new' gives none"),
        ({"tasks": ["near"], "head": "prototype"}, UsageError, "--head: prototype needs classes, task 'near' has none"),
    ],
)
def test_what_cannot_be_adapted(options: dict[str, Any], error: type[Exception], what: str, runs: Path) -> None:
    with pytest.raises(error, match=what):
        few(runs, **options)


def test_runs_that_cannot_be_adapted(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has a model of its own for each of sst, para, sts; adapt a run that shares"):
        few(runs, "individual")
    with pytest.raises(UsageError, match="is no mtmeta run"):
        few(tmp_path, "nothing")
    with pytest.raises(UsageError, match="run directories need names of their own"):
        few(runs, "reptile", "reptile")


def test_the_command(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["adapt", str(runs / "reptile"), str(runs / "new.yaml"), "--shots", "2", "--seeds", "2", "--task", "mood"]
    with pytest.raises(SystemExit) as ended:
        main([*given, "--json"])
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err.startswith("mood, 2 shots: pretrained 0.")
    with pytest.raises(SystemExit):
        main(given)
    shown = capsys.readouterr().out
    cell = found["cells"][0]["starts"]["reptile"]
    assert f"{cell['mean']:.4f}" in shown  # of two draws no interval is told
    assert f"{cell['gain']['mean']:+.4f}" in shown
    assert "mood accuracy" in shown


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["x"], "mtmeta adapt: takes at least a RUN and a RECIPE"),
        (["x", "y", "--head", "other"], "--head: must be reset or prototype, found 'other'"),
        (["x", "y", "--shots", "4,b"], "--shots: takes whole numbers such as 4,16,64, found '4,b'"),
    ],
)
def test_bad_arguments(arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["adapt", *arguments])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {what}\n"


# ------------------------------------------------------------------------------------------------------ fixed samples


def mixed(folder: Path, **changes: Any) -> RunRequest:
    """A task of 40 rows and two classes, and a recipe that reads it from `train`."""
    rows = [f"words {i} {'good' if i % 3 else 'bad'},{'up' if i % 3 else 'down'}" for i in range(40)]
    (folder / "all.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    kind = {"task": "classification", "text": "text", "labels": ["down", "up"], "train": "all.csv", "dev": "all.csv"}
    new = {**NEW, "data_root": str(folder), "tasks": {"kind": {**kind, "batch_size": 8, **changes}}}
    (folder / "mixed.yaml").write_text(json.dumps(new))
    return RunRequest(folder / "mixed.yaml")


def write_samples(folder: Path, sizes: Sequence[int], draws: int) -> None:
    """Write what would be drawn of it into files of their own."""
    request = mixed(folder)
    recipe = load_recipe(request.recipe, build_registry())
    bert = build_registry().get("backbone", "bert", "backbone")(weights="tiny", max_length=64)
    whole = load_split("kind", recipe.tasks["kind"], "train", recipe.data, recipe.data_root, bert.load(0))
    header, *lines = (folder / "all.csv").read_text().splitlines()
    for k, draw in product(sizes, range(draws)):
        taken = np.isin(whole.ids, draw_shots(whole, k, recipe.seed, "kind", draw).ids)
        kept = [line for line, take in zip(lines, taken, strict=True) if take]
        (folder / f"few_{draw}_{k}.csv").write_text("\n".join([header, *kept]) + "\n")


def test_fixed_samples_are_adapted_to_as_the_same_rows_drawn(runs: Path, tmp_path: Path) -> None:
    write_samples(tmp_path, (2, 4), 3)
    plan = Shots((2, 4), 3, baseline="joint")
    drawn = adapt([runs / "reptile", runs / "joint"], mixed(tmp_path), plan)
    fixed = adapt([runs / "reptile", runs / "joint"], mixed(tmp_path, train="few_{draw}_{shots}.csv"), plan)
    assert timeless(fixed) == timeless(drawn)
    assert len(fixed["adapted"]) == 2 * 3 * 3
    assert [cell["fewer"] for cell in fixed["cells"]] == [{}, {}]
    for cell in fixed["cells"]:
        values = {start: made["values"] for start, made in cell["starts"].items()}
        beside = cell["starts"]["reptile"]["beside"]
        gained = [a - b for a, b in zip(values["reptile"], values["joint"], strict=True)]
        assert (beside["mean"], beside["low"], beside["high"]) == over_seeds(gained)
        assert cell["starts"]["reptile"]["deviation"] == pytest.approx(np.std(values["reptile"], ddof=1))
        assert "beside" not in cell["starts"]["joint"]
        assert "beside" not in cell["starts"]["pretrained"]


def test_a_sample_that_holds_nothing_is_left_out(runs: Path, tmp_path: Path) -> None:
    """As one of LEOPARD's is: the others count, and it is said."""
    write_samples(tmp_path, (2, 4), 3)
    (tmp_path / "few_0_4.csv").write_text("text,label\n")
    warned: list[str] = []
    request = replace(mixed(tmp_path, train="few_{draw}_{shots}.csv"), warn=warned.append)
    found = adapt([runs / "reptile"], request, Shots((2, 4), 3), keep=tmp_path / "kept")
    assert warned == [f"{tmp_path}/few_0_4.csv: no examples; left out of the 3 draws of 4 shots"]
    drawn = [(row["shots"], row["draw"]) for row in found["adapted"] if row["start"] == "reptile"]
    assert drawn == [(2, 0), (2, 1), (2, 2), (4, 1), (4, 2)]
    (line,) = [line for line in notes_of(found) if "draws" in line and "kind" in line]
    assert line == "kind, 4 shots: 2 draws, for 1 of the 3 samples holds no example."
    (kept,) = found["kept"]  # of the first draw that there is
    lock = RunDir(Path(kept)).lock()
    assert (lock["adapted"]["draw"], lock["adapted"]["examples"]) == (2, 8)
    for draw in (1, 2):
        (tmp_path / f"few_{draw}_4.csv").write_text("text,label\n")
    with pytest.raises(DataError, match="task 'kind': has no sample with 4 shots that holds an example"):
        adapt([runs / "reptile"], request, Shots((2, 4), 3))


def test_fixed_samples_that_hold_fewer_rows_than_their_name_says(runs: Path, tmp_path: Path) -> None:
    """Whichever of them it is: each holds what it holds."""
    write_samples(tmp_path, (2, 4), 3)
    header, *lines = (tmp_path / "few_1_4.csv").read_text().splitlines()
    downs = [line for line in lines if line.endswith("down")]
    rest = [line for line in lines if line not in downs[1:]]
    (tmp_path / "few_1_4.csv").write_text("\n".join([header, *rest]) + "\n")
    request = mixed(tmp_path, train="few_{draw}_{shots}.csv")
    said: list[str] = []
    found = adapt([runs / "reptile"], request, Shots((2, 4), 3), say=said.append)
    assert [cell["fewer"] for cell in found["cells"]] == [{}, {"down": 1}]
    assert "kind, 4 shots: fewer rows are there of down 1; so 5 to 8 examples were drawn." in notes_of(found)
    assert said[-1].endswith("(5 to 8 examples: fewer rows than shots)")
    (tmp_path / "few_0_2.csv").write_text("\n".join([header, downs[0]]) + "\n")
    notes = notes_of(adapt([runs / "reptile"], request, Shots((2,), 1)))
    assert "kind, 2 shots: fewer rows are there of down 1, up 0; so 1 example was drawn." in notes


def test_a_run_kept_of_a_fixed_sample_names_it(runs: Path, tmp_path: Path) -> None:
    write_samples(tmp_path, (4,), 2)
    (tmp_path / "few_0_4.csv").write_text("text,label\n")
    request = mixed(tmp_path, train="few_{draw}_{shots}.csv")
    for _ in range(2):  # the second time it is there
        found = adapt([runs / "reptile"], request, Shots((4,), 2), keep=tmp_path / "kept")
    (kept,) = map(Path, found["kept"])
    task = load_recipe(kept / "recipe.yaml", build_registry()).tasks["kind"]
    assert task.train == "few_1_4.csv"
    assert RunDir(kept).lock()["data"]["kind-train"] == hashlib.sha256((tmp_path / task.train).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "changes",
    [
        {"train": "few_{shots}.csv"},
        {"train": "few_{draw}.csv"},
        {"train": "hf://datasets/a/b/few_{draw}_{shots}.csv"},
        {"train": "few_{draw}_{shots}.csv", "dev": {"fraction": 0.5}},
    ],
)
def test_fixed_samples_that_cannot_be(changes: dict[str, Any], runs: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"tasks.kind.train: names fixed samples .* takes {shots} and {draw}"):
        adapt([runs / "reptile"], mixed(tmp_path, **changes), Shots((2,), 2))


def test_a_run_takes_no_fixed_samples(runs: Path, tmp_path: Path) -> None:
    request = mixed(tmp_path, train="few_{draw}_{shots}.csv")
    with pytest.raises(
        DataError, match=r"few_{draw}_{shots}.csv: {shots} and {draw} name samples .* adapt alone reads"
    ):
        mtmeta.run(request.recipe, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_fixed_sample_that_is_not_there(runs: Path, tmp_path: Path) -> None:
    write_samples(tmp_path, (2,), 2)
    with pytest.raises(DataError, match=r"few_2_2\.csv"):
        adapt([runs / "reptile"], mixed(tmp_path, train="few_{draw}_{shots}.csv"), Shots((2,), 3))


def test_a_baseline_is_one_of_the_runs(runs: Path) -> None:
    for name in ("joined", "pretrained"):
        with pytest.raises(UsageError, match=f"--baseline: '{name}' is none of the runs"):
            adapt([runs / "joint"], RunRequest(runs / "new.yaml"), Shots((2,), 1, baseline=name), tasks=["mood"])
    # alone it has nothing beside it, and the notes speak of no difference
    found = adapt([runs / "joint"], RunRequest(runs / "new.yaml"), Shots((2,), 1, baseline="joint"), tasks=["mood"])
    assert "beside" not in found["cells"][0]["starts"]["joint"]
    assert "difference to joint" not in notes_of(found)[0]


# ------------------------------------------------------------------------------------------ fewer rows than shots


def unequal(folder: Path, runs: Path) -> RunRequest:
    """Tasks with 6, 3, 1 and 0 rows of a class, and with 13 numbers: 3, 3, 2, 3, 2 a fifth."""
    labels = ["a"] * 6 + ["b"] * 3 + ["c"]
    (folder / "kind.csv").write_text("text,label\n" + "".join(f"words {i},{x}\n" for i, x in enumerate(labels)))
    (folder / "much.csv").write_text("text,label\n" + "".join(f"words {i},{i / 7}\n" for i in range(13)))
    files = {key: f"{name}.csv" for name in ("kind",) for key in ("train", "dev")}
    kind = {"task": "classification", "text": "text", "labels": ["a", "b", "c", "d"], **files, "batch_size": 8}
    much = {"task": "regression", "text": "text", "low": 0.0, "high": 2.0, "train": "much.csv", "dev": "much.csv"}
    new = {**NEW, "data_root": str(folder), "tasks": {"kind": kind, "much": {**much, "batch_size": 8}}}
    (folder / "unequal.yaml").write_text(json.dumps(new))
    return RunRequest(folder / "unequal.yaml")


def test_classes_with_fewer_rows_than_shots_are_told(runs: Path, tmp_path: Path) -> None:
    said: list[str] = []
    request = unequal(tmp_path, runs)
    found = adapt([runs / "reptile"], request, Shots((1, 3, 16), 2), say=said.append)
    told = {(cell["task"], cell["shots"]): (cell["examples"], cell["fewer"]) for cell in found["cells"]}
    fifths = [f"fifth {i} of the labels" for i in range(1, 6)]
    assert told == {
        ("kind", 1): (3, {"d": 0}),
        ("kind", 3): (7, {"c": 1, "d": 0}),
        ("kind", 16): (10, {"a": 6, "b": 3, "c": 1, "d": 0}),
        ("much", 1): (5, {}),
        ("much", 3): (13, {fifths[2]: 2, fifths[4]: 2}),
        ("much", 16): (13, dict(zip(fifths, [3, 3, 2, 3, 2], strict=True))),
    }
    for row in found["adapted"]:
        assert row["examples"] == told[row["task"], row["shots"]][0]
    endings = [line.partition(" (")[2] for line in said]
    assert endings == [
        "3 examples: fewer rows than shots)",
        "7 examples: fewer rows than shots)",
        "10 examples: fewer rows than shots)",
        "",
        "13 examples: fewer rows than shots)",
        "13 examples: fewer rows than shots)",
    ]
    notes = notes_of(found)
    assert notes[1:3] == [
        "kind, 1 shot: fewer rows are there of d 0; so 3 examples were drawn.",
        "kind, 3 shots: fewer rows are there of c 1, d 0; so 7 examples were drawn.",
    ]
    assert len(notes) == 6
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_and_on_the_terminal_and_the_page(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    request = unequal(tmp_path, runs)
    given = ["adapt", str(runs / "reptile"), str(request.recipe), "--shots", "4", "--seeds", "1", "--task", "kind"]
    with pytest.raises(SystemExit) as ended:
        main([*given, "--out", str(tmp_path / "page.html")])
    assert ended.value.code == 0
    note = "kind, 4 shots: fewer rows are there of b 3, c 1, d 0; so 8 examples were drawn."
    out, err = capsys.readouterr()
    assert note in out
    assert "(8 examples: fewer rows than shots)" in err
    assert note in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_where_every_class_has_enough_nothing_is_said(runs: Path) -> None:
    found = few(runs, shots=(2,), draws=1)
    assert [(cell["fewer"], cell["examples"]) for cell in found["cells"]] == [({}, 10)]
    assert len(notes_of(found)) == 1
