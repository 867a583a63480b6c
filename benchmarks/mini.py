"""The encoder inside the package against its teacher, and against the same shape with random weights.

    python -m benchmarks.mini --data DATA --teacher MINILM [--examples 20000] [--seeds 0] [--out FOLDER] [--json]

- zero-shot: Pearson of the cosines of mean-pooled vectors with the labels of sts dev; nothing is trained;
- speed: training examples/s over the teacher's, in alternating rounds, batches of 32 (as fine-tuned) and of 128;
- fine-tuned: recipes/minilm/individual.yaml, each task alone on --examples training examples, the same seeds, order of
  examples and options for all; the best of five evaluations on dev, which is what `mtmeta run` reports. Random values
  only on sts.

Runs lie in --out and are gone on with if the command is given again.
"""

from __future__ import annotations

import json
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional

import mtmeta
from benchmarks.contenders import Mtmeta
from benchmarks.parts import TASKS, Parts, load_parts
from benchmarks.stats import machine, ratios, spread
from mtmeta.core.data.dataset import Dataset
from mtmeta.core.data.packing import by_tokens, pack_chunk
from mtmeta.core.recipe.strict_yaml import read_file
from mtmeta.core.training.model import mean_pool
from mtmeta.plugins.backbones.encoder.encoder import Encoder

__all__ = ["main", "zero_shot"]

RECIPE = Path(__file__).parent.parent / "recipes" / "minilm" / "individual.yaml"
ENCODERS: dict[str, tuple[str, ...]] = {
    "teacher": (),
    "mini": ("backbone.weights=embedded",),
    "random": ("backbone.weights=embedded", "backbone.pretrained=false"),
}
TUNED = {"teacher": tuple(TASKS), "mini": tuple(TASKS), "random": ("sts",)}
BATCH, RATE = 32, "1e-4"
SPEED_BATCHES, ROUNDS, EXAMPLES = (BATCH, 128), 5, 512  # examples a round


def zero_shot(encoder: Encoder, dataset: Dataset) -> float:
    """Pearson of cosine and label over pairs of sentences, with mean-pooled vectors as they are."""
    cosines = np.zeros(len(dataset))
    encoder.eval()
    with torch.inference_mode():
        for indices in by_tokens(dataset, 8192):
            packed = pack_chunk(dataset, indices).packed
            a, b = mean_pool(encoder(packed), packed).view(2, len(indices), -1)
            cosines[indices] = functional.cosine_similarity(a, b).numpy()
    return float(np.corrcoef(cosines, dataset.labels)[0, 1])


def speed(teacher: Parts, mini: Parts, batch: int) -> dict[str, Any]:
    """Training examples/s of both on every task, and the ratio of the rounds."""
    results: dict[str, Any] = {}
    for task in TASKS:
        sides = [Mtmeta(parts, task) for parts in (teacher, mini)]
        size = len(sides[0].dataset)
        rates: list[list[float]] = [[], []]
        for number in range(ROUNDS + 1):  # the first warms up
            drawn = np.random.default_rng(number).permutation(size)[: EXAMPLES // batch * batch].reshape(-1, batch)
            for side, kept in zip(sides, rates, strict=True):
                started = time.perf_counter()
                for indices in drawn:
                    side.step(indices)
                kept.append(drawn.size / (time.perf_counter() - started))
        gain = ratios(rates[1][1:], rates[0][1:])
        per_second = {"teacher": round(spread(rates[0][1:]).median, 1), "mini": round(spread(rates[1][1:]).median, 1)}
        results[task] = per_second | gain.json("ratio")
    return results


def tune(name: str, seed: int, options: Namespace, out: Path) -> dict[str, float]:
    """Each task alone; the metric each is selected by, on dev."""
    recipe: dict[str, Any] = read_file(RECIPE).data
    recipe["tasks"] = {task: recipe["tasks"][task] for task in TUNED[name]}
    path = out / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    steps = max(5, options.examples // BATCH)
    sets = [
        f"seed={seed}",
        f"training.steps={steps}",
        f"evaluation.every={steps // 5}",
        f"checkpoint.every={steps // 2}",
    ]
    sets += [f"tasks.{task}.batch_size={BATCH}" for task in TUNED[name]] + [f"optimizer.lr={RATE}", "reporters=[jsonl]"]
    if options.data == "sample":
        sets += [f"tasks.{task}.{split}=sample" for task in TUNED[name] for split in ("train", "dev")]
    sets += ENCODERS[name] or (f"backbone.weights={options.teacher}",)
    root = "." if options.data == "sample" else options.data
    summary = mtmeta.run(path, overrides=sets, out=out / f"{name}-{seed}", data_root=root, device="cpu")
    return {task: round(score["value"], 4) for task, score in summary["tasks"].items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then print one table or one JSON document."""
    parser = ArgumentParser(prog="python -m benchmarks.mini", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True, help="folder of sst-train.csv and so on, or `sample`")
    parser.add_argument("--teacher", required=True, help="folder of the teacher")
    parser.add_argument("--examples", type=int, default=20_000, help="training examples a task (default: %(default)s)")
    parser.add_argument("--seeds", default="0", help="comma-separated (default: %(default)s)")
    parser.add_argument("--encoders", default=",".join(ENCODERS), help="rows to fine-tune (default: %(default)s)")
    parser.add_argument("--only", choices=["zero_shot", "speed", "fine_tuned"], help="one part of it")
    parser.add_argument("--out", type=Path, help="folder for the runs (default: one that is removed)")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {"machine": machine(), "examples": options.examples}
    if options.only != "fine_tuned":
        parts = {
            name: load_parts(weights, options.data, list(TASKS), splits=("train", "dev"))
            for name, weights in (("teacher", options.teacher), ("mini", "embedded"))
        }
        if options.only != "speed":
            sts = {name: each.datasets["sts", "dev"] for name, each in parts.items()}
            results["zero_shot"] = {name: round(zero_shot(parts[name].encoder, sts[name]), 4) for name in parts}
        if options.only != "zero_shot":
            results["speed"] = {str(size): speed(parts["teacher"], parts["mini"], size) for size in SPEED_BATCHES}
    if options.only in (None, "fine_tuned"):
        with nullcontext(options.out) if options.out else tempfile.TemporaryDirectory() as folder:
            results["fine_tuned"] = {
                f"{name}, seed {seed}": tune(name, int(seed), options, Path(folder))
                for name in options.encoders.split(",")
                for seed in options.seeds.split(",")
            }
    if options.json:
        print(json.dumps(results, indent=2))
    else:
        _show(results)


def _show(results: Mapping[str, Any]) -> None:
    console = Console(width=100)
    if "zero_shot" in results:
        console.print(f"zero-shot sts Pearson: {results['zero_shot']}")
    for size, tasks in results.get("speed", {}).items():
        for task, figures in tasks.items():
            low, high = figures["ratio_quartiles"]
            rates = f"teacher {figures['teacher']}, mini {figures['mini']} examples/s"
            console.print(
                f"{task}, batches of {size}: {rates}, {figures['ratio']:.2f} [{low:.2f}, {high:.2f}] times as fast"
            )
    if "fine_tuned" in results:
        table = Table(title=f"fine-tuned, each task alone, {results['examples']:,} examples")
        for column in ("encoder", *TASKS):
            table.add_column(column)
        for name, scores in results["fine_tuned"].items():
            table.add_row(name, *(f"{scores[task]:.4f}" if task in scores else "" for task in TASKS))
        console.print(table)


if __name__ == "__main__":
    main()
