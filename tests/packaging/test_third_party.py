"""Packages that pip really installed: three of the examples, and the worst neighbours a plugin can have.

A scratch environment sees the packages of the running one through a .pth file, so nothing is downloaded. Commands run
in forks of one interpreter that has torch loaded; one run goes through `python -m mtmeta` as a user's would.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sysconfig
import venv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.robustness.small import outcome
from tests.support.paths import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="commands run in forks")

EXAMPLES = ROOT / "examples"
INSTALLED = ("mtmeta-cola", "mtmeta-gradnorm", "mtmeta-pcgrad")

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "{name}"
version = "0.3"
[project.entry-points.mtmeta]
{name} = "{module}"
[tool.hatch.build.targets.wheel]
only-include = ["{module}.py"]
"""

# package -> (its module, why it is broken)
BROKEN = {
    "bad-import": (
        "import a_module_that_nobody_has",
        "ModuleNotFoundError: No module named 'a_module_that_nobody_has'",
    ),
    "bad-exit": ("import sys\nsys.exit()", "SystemExit"),
    "bad-syntax": ("def register_tasks(:", "SyntaxError: invalid syntax (bad_syntax.py, line 1)"),
    "bad-argument": (
        """
        import mtmeta

        @mtmeta.hookimpl
        def register_tasks(recip):
            return []
        """,
        "hook register_tasks takes no argument 'recip'",
    ),
    "bad-name": (
        """
        import mtmeta

        @mtmeta.hookimpl
        def register_taks():
            return []
        """,
        "unknown hook 'register_taks'; did you mean 'register_tasks'?",
    ),
    "bad-list": (
        """
        import mtmeta

        class Alone(mtmeta.Task):
            name = "alone"

        @mtmeta.hookimpl
        def register_tasks():
            return Alone
        """,
        "register_tasks returned type, expected a list",
    ),
    "bad-part": (
        """
        import mtmeta

        @mtmeta.hookimpl
        def register_tasks():
            return [int]
        """,
        "register_tasks holds <class 'int'>, expected a subclass of mtmeta.Task",
    ),
    "bad-option": (
        """
        import mtmeta

        class Shared(mtmeta.Task):
            name = "shared"
            items: list = []

        @mtmeta.hookimpl
        def register_tasks():
            return [Shared]
        """,
        "register_tasks holds a part that cannot be used: ValueError: mutable default <class 'list'> for field items"
        " is not allowed: use default_factory",
    ),
    "bad-api": ("mtmeta_api = 3", "needs mtmeta API 3, this is 2"),
}
MAML2 = """
import mtmeta

class Maml2(mtmeta.Algorithm):
    name = "maml2"

@mtmeta.hookimpl
def register_algorithms():
    return [Maml2]
"""
RUDE = """
import itertools
import sys

import mtmeta

print("a plugin that prints while it is imported")


class Vector(mtmeta.Classification):
    def loss(self, outputs, labels):
        return outputs.sum(dim=1)


class Nan(mtmeta.Classification):
    calls = itertools.count(1)

    def loss(self, outputs, labels):
        return super().loss(outputs, labels) * (float("nan") if next(self.calls) == 4 else 1.0)


class Stumbling(mtmeta.Classification):
    calls = itertools.count(1)

    def loss(self, outputs, labels):
        if next(self.calls) == 2:
            raise KeyError("lost\\nits way")
        return super().loss(outputs, labels)


class Rude(mtmeta.Task):
    metrics = ("accuracy",)

    def read(self, file):
        for row in file.rows("sentence", "label"):
            yield mtmeta.Example(row["sentence"], label=row["label"])


class VectorTask(Rude):
    name = "vector"
    objective = Vector(labels=2)


class NanTask(Rude):
    name = "nan"
    objective = Nan(labels=2)


class StumblingTask(Rude):
    name = "stumbling"
    objective = Stumbling(labels=2)


class UnreadTask(Rude):
    name = "unread"
    objective = mtmeta.Classification(labels=2)

    def read(self, file):
        yield mtmeta.Example(label=1)


class HeadlessTask(Rude):
    name = "headless"
    objective = mtmeta.Classification(labels=2)

    def build_head(self, hidden_size):
        raise RuntimeError("no head")


class SulkyTask(Rude):
    name = "sulky"
    objective = mtmeta.Classification(labels=2)
    metrics = ("sulk",)


def sulk(labels, predictions):
    raise ZeroDivisionError("not today")


class Raising(mtmeta.Algorithm):
    name = "raising"

    def backward(self, learner, feed):
        raise RuntimeError("cannot go on\\nreally")


class Exiting(mtmeta.Algorithm):
    name = "exiting"

    def backward(self, learner, feed):
        sys.exit(0)


class Crooked(mtmeta.Sampler):
    name = "crooked"

    def probabilities(self, sizes, draw):
        return {name: 1 / 0 for name in sizes}


class Shut(mtmeta.Reporter):
    name = "shut"

    def open(self, folder):
        raise RuntimeError("closed today")


class Hollow(mtmeta.Backbone):
    name = "hollow"

    def load(self, seed):
        raise RuntimeError("nothing inside")


@mtmeta.hookimpl
def register_tasks():
    return [VectorTask, NanTask, StumblingTask, UnreadTask, HeadlessTask, SulkyTask]


@mtmeta.hookimpl
def register_metrics():
    return [mtmeta.Metric("sulk", sulk)]


@mtmeta.hookimpl
def register_algorithms():
    return [Raising, Exiting]


@mtmeta.hookimpl
def register_samplers():
    return [Crooked]


@mtmeta.hookimpl
def register_reporters():
    return [Shut]


@mtmeta.hookimpl
def register_backbones():
    return [Hollow]
"""

RECIPE = """
name: third
data_root: {root}
backbone: {{name: bert, weights: tiny, max_length: 32}}
tasks:
  {tasks}
algorithm: {{name: reptile, inner_optimizer: {{name: adamw, lr: 1e-3}}, inner_schedule: constant}}
optimizer: {{name: sgd, lr: 1.0}}
training: {{steps: 4}}
evaluation: {{every: null}}
"""
SENTENCES = ("The child reads a book.", "A museum opens late.", "Books the reads.", "They sleep.", "Door open the.")

# reads commands as lines of JSON, runs each in a fork, answers with its exit status
DRIVER = """
import gc, json, os, signal, sys
import scipy.stats, sklearn.metrics, torch._dynamo
import mtmeta.core.run.run, mtmeta.core.reports.terminal.results
from mtmeta.cli import main

gc.freeze()
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        os.chdir(job["folder"])
        os.environ.update(job["environ"])
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        try:
            main(job["arguments"])
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code)  # taking torch down properly takes longer than most commands
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


# a command line that dies after the checkpoint of a step
KILLED_AT = """
import os, signal, sys
from mtmeta.cli import main
from mtmeta.core.training.trainer import Trainer

make_step = Trainer.make_step

def step(trainer):
    if trainer.step == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
    make_step(trainer)

Trainer.make_step = step
main(sys.argv[1:])
"""


@dataclass(frozen=True)
class Done:
    code: int
    stdout: str
    stderr: str

    def works(self) -> Any:
        """What it printed, as JSON where it is that."""
        assert self.code == 0, self.stderr
        assert "Traceback" not in self.stderr
        return json.loads(self.stdout) if self.stdout.startswith("{") else self.stdout

    def fails(self, code: int) -> str:
        """The one error line."""
        assert self.code == code, (self.code, self.stderr)
        assert "Traceback" not in self.stderr
        errors = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, self.stderr
        return errors[0]


@dataclass(frozen=True)
class Scratch:
    """A virtual environment of its own, with the packages of the running one in sight."""

    folder: Path
    python: str
    driver: subprocess.Popen[str]

    def run(self, *arguments: str, allow: str | None = None) -> Done:
        """A command line; `allow` is MTMETA_PLUGINS."""
        assert self.driver.stdin and self.driver.stdout
        environ = {} if allow is None else {"MTMETA_PLUGINS": allow}
        job = {"folder": str(self.folder), "environ": environ, "arguments": list(arguments)}
        self.driver.stdin.write(json.dumps(job) + "\n")
        self.driver.stdin.flush()
        code = int(self.driver.stdout.readline())
        return Done(code, (self.folder / "stdout").read_text(), (self.folder / "stderr").read_text())

    def recipe(self, *tasks: str) -> str:
        """Write a recipe with these tasks, each with the small files of the same shape."""
        columns = {"sst": "grades"}
        lines = [
            f"{name}: {{train: {file}.csv, dev: {file}.csv, batch_size: 4, inner_steps: 2}}"
            for name in tasks
            for file in (columns.get(name, "yes-no"),)
        ]
        path = self.folder / f"{'-'.join(tasks)}.yaml"
        path.write_text(RECIPE.format(root=self.folder, tasks="\n  ".join(lines)))
        return str(path)


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scratch]:
    folder = tmp_path_factory.mktemp("third-party")
    python = make_environment(folder / "env")
    sources = [shutil.copytree(EXAMPLES / name, folder / name) for name in INSTALLED]
    modules = {name: module for name, (module, _) in BROKEN.items()}
    modules |= {"mtmeta-a": MAML2, "mtmeta-b": MAML2, "mtmeta-rude": RUDE}
    sources += [write_package(folder / name, name, module) for name, module in modules.items()]
    install = ["install", "--no-build-isolation", "--no-deps", "--no-index", "--no-compile", "--quiet"]
    environ = environment()
    subprocess.run([python, "-m", "pip", *install, *map(str, sources)], check=True, env=environ, capture_output=True)

    for name, column, labels in (("yes-no", "label", 2), ("grades", "sentiment", 5)):
        rows = [f"{SENTENCES[i % 5]},{i % labels}" for i in range(20)]
        (folder / f"{name}.csv").write_text("\n".join([f"sentence,{column}", *rows]) + "\n")
    with subprocess.Popen(
        [python, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
    ) as driver:
        yield Scratch(folder, python, driver)
        assert driver.stdin
        driver.stdin.close()


def environment() -> Mapping[str, str]:
    """Ours, without what would change which plugins or packages are found."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MTMETA_", "PYTHON", "PIP_"))}
    kept["MTMETA_CACHE"] = os.environ["MTMETA_CACHE"]
    return kept | {"OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}


def make_environment(folder: Path) -> str:
    venv.create(folder, with_pip=importlib.util.find_spec("pip") is None)
    python = str(folder / "bin" / "python")
    command = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    # addsitedir, unlike a bare path, also follows the .pth files there, such as that of an editable mtmeta
    ours = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    lines = [f"import site; site.addsitedir({path!r})\n" for path in ours]
    (packages / "parent.pth").write_text("".join(lines))
    return python


def write_package(folder: Path, name: str, module: str) -> Path:
    folder.mkdir()
    stem = name.replace("-", "_")
    (folder / "pyproject.toml").write_text(PYPROJECT.format(name=name, module=stem))
    (folder / f"{stem}.py").write_text(dedent(module))
    return folder


# --- the examples


def test_the_examples_appear(scratch: Scratch) -> None:
    listed = scratch.run("plugins", "--json").works()
    rows = {row["distribution"]: row for row in listed["plugins"] if row["distribution"] != "mtmeta"}
    assert rows["mtmeta-cola"] == {
        "plugin": "cola",
        "distribution": "mtmeta-cola",
        "version": "0.1.0",
        "provides": {"tasks": ["cola"], "metrics": ["cola_matthews"]},
        "broken": None,
    }
    assert rows["mtmeta-pcgrad"]["provides"] == {"algorithms": ["pcgrad"]}
    assert rows["mtmeta-gradnorm"]["provides"] == {"algorithms": ["gradnorm"]}
    assert set(rows) == {*INSTALLED, "mtmeta-a", "mtmeta-b", "mtmeta-rude", *BROKEN}


def test_show_explains_them(scratch: Scratch) -> None:
    shown = scratch.run("show", "task", "cola").works()
    assert shown.startswith("task cola  (mtmeta-cola 0.1.0)\n\nOne sentence, acceptable or not; ")
    assert "    batch_size: an integer from 1 to 10000000; default 32\n" in shown
    assert "Matthews correlation" in scratch.run("show", "metric", "cola_matthews").works()
    assert scratch.run("show", "algorithm", "pcgrad", "--json").works()["options"] == []


def test_cola_beside_sst_trains_as_a_user_would(scratch: Scratch) -> None:
    """With every broken neighbour installed and none of them left out."""
    command = [scratch.python, "-m", "mtmeta", "run", scratch.recipe("sst", "cola"), "--out", "runs/cola", "--json"]
    done = subprocess.run(command, cwd=scratch.folder, env=environment(), capture_output=True, text=True)
    summary = Done(done.returncode, done.stdout, done.stderr).works()
    assert list(summary["tasks"]) == ["sst", "cola"]
    assert summary["tasks"]["cola"]["metric"] == "cola_matthews"
    assert list(summary["tasks"]["cola"]["others"]) == ["accuracy"]
    assert summary["steps"] == 4
    assert json.loads((scratch.folder / "runs/cola/summary.json").read_text()) == summary
    for name, (_, reason) in BROKEN.items():
        assert f"warning: plugin '{name}' 0.3 is broken: {reason}\n" in done.stderr
    assert scratch.run("eval", "runs/cola", "--json").works()["tasks"] == summary["tasks"]


def test_pcgrad_trains(scratch: Scratch) -> None:
    options = ["--set", "algorithm=pcgrad", "--set", "optimizer.lr=0.1", "--out", "runs/pcgrad", "--json"]
    done = scratch.run("run", scratch.recipe("sst", "cola"), *options, allow="mtmeta-cola,mtmeta-pcgrad")
    summary = done.works()
    assert summary["algorithm"] == "pcgrad"
    assert summary["examples"] == 4 * 2 * 4  # steps, tasks, batch
    assert "broken" not in done.stderr


def test_gradnorm_goes_on_exactly_after_it_was_stopped(scratch: Scratch) -> None:
    """Killed as the second of its checkpoints is there, which hold its weights, and started again."""
    options = ["--set", "algorithm={name: gradnorm, rate: 20.0}", "--set", "checkpoint={every: 1, keep: 9}"]
    command = ["run", scratch.recipe("sst", "cola"), *options, "--set", "training.steps=4", "--out"]
    whole = scratch.run(*command, "runs/whole", "--json", allow="mtmeta-cola,mtmeta-gradnorm").works()
    assert whole["algorithm"] == "gradnorm" and whole["examples"] == 4 * 2 * 4
    environ = {**environment(), "MTMETA_PLUGINS": "mtmeta-cola,mtmeta-gradnorm"}
    started = [scratch.python, "-c", KILLED_AT.format(step=2), *command, "runs/cut"]
    assert subprocess.run(started, cwd=scratch.folder, env=environ, capture_output=True).returncode == -signal.SIGKILL
    run = scratch.folder / "runs/cut"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000001", "step-00000002"]
    scratch.run(*command, "runs/cut", allow="mtmeta-cola,mtmeta-gradnorm").works()
    ends = [outcome(scratch.folder / "runs" / name) for name in ("whole", "cut")]
    saved = [{name: value for name, value in end.items() if name.endswith(".safetensors")} for end in ends]
    assert saved[0] == saved[1] and len(saved[0]) >= 8
    weights = load_file(run / "checkpoints/step-00000004/optimizer.safetensors")["algorithm|state|weights"]
    assert float(weights.sum()) == pytest.approx(2) and float((weights - 1).abs().max()) > 0.1


@pytest.mark.slow
def test_their_own_tests_pass(scratch: Scratch) -> None:
    folders = [scratch.folder / name / "tests" for name in INSTALLED]
    options = ["-q", "-p", "no:cacheprovider", "-c", str(scratch.folder / "mtmeta-cola" / "pyproject.toml")]
    command = [scratch.python, "-m", "pytest", *options, *map(str, folders)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    counted = sum(path.read_text().count("\ndef test_") for folder in folders for path in folder.glob("test_*.py"))
    assert f"{counted} passed" in done.stdout


# --- broken neighbours


def test_each_broken_plugin_is_listed_with_its_reason(scratch: Scratch) -> None:
    done = scratch.run("plugins", "--json")
    rows = {row["distribution"]: row for row in done.works()["plugins"]}
    assert {name: row["broken"] for name, row in rows.items() if row["broken"]} == {
        name: reason for name, (_, reason) in BROKEN.items()
    }
    assert all(rows[name]["provides"] == {} for name in BROKEN)
    assert "a plugin that prints while it is imported" in done.stderr  # and not among the JSON
    listed = scratch.run("plugins").works()
    for name, (_, reason) in BROKEN.items():
        assert f"{name} 0.3  {name}  BROKEN: {reason}\n" in listed


def test_every_command_goes_on_beside_them(scratch: Scratch) -> None:
    assert scratch.run("validate", scratch.recipe("sst", "cola")).works().endswith(": ok\n")
    assert scratch.run("show", "algorithm", "reptile").works()
    assert scratch.run("--help").works()


def test_check_fails_with_a_line_for_each(scratch: Scratch) -> None:
    done = scratch.run("plugins", "--check", allow=",".join(BROKEN))
    assert done.code == 5
    assert "Traceback" not in done.stderr
    expected = [f"error: plugin '{name}' 0.3: is broken: {reason}" for name, (_, reason) in sorted(BROKEN.items())]
    assert done.stderr.splitlines() == expected
    line = scratch.run("plugins", "--check", allow="bad-exit").fails(5)
    assert line == "error: plugin 'bad-exit' 0.3: is broken: SystemExit"
    assert scratch.run("plugins", "--check", allow="mtmeta-cola,mtmeta-pcgrad").works()


def test_a_name_that_a_broken_plugin_may_have_had(scratch: Scratch) -> None:
    done = scratch.run("validate", scratch.recipe("zebra"), allow="bad-import,bad-api")
    assert (
        "unknown task 'zebra'; (installed: classification, multi_label, multi_output, multiple_choice, ordinal, "
        in done.fails(5)
    )
    helps = [line for line in done.stderr.splitlines() if line.startswith("help: ")]
    assert helps == [f"help: plugin '{name}' 0.3 is broken: {BROKEN[name][1]}" for name in ("bad-api", "bad-import")]
    assert "unknown task 'zebra'" in scratch.run("validate", scratch.recipe("zebra"), allow="none").fails(2)


def test_two_plugins_of_one_name(scratch: Scratch) -> None:
    recipe = scratch.recipe("sst")
    done = scratch.run("run", recipe, "--set", "algorithm=maml2", "--out", "runs/maml2")
    conflict = "algorithm 'maml2' is provided by both 'mtmeta-a' and 'mtmeta-b'"
    assert done.fails(5) == f"error: {conflict}; block one with MTMETA_PLUGINS or --no-plugin"
    assert not (scratch.folder / "runs/maml2").exists()
    assert conflict in scratch.run("plugins", "--check", allow="mtmeta-a,mtmeta-b").fails(5)
    assert scratch.run("validate", recipe, "--set", "algorithm=maml2", "--no-plugin", "mtmeta-b").works()
    assert scratch.run("validate", recipe, "--set", "algorithm=maml2", allow="mtmeta-b").works()


def test_leaving_plugins_out(scratch: Scratch) -> None:
    def listed(done: Done) -> list[str]:
        return [row["distribution"] for row in done.works()["plugins"] if row["distribution"] != "mtmeta"]

    everything = sorted([*BROKEN, "mtmeta-a", "mtmeta-b", "mtmeta-rude", *INSTALLED])
    assert listed(scratch.run("plugins", "--json")) == everything
    assert listed(scratch.run("plugins", "--json", allow="none")) == []
    assert listed(scratch.run("plugins", "--json", allow="mtmeta-pcgrad, cola")) == ["mtmeta-cola", "mtmeta-pcgrad"]
    left = listed(scratch.run("plugins", "--json", "--no-plugin", "mtmeta-a", "--no-plugin", "cola"))
    assert left == [name for name in everything if name not in ("mtmeta-a", "mtmeta-cola")]
    done = scratch.run("validate", scratch.recipe("cola"), "--no-plugin", "mtmeta-cola", allow="cola")
    assert "unknown task 'cola'" in done.fails(2)


def test_a_plugin_that_is_not_there(scratch: Scratch) -> None:
    line = scratch.run("plugins", allow="mtmeta-coal").fails(5)
    assert line == "error: MTMETA_PLUGINS: no plugin 'mtmeta-coal'; did you mean 'mtmeta-cola'?"
    line = scratch.run("run", scratch.recipe("sst"), "--no-plugin", "mtmeta-pcgard").fails(5)
    assert line == "error: --no-plugin: no plugin 'mtmeta-pcgard'; did you mean 'mtmeta-pcgrad'?"


# --- plugins that load and then misbehave


@pytest.mark.parametrize(
    ("task", "override", "expected"),
    [
        ("vector", "", "loss for task 'vector' has shape [4], expected a scalar tensor"),
        ("stumbling", "", "task 'stumbling' raised KeyError: 'lost\\nits way'"),
        ("unread", "", "task 'unread' raised TypeError: Example.__init__() missing 1 required"),
        ("headless", "", "task 'headless' raised RuntimeError: no head"),
        ("sulky", "", "metric 'sulk' raised ZeroDivisionError: not today"),
        ("sst", "algorithm=raising", "algorithm 'raising' raised RuntimeError: cannot go on\\nreally"),
        ("sst", "algorithm=exiting", "algorithm 'exiting' raised SystemExit: 0"),
        ("sst", "sampler=crooked", "sampler 'crooked' raised ZeroDivisionError: division by zero"),
        ("sst", "reporters=[shut]", "reporter 'shut' raised RuntimeError: closed today"),
        ("sst", "backbone=hollow", "backbone 'hollow' raised RuntimeError: nothing inside"),
    ],
)
def test_a_part_that_raises_is_named(scratch: Scratch, task: str, override: str, expected: str) -> None:
    options = ["--set", override] if override else []
    out = f"runs/{task}-{override}"
    line = scratch.run("run", scratch.recipe(task), *options, "--out", out, allow="mtmeta-rude").fails(5)
    assert line.startswith(f"error: plugin 'mtmeta-rude' 0.3: {expected}")


def test_a_loss_that_becomes_nan(scratch: Scratch) -> None:
    line = scratch.run("run", scratch.recipe("nan"), "--out", "runs/nan", allow="mtmeta-rude").fails(7)
    expected = "loss became nan at meta-step 2, task 'nan', inner step 2; lower the learning rate"
    assert line == f"error: plugin 'mtmeta-rude' 0.3: {expected}"
