"""The JSON Schema of recipes: it accepts all that validation accepts, and refuses as much as it can of the rest.

The YAML server of editors reads YAML 1.2, where 2e-5 is a number; PyYAML reads 1.1, where it is text. So the tests
read with the strict loader, which follows 1.2 there, too.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import Field

import mtmeta
from mtmeta.core.errors import MtmetaError
from mtmeta.core.recipe import strict_yaml
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.resolved import describe
from mtmeta.core.recipe.schema import SHIPPED, recipe_schema
from mtmeta.core.recipe.shipped import SCHEMA_LINE, shipped_recipes
from mtmeta.core.registry.discovery import Plugin, Plugins
from mtmeta.core.registry.registry import Registry, build_registry
from tests.support.commands import call, command

GOOD: dict[str, Any] = {
    "name": "good",
    "backbone": {"name": "bert", "weights": "tiny", "max_length": 32},
    "tasks": {
        "sst": {"train": "sample", "dev": "sample"},
        "spam": {
            "task": "classification",
            "labels": ["ham", "spam"],
            "train": "a.tsv",
            "dev": "b.tsv",
            "metrics": ["matthews"],
        },
    },
    "sampler": {"name": "fixed", "weights": {"sst": 1, "spam": 2.5}},
    "algorithm": {"name": "reptile", "inner_optimizer": {"name": "adamw", "lr": 2e-5, "betas": [0.9, 0.99]}},
    "optimizer": {"name": "sgd", "lr": 1},
    "training": {"steps": 2},
}
BROKEN: list[tuple[str, Any]] = [  # a dotted key and the value put there; "-" removes it
    ("learning_rate", 1e-5),
    ("name", "a/b"),
    ("name", 3),
    ("seed", -1),
    ("seed", 2**63),
    ("seed", True),
    ("data_root", ""),
    ("format", 2),
    ("backbone", "-"),
    ("backbone", "bart"),
    ("backbone", None),
    ("backbone.name", "-"),
    ("backbone.max_length", 3),
    ("backbone.max_length", "128"),
    ("backbone.max_lenght", 128),
    ("backbone.dropout", 1.0),
    ("backbone.pretrained", "yes"),
    ("tasks", {}),
    ("tasks", []),
    ("tasks.mean", {"task": "sst", "train": "sample", "dev": "sample"}),
    ("tasks.Sst", {"task": "sst", "train": "sample", "dev": "sample"}),
    ("tasks.other", {"train": "sample", "dev": "sample"}),
    ("tasks.sst", "sample"),
    ("tasks.sst.train", "-"),
    ("tasks.sst.batch_size", 0),
    ("tasks.sst.batch_size", 1.5),
    ("tasks.sst.bacth_size", 8),
    ("tasks.sst.task", "sts2"),
    ("tasks.sst.dialect", {"quoting": "maybe"}),
    ("tasks.spam.labels", "-"),
    ("tasks.spam.labels", ["ham"]),
    ("tasks.spam.metrics", []),
    ("tasks.spam.metrics", ["matthew"]),
    ("data", {"on_bad_rows": "ignore"}),
    ("data", {"train_fraction": 0}),
    ("data", "skip"),
    ("sampler", "fixed"),  # it needs weights
    ("sampler.weights", {"sst": -1}),
    ("sampler.name", "fixd"),
    ("algorithm", "reptil"),
    ("algorithm.tasks_per_step", 0),
    ("algorithm.inner_optimizer", {"lr": 1e-3}),
    ("algorithm.inner_optimizer", "adamw"),  # it needs a learning rate
    ("algorithm.inner_optimizer.betas", [0.9]),
    ("algorithm.inner_optimizer.momentum", 0.9),
    ("algorithm.inner_schedule", "cosin"),
    ("algorithm.inner_schedule", None),
    ("optimizer", "-"),
    ("optimizer.lr", 0),
    ("optimizer.lr", "1e-3"),
    ("optimizer.layer_decay", 1.5),
    ("schedule", "cosin"),
    ("schedule", {"name": "step", "gamma": 2}),
    ("schedule", {}),
    ("training", "-"),
    ("training", {}),
    ("training.steps", None),
    ("training.steps", 0),
    ("training.epochs", 2),
    ("training.clip", 0),
    ("training.precision", "fp16"),
    ("budget", {"examples": 0}),
    ("evaluation", {"every": "epochs"}),
    ("evaluation", {"select_on": "train"}),
    ("checkpoint", {"keep": 0}),
    ("reporters", "console"),
    ("reporters", ["consol"]),
]
WORKING: list[tuple[str, Any]] = [
    ("name", "-"),
    ("tasks.sts", {"train": "sample", "dev": "sample", "pair_mode": "cross"}),
    ("sampler", "uniform"),
    ("sampler", None),
    ("sampler", "-"),
    ("algorithm", "reptile"),
    ("algorithm", {"name": "joint", "weighting": "uncertainty"}),
    ("algorithm.inner_schedule", "cosine"),
    ("algorithm.inner_schedule", {"name": "step", "every": 3}),
    ("optimizer.head_lr", {"sst": 1e-3}),
    ("optimizer.head_lr", 1e-3),
    ("schedule", "cosine"),
    ("schedule", None),
    ("data", None),
    ("training", {"steps": None, "epochs": None, "clip": 1}),
    ("evaluation", {"every": None}),
    ("evaluation", {"every": 3, "gradients": True}),
    ("checkpoint", {"minutes": None}),
    ("reporters", [{"name": "console"}, "jsonl"]),
    ("reporters", []),
]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return build_registry()


@pytest.fixture(scope="module")
def schema(registry: Registry) -> Draft202012Validator:
    schema = recipe_schema(registry)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(json.loads(json.dumps(schema)))


def changed(key: str, value: Any) -> dict[str, Any]:
    recipe = copy.deepcopy(GOOD)
    *above, last = key.split(".")
    place = recipe
    for part in above:
        place = place[part]
    if value == "-":
        del place[last]
    else:
        place[last] = value
    if key == "training" and isinstance(value, dict) and "clip" in value:
        recipe["budget"] = {"examples": 10**6}
    if key == "tasks.sts":
        recipe["sampler"]["weights"]["sts"] = 1
    return recipe


def validates(recipe: dict[str, Any], registry: Registry, folder: Path) -> bool:
    path = folder / "r.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    assert strict_yaml.read_file(path).data == recipe
    try:
        load_recipe(path, registry, environ={})
    except MtmetaError:
        return False
    return True


def label(case: tuple[str, Any]) -> str:
    return f"{case[0]}={case[1]}"[:60]


@pytest.mark.parametrize("case", WORKING, ids=label)
def test_both_accept(case: tuple[str, Any], schema: Draft202012Validator, registry: Registry, tmp_path: Path) -> None:
    recipe = changed(*case)
    assert validates(recipe, registry, tmp_path)
    assert [error.message for error in schema.iter_errors(recipe)] == []


@pytest.mark.parametrize("case", BROKEN, ids=label)
def test_both_refuse(case: tuple[str, Any], schema: Draft202012Validator, registry: Registry, tmp_path: Path) -> None:
    assert validates(GOOD, registry, tmp_path)
    assert schema.is_valid(GOOD)
    recipe = changed(*case)
    assert not validates(recipe, registry, tmp_path)
    assert not schema.is_valid(recipe)


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_and_their_resolved_forms_are_accepted(
    name: str, schema: Draft202012Validator, registry: Registry
) -> None:
    path = shipped_recipes()[name]
    data = strict_yaml.read_file(path).data
    assert [error.message for error in schema.iter_errors(data)] == []
    resolved = json.loads(json.dumps(describe(load_recipe(path, registry, environ={}))))
    assert [error.message for error in schema.iter_errors(resolved)] == []


@pytest.mark.parametrize("name", shipped_recipes())
def test_the_first_line_of_a_recipe_refers_to_the_shipped_schema(name: str) -> None:
    path = shipped_recipes()[name]
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(SCHEMA_LINE)
    assert os.path.samefile(path.parent / first.removeprefix(SCHEMA_LINE), SHIPPED)


def test_the_shipped_schema_is_what_the_code_makes() -> None:
    """If it is not: MTMETA_PLUGINS=none mtmeta schema --out mtmeta/recipe.schema.json"""
    done = command("schema", cwd=Path(__file__).parent, env={"MTMETA_PLUGINS": "none"})
    assert (done.code, done.err) == (0, "")
    assert json.loads(SHIPPED.read_text(encoding="utf-8")) == json.loads(done.out)


# ------------------------------------------------------------------------------------------- parts of other plugins


class Opaque:
    """A type that JSON Schema cannot say."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(lambda value: value)


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Options within options."""

    depth: Annotated[int, Field(ge=1, le=3)] = 2
    """How deep."""


@dataclass(frozen=True, kw_only=True)
class Foreign(mtmeta.Algorithm):
    """Somebody else's."""

    name = "foreign"
    speed: mtmeta.PositiveFloat
    """Metres a second."""
    inner: Inner = Inner()
    """More."""
    anything: Any = None
    odd: Opaque | None = None


@pytest.fixture
def with_foreign() -> Iterator[Draft202012Validator]:
    installed = build_registry().plugins.all
    plugin = Plugin("foreign", "1", "mtmeta-foreign", parts={"algorithms": [Foreign]})
    yield Draft202012Validator(recipe_schema(Registry(Plugins([*installed, plugin]))))


@pytest.mark.parametrize(
    ("options", "fits"),
    [
        ({"speed": 1}, True),
        ({"speed": 1, "inner": {"depth": 3}, "anything": [1], "odd": {"a": 1}}, True),
        ({}, False),
        ({"speed": 0}, False),
        ({"speed": 1, "sped": 1}, False),
        ({"speed": 1, "inner": {"depth": 4}}, False),
        ({"speed": 1, "inner": {"dept": 1}}, False),
    ],
)
def test_options_of_a_plugin(options: dict[str, Any], fits: bool, with_foreign: Draft202012Validator) -> None:
    assert with_foreign.is_valid(GOOD | {"algorithm": {"name": "foreign", **options}}) is fits
    assert not with_foreign.is_valid(GOOD | {"algorithm": "foreign"})  # speed is required
    properties = with_foreign.schema["$defs"]["algorithm.foreign"]["properties"]
    assert properties["speed"]["description"] == "Metres a second."
    assert properties["inner"]["default"] == {"depth": 2}


# ------------------------------------------------------------------------------------------------------- the command


def test_the_command_writes_a_file_and_says_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = call("schema", "--out", "new/s.json", cwd=tmp_path, capsys=capsys)
    assert (done.code, done.out) == (0, f"{SCHEMA_LINE}s.json\n")
    printed = call("schema", cwd=tmp_path, capsys=capsys)
    assert printed.out == (tmp_path / "new" / "s.json").read_text(encoding="utf-8")
    assert json.loads(printed.out)["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    refused = call("schema", "--out", "new", cwd=tmp_path, capsys=capsys)
    assert (refused.code, refused.err) == (2, "error: new: is a directory; name a file\n")


def test_a_pipe_is_written_into_and_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit((tmp_path / "pipe").read_text, encoding="utf-8")
        done = call("schema", "--out", "pipe", cwd=tmp_path, capsys=capsys)
        if done.code:  # the reader waits for whoever opens the pipe
            os.close(os.open(tmp_path / "pipe", os.O_WRONLY | os.O_NONBLOCK))
        assert (done.code, done.err) == (0, "")
        assert reader.result(timeout=30) == call("schema", cwd=tmp_path, capsys=capsys).out
    assert (tmp_path / "pipe").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_every_option_has_a_line_of_help(schema: Draft202012Validator) -> None:
    bare = [
        f"{name}.{key}"
        for name, part in schema.schema["$defs"].items()
        for key, option in part.get("properties", {}).items()
        if not option.get("description") and option.get("const") != part["properties"].get("name", {}).get("const")
    ]
    assert bare == []
