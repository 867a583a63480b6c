"""How well `mtmeta run --dry-run` foretells a run: how often it falls into the range, and how long the probe takes.

    python -m benchmarks.dry_run                        ten tries of a short run on the sample
    python -m benchmarks.dry_run --recipe R --recipe Q  of other recipes, in turn; --tries says how many in all
    python -m benchmarks.dry_run --others               one try of each recipe below recipes/methods and recipes/tasks

A try is `--dry-run` and then the run itself, each a process of its own, on the machine as busy as it happens to be.
What is foretold is the time of training and scoring, which is `total_seconds` of the summary.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).parents[1] / "recipes"


def call(*arguments: str) -> dict[str, Any]:
    """Run a command of mtmeta and return what it prints as JSON."""
    done = subprocess.run([sys.executable, "-m", "mtmeta", *arguments, "--json"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Print a line for each try, and in how many of them the run fell into the range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", action="append", default=[])
    parser.add_argument("--others", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--tries", type=int, default=10)
    options = parser.parse_args()
    recipes = options.recipe or ["reptile_three_task"]
    changes = options.set or ["training.steps=30"] * (not options.recipe)
    if options.others:  # distil wants teachers
        found = [path for kind in ("methods", "tasks") for path in sorted(RECIPES.glob(f"{kind}/*.yaml"))]
        recipes, changes = [str(path) for path in found if path.stem != "distil"], options.set
        options.tries = len(recipes)
    inside, longest = 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.tries):
            recipe = recipes[number % len(recipes)]
            given = [recipe, *(f"--set={text}" for text in changes)]
            out = f"--out={Path(folder) / str(number)}"
            seconds = call("run", *given, "--dry-run", out)["seconds"]
            actual = call("run", *given, out)["total_seconds"]
            total, probing = seconds["total"], seconds["probing"]
            fits = total["low"] <= actual <= total["high"]
            inside, longest = inside + fits, max(longest, probing)
            name = f"{number + 1:2} {Path(recipe).stem}"
            foretold = f"{total['seconds']:6.1f} s ({total['low']:.1f} to {total['high']:.1f})"
            took = f"took {actual:6.1f} s, {actual / total['seconds']:.2f} of it"
            where = "inside" if fits else "OUTSIDE"
            print(f"{name}: foretold {foretold}, {took}, {where}; probed {probing:.1f} s", flush=True)
    print(f"{inside} of {options.tries} inside; the longest probe took {longest:.1f} s")


if __name__ == "__main__":
    main()
