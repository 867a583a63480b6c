"""`training.precision: auto` on a CPU, from the choice to the lock, and what a run that goes on makes of it.

The processor is made up here: `amx` has the instructions, `plain` has none. PyTorch and the kernels compute the same
either way, as far as they differ at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mtmeta
from mtmeta.core import machine
from mtmeta.core.errors import CheckpointError
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.resolved import dump
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.run import predictor
from mtmeta.core.run.directory import SAME_BITS, RunDir
from mtmeta.core.run.evaluate import open_run, restore_backbone
from mtmeta.core.run.plan import plan
from mtmeta.core.run.request import RunRequest
from mtmeta.core.studies.adapt import adapt
from mtmeta.core.studies.adaptations import Shots
from mtmeta.core.studies.comparable import Planned, notes_on_runs
from mtmeta.core.training import evaluation
from mtmeta.plugins.backbones.bert import TINY, Bert
from mtmeta.plugins.backbones.encoder import kernels
from mtmeta.plugins.backbones.hf import HuggingFace
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import assert_refused, call, command
from tests.support.quick import killed_before_step, outcome, quick

AMX = ("amx_bf16", "avx512_bf16")
SLOW = "training.precision: bf16 is slow on this processor, which has no instructions for it; fp32 is faster"
Capture = pytest.CaptureFixture[str]
Processor = Callable[..., None]


@pytest.fixture(autouse=True, scope="module")
def few_draws_and_wide_heads() -> Iterator[None]:
    """Heads of 16, the least that the kernels of bf16 take; those of `tiny` have 8."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "BOOTSTRAP_DRAWS", 5)
        patch.setitem(TINY, "num_attention_heads", 2)
        yield


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Processor:
    """Have another processor from here on, with the instructions given; and compiled kernels, or none."""

    def has(*instructions: str, compiled: bool = True) -> None:
        monkeypatch.setattr(machine, "bf16_cpu", lambda: instructions)
        if not compiled:
            monkeypatch.setattr(kernels, "load", lambda *kind: None)

    return has


@pytest.fixture
def needs_kernels() -> None:
    if kernels.load() is None:
        pytest.skip("no C compiler that can build the kernels, without which `auto` is fp32")


def lock_of(out: Path) -> dict[str, Any]:
    return RunDir(out).lock()


def relock(out: Path, **changes: Any) -> None:
    """Change entries of a run's lock; None removes one."""
    lock = {key: value for key, value in {**lock_of(out), **changes}.items() if value is not None}
    RunDir(out).lock_file.write_text(dump(lock))


def events(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]


def losses_of(out: Path) -> list[float]:
    steps = [event["losses"] for event in events(out) if event["type"] == "step"]
    return [value for losses in steps for values in losses.values() for value in values]


def recipe_in(folder: Path, precision: str, **changes: Any) -> Path:
    return quick(folder, **{"training": {"steps": 4, "precision": precision}, **changes})


# ------------------------------------------------------------------------------------------------------- the choice


@pytest.mark.usefixtures("needs_kernels")
def test_the_choice_is_told_recorded_and_repeated(tmp_path: Path, processor: Processor, capsys: Capture) -> None:
    processor(*AMX)
    recipe, out = quick(tmp_path, reporters=["jsonl", "console"]), tmp_path / "out"
    plan = call("run", str(recipe), "--dry-run", "--device", "cpu", cwd=tmp_path, capsys=capsys)
    assert "cpu, bf16 by amx_bf16 avx512_bf16, 1 thread" in plan.out
    found = call("run", str(recipe), "--dry-run", "--json", "--device", "cpu", cwd=tmp_path, capsys=capsys)
    assert json.loads(found.out)["precision"] == "bf16"
    assert json.loads(found.out)["instructions"] == "amx_bf16 avx512_bf16"
    done = call("run", str(recipe), "--out", str(out), "--device", "cpu", cwd=tmp_path, capsys=capsys)
    assert "M parameters, cpu, bf16\n" in done.err
    assert (lock_of(out)["precision"], lock_of(out)["instructions"]) == ("bf16", "amx_bf16 avx512_bf16")
    assert events(out)[0]["precision"] == "bf16"
    mtmeta.run(recipe, out=tmp_path / "again", device="cpu")
    assert outcome(tmp_path / "again") == outcome(out)


@pytest.mark.parametrize("names", [(), ("avx512_bf16",)])
def test_fp32_elsewhere_with_the_lock_of_earlier_versions(
    names: tuple[str, ...], tmp_path: Path, processor: Processor, capsys: Capture
) -> None:
    processor(*names)
    recipe, out = quick(tmp_path), tmp_path / "out"
    plan = call("run", str(recipe), "--dry-run", "--device", "cpu", cwd=tmp_path, capsys=capsys)
    assert "cpu, fp32, 1 thread" in plan.out
    mtmeta.run(recipe, out=out, device="cpu")
    assert lock_of(out)["precision"] == "fp32"
    assert "instructions" not in lock_of(out)
    named = recipe_in(tmp_path / "named", "fp32", data_root=str(tmp_path))
    mtmeta.run(named, out=tmp_path / "fp32", device="cpu")
    ours, theirs = outcome(out), outcome(tmp_path / "fp32")
    assert {name for name in ours if ours[name] != theirs[name]} == {"recipe.yaml", "recipe.lock.yaml"}


def test_which_backbones_have_a_path(tmp_path: Path, processor: Processor) -> None:
    """Ours by its kernels; without them, with transformers' encoders and with those that say nothing it is fp32."""
    assert Bert(weights="tiny").load(1).bf16_on_cpu == (kernels.load() is not None)
    fields = mtmeta.LoadedBackbone.__dataclass_fields__
    assert fields["bf16_on_cpu"].default is False
    processor(*AMX, compiled=False)
    assert not Bert(weights="tiny").load(1).bf16_on_cpu
    mtmeta.run(quick(tmp_path), out=tmp_path / "out", device="cpu")
    assert lock_of(tmp_path / "out")["precision"] == "fp32"
    pytest.importorskip("transformers")
    assert not HuggingFace(weights="embedded").load(1).bf16_on_cpu


# ------------------------------------------------------------------------------------------------ runs that go on


@pytest.mark.usefixtures("needs_kernels")
def test_a_run_in_bf16_goes_on_to_the_same_bits(tmp_path: Path, processor: Processor) -> None:
    processor(*AMX)
    recipe = quick(tmp_path, "reptile")
    mtmeta.run(recipe, out=tmp_path / "whole", device="cpu")
    with killed_before_step(3):
        mtmeta.run(recipe, out=tmp_path / "out", device="cpu")
    mtmeta.run(recipe, out=tmp_path / "out", device="cpu")
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")
    assert lock_of(tmp_path / "out")["precision"] == "bf16"


@pytest.mark.parametrize("version", [*SAME_BITS, "0.2.0"])
def test_a_run_that_began_in_fp32_goes_on_in_it(version: str, tmp_path: Path, processor: Processor) -> None:
    """By an earlier version, or where `auto` meant fp32; also in a dry run, which would refuse what a run refuses."""
    processor()
    recipe, out = quick(tmp_path), tmp_path / "out"
    mtmeta.run(recipe, out=tmp_path / "whole", device="cpu")
    with killed_before_step(3):
        mtmeta.run(recipe, out=out, device="cpu")
    relock(out, mtmeta=version)
    lock = lock_of(out)
    processor(*AMX)
    planned = plan(RunRequest(recipe=recipe, out=out, device="cpu"), 0)
    assert (planned["state"], planned["precision"]) == ("goes on", "fp32")
    mtmeta.run(recipe, out=out, device="cpu")
    assert lock_of(out) == lock
    ours, whole = outcome(out), outcome(tmp_path / "whole")
    assert {name for name in whole if ours[name] != whole[name]} <= {"recipe.lock.yaml"}
    mtmeta.run(recipe, out=out, device="cpu", fresh=True)  # a new run, of this machine
    assert lock_of(out)["precision"] == ("bf16" if kernels.load() else "fp32")


@pytest.fixture
def cut(tmp_path: Path, processor: Processor) -> tuple[Path, Path]:
    """A run that began in bf16 under `auto` and was stopped, with its recipe."""
    processor(*AMX)
    recipe, out = recipe_in(tmp_path, "auto"), tmp_path / "out"
    with killed_before_step(3):
        mtmeta.run(recipe, out=out, device="cpu")
    return recipe, out


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize(("names", "shown"), [((), "none"), (("avx512_bf16",), "avx512_bf16")])
def test_other_instructions_are_refused(
    names: tuple[str, ...], shown: str, cut: tuple[Path, Path], processor: Processor
) -> None:
    recipe, out = cut
    before = outcome(out)
    processor(*names)
    line = f"run used instructions amx_bf16 avx512_bf16; now instructions {shown}; results would differ: pass --allow"
    with pytest.raises(CheckpointError, match=line):
        mtmeta.run(recipe, out=out, device="cpu")
    assert outcome(out) == before
    said: list[str] = []
    mtmeta.run(recipe, out=out, device="cpu", allow_inexact=True, warn=said.append)
    assert said == ([] if names else [SLOW])
    lock = lock_of(out)
    assert (lock["precision"], lock["instructions"]) == ("bf16", shown)
    assert lock["inexact"] == [f"instructions amx_bf16 avx512_bf16, then instructions {shown}"]


def test_a_run_in_bf16_by_an_earlier_version_is_refused(tmp_path: Path, processor: Processor) -> None:
    """It computed otherwise, and its lock says nothing of instructions."""
    processor(*AMX)
    recipe, out = recipe_in(tmp_path, "bf16"), tmp_path / "out"
    with killed_before_step(3):
        mtmeta.run(recipe, out=out, device="cpu")
    relock(out, instructions=None)
    with pytest.raises(CheckpointError, match="used instructions absent; now instructions amx_bf16 avx512_bf16"):
        mtmeta.run(recipe, out=out, device="cpu")
    assert mtmeta.run(recipe, out=out, device="cpu", allow_inexact=True)["steps"] == 4


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize("recorded", ["fp16", ["bf16"], None])
def test_a_lock_that_names_no_precision(recorded: Any, cut: tuple[Path, Path], processor: Processor) -> None:
    """The machine's own choice is compared with what stands there; what it lacks does not stay in the lock."""
    recipe, out = cut
    relock(out, precision=recorded)
    processor()
    with pytest.raises(CheckpointError, match=r"run used .*precision .*; now .*precision fp32, instructions absent"):
        mtmeta.run(recipe, out=out, device="cpu")
    mtmeta.run(recipe, out=out, device="cpu", allow_inexact=True)
    assert lock_of(out)["precision"] == "fp32"
    assert "instructions" not in lock_of(out)


# ------------------------------------------------------------------------------------- after the run, and in others


@pytest.mark.usefixtures("needs_kernels")
def test_what_uses_a_run_takes_what_this_machine_has(
    tmp_path: Path, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """eval, predict and adapt, of a run that began in fp32; a precision that the recipe names stays."""
    processor()
    recipe = quick(tmp_path)
    mtmeta.run(recipe, out=tmp_path / "auto", device="cpu")
    mtmeta.run(recipe_in(tmp_path / "b", "fp32"), out=tmp_path / "fp32", device="cpu")
    used: list[str] = []
    forward = evaluation.forward

    def spy(*arguments: Any, precision: machine.Precision = "fp32", **named: Any) -> Any:
        used.append(precision)
        return forward(*arguments, precision=precision, **named)

    for module in (evaluation, predictor):
        monkeypatch.setattr(module, "forward", spy)
    processor(*AMX)
    for name, expected in (("auto", "bf16"), ("fp32", "fp32")):
        used.clear()
        mtmeta.evaluate(tmp_path / name, device="cpu")
        mtmeta.load(tmp_path / name, device="cpu").predict("kind", ["word 1 good"])
        assert used == [expected] * 3
    used.clear()
    few = tmp_path / "few.yaml"
    few.write_text(recipe.read_text().replace('"steps": 4', '"steps": 1'))
    request = RunRequest(recipe=few, device="cpu")
    adapted = adapt([tmp_path / "fp32"], request, Shots(sizes=(2,), draws=1), keep=tmp_path / "kept")
    assert set(used) == {"bf16"}
    lock = lock_of(Path(adapted["kept"][0]))
    assert (lock["precision"], lock["instructions"]) == ("bf16", "amx_bf16 avx512_bf16")
    session = open_run(tmp_path / "auto")
    session.backbone = replace(restore_backbone(session), bf16_on_cpu=False)
    assert session.precision == "fp32"


@pytest.mark.usefixtures("needs_kernels")
def test_a_table_says_where_its_rows_differ(tmp_path: Path, processor: Processor) -> None:
    one = quick(tmp_path)
    two = tmp_path / "two.yaml"
    two.write_text(one.read_text().replace('"quick"', '"other"'))
    rows: dict[str, list[Planned]] = {}
    for recipe, names in ((one, ()), (two, AMX)):
        processor(*names)
        out = tmp_path / recipe.stem
        mtmeta.run(recipe, out=out, device="cpu")
        rows[out.name] = [Planned(recipe, load_recipe(recipe, build_registry()), RunDir(out))]
    assert notes_on_runs(rows) == ["Rows differ in precision: fp32 (quick); bf16 (two)."]


# --------------------------------------------------------------------------------------------- without instructions


def test_bf16_without_instructions_warns_and_computes(tmp_path: Path, processor: Processor) -> None:
    processor()
    backbone = {"name": "bert", "weights": "tiny", "max_length": 16, "dropout": 0.0}  # the two paths draw other masks
    recipe, out = recipe_in(tmp_path, "bf16", backbone=backbone), tmp_path / "out"
    mtmeta.run(recipe, out=out, device="cpu")
    assert [event["text"] for event in events(out) if event["type"] == "warning"] == [SLOW]
    assert (lock_of(out)["precision"], lock_of(out)["instructions"]) == ("bf16", "none")
    mtmeta.run(recipe_in(tmp_path / "b", "fp32", backbone=backbone), out=tmp_path / "fp32", device="cpu")
    found, expected = (losses_of(each) for each in (out, tmp_path / "fp32"))
    assert found == pytest.approx(expected, rel=2e-2)
    assert found != expected
    said: list[str] = []
    mtmeta.evaluate(out, device="cpu", warn=said.append)
    loaded = mtmeta.load(out, device="cpu", warn=said.append)
    loaded.predict("kind", ["word"])
    loaded.predict("grade", ["word"])
    assert said == [SLOW, SLOW]  # one each


PROBES = "probing: 20 steps at most, in memory, for 15 s or less; --probe 0 for none\n"


@pytest.mark.slow
def test_real_processes(tmp_path: Path) -> None:
    """The variables that PyTorch reads: a warning where they leave nothing, and a refusal where the run had more."""
    recipe = recipe_in(tmp_path, "bf16", reporters=["console"])
    older = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    dry = ("run", str(recipe), "--dry-run", "--device", "cpu")
    auto = command(*dry, "--set", "training.precision=auto", cwd=tmp_path, env=older)
    assert "cpu, fp32, 1 thread" in auto.out
    assert auto.err == PROBES
    planned = command(*dry, cwd=tmp_path, env=older)
    assert "cpu, bf16, without instructions for it, 1 thread" in planned.out
    assert sorted(planned.err.splitlines(keepends=True)) == [PROBES, f"warning: {SLOW}\n"]
    arguments = ("run", str(recipe), "--out", "out", "--device", "cpu")
    done = command(*arguments, cwd=tmp_path, env=older)
    assert done.code == 0
    assert done.err.count(f"warning: {SLOW}\n") == 1
    out = tmp_path / "out"
    assert lock_of(out)["instructions"] == "none"
    (out / "summary.json").unlink()  # as if it had been stopped before its end
    relock(out, instructions="amx_bf16 avx512_bf16")
    shutil.copytree(out, tmp_path / "copy", symlinks=True)
    refused = command(*arguments, cwd=tmp_path, env=older)
    line = "error: out: run used instructions amx_bf16 avx512_bf16; now instructions none; results would differ: pass"
    assert_refused(refused, 4, line)
    assert outcome(out) == outcome(tmp_path / "copy")
    assert command(*arguments, "--allow-inexact", cwd=tmp_path, env=older).code == 0


def test_adapting_warns_once(tmp_path: Path, processor: Processor) -> None:
    processor()
    mtmeta.run(recipe_in(tmp_path, "fp32"), out=tmp_path / "out", device="cpu")
    said: list[str] = []
    few = recipe_in(tmp_path / "b", "bf16", training={"steps": 1, "precision": "bf16"})
    adapt([tmp_path / "out"], RunRequest(recipe=few, device="cpu", warn=said.append), Shots(sizes=(2,), draws=1))
    assert said == [SLOW]
