"""What trackers of experiments take: the numbers of events, metrics.jsonl, TensorBoard; and reporters that fail."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

import mtmeta
from mtmeta.core.api.events import (
    Evaluated,
    Event,
    GradientsMeasured,
    RunFinished,
    Scalar,
    StepDone,
    StepSkipped,
    Warned,
    scalars,
)
from mtmeta.core.training import evaluation as evaluate
from mtmeta.core.training.trainer import Trainer
from mtmeta.plugins import trackers
from mtmeta.plugins.trackers import Metrics, TensorBoard
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.paths import ROOT
from tests.support.quick import Killed, quick

GROUP = "sst+sts"


@pytest.fixture(autouse=True, scope="module")
def cheap() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "BOOTSTRAP_DRAWS", 5)
        yield


# ----------------------------------------------------------------------------------------------------------- scalars


def scored(metric: str, value: float | None, **others: float) -> dict[str, Any]:
    return {"metric": metric, "value": value, "low": None, "high": None, "examples": 3, "loss": 0.5, "others": others}


def test_the_numbers_of_each_event() -> None:
    step = StepDone(GROUP, 3, 40, {"sst": [1.5], "sts": [3.0, 2.0]}, 0.9, 0.5, 160, 4.0, {"sts": [0.25, 0.75]})
    train = (3, GROUP, "train")
    assert scalars(step) == [
        Scalar(*train, "sst", "loss", 1.5),
        Scalar(*train, "sts", "loss", 2.5),
        Scalar(*train, "sts", "drift", 0.5),
        Scalar(*train, "", "lr", 0.9),
        Scalar(*train, "", "grad_norm", 0.5),
        Scalar(*train, "", "examples", 160.0),
        Scalar(*train, "", "seconds", 4.0),
    ]
    assert scalars(StepSkipped(GROUP, 3, "nan")) == [Scalar(*train, "", "skipped", 1.0)]
    found: dict[str, dict[str, float | None]] = {
        "sst": {"sts": -0.5, "para": None},
        "sts": {"sst": -0.5, "para": 0.0},
        "para": {"sst": None, "sts": 0.0},
    }
    assert scalars(GradientsMeasured(GROUP, 3, {"sst": 2.0}, found)) == [
        Scalar(*train, "sst", "gradient_norm", 2.0),
        Scalar(*train, "sst+sts", "gradient_cosine", -0.5),
        Scalar(*train, "sts+para", "gradient_cosine", 0.0),
    ]
    tasks = {"sst": scored("accuracy", 0.4, macro_f1=0.3), "sts": scored("pearson", 0.8)}
    used = {"planned_draws": 1.0, "draws": 2, "batches": 3, "examples": 4, "epochs": 0.5}
    dev = (3, GROUP, "dev")
    expected = [
        Scalar(*dev, "sst", "loss", 0.5),
        Scalar(*dev, "sst", "accuracy", 0.4),
        Scalar(*dev, "sst", "macro_f1", 0.3),
        Scalar(*dev, "sts", "loss", 0.5),
        Scalar(*dev, "sts", "pearson", 0.8),
        Scalar(*dev, "", "mean", pytest.approx(0.6)),  # type: ignore[arg-type]
    ]
    assert scalars(Evaluated(GROUP, 3, "dev", tasks, 0.4, True, {"sst": used})) == [
        *expected,
        Scalar(*dev, "", "selected", 0.4),
        Scalar(*train, "sst", "draws", 2.0),
        Scalar(*train, "sst", "epochs", 0.5),
    ]
    last = scalars(RunFinished({"tasks": tasks, "steps": 40, "mean": 0.6}))
    assert [(s.step, s.group, s.split) for s in last] == [(40, "", "final")] * 6
    assert [(s.task, s.name, s.value) for s in last] == [(s.task, s.name, s.value) for s in expected]
    assert scalars(Warned("nothing to count")) == []


def test_what_is_undefined_is_nan() -> None:
    (loss, metric) = scalars(RunFinished({"tasks": {"sst": scored("pearson", None)}, "steps": 1}))
    assert loss.value == 0.5 and math.isnan(metric.value)


@pytest.mark.parametrize(
    ("scalar", "tag", "grouped"),
    [
        (Scalar(1, GROUP, "train", "sst", "loss", 1.0), "loss/sst", "loss/sst"),
        (Scalar(1, GROUP, "train", "", "lr", 1.0), "lr", "lr/sst+sts"),
        (Scalar(1, GROUP, "dev", "sst", "accuracy", 1.0), "dev/sst/accuracy", "dev/sst/accuracy"),
        (Scalar(1, GROUP, "dev", "", "mean", 1.0), "dev/mean", "dev/sst+sts/mean"),
        (Scalar(1, "", "final", "", "mean", 1.0), "final/mean", "final/mean"),
    ],
)
def test_tags(scalar: Scalar, tag: str, grouped: str) -> None:
    assert (scalar.tag(), scalar.tag(with_group=True)) == (tag, grouped)


# -------------------------------------------------------------------------------------------------- whole and cut runs


def metrics_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["name"] != "seconds"]


def board_of(run: Path, group: str = "") -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(run / "tensorboard" / group))
    found.Reload()
    tags = [tag for tag in found.Tags()["scalars"] if tag != "seconds"]
    text = {tag: [(event.step, -1.0) for event in found.Tensors(tag)] for tag in found.Tags()["tensors"]}
    return text | {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in tags}


@contextmanager
def killed_after(monkeypatch: pytest.MonkeyPatch, events: int) -> Iterator[None]:
    """Within, a run dies right after its reporters had this many events of training."""
    announced = Trainer.__post_init__
    seen = 0

    def counting(trainer: Trainer) -> None:
        announced(trainer)
        emit = trainer.emit

        def counted(event: Event) -> None:
            nonlocal seen
            emit(event)
            seen += 1
            if seen == events:
                raise Killed

        trainer.emit = counted

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "__post_init__", counting)
        yield


@pytest.mark.parametrize(
    ("algorithm", "reporters", "kills"),
    [
        ("joint", ["metrics", "tensorboard"], (1, 6)),  # without events.jsonl beside them
        ("joint", ["tensorboard", "jsonl", "metrics"], (5, 7, 10)),
        ("individual", ["tensorboard", "jsonl", "metrics"], (5, 12, 15, 20)),
    ],
)
def test_a_cut_run_has_every_number_once(
    algorithm: str, reporters: list[str], kills: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after any event, with half a record left at the end of each file."""
    pytest.importorskip("tensorboard")
    recipe = quick(tmp_path / "data", algorithm, reporters=reporters)
    mtmeta.run(recipe, out=tmp_path / "whole")
    groups = ["kind", "grade"] if algorithm == "individual" else [""]
    expected = metrics_of(tmp_path / "whole")
    boards = [board_of(tmp_path / "whole", group) for group in groups]
    assert all(boards) and {"lr", "grad_norm", "dev/selected"} <= set(boards[0])
    if algorithm == "joint":
        assert [step for step, _ in boards[0]["loss/kind"]] == [1, 2, 3, 4]
        assert boards[0]["recipe"] == [(0, -1.0)]
    for events in kills:
        cut = tmp_path / f"cut{events}"
        with killed_after(monkeypatch, events):
            mtmeta.run(recipe, out=cut)
        for path in (cut / "metrics.jsonl", *cut.rglob("events.out.tfevents.*")):
            with open(path, "ab") as file:
                file.write(b'{"step": 1, "gr')
        mtmeta.run(recipe, out=cut)
        assert metrics_of(cut) == expected, events
        assert [board_of(cut, group) for group in groups] == boards, events
        assert not list(cut.glob(".*.tmp"))


def test_metrics_are_flat_and_finite_lines(tmp_path: Path) -> None:
    recipe = quick(tmp_path / "data", reporters=["metrics"])
    summary = mtmeta.run(recipe, out=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(list(line) == ["step", "group", "split", "task", "name", "value"] for line in lines)
    final = {(line["task"], line["name"]): line["value"] for line in lines if line["split"] == "final"}
    for task, made in summary["tasks"].items():
        assert final[task, made["metric"]] == made["value"]
    assert final["", "mean"] == summary["mean"]
    keys = [(line["group"], line["split"], line["task"], line["name"], line["step"]) for line in lines]
    assert len(set(keys)) == len(keys)


def test_metrics_of_undefined_numbers_are_null(tmp_path: Path) -> None:
    with Metrics().open(tmp_path) as handle:
        handle(StepDone("sst", 1, 4, {"sst": [math.nan]}, 0.5, math.inf, 4, 1.0))
    lines = [
        json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["value"] for line in lines] == [None, 0.5, None, 4.0, 1.0]


def test_starting_over_leaves_nothing_of_before(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    recipe = quick(tmp_path / "data", reporters=["metrics", "tensorboard"])
    mtmeta.run(recipe, out=tmp_path / "run")
    before = metrics_of(tmp_path / "run"), board_of(tmp_path / "run")
    mtmeta.run(recipe, out=tmp_path / "run", fresh=True)
    assert (metrics_of(tmp_path / "run"), board_of(tmp_path / "run")) == before
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1


def test_event_files_come_in_order_also_where_the_clock_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    for at in (2e9, 1e9, 1.5e9):
        monkeypatch.setattr("time.time", lambda at=at: at)
        trackers._EventFile(mtmeta.RunFiles(tmp_path), "tensorboard", None).close()
    names = sorted(path.name.split(".")[3] for path in (tmp_path / "tensorboard").iterdir())
    assert names == ["2000000000", "2000000001", "2000000002"]


def test_without_tensorboard_one_line_before_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    recipe = quick(tmp_path / "data", reporters=["tensorboard"])
    with pytest.raises(mtmeta.MachineError) as caught:
        mtmeta.run(recipe, out=tmp_path / "run")
    assert str(caught.value) == (
        "reporter 'tensorboard': needs tensorboard, which is not installed; pip install 'mtmeta[tensorboard]'"
    )
    assert not (tmp_path / "run").exists()


def test_a_tensorboard_that_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "__init__.py").write_text("raise TypeError('Descriptors cannot be created directly.')")
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    what = (
        r"tensorboard cannot be imported \(TypeError: Descriptors cannot be created directly\.\); pip install --upgrade"
    )
    with pytest.raises(mtmeta.MachineError, match=what):
        TensorBoard().require()


def test_no_tracker_is_imported_before_it_is_needed() -> None:
    code = "import mtmeta.plugins.reporters, sys; print({'tensorboard', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# -------------------------------------------------------------------------------------------- reporters that fail


class Failing(mtmeta.Reporter):
    """Takes a few events."""

    name = "failing"

    def open(self, folder: Path) -> AbstractContextManager[Callable[[Event], None]]:
        return self._open()

    @contextmanager
    def _open(self) -> Iterator[Callable[[Event], None]]:
        def handle(event: Event) -> None:
            if event.type == "step":
                raise KeyError("no\nmore")

        yield handle
        raise OSError(5, "Input/output error")  # at the end too


class Vital(Failing):
    name = "vital"
    essential = True


def with_reporter(monkeypatch: pytest.MonkeyPatch, part: type[mtmeta.Reporter]) -> None:
    from mtmeta.plugins import reporters

    real = reporters.register_reporters
    monkeypatch.setattr(reporters, "register_reporters", mtmeta.hookimpl(lambda: [*real(), part]))


def test_a_reporter_that_fails_does_not_cost_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_reporter(monkeypatch, Failing)
    recipe = quick(tmp_path / "data", reporters=["failing", "metrics"])
    warnings: list[str] = []
    summary = mtmeta.run(recipe, out=tmp_path / "run", warn=warnings.append)
    end = "; the run goes on without this reporter"
    assert warnings == [
        f"reporter 'failing' raised KeyError: 'no\\nmore'{end}",
        f"{tmp_path / 'run'}: reporter 'failing' cannot write: Input/output error; step-00000004 is intact{end}",
    ]
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert [line["step"] for line in metrics_of(tmp_path / "run") if line["name"] == "lr"] == [1, 2, 3, 4]


def test_an_essential_one_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_reporter(monkeypatch, Vital)
    with pytest.raises((KeyError, mtmeta.MachineError)):
        mtmeta.run(quick(tmp_path / "data", reporters=["vital"]), out=tmp_path / "run")
    assert not (tmp_path / "run" / "summary.json").exists()


def test_events_jsonl_is_essential_and_nothing_else_of_ours() -> None:
    from mtmeta.plugins.reporters import register_reporters

    assert [part.name for part in register_reporters() if part.essential] == ["jsonl"]
    assert TensorBoard in register_reporters()


# ------------------------------------------------------------------------------- the example packages of two services


@pytest.mark.parametrize("library", ["wandb", "mlflow"])
def test_an_example_package_s_own_tests_pass(library: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed; pip install {library} to test examples/mtmeta-{library}")
    folder = ROOT / "examples" / f"mtmeta-{library}"
    options = ["-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "temp"), str(folder)]
    environ = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-m", "pytest", *options], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout and "skipped" not in done.stdout


@pytest.mark.parametrize("library", ["wandb", "mlflow"])
def test_an_example_package_loads_without_its_service(library: str) -> None:
    folder = ROOT / "examples" / f"mtmeta-{library}"
    code = f"import sys, mtmeta_{library}; print({{'torch', 'wandb', 'mlflow'}} & set(sys.modules))"
    environ = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
