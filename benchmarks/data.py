"""The work before the first step: tokenization, start-up, and memory on a file larger than one wants in memory.

    python -m benchmarks.data --data DATA --weights FOLDER [--rounds 5] [--json]
    python -m benchmarks.data --big [--rows 10000000] [--json]

Tokenization: rows/s of reading, parsing and tokenizing each training file in this process, without the cache.
Start-up: seconds from starting the `mtmeta run` process to its event run_started (plugins, recipe, weights, data all
ready, the first step next), for a first run on an empty MTMETA_CACHE and for second ones in new run directories. What
`import torch` takes in a process of its own beside each is taken off.
Big: a file of --rows rows in sst's format (10 million: 1.1 GB) is made in a temporary folder, and trained on with
`weights: tiny` for a few steps; the peak resident memory of `mtmeta run` (ru_maxrss of the process) stands against that
of the same run on the first 1,000 rows. Then as many rows come one by one from a generator to `mtmeta.train`, in a
process of its own too, beside 1,000 of them. The cache lies in the temporary folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.parts import SEED, add_arguments, load_backbone, load_dataset, make_task
from benchmarks.stats import machine, spread

__all__ = ["big_file", "large_file", "main", "start_up", "tokenization"]

RECIPE = """\
name: benchmark
data_root: {root}
backbone: {{name: bert, weights: {weights}, max_length: 128}}
tasks:
{tasks}
data: {{on_bad_rows: skip}}
algorithm: reptile
optimizer: {{name: sgd, lr: 1.0}}
training: {{steps: {steps}}}
reporters: [jsonl]
"""
SMALL_ROWS = 1000
DRAWN_AT_ONCE = 100_000


def tokenization(weights: str, data: str, names: Sequence[str], rounds: int) -> dict[str, Any]:
    """Rows and tokens per second of each training file."""
    results: dict[str, Any] = {}
    backbone = load_backbone(weights)
    for name in names:
        seconds = []
        for _ in range(rounds):
            started = time.perf_counter()
            dataset = load_dataset(name, make_task(name, data), "train", data, backbone)
            seconds.append(time.perf_counter() - started)
        results[name] = {
            "rows": len(dataset),
            **spread([len(dataset) / each for each in seconds]).json("rows_per_s", 0),
            **spread([dataset.tokens / each for each in seconds]).json("tokens_per_s", 0),
        }
    return results


def start_up(weights: str, data: str, names: Sequence[str], rounds: int) -> dict[str, Any]:
    """Seconds beyond `import torch` until the first step may begin: a first run, and those that follow it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [_task(task, "sample" if data == "sample" else f"{task}-train.csv") for task in names]
        recipe = _recipe(folder, lines, weights=weights, root=name if data == "sample" else data, steps=1)
        totals, imports = [], []
        for number in range(rounds + 1):
            imports.append(_seconds_of_torch())
            started = time.time()
            _mtmeta(recipe, folder / f"run{number}", folder / "cache")
            first = (folder / f"run{number}" / "events.jsonl").read_text().partition("\n")[0]
            totals.append(json.loads(first)["time"] - started)
    beyond = [total - torch for total, torch in zip(totals, imports, strict=True)]
    return {
        "import_torch_s": round(float(np.median(imports)), 2),
        "first_run_s": round(beyond[0], 2),
        **spread(beyond[1:]).json("second_run_s", 2),
    }


def _seconds_of_torch() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - started


def big_file(rows: int, steps: int = 3) -> dict[str, Any]:
    """Peak memory of a run on `rows` rows against one on 1,000, and of a second run from the cache."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        large_file(folder / "big.csv", rows)
        large_file(folder / "small.csv", SMALL_ROWS)
        results: dict[str, Any] = {"rows": rows, "file_bytes": (folder / "big.csv").stat().st_size}
        for key, file in (("small", "small.csv"), ("first", "big.csv"), ("second", "big.csv")):
            place = folder / key
            place.mkdir()
            recipe = _recipe(place, [_task("sst", file, dev="sample")], weights="tiny", root=name, steps=steps)
            started = time.perf_counter()
            peak = _mtmeta(recipe, place / "run", folder / "cache")
            results |= {f"{key}_peak_mib": round(peak, 1), f"{key}_s": round(time.perf_counter() - started, 1)}
        for key, count in (("small_rows", SMALL_ROWS), ("rows_one_by_one", rows)):
            program = (
                f"from benchmarks.data import train_on_rows; train_on_rows({count}, {str(folder / key)!r}, {steps})"
            )
            started = time.perf_counter()
            peak = _peak([sys.executable, "-c", program], folder / "cache")
            results |= {f"{key}_peak_mib": round(peak, 1), f"{key}_s": round(time.perf_counter() - started, 1)}
        cache = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file())
    pairs = {"first": "small", "second": "small", "rows_one_by_one": "small_rows"}
    over = {
        f"{key}_more_mib": round(results[f"{key}_peak_mib"] - results[f"{of}_peak_mib"], 1) for key, of in pairs.items()
    }
    return results | over | {"cache_bytes": cache}


def train_on_rows(rows: int, out: str, steps: int) -> None:
    """Train on the rows of `large_file` as a generator gives them."""
    import mtmeta

    made = ((text, str(label)) for text, label in large_rows(rows))
    dev = [(f"a {word} film", str(number)) for number, word in enumerate(("bad", "poor", "plain", "good", "great"))]
    parts: dict[str, Any] = {"backbone": {"name": "bert", "weights": "tiny", "max_length": 128}, "steps": steps}
    task = mtmeta.classification(made, dev=dev, batch_size=32)
    mtmeta.train({"sst": task}, algorithm="reptile", out=out, device="cpu", **parts)


def large_file(path: Path, rows: int) -> None:
    """Write a table in sst's format; about 110 bytes a row."""
    with open(path, "w", encoding="utf-8") as file:
        file.write("\tid\tsentence\tsentiment\n")
        for row, (text, label) in enumerate(large_rows(rows)):
            file.write(f"{row}\tr{row:08d}\t{text}\t{label}\n")


def large_rows(rows: int) -> Iterator[tuple[str, int]]:
    """Give texts with labels; their words are drawn from the sample data's vocabulary."""
    from mtmeta import sample

    words = [word for word in sample.vocabulary() if word.isalpha() and len(word) > 2]
    random = np.random.default_rng(SEED)
    # a pool of phrases: ten million rows in a minute rather than in an hour
    phrases = [" ".join(random.choice(words, 5)) for _ in range(20_000)]
    for start in range(0, rows, DRAWN_AT_ONCE):
        count = min(DRAWN_AT_ONCE, rows - start)
        for row, (a, b, c) in enumerate(random.integers(0, len(phrases), (count, 3)).tolist(), start):
            yield f"{phrases[a]} {phrases[b]} {phrases[c]} .", row % 5


def _task(name: str, train: str, dev: str = "sample") -> str:
    return f"  {name}: {{train: {train}, dev: {dev}, batch_size: 32}}"


def _recipe(folder: Path, tasks: Sequence[str], **values: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(tasks="\n".join(tasks), **values))
    return path


def _mtmeta(recipe: Path, out: Path, cache: Path) -> float:
    """`mtmeta run` in a process of its own; its peak resident memory in MiB."""
    return _peak([sys.executable, "-m", "mtmeta", "run", str(recipe), "--out", str(out), "--device", "cpu"], cache)


def _peak(command: Sequence[str], cache: Path) -> float:
    """Run a command; return the peak resident memory of its process in MiB."""
    environ: Mapping[str, str] = {
        **{key: value for key, value in os.environ.items() if key != "MTMETA_DATA"},
        "MTMETA_CACHE": str(cache),
    }
    process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # it is reaped already
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} ended with {process.returncode}")
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then print the figures or one JSON document."""
    parser = ArgumentParser(prog="python -m benchmarks.data", description=(__doc__ or "").partition("\n")[0])
    add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each measurement (default: %(default)s)")
    parser.add_argument("--big", action="store_true", help="instead: memory on a large file")
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of --big (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {"machine": machine()}
    if options.big:
        results["big"] = big_file(options.rows)
    else:
        names = options.tasks.split(",")
        results["tokenization"] = tokenization(options.weights, options.data, names, options.rounds)
        results["start_up"] = start_up(options.weights, options.data, names, options.rounds)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    console = Console(width=120)
    for title, values in results.items():
        console.print(title, style="bold")
        for key, value in values.items():
            console.print(f"  {key}: {value}", soft_wrap=True)


if __name__ == "__main__":
    main()
