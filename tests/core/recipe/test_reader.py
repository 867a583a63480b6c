"""Every recipe that is shipped: it validates, comes back from its resolved form, and describes itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mtmeta.core.api.optimizers import SGD, Adam, AdamW
from mtmeta.core.api.schedules import Cosine, Plateau, Step
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.resolved import describe, differences, digest, dump
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.registry.registry import Registry, build_registry
from mtmeta.plugins.algorithms.anil import Anil
from mtmeta.plugins.algorithms.fomaml import Fomaml
from mtmeta.plugins.algorithms.individual import Individual
from mtmeta.plugins.algorithms.inner_loop import InnerLoop
from mtmeta.plugins.algorithms.joint import Joint
from mtmeta.plugins.algorithms.maml import Maml
from mtmeta.plugins.algorithms.metasgd import MetaSgd
from mtmeta.plugins.algorithms.protonet import Protonet
from mtmeta.plugins.algorithms.reptile import Reptile
from mtmeta.plugins.algorithms.surgery.surgery import Surgery
from mtmeta.plugins.algorithms.surgery.weighting import Weighting
from mtmeta.plugins.samplers import Fixed
from tests.support.paths import ROOT

FOLDER = ROOT / "recipes"
KINDS = {"individual": Individual, "joint": Joint, "reptile": Reptile, "fomaml": Fomaml}
OTHERS = {
    "annealed": Joint,
    "best": Individual,
    "new": Individual,
    "anchored": Joint,
    "led": Individual,
    "separate": Individual,
    "shared": Joint,
    "lora": Joint,
}
METHODS = {
    "anil": Anil,
    "average": Joint,
    "distil": Joint,
    "lora": Joint,
    "lora_reptile": Reptile,
    "maml": Maml,
    "metasgd": MetaSgd,
    "protonet": Protonet,
    "surgery": Surgery,
    "weighting": Weighting,
}
ROWS = ("individual", "joint", "reptile", "reptile_para8", "individual_10", "joint_10", "reptile_10")  # section 5.4
KINDS_OF_TASKS = ("multi_label", "multi_output", "multiple_choice", "ordinal", "ranking", "regression", "tagging")
REAL = {"atis": Joint, "clinc": Individual, "goemotions": Individual, "sick": Joint, "wnut17": Individual}
EXPECTED = sorted(
    [
        "reptile_three_task.yaml",
        *(f"methods/{name}.yaml" for name in METHODS),
        *(f"minilm/{kind}.yaml" for kind in (*KINDS, "best")),
        *(f"paper/{name}.yaml" for name in (*ROWS, "fomaml")),
        *(f"tasks/{name}.yaml" for name in KINDS_OF_TASKS),
        *(f"five/{name}.yaml" for name in REAL),
        *(f"study/{part}/{kind}.yaml" for part in ("full", "ten") for kind in KINDS),
        *(f"study/cross/{kind}.yaml" for kind in ("annealed", "individual", "joint", "reptile")),
        *(f"study/one/{name}.yaml" for name in ("anchored", "led", "lora", "separate", "shared")),
        *(f"study/few_shot/{kind}.yaml" for kind in ("fomaml", "joint", "new_tasks", "reptile")),
        *(f"leopard/{name}.yaml" for name in ("anil", "fomaml", "joint", "new_tasks", "protonet", "reptile")),
    ]
)
FOUND = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def registry() -> Registry:
    return build_registry()


def load(name: str, registry: Registry) -> Recipe:
    return load_recipe(FOLDER / name, registry, environ={})


def test_these_and_no_other_recipes_are_shipped() -> None:
    assert len(EXPECTED) == 41 + len(METHODS) + len(KINDS_OF_TASKS) + len(REAL)
    assert FOUND == EXPECTED


@pytest.mark.parametrize("name", FOUND)
def test_it_validates_and_is_named_after_its_file(name: str, registry: Registry) -> None:
    recipe = load(name, registry)
    path = Path(name)
    assert recipe.name == (path.stem if path.parent == Path() else f"{path.parent.name}_{path.stem}")
    if path.parent.name == "methods":
        assert type(recipe.algorithm) is METHODS[path.stem]
        return
    if path.parent.name == "five":
        assert type(recipe.algorithm) is REAL[path.stem]
        return
    if path.parent.name == "tasks":
        assert path.stem in [type(task).name for task in recipe.tasks.values()]
        return
    if path.parent.name not in ("few_shot", "leopard"):
        assert list(recipe.tasks) == ["sst", "para", "sts"]
    assert type(recipe.algorithm) is (KINDS | METHODS | OTHERS)[path.stem.partition("_")[0]]


@pytest.mark.parametrize("name", FOUND)
def test_its_resolved_form_reads_back_as_the_same_recipe(name: str, registry: Registry, tmp_path: Path) -> None:
    recipe = load(name, registry)
    resolved = tmp_path / "recipe.yaml"
    resolved.write_text(dump(describe(recipe)), encoding="utf-8")
    again = load_recipe(resolved, registry, environ={})
    assert again == recipe
    assert digest(again) == digest(recipe)
    assert list(differences(describe(recipe), describe(again))) == []
    assert dump(describe(again)) == resolved.read_text(encoding="utf-8")


def test_no_two_recipes_are_the_same(registry: Registry) -> None:
    assert len({digest(load(name, registry)) for name in FOUND}) == len(FOUND)


def test_the_best_recipe_is_the_one_that_the_study_measured(registry: Registry) -> None:
    settings = ("budget.examples=66000", "data.train_fraction=1")
    measured = load_recipe(FOLDER / "study/one/led.yaml", registry, environ={}, overrides=settings)
    assert digest(measured) == digest(load("minilm/best.yaml", registry))


@pytest.mark.parametrize("name", FOUND)
def test_its_header_says_what_it_is_how_to_launch_it_how_long_it_takes_and_what_to_expect(name: str) -> None:
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    header = []
    for line in lines:
        if not line.startswith("#"):
            break
        header.append(line.removeprefix("#").strip())
    text = " ".join(header).lower()
    assert len([line for line in header if line]) >= 4
    if "{draw}" in "".join(lines):  # samples of a few examples, which are adapted to and nothing else
        assert re.search(rf"mtmeta adapt [^;]* recipes/{name}", " ".join(header))
    else:
        assert f"mtmeta run recipes/{name}" in " ".join(header)
    for words in ("launch", "how long", "expect"):
        assert words in text, f"the header does not say '{words}'"
    assert re.search(r"\d+ ?(s|seconds|min|minutes|h|hours)\b", text), "how long is no figure"


def test_the_digest_is_of_what_decides_the_weights(registry: Registry) -> None:
    path = FOLDER / "reptile_three_task.yaml"
    plain = load_recipe(path, registry, environ={})

    def changed(*overrides: str, data_root: str | None = None) -> bool:
        return digest(load_recipe(path, registry, overrides=overrides, data_root=data_root, environ={})) != digest(
            plain
        )

    assert not changed("name=other")
    assert not changed("reporters=[jsonl]")
    assert not changed(data_root="/elsewhere")
    assert changed("seed=1")
    assert changed("training.steps=101")
    assert changed("tasks.sst.batch_size=33")


# ------------------------------------------------------------------------------------------------- the paper, Table 1

PAPER = [name for name in FOUND if name.startswith("paper/")]
INNER = [name for name in PAPER if Path(name).stem.partition("_")[0] in ("reptile", "fomaml")]
BASELINES = [name for name in PAPER if name not in INNER]


@pytest.mark.parametrize("name", INNER)
def test_meta_learning_has_table_1(name: str, registry: Registry) -> None:
    recipe = load(name, registry)
    algorithm = recipe.algorithm
    assert isinstance(algorithm, InnerLoop)
    assert recipe.training.steps == 400  # meta_iter
    # meta_optimizer, meta_lr; 1.0 is for Reptile's difference of weights, a gradient takes the rate of section 5.3
    assert recipe.optimizer == (SGD(lr=1.0) if isinstance(algorithm, Reptile) else Adam(lr=2e-5))
    assert recipe.schedule == Cosine()  # meta_scheduler
    assert isinstance(algorithm.inner_optimizer, AdamW)  # optimizer
    assert algorithm.inner_optimizer.lr == 1e-5  # lr
    assert algorithm.inner_optimizer.head_lr in (None, 1e-5)
    assert algorithm.inner_schedule == Step(every=30, gamma=0.8)  # scheduler
    assert (algorithm.tasks_per_step, algorithm.with_replacement) == (1, False)
    para = 8 if name.endswith("_para8.yaml") else 4
    assert {name: task.inner_steps for name, task in recipe.tasks.items()} == {"sst": 4, "para": para, "sts": 8}
    assert {name: task.batch_size for name, task in recipe.tasks.items()} == dict.fromkeys(recipe.tasks, 128)
    assert recipe.sampler == Fixed(weights={"sst": 0.4, "para": 0.3, "sts": 0.3})
    assert recipe.evaluation.every == 20


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_have_section_5_3(name: str, registry: Registry) -> None:
    recipe = load(name, registry)
    assert (recipe.training.epochs, recipe.training.steps) == (20, None)
    assert recipe.optimizer == Adam(lr=2e-5)
    assert isinstance(recipe.schedule, Plateau)
    assert recipe.schedule.gamma == 0.5
    assert recipe.evaluation.every == "epoch"
    if isinstance(recipe.algorithm, Joint):
        assert recipe.algorithm.step == "sum"
        assert {task.batch_size for task in recipe.tasks.values()} == {64}


@pytest.mark.parametrize("name", PAPER)
def test_paper_recipes_share_its_model_and_its_selection(name: str, registry: Registry) -> None:
    recipe = load(name, registry)
    backbone = describe(recipe)["backbone"]
    assert backbone["name"] == "bert" and "bert-base-uncased" in backbone["weights"]
    for task in ("para", "sts"):
        assert recipe.tasks[task].inputs == "separate"
    assert describe(recipe)["tasks"]["sts"]["activation"] == "relu"
    assert (recipe.evaluation.select_on, recipe.evaluation.select) == ("dev", "mean")


def test_every_row_of_the_papers_results_has_its_recipe() -> None:
    assert sorted(Path(name).stem for name in PAPER) == sorted([*ROWS, "fomaml"])
    assert len(INNER) == 4 and len(BASELINES) == 4


# figures of section 5.4, on dev: sst accuracy, para accuracy, sts Pearson
RESULTS = {
    "individual": (".489", ".820", ".629"),
    "joint": (".474", ".600", ".589"),
    "reptile": (".488", ".730", ".743"),
    "reptile_para8": (".400", ".746", ".412"),
    "individual_10": (".260", ".707", ".530"),
    "joint_10": (".243", ".627", ".512"),
    "reptile_10": (".272", ".707", ".704"),
}


@pytest.mark.parametrize("row", ROWS)
def test_its_header_has_the_papers_figures(row: str) -> None:
    sst, para, sts = RESULTS[row]
    text = (FOLDER / "paper" / f"{row}.yaml").read_text(encoding="utf-8")
    assert f"the paper reports on dev sst {sst}, para {para}, sts {sts}" in text


@pytest.mark.parametrize("name", PAPER)
def test_a_tenth_differs_in_the_share_of_the_data_alone(name: str, registry: Registry) -> None:
    recipe = load(name, registry)
    stem = Path(name).stem
    assert recipe.data.train_fraction == (0.1 if stem.endswith("_10") else 1.0)
    if "_" in stem:
        whole = describe(load(f"paper/{stem.partition('_')[0]}.yaml", registry))
        changed = "data.train_fraction" if stem.endswith("_10") else "tasks.para.inner_steps"
        assert sorted(differences(whole, describe(recipe))) == sorted(["name", changed])


# -------------------------------------------------------------------------------------------------------------- nothing


@pytest.mark.parametrize("key", ["sampler", "schedule"])
def test_null_is_as_good_as_nothing(key: str, registry: Registry, tmp_path: Path) -> None:
    text = (FOLDER / "minilm" / "joint.yaml").read_text(encoding="utf-8")
    text = "\n".join(line for line in text.splitlines() if not line.startswith(f"{key}:"))
    (tmp_path / "left_out.yaml").write_text(text)
    (tmp_path / "null.yaml").write_text(f"{text}\n{key}: null\n")
    recipes = [load_recipe(tmp_path / name, registry, environ={}) for name in ("left_out.yaml", "null.yaml")]
    assert getattr(recipes[0], key) is not None
    assert digest(recipes[0]) == digest(recipes[1])


EARLIER = """\
name: earlier
backbone: {name: bert, weights: embedded, max_length: 32}
tasks:
  sst: {train: sample, dev: sample, batch_size: 8, dialect: {quoting: none}}
algorithm: individual
optimizer: {name: adamw, lr: 1e-3}
training: {steps: 6}
data: {on_bad_rows: skip}
"""


def test_the_hash_of_a_recipe_is_that_of_earlier_versions(tmp_path: Path) -> None:
    """A run that 0.2.0 began goes on only then, and `compare` finds its folder; no new default may change it."""
    path = tmp_path / "earlier.yaml"
    path.write_text(EARLIER)
    recipe = load_recipe(path, build_registry())
    assert digest(recipe) == "3c379ea877e83b4dd64100bb91d61811531b5f4598e390515a4450238dd843cf"
    path.write_text(EARLIER.replace("quoting: none", "quoting: none, delimiter: tab"))
    assert digest(load_recipe(path, build_registry())) != digest(recipe)
