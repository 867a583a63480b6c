"""`mtmeta predict` beside onnxruntime and sentence-transformers: sentences a second, on real sentences.

    python -m benchmarks.predict --data DATA --weights FOLDER [--sentences 100000] [--slice 5000] [--rounds N]
                                 [--seconds 1500] [--json FILE]

A head for sst is trained on FOLDER for a few steps; the run is then predicted with in fp32 and in bf16, and exported
for the others. Each contender has a process of its own and has loaded its model. In each round all of them read the
same file of `--slice` sentences, one a line, and answer it, tokenization included; the next round has the next slice,
until the sentences or the time is used up. Then `mtmeta predict` does all sentences as a command, its start included.

    mtmeta, mtmeta_bf16            what `mtmeta predict` does: labels and probabilities in file order, written as CSV
    onnx, onnx_int8                `mtmeta export --format onnx` by the inference.py in it, and the same after
                                   onnxruntime.quantization.quantize_dynamic; batches of 32 in file order
    onnx_sorted, onnx_int8_sorted  the same given the sentences by length, which its user must think of
    sentence_transformers          encode of `mtmeta export --format sentence-transformers`, fp32, batches of 32, which
                                   it sorts itself; vectors alone, no head
    sentence_transformers_128, _256 the same in larger batches

`ratio_vs_X`: the median over rounds of X's time over that of mtmeta_bf16; `best` is the fastest form of a library. The
sentences are those of para-*.csv and sst-*.csv in DATA, each once and shuffled; `repeated` says how often they had to
be taken again to be as many. `same_labels`: share of the first slice where a label is that of mtmeta in fp32.
"""

from __future__ import annotations

import csv
import importlib.util
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import mtmeta
from benchmarks.parts import SEED, add_sources, copy_in_precision, make_task
from benchmarks.stats import Spread, load, machine, ratios, spread
from benchmarks.workers import Remote
from mtmeta.core.export.export import export
from mtmeta.core.run.predict_file import predict_file

__all__ = ["FIELD", "main", "prepare", "read_sentences", "summary"]

TASK = "sst"
STEPS = 20
SECONDS = 1500.0
FILES = ("para-dev18.csv", "para-extra.csv", "para-train.csv", "para-dev.csv", "sst-train.csv", "sst-dev.csv")
FIELD: dict[str, tuple[str, Any]] = {  # process and what it is asked for
    "mtmeta": ("mtmeta", None),
    "mtmeta_bf16": ("mtmeta_bf16", None),
    "onnx": ("onnx", False),
    "onnx_sorted": ("onnx", True),
    "onnx_int8": ("onnx_int8", False),
    "onnx_int8_sorted": ("onnx_int8", True),
    "sentence_transformers": ("sentence_transformers", 32),
    "sentence_transformers_128": ("sentence_transformers", 128),
    "sentence_transformers_256": ("sentence_transformers", 256),
}
RIVALS = ("onnx", "onnx_int8", "sentence_transformers")
Answer = Callable[[Path, Any], Sequence[str]]


def read_sentences(data: str, count: int) -> tuple[list[str], int]:
    """So many sentences, each once and shuffled, and how often all of them had to be repeated for that."""
    if data == "sample":
        found = [text for split in ("train", "dev") for text in _sample(split)]
    else:
        found = list(itertools.chain.from_iterable(map(_texts, (Path(data) / name for name in FILES))))
    cleaned = (" ".join(text.split()) for text in found)
    distinct = list(dict.fromkeys(text for text in cleaned if text))
    if not distinct:
        raise SystemExit(f"{data}: none of {', '.join(FILES)} has sentences")
    order = np.random.default_rng(SEED).permutation(len(distinct)).tolist()
    repeated = (count - 1) // len(distinct)
    return [distinct[order[i % len(order)]] for i in range(count)], repeated


def _sample(split: str) -> Iterator[str]:
    for example in make_task(TASK, "sample").sample(split):
        yield example.text


def _texts(path: Path) -> Iterator[str]:
    if not path.is_file():
        return
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            yield from (row[name] for name in ("sentence", "sentence1", "sentence2") if row.get(name))


def prepare(weights: str, data: str, folder: Path, steps: int = STEPS) -> dict[str, Path]:
    """Train the head, and make of that run what each process loads."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    places = {name: folder / name for name in ("mtmeta", "mtmeta_bf16", *RIVALS)}
    files = {split: "sample" if data == "sample" else f"{TASK}-{split}.csv" for split in ("train", "dev")}
    recipe = {
        "name": "predicted",
        "backbone": {"name": "bert", "weights": weights, "max_length": 128},
        "tasks": {TASK: {**files, "batch_size": 32}},
        "data": {"on_bad_rows": "skip"},
        "algorithm": {"name": "individual"},
        "optimizer": {"name": "adamw", "lr": 1e-4},
        "training": {"steps": steps, "precision": "fp32"},
        "evaluation": {"every": None},
        "reporters": ["jsonl"],
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    root = None if data == "sample" else str(Path(data).absolute())
    mtmeta.run(folder / "recipe.yaml", out=places["mtmeta"], data_root=root, device="cpu")
    copy_in_precision(places["mtmeta"], places["mtmeta_bf16"], "bf16")
    export(places["mtmeta"], "onnx", out=places["onnx"])
    shutil.copytree(places["onnx"], places["onnx_int8"])
    for graph in places["onnx"].glob("*.onnx"):
        quantize_dynamic(graph, places["onnx_int8"] / graph.name, weight_type=QuantType.QInt8)
    export(places["mtmeta"], "sentence-transformers", out=places["sentence_transformers"])
    return places


def _mtmeta(folder: Path) -> Answer:
    predictor = mtmeta.load(folder, device="cpu")

    def answer(path: Path, option: None) -> list[str]:
        out = folder / "out.csv"
        predict_file(predictor, TASK, source=str(path), target=str(out))
        return _labels(out)

    return answer


def _labels(path: Path) -> list[str]:
    with open(path, encoding="utf-8", newline="") as file:
        return [row["label"] for row in csv.DictReader(file)]


def _onnx(folder: Path) -> Answer:
    place = importlib.util.spec_from_file_location("inference", folder / "inference.py")
    assert place and place.loader
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    model = module.OnnxModel(folder)

    def answer(path: Path, is_sorted: bool) -> list[str]:
        texts = _lines(path)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i])) if is_sorted else list(range(len(texts)))
        predictions = model.predict(TASK, [texts[i] for i in order])
        labels = [""] * len(texts)
        for i, prediction in zip(order, predictions, strict=True):
            labels[i] = str(prediction["label"])
        return labels

    return answer


def _sentence_transformers(folder: Path) -> Answer:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")

    def answer(path: Path, batch_size: int) -> list[str]:
        model.encode(_lines(path), batch_size=batch_size, show_progress_bar=False)
        return []  # vectors are no labels

    return answer


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


MAKERS: dict[str, Callable[[Path], Answer]] = {
    "mtmeta": _mtmeta,
    "mtmeta_bf16": _mtmeta,
    "onnx": _onnx,
    "onnx_int8": _onnx,
    "sentence_transformers": _sentence_transformers,
}


def _serve(pipe: Any, kind: str, folder: Path) -> None:
    answer = MAKERS[kind](folder)
    pipe.send(0.0)
    while True:
        command, argument = pipe.recv()
        if command == "stop":
            return
        path, name, option = argument
        started = time.perf_counter()
        labels = answer(path, option)
        seconds = time.perf_counter() - started
        path.with_suffix(f".{name}.json").write_text(json.dumps(labels))
        pipe.send(seconds)


def _rounds(
    workers: Mapping[str, Remote], sentences: Sequence[str], folder: Path, options: Namespace, deadline: float
) -> tuple[dict[str, list[float]], list[int], dict[str, float]]:
    """Times of every contender by round, how many sentences a round had, and shares of equal labels in the first."""
    times: dict[str, list[float]] = {name: [] for name in FIELD}
    counts: list[int] = []
    path, warm = folder / "slice.txt", folder / "warm.txt"
    warm.write_text("\n".join(sentences[:64]) + "\n", encoding="utf-8")
    for name, (kind, option) in FIELD.items():
        workers[kind].ask("answer", (warm, name, option))  # not counted: the first is slow
    same: dict[str, float] = {}
    longest = 0.0
    for number, start in enumerate(range(0, len(sentences), options.slice)):
        started = time.perf_counter()
        if number and (number >= options.rounds or started + longest > deadline):
            break
        part = sentences[start : start + options.slice]
        path.write_text("\n".join(part) + "\n", encoding="utf-8")
        names = list(FIELD)
        turn = number % len(names)  # nobody always follows the same one
        for name in names[turn:] + names[:turn]:
            kind, option = FIELD[name]
            times[name].append(workers[kind].ask("answer", (path, name, option)))
        counts.append(len(part))
        longest = max(longest, time.perf_counter() - started)
        same = same or _same_labels(path)
    return times, counts, same


def _same_labels(path: Path) -> dict[str, float]:
    labels = {name: json.loads(path.with_suffix(f".{name}.json").read_text()) for name in FIELD}
    ours = labels["mtmeta"]
    return {
        name: round(float(np.mean([a == b for a, b in zip(ours, theirs, strict=True)])), 4)
        for name, theirs in labels.items()
        if theirs and name != "mtmeta"
    }


def summary(times: Mapping[str, Sequence[float]], counts: Sequence[int]) -> dict[str, Any]:
    """Rates by contender, and ratios of their times to those of mtmeta_bf16, over rounds."""
    results: dict[str, Any] = {"rounds": len(counts), "sentences_each": sum(counts), "contenders": {}}
    against = {name: ratios(taken, times["mtmeta_bf16"]) for name, taken in times.items()}
    for name, taken in times.items():
        rates = [count / seconds for count, seconds in zip(counts, taken, strict=True)]
        results["contenders"][name] = spread(rates).json("sentences_per_s", 1) | against[name].json("ratio_vs_bf16")
    results |= against["mtmeta"].json("ratio_vs_fp32")
    for library in RIVALS:
        forms = [name for name, (kind, _) in FIELD.items() if kind == library]
        best = min(forms, key=lambda name: against[name].median)
        results |= {f"{library}_best": best} | against[best].json(f"ratio_vs_{library}_best")
    return results


def _command(run: Path, path: Path, count: int) -> dict[str, float]:
    """`mtmeta predict` on a file, from the start of its process to its end."""
    line = [sys.executable, "-m", "mtmeta", "predict", str(run), "--task", TASK, "--input", str(path)]
    started = time.perf_counter()
    subprocess.run([*line, "--output", str(path.with_suffix(".csv")), "--device", "cpu"], check=True)
    seconds = time.perf_counter() - started
    assert len(_labels(path.with_suffix(".csv"))) == count
    return {"seconds": round(seconds, 2), "sentences_per_s": round(count / seconds, 1)}


def _measure(options: Namespace) -> dict[str, Any]:
    started, load_before = time.perf_counter(), load()
    sentences, repeated = read_sentences(options.data, options.sentences)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = prepare(options.weights, options.data, folder)
        workers = {kind: Remote(_serve, kind, place) for kind, place in places.items()}
        for worker in workers.values():
            worker.ready()
        times, counts, same = _rounds(workers, sentences, folder, options, started + options.seconds)
        for worker in workers.values():
            worker.stop()
        whole = folder / "whole.txt"
        whole.write_text("\n".join(sentences) + "\n", encoding="utf-8")
        commands = {kind: _command(places[kind], whole, len(sentences)) for kind in ("mtmeta", "mtmeta_bf16")}
    return {
        "machine": machine() | {"onnxruntime": version("onnxruntime")},
        "load_before": load_before,
        "load_after": load(),
        "sentences": len(sentences),
        "repeated": repeated,
        **summary(times, counts),
        "same_labels": same,
        "whole_command": commands,
        "seconds": round(time.perf_counter() - started, 1),
    }


def _table(results: Mapping[str, Any]) -> Table:
    title = f"{results['rounds']} rounds, {results['sentences_each']} sentences each: median and quartiles"
    table = Table("", title=title)
    for heading in ("sentences/s", "time over that of mtmeta_bf16", "same labels as fp32"):
        table.add_column(heading, justify="right")
    for name, values in results["contenders"].items():
        cells = []
        for key, digits in (("sentences_per_s", 0), ("ratio_vs_bf16", 2)):
            low, high = values[f"{key}_quartiles"]
            cells.append(Spread(values[key], low, high, 0).text(digits))
        table.add_row(name, *cells, f"{results['same_labels'][name]:.2%}" if name in results["same_labels"] else "")
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write the JSON document where it is asked for."""
    parser = ArgumentParser(prog="python -m benchmarks.predict", description=(__doc__ or "").partition("\n")[0])
    add_sources(parser)
    parser.add_argument("--sentences", type=int, default=100_000, help="in all (default: %(default)s)")
    parser.add_argument("--slice", type=int, default=5_000, help="sentences of a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1000, help="at most (default: by time)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the rounds (default: %(default)g)")
    parser.add_argument("--json", metavar="FILE", help="write the JSON document there; - is stdout, without a table")
    options = parser.parse_args(arguments)
    if min(options.sentences, options.slice, options.rounds) < 1:
        parser.error("--sentences, --slice and --rounds must be at least 1")
    results = _measure(options)
    document = json.dumps(results, indent=2, allow_nan=False)
    if options.json == "-":
        print(document)
        return
    if options.json:
        Path(options.json).write_text(document + "\n")
    console = Console(width=120)
    console.print(_table(results))
    for kind, values in results["whole_command"].items():
        console.print(f"mtmeta predict as a command, {kind}, {results['sentences']} sentences: {values}")
    about = results["machine"] | {key: results[key] for key in ("load_before", "load_after", "repeated", "seconds")}
    console.print(", ".join(f"{key} {value}" for key, value in about.items()), soft_wrap=True)


if __name__ == "__main__":
    main()
