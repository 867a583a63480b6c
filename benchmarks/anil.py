"""ANIL against FOMAML, and against learn2learn and higher on the same encoder: examples/s and peak memory.

    python -m benchmarks.anil [--tasks sst,para,sts] [--batch 32] [--steps 5] [--rounds 6] [--kinds ...] [--json]

In each round every contender takes one outer step on the same episode, one after the other, each in a process of its
own: collate, inner loop, gradient, AdamW. Ratios are medians over rounds, quartiles in brackets. Contenders:

    mtmeta anil        the product's own path
    mtmeta fomaml      the same, with as many support batches as inner steps, of which the first is the others' only one
    learn2learn anil   clone and adapt of the head alone, as in its own example; transformers' BertModel, padded batches
    higher anil        innerloop_ctx around the head alone
    learn2learn maml   clone and adapt of head and encoder, with second derivatives

Examples are those of the episode, support and query, each counted once: of ANIL and learn2learn twice `--batch`, of
FOMAML (1 + steps) times. The rivals are fetched from PyPI into a temporary folder. Before anything is timed, query loss
and gradient norm of each are told without dropout: contenders of one method must agree.
"""

from __future__ import annotations

import json
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.contenders import random_batches
from benchmarks.episodes import CLOCKS, HIGHER, KINDS, LEARN2LEARN, Episode, EpisodeWorker, fetch_rivals
from benchmarks.parts import add_arguments, load_parts
from benchmarks.stats import load, machine, ratios, spread

__all__ = ["main", "measure_task"]

OURS = "mtmeta anil"
FP32 = [kind for kind in KINDS if not kind.endswith("bf16")]
WARM = 1  # rounds that count for nothing: buffers are not there yet


def measure_task(task: str, options: Namespace, library: str) -> dict[str, Any]:
    """All figures of one task."""
    kinds = options.kinds.split(",")
    batches = random_batches(load_parts(options.weights, options.data, [task]).datasets[task, "train"], options.batch)
    common = (options.weights, options.data, task, options.steps, library, options.clock)
    workers = {kind: EpisodeWorker(kind, *common) for kind in kinds}
    try:
        for worker in workers.values():
            worker.ready()
        first = [next(batches) for _ in range(1 + options.steps)]
        told = {
            kind: (worker.query_loss(_of(kind, first)), worker.gradient_norm(_of(kind, first)))
            for kind, worker in workers.items()
        }
        cost: dict[str, list[float]] = {kind: [] for kind in kinds}
        for turn in range(WARM + options.rounds):
            episode = [next(batches) for _ in range(1 + options.steps)]
            at = turn % len(kinds)  # no contender always follows the same one
            for kind in kinds[at:] + kinds[:at]:
                own = _of(kind, episode)
                seconds = workers[kind].step(own)
                if turn >= WARM:
                    cost[kind].append(seconds / sum(map(len, own)))
        return {
            kind: {
                **spread([1 / each for each in cost[kind]]).json("examples_per_s", 1),
                **ratios(cost[kind], cost[OURS]).json("times_ours"),
                "peak_mib": round(workers[kind].peak()),
                "query_loss": told[kind][0],
                "gradient_norm": told[kind][1],
            }
            for kind in kinds
        }
    finally:
        for worker in workers.values():
            worker.stop()


def _of(kind: str, episode: Episode) -> Episode:
    """What a contender takes of an episode: FOMAML a support batch for each inner step, the others one for all."""
    return episode if "fomaml" in kind else [episode[0], episode[-1]]


def _print(found: dict[str, Any], options: Namespace) -> None:
    console = Console()
    told = found["machine"]
    console.print(f"{told['cpu']}, {told['threads']} thread(s), torch {told['torch']}, load {found['load']}")
    console.print(
        f"batches of {options.batch}, {options.steps} inner steps, {options.rounds} rounds, {options.clock} time"
    )
    for task, kinds in found["tasks"].items():
        table = Table(title=task)
        columns = ("", "examples/s", "time an example over mtmeta anil", "peak MiB", "query loss", "gradient norm")
        for column in columns:
            table.add_column(column, justify="left" if column == "" else "right")
        for kind, values in kinds.items():
            cells = [_text(values, "examples_per_s", 1), _text(values, "times_ours", 2), str(values["peak_mib"])]
            table.add_row(kind, *cells, f"{values['query_loss']:.5f}", f"{values['gradient_norm']:.5f}")
        console.print(table)


def _text(values: dict[str, Any], name: str, digits: int) -> str:
    low, high = values[f"{name}_quartiles"]
    return f"{values[name]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = ArgumentParser(prog="python -m benchmarks.anil", description=(__doc__ or "").split("\n", 1)[0])
    add_arguments(parser)
    parser.set_defaults(batch=32)
    parser.add_argument("--steps", type=int, default=5, help="inner steps (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=6, help="rounds that count (default: %(default)s)")
    parser.add_argument("--kinds", default=",".join(FP32), help=f"of {', '.join(KINDS)} (default: fp32)")
    clock = "seconds of the clock, or of a contender's process: for a busy machine, with one thread"
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help=clock + " (default: %(default)s)")
    parser.add_argument("--library", help="folder that holds both rivals, in place of fetching them")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    options = parser.parse_args(arguments)
    kinds = options.kinds.split(",")
    if OURS not in kinds or {*kinds} - {*KINDS}:
        parser.error(f"--kinds: takes '{OURS}', and of the others any of {', '.join(KINDS)}; got {options.kinds}")
    with tempfile.TemporaryDirectory() as folder:
        rivals = any(not kind.startswith("mtmeta") for kind in kinds)
        library = options.library or (str(fetch_rivals(Path(folder))) if rivals else folder)
        tasks = {task: measure_task(task, options, library) for task in options.tasks.split(",")}
    found = {"machine": machine(), "rivals": [LEARN2LEARN, HIGHER], "load": load(), "tasks": tasks}
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        _print(found, options)


if __name__ == "__main__":
    main()
