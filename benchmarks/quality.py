"""Whether bf16 trains as well as fp32: recipes/minilm/reptile.yaml with several seeds in both, by `mtmeta.run`.

    python -m benchmarks.quality --data DATA --weights FOLDER --out RUNS [--seeds 5] [--examples 20000] [--json FILE]

Every run has a folder of its own under --out. Given again, the same command goes on where it was stopped: finished runs
are only read, and one that was cut goes on from its checkpoint. For each seed, and with dropout in place:

    fp32, bf16     mean dev score of the best weights
    difference     bf16 - fp32, paired by seed: the mean and its 95% interval by Student's t; `within_interval` says
                   whether the interval holds 0

With the first seed and dropout off, one more training in each precision, from the same weights on the same batches:

    losses         the largest relative difference of any inner loss in the first 20 steps, and in the first 20 batches;
                   bound 2e-2
    predictions    share of dev rows with the same prediction after these two trainings; and `same_weights`, where the
                   weights trained in fp32 predict in both precisions. Goal .995. Two numbers are the same if they are
                   within a hundredth of the task's range, .05 for sts.
"""

from __future__ import annotations

import csv
import json
import shutil
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import mtmeta
from benchmarks.parts import SEED, TASKS, add_sources, copy_in_precision
from benchmarks.stats import load, machine
from mtmeta.core.training.statistics import over_seeds

__all__ = ["compare_predictions", "compare_scores", "largest_differences", "main"]

RECIPE = Path(__file__).parent.parent / "recipes" / "minilm" / "reptile.yaml"
PRECISIONS = ("fp32", "bf16")
LOSS_STEPS = 20
LOSS_BOUND = 2e-2
SAME_GOAL = 0.995
TOLERANCE = 0.01  # of a task's range


def _overrides(options: Namespace) -> list[str]:
    values = [f"backbone.weights={options.weights}", f"budget.examples={options.examples}", "reporters=[jsonl]"]
    if options.data == "sample":
        values += [f"tasks.{task}.{split}=sample" for task in TASKS for split in ("train", "dev")]
    return values + [f"tasks.{task}.batch_size={options.batch}" for task in TASKS]


def _train(options: Namespace, name: str, *more: str) -> dict[str, Any]:
    """The summary of a run, which is trained, or continued, unless it is finished."""
    root = None if options.data == "sample" else str(Path(options.data).absolute())
    values = [*_overrides(options), *more]
    return mtmeta.run(RECIPE, overrides=values, out=options.out / name, data_root=root, device="cpu")


def compare_scores(scores: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Mean dev scores by precision, seed by seed: their means, and the paired difference with its interval."""
    differences = [bf16 - fp32 for fp32, bf16 in zip(scores["fp32"], scores["bf16"], strict=True)]
    mean, low, high = over_seeds(differences)
    return {
        "scores": {name: [round(value, 4) for value in values] for name, values in scores.items()},
        "means": {name: round(float(np.mean(values)), 4) for name, values in scores.items()},
        "difference": mean,
        "interval": None if low is None else [low, high],
        "within_interval": None if low is None or high is None else low <= 0 <= high,
    }


def largest_differences(fp32: Path, bf16: Path, steps: int = LOSS_STEPS) -> dict[str, float]:
    """Largest relative difference of the losses of two runs: in the first steps, and in as many first batches."""
    ours, theirs = (_losses(run, steps) for run in (fp32, bf16))
    relative = np.abs(theirs / ours - 1)
    return {"first_steps": float(relative.max()), "first_batches": float(relative[:steps].max())}


def _losses(run: Path, steps: int) -> Any:
    """Every inner loss of the first steps, in order."""
    events = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    done = [event for event in events if event["type"] == "step" and event["step"] <= steps]
    return np.array([loss for event in done for losses in event["losses"].values() for loss in losses])


def compare_predictions(one: Path, other: Path) -> dict[str, float]:
    """Share of equal predictions on the dev rows of each task, and of all rows together."""
    shares, same, rows = {}, 0, 0
    for name, task in TASKS.items():
        pair = [_predictions(run / "predictions" / f"{name}-dev.csv") for run in (one, other)]
        objective = task.objective
        if objective.classes:
            equal = [a == b for a, b in zip(*pair, strict=True)]
        else:
            most = TOLERANCE * (objective.high - objective.low)
            equal = [abs(float(a) - float(b)) <= most for a, b in zip(*pair, strict=True)]
        shares[name] = round(sum(equal) / len(equal), 4)
        same, rows = same + sum(equal), rows + len(equal)
    return {**shares, "all": round(same / rows, 4)}


def _predictions(path: Path) -> list[str]:
    with open(path, encoding="utf-8", newline="") as file:
        return [row["prediction"] for row in csv.DictReader(file)]


def _measure(options: Namespace, console: Console) -> dict[str, Any]:
    scores: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    seconds: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    for seed in range(SEED, SEED + options.seeds):
        for precision in PRECISIONS:
            summary = _train(options, f"{precision}-{seed}", f"seed={seed}", f"training.precision={precision}")
            scores[precision].append(summary["mean"])
            seconds[precision].append(summary["seconds"])
            console.print(f"{precision}, seed {seed}: mean dev score {summary['mean']:.4f}, {summary['seconds']:.0f} s")
    # the last weights are scored, not the best: the same amount of training
    fixed = ("backbone.dropout=0", "evaluation.every=null", f"seed={SEED}")
    plain = {name: options.out / f"{name}-no-dropout" for name in PRECISIONS}
    for precision, folder in plain.items():
        _train(options, folder.name, f"training.precision={precision}", *fixed)
    used = options.out / "fp32-no-dropout-used-in-bf16"
    shutil.rmtree(used, ignore_errors=True)  # of an earlier call
    copy_in_precision(plain["fp32"], used, "bf16")
    mtmeta.evaluate(used, split="dev", device="cpu")
    return {
        "machine": machine(),
        "load_after": load(),
        "examples": options.examples,
        "seeds": options.seeds,
        **compare_scores(scores),
        "training_seconds": seconds,
        "losses": largest_differences(plain["fp32"], plain["bf16"]) | {"bound": LOSS_BOUND},
        "predictions": compare_predictions(plain["fp32"], plain["bf16"]) | {"goal": SAME_GOAL},
        "same_weights": compare_predictions(plain["fp32"], used) | {"goal": SAME_GOAL},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is not yet trained, then print the comparison, or write the JSON document."""
    parser = ArgumentParser(prog="python -m benchmarks.quality", description=(__doc__ or "").partition("\n")[0])
    add_sources(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs, which may be there already")
    parser.add_argument("--seeds", type=int, default=5, help="runs in each precision (default: %(default)s)")
    parser.add_argument("--examples", type=int, default=20_000, help="budget of a run (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="examples in a batch (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the JSON document there; - is stdout")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    console = Console(width=120, stderr=options.json == "-")
    results = _measure(options, console)
    document = json.dumps(results, indent=2, allow_nan=False)
    if options.json == "-":
        print(document)
    elif options.json:
        Path(options.json).write_text(document + "\n")
    for name in ("means", "difference", "interval", "within_interval", "losses", "predictions", "same_weights"):
        console.print(f"{name}: {results[name]}", soft_wrap=True)


if __name__ == "__main__":
    main()
