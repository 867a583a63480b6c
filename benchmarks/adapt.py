"""`mtmeta adapt` beside that of another checkout, on the few-shot recipe and the encoder inside the package.

    python -m benchmarks.adapt --data DATA --old CHECKOUT [--task trec] [--shots 4,16] [--seeds 2] [--rounds 2] [--json]

CHECKOUT is a folder with an older mtmeta, say of `git worktree add`. Each round runs, one after another, the old
command in fp32, the new one in fp32, and the new one as it chooses by itself (`training.precision=auto`), each a
process of its own; seconds are of the whole command, and ratios those of a round, of which the median is shown. The
figures of old and new in fp32 are compared draw by draw. The run adapted from is trained on the sample data, two steps,
before it begins.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.stats import machine

__all__ = ["main", "measure"]

HERE = Path(__file__).resolve().parent.parent
RECIPE, PARENT = "recipes/study/few_shot/new_tasks.yaml", "recipes/reptile_three_task.yaml"
EMBEDDED = ("--set", "backbone.weights=embedded")
FP32 = ("--set", "training.precision=fp32")


def mtmeta(tree: Path, *arguments: str) -> tuple[str, float]:
    """Standard output and seconds of a command of the mtmeta in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "mtmeta", *arguments], cwd=tree, env=environment, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"mtmeta {arguments[0]} of {tree} ended with exit code {done.returncode}; see above")
    return done.stdout, time.perf_counter() - started


def measure(old: Path, run: str, rounds: int, options: Sequence[str]) -> dict[str, Any]:
    """Seconds of each contender by round, ratios, and how far the figures are from each other."""
    contenders = {"old": (old, FP32), "new": (HERE, FP32), "new_auto": (HERE, ())}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    figures: dict[str, Any] = {}
    for _ in range(rounds):
        for name, (tree, precision) in contenders.items():
            out, took = mtmeta(tree, "adapt", run, RECIPE, *EMBEDDED, *options, *precision, "--json")
            figures[name] = json.loads(out)
            seconds[name].append(round(took, 2))
    of_old, of_new = ([row["value"] for row in figures[name]["adapted"]] for name in ("old", "new"))
    return {
        "adaptations": len(of_old),
        "seconds": seconds,
        "ratio": round(median(a / b for a, b in zip(seconds["old"], seconds["new"], strict=True)), 2),
        "ratio_auto": round(median(a / b for a, b in zip(seconds["old"], seconds["new_auto"], strict=True)), 2),
        "largest_difference": max(abs(a - b) for a, b in zip(of_old, of_new, strict=True)),
        "same_keys": list(figures["old"]) == list(figures["new"]),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then print one table or one JSON document."""
    parser = ArgumentParser(prog="python -m benchmarks.adapt", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True, help="the folder that the recipe's files are in")
    parser.add_argument("--old", required=True, type=Path, help="a checkout to compare with")
    parser.add_argument("--task", action="append", help="repeatable (default: all of the recipe)")
    parser.add_argument("--shots", default="4,16,64")
    parser.add_argument("--seeds", default="5")
    parser.add_argument("--steps", default="40", help="of an adaptation (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    given = parser.parse_args(arguments)
    options = ["--shots", given.shots, "--seeds", given.seeds, "--set", f"training.steps={given.steps}"]
    options += ["--data-root", str(Path(given.data).resolve())]
    for task in given.task or ():
        options += ["--task", task]
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder) / "sample")
        few = ["training={steps: 2, precision: fp32}", "evaluation.every=2", "backbone.max_length=128"]
        mtmeta(given.old.resolve(), "run", PARENT, "--out", run, *(part for one in few for part in ("--set", one)))
        results = {"machine": machine(), **measure(given.old.resolve(), run, given.rounds, options)}
    if given.json:
        print(json.dumps(results, indent=2))
        return
    table = Table("mtmeta adapt", "seconds by round", "old / this")
    ratios = {"old": 1.0, "new": results["ratio"], "new_auto": results["ratio_auto"]}
    for name, ratio in ratios.items():
        table.add_row(name, ", ".join(map(str, results["seconds"][name])), f"{ratio:.2f}")
    console = Console(width=100)
    console.print(table)
    console.print(
        f"{results['adaptations']} adaptations; figures differ by {results['largest_difference']:.2g} at most"
    )


if __name__ == "__main__":
    main()
