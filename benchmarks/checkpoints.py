"""The cost of checkpoints: their share of the training time, and the work of a resumed run before its first step.

    python -m benchmarks.checkpoints --data DATA --weights FOLDER [--recipes joint,reptile] [--steps 6] [--json]

Share: the recipes of recipes/minilm are trained for a few steps with a checkpoint and new best weights at every other
step, the tasks in turn, so that every inner optimizer has its state. save / I + save_best / (E step) then stands for a
run that saves every I seconds, ten minutes unless its recipe says otherwise, and evaluates every E steps, finding
better weights each time; the time of evaluation itself is not counted, so the share of a whole run is smaller. Saving
is writing, flushing to disk, reading back and dropping the oldest.
Resume: seconds from starting a process to its first step, in a new run directory and in one with a checkpoint, in
turns; the page cache forgets the checkpoint's files before each.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console

import mtmeta
from benchmarks.parts import add_arguments
from benchmarks.stats import machine, spread
from mtmeta.core.recipe.sections import CheckpointOptions
from mtmeta.core.training.checkpoint import Checkpoints
from mtmeta.core.training.trainer import Trainer

__all__ = ["main", "resume", "share"]

RECIPES = Path(__file__).parent.parent / "recipes" / "minilm"
EVERY = 2  # steps between two measured checkpoints


def share(name: str, options: Sequence[str], steps: int, folder: Path) -> dict[str, Any]:
    """Train one recipe for a few steps; leaves the run in `folder`."""
    import yaml

    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    took: dict[str, list[float]] = {}
    with _timed(Trainer, "_one_step", took), _timed(Trainer, "_save", took), _timed(Checkpoints, "save_best", took):
        mtmeta.run(RECIPES / f"{name}.yaml", overrides=[*options, f"training.steps={steps}"], out=folder)
    step, save, best = (spread(took[key]) for key in ("_one_step", "_save", "save_best"))
    options_of = CheckpointOptions(**recipe.get("checkpoint", {}))
    intervals = [60.0 * options_of.minutes] if options_of.minutes else []
    intervals += [options_of.every * step.median] if options_of.every else []
    interval, evaluating = min(intervals), recipe["evaluation"]["every"]
    newest = max(folder.rglob("step-????????"), key=lambda path: path.name)
    return {
        **step.json("step_s"),
        **save.json("save_s"),
        **best.json("save_best_s"),
        "megabytes": round(sum(file.stat().st_size for file in newest.iterdir()) / 1e6, 1),
        "save_every_s": round(interval, 1),
        "evaluate_every_steps": evaluating,
        "share": round(save.median / interval + best.median / (evaluating * step.median), 4),
    }


@contextlib.contextmanager
def _timed(owner: type, method: str, took: dict[str, list[float]]) -> Iterator[None]:
    """Note how long each call of a method takes."""
    original = getattr(owner, method)

    def timed(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return original(*arguments, **options)
        finally:
            took.setdefault(method, []).append(time.perf_counter() - started)

    with mock.patch.object(owner, method, timed):
        yield


def resume(name: str, options: Sequence[str], steps: int, folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds until the first step, of a new run and of one that goes on in `folder`, which holds a finished run."""
    for path in (folder / "summary.json", *folder.rglob(f"step-{steps:08d}/MANIFEST.json")):
        path.unlink()  # so it goes on from the checkpoint before the last
    new: list[float] = []
    resumed: list[float] = []
    for number in range(rounds + 1):
        fresh = folder.with_name(f"{folder.name}-new{number}")
        for out, times in ((fresh, new), (folder, resumed)):
            _forget(folder)
            command = [sys.executable, "-m", "benchmarks.checkpoints", "--first-step", name, str(out), str(time.time())]
            values = [*options, f"training.steps={steps}"]
            done = subprocess.run([*command, *values], stdout=subprocess.PIPE, text=True, check=True)
            times.append(float(done.stdout))
    added = [after - before for after, before in zip(resumed[1:], new[1:], strict=True)]  # the first fills the cache
    return {
        **spread(new[1:]).json("new_s", 2),
        **spread(resumed[1:]).json("resumed_s", 2),
        **spread(added).json("added_s", 2),
    }


def _forget(folder: Path) -> None:
    """Drop a folder's files from the page cache."""
    for path in folder.rglob("*.safetensors"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _first_step(name: str, out: str, started: str, *options: str) -> None:
    """Print the seconds since `started` when the first step would begin, and end there."""

    def step_and_stop(trainer: Trainer) -> None:
        print(time.time() - float(started), flush=True)
        os._exit(0)

    with mock.patch.object(Trainer, "_one_step", step_and_stop):
        mtmeta.run(RECIPES / f"{name}.yaml", overrides=options, out=out)


def overrides(data: str, weights: str, algorithm: str) -> list[str]:
    """Return the measured part of a recipe: its weights and training data, and small dev sets, for those are not."""
    files = [f"tasks.{task}.dev=sample" for task in ("sst", "para", "sts")]
    files += [f"tasks.{task}.train=sample" for task in ("sst", "para", "sts") if data == "sample"]
    root = [] if data == "sample" else [f"data_root={data}"]
    turns = ["sampler=round_robin"] if algorithm in ("reptile", "fomaml") else []
    often = [f"checkpoint.every={EVERY}", f"evaluation.every={EVERY}", "reporters=[jsonl]"]
    return [f"backbone.weights={weights}", *root, *files, *turns, *often]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then print the figures or one JSON document."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--first-step"]:
        _first_step(*given[1:])
    parser = ArgumentParser(prog="python -m benchmarks.checkpoints", description=(__doc__ or "").partition("\n")[0])
    add_arguments(parser)
    known = "individual,joint,reptile,fomaml"
    parser.add_argument("--recipes", default=known, help="of recipes/minilm, comma-separated (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=6, help="training steps of each recipe (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="starts of either kind; 0 leaves resume out")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args(given)
    results: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as place:
        for name in options.recipes.split(","):
            values, folder = overrides(options.data, options.weights, name), Path(place) / name
            results[name] = share(name, values, options.steps, folder)
            if options.rounds:
                results[name] |= resume(name, values, options.steps, folder, options.rounds)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    console = Console(width=120)
    for title, figures in results.items():
        console.print(title, style="bold")
        for key, value in figures.items():
            console.print(f"  {key}: {value}", soft_wrap=True)


if __name__ == "__main__":
    main()
