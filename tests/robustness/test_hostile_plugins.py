"""The worst packages a user can have installed: no command stops working, and what goes wrong has a name on it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.commands import LABELS, Outcome, assert_refused, data_folder
from tests.support.wheels import Installed, install, write_wheel

pytestmark = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="needs pip to install wheels")

HOOK = "import mtmeta\n\n@mtmeta.hookimpl\ndef register_algorithms():\n    return []\n"
# package -> (its module, why it is broken)
HOSTILE = {
    "hostile-duplicate": (
        "import mtmeta\n\nclass Mine(mtmeta.Algorithm):\n    name = 'joint'\n\n" + HOOK.replace("[]", "[Mine]"),
        "algorithm 'joint' is one of mtmeta's own; it needs another name",
    ),
    "hostile-escape": (
        "import mtmeta\n\nclass Mine(mtmeta.Algorithm):\n    name = '\\x1b[2J[red]\\u202e'\n\n"
        + HOOK.replace("[]", "[Mine]"),
        r"algorithm name '\x1b[2J[red]\u202e' is not allowed; use at most 64 letters, digits, . _ -",
    ),
    "hostile-exit": ("import sys\nsys.exit('\\x1b[31mbye')", r"SystemExit: \x1b[31mbye"),
    "hostile-import": ("import nobody_has_this", "ModuleNotFoundError: No module named 'nobody_has_this'"),
    "hostile-signature": (HOOK.replace("()", "(recip)"), "hook register_algorithms takes no argument 'recip'"),
    "hostile-syntax": ("def register_tasks(:", "SyntaxError: invalid syntax (hostile_syntax.py, line 1)"),
}
SLOW = "import os, time\ntime.sleep(float(os.environ.get('HOSTILE_SLEEP', '0')))\n" + HOOK


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = data_folder(tmp_path_factory.mktemp("hostile"))
    modules = {name: module for name, (module, _) in HOSTILE.items()} | {"hostile-slow": SLOW}
    return install(folder, [write_wheel(folder, name, module) for name, module in modules.items()])


def warnings(outcome: Outcome) -> list[str]:
    assert "Traceback" not in outcome.err
    assert "\x1b" not in outcome.out + outcome.err
    return [line for line in outcome.err.splitlines() if line.startswith("warning: ")]


EXPECTED = [f"warning: plugin '{name}' 0.3 is broken: {reason}" for name, (_, reason) in HOSTILE.items()]
COMMANDS: list[list[str]] = [
    ["--help"],
    ["--version"],
    ["plugins"],
    ["validate", "r.yaml"],
    ["show", "algorithm", "joint"],
    ["run", "r.yaml", "--out", "out", "--set", "reporters=[jsonl]"],
    ["eval", "out", "--data-root", "data"],
]


def test_every_command_goes_on(hostile: Installed) -> None:
    """With one warning line for each broken plugin, from the commands that have to do with plugins."""
    for arguments, outcome in zip(COMMANDS, hostile.each(COMMANDS), strict=True):
        assert outcome.code == 0, (arguments, outcome.err)
        quiet = arguments[0] in ("--help", "--version", "plugins")  # the last lists them on stdout
        assert warnings(outcome) == ([] if quiet else EXPECTED), arguments
        assert outcome.errors == []
        if arguments == ["plugins"]:
            for name, (_, reason) in HOSTILE.items():
                assert f"{name} 0.3  {name.replace('-', '_')}  BROKEN: {reason}\n" in outcome.out
            assert "hostile-slow 0.3  hostile_slow\n" in outcome.out
        if arguments[0] == "show":
            assert "(mtmeta 0." in outcome.out  # ours, not the one that took its name


def test_in_a_process_of_its_own(hostile: Installed) -> None:
    outcome = hostile.command("validate", "r.yaml")
    assert (outcome.code, outcome.out, warnings(outcome)) == (0, "r.yaml: ok\n", EXPECTED)


def test_check_names_each(hostile: Installed) -> None:
    outcome = hostile.command("plugins", "--check")
    assert outcome.code == 5
    assert warnings(outcome) == []
    assert outcome.err.splitlines() == [
        f"error: plugin '{name}' 0.3: is broken: {reason}" for name, (_, reason) in HOSTILE.items()
    ]


def test_a_recipe_that_needs_one(hostile: Installed) -> None:
    outcome = hostile.command("validate", "r.yaml", "--set", "algorithm=zebra")
    assert outcome.code == 5
    assert outcome.errors[0].startswith("error: --set algorithm: unknown algorithm 'zebra'; (installed: ")
    helps = [line for line in outcome.err.splitlines() if line.startswith("help: ")]
    assert helps == [line.replace("warning: ", "help: ") for line in EXPECTED]


@pytest.mark.slow
def test_a_slow_import_is_named(hostile: Installed) -> None:
    outcome = hostile.command("plugins", "--no-plugin", "hostile-exit", HOSTILE_SLEEP="7")
    assert outcome.code == 0
    slow = "plugin 'hostile-slow' 0.3 has been importing for 5 seconds; --no-plugin hostile_slow leaves it out"
    assert warnings(outcome) == [f"warning: {slow}"]


# ------------------------------------------------------------------------------- plugins that load, and then misbehave

PARTS = """
import mtmeta
from torch import nn


class Panic(BaseException):
    pass


class Base(mtmeta.Task):
    metrics = ("accuracy",)
    objective = mtmeta.Classification(labels=("contradiction", "entailment", "neutral"))

    def read(self, file):
        for row in file.rows("sentence1", "label"):
            yield mtmeta.Example(row["sentence1"], label=row["label"])


def made(name, **methods):
    objective = type("Own", (mtmeta.Classification,), methods)(labels=Base.objective.labels)
    return type(name, (Base,), {"name": name, "objective": objective, "__annotations__": {}})


def panic(self, outputs, labels):
    raise Panic("native code gave up")


def show(self, prediction):
    raise KeyError("unshown")


class Shrinking(nn.Module):
    def __init__(self, hidden_size):
        super().__init__()
        self.out = nn.Linear(hidden_size, 3)

    def forward(self, pooled):
        made = self.out(pooled[:, 0])
        self.out.weight.data = self.out.weight.data[:2]
        return made


class Shrinks(Base):
    name = "shrinks"

    def build_head(self, hidden_size):
        return Shrinking(hidden_size)


class Measured(Base):
    name = "measured"
    metrics = ("accuracy", "meddling")


class Undefined(Base):
    name = "undefined"
    metrics = ("nan",)


def meddling(labels, predictions):
    labels[:] = 0
    predictions[:] = 0
    return 1.0


class Cutting(mtmeta.Algorithm):
    name = "cutting"

    def backward(self, learner, feed):
        learner.gradient(feed.batch(feed.tasks[0]))
        parameter = learner.parameters["encoder.norm.weight"]
        parameter.data = parameter.data[:-1]


class Stumbling(mtmeta.Algorithm):
    name = "stumbling"

    def backward(self, learner, feed):
        task = feed.tasks[0]
        with learner.excursion(task, mtmeta.AdamW(lr=1e-3), mtmeta.Step()) as inner:
            inner.step(feed.batch(task))
            raise LookupError("in the middle")


class Closing(mtmeta.Reporter):
    name = "closing"

    def open(self, folder):
        return self

    def __enter__(self):
        return lambda event: None

    def __exit__(self, *error):
        raise RuntimeError("will not close")


@mtmeta.hookimpl
def register_tasks():
    decodes = {
        "wide": lambda self, outputs: outputs,
        "listed": lambda self, outputs: outputs.argmax(dim=-1).tolist(),
        "lost": lambda self, outputs: outputs.sum(dim=1) * float("nan"),
        "beyond": lambda self, outputs: outputs.argmax(dim=-1) + 7,
    }
    tasks = [made(name, decode=decode) for name, decode in decodes.items()]
    losses = {"panics": panic, "infinite": lambda self, outputs, labels: outputs.sum() * float("inf")}
    tasks += [made(name, loss=loss) for name, loss in losses.items()]
    return [*tasks, made("unshown", show=show), Shrinks, Measured, Undefined]


@mtmeta.hookimpl
def register_metrics():
    return [mtmeta.Metric("meddling", meddling), mtmeta.Metric("nan", lambda labels, predictions: float("nan"))]


@mtmeta.hookimpl
def register_algorithms():
    return [Cutting, Stumbling]


@mtmeta.hookimpl
def register_reporters():
    return [Closing]
"""
RECIPE = """
name: parts
data_root: data
backbone: {{name: bert, weights: tiny, max_length: 32}}
tasks:
  {task}: {{train: train.tsv, dev: dev.tsv, batch_size: 4}}
algorithm: {algorithm}
optimizer: {{name: sgd, lr: 0.1}}
training: {{steps: 2}}
reporters: [{reporter}]
"""
# (task, algorithm, reporter), exit code, what follows the plugin's name
MISDEEDS: list[tuple[tuple[str, str, str], int, str]] = [
    (("wide", "joint", "jsonl"), 5, "predictions for task 'wide': found shape [9, 3], expected shape [9]"),
    (("listed", "joint", "jsonl"), 5, "predictions for task 'listed': found a list, expected shape [9]"),
    (("lost", "joint", "jsonl"), 7, "predictions for task 'lost' are not finite; lower the learning rate"),
    (("beyond", "joint", "jsonl"), 5, "predictions for task 'beyond' hold "),
    (("panics", "joint", "jsonl"), 5, "task 'panics' raised Panic: native code gave up"),
    (("infinite", "joint", "jsonl"), 7, "loss became "),
    (("unshown", "joint", "jsonl"), 5, "task 'unshown' raised KeyError: 'unshown'"),
    (("shrinks", "joint", "jsonl"), 5, "changed the shape of 'heads.shrinks.out.weight' from [3, 32] to [2, 32]"),
    (("undefined", "joint", "jsonl"), 5, "metric 'nan' is nan for task 'undefined', expected a number"),
    (("measured", "cutting", "jsonl"), 5, "changed the shape of 'encoder.norm.weight' from [32] to [31]"),
    (("measured", "stumbling", "jsonl"), 5, "algorithm 'stumbling' raised LookupError: in the middle"),
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = data_folder(tmp_path_factory.mktemp("parts"))
    return install(folder, [write_wheel(folder, "hostile-parts", PARTS)])


def run_arguments(folder: Path, number: int, task: str, algorithm: str, reporter: str) -> Sequence[str]:
    (folder / f"{number}.yaml").write_text(RECIPE.format(task=task, algorithm=algorithm, reporter=reporter))
    return "run", f"{number}.yaml", "--out", f"out{number}", "--json"


def test_one_line_names_the_plugin(parts: Installed) -> None:
    commands = [run_arguments(parts.folder, i, *which) for i, (which, _, _) in enumerate(MISDEEDS)]
    good = run_arguments(parts.folder, len(MISDEEDS), "measured", "joint", "jsonl")
    closing = run_arguments(parts.folder, len(MISDEEDS) + 1, "measured", "joint", "closing")
    *outcomes, measured, closed = parts.each([*commands, good, closing])
    for (which, code, words), outcome in zip(MISDEEDS, outcomes, strict=True):
        assert outcome.code == code, (which, outcome.err)
        assert_refused(outcome, code, f"error: plugin 'hostile-parts' 0.3: {words}")
    # a reporter that fails costs nothing but itself
    assert closed.code == 0 and json.loads(closed.out)["tasks"]
    what = "plugin 'hostile-parts' 0.3: reporter 'closing' raised RuntimeError: will not close"
    assert warnings(closed) == [f"warning: {what}; the run goes on without this reporter"]
    # a metric that writes into its arguments spoils neither the others nor its own next call
    assert measured.code == 0, measured.err
    table = json.loads(measured.out)["tasks"]["measured"]
    assert table["others"] == {"meddling": 1.0}
    predictions = (
        (parts.folder / f"out{len(MISDEEDS)}" / "predictions" / "measured-dev.csv").read_text().splitlines()[1:]
    )
    right = [label == predicted for _, label, predicted in (line.split(",") for line in predictions)]
    assert table["value"] == sum(right) / len(right)
    assert {label for _, label, _ in (line.split(",") for line in predictions)} == set(LABELS)
