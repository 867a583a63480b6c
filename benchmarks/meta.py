"""Share of a meta-iteration that is neither a gradient nor an inner optimizer step.

Goal: below 3% with MiniLM on a CPU.

    python -m benchmarks.meta [--algorithms reptile,fomaml] [--steps 6] [--json]

Runs recipes/minilm/reptile.yaml and fomaml.yaml through mtmeta.core.run.run with a clock around the pieces themselves,
so nothing is the difference of two noisy totals. Every moment of a meta-iteration is booked once, on the innermost
piece:

    gradient     forward, loss and backward                         }
    inner step   the inner optimizer                                } the work
    batch        drawing and packing                                 }
    snapshot     theta is kept on entering the inner loop            }
    bookkeeping  clearing gradients, noting what was touched         }
    delta        theta - theta', its norm, the query gradient, kept  } the rest
    restore      theta comes back                                    }
    clip         norm of the direction, and clipping                 }
    outer step   the meta optimizer                                  }
    loop         all else in the iteration: draws, schedules, events }

The first meta-iterations, in which buffers are allocated, are left out.
"""

from __future__ import annotations

import json
import tempfile
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console
from rich.table import Table
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from benchmarks.parts import add_arguments
from benchmarks.stats import machine, spread
from mtmeta.core.data.feed import Feed
from mtmeta.core.python.training import run
from mtmeta.core.training.learner import Excursion, Learner
from mtmeta.core.training.trainer import Trainer

__all__ = ["PIECES", "Clock", "main", "measure_algorithm"]

RECIPES = Path(__file__).parent.parent / "recipes" / "minilm"
WORK = ("gradient", "inner step")
PIECES = (*WORK, "batch", "snapshot", "bookkeeping", "delta", "restore", "clip", "outer step", "loop")
WARM_UP = 2


class Clock:
    """Books time on the innermost open piece; a finished iteration is one Counter in `iterations`."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.iterations: list[Counter[str]] = []
        self.open: list[str] = []
        self._now = now
        self._since = 0.0
        self._current: Counter[str] = Counter()

    def enter(self, piece: str) -> None:
        """A piece begins."""
        self._book()
        self.open.append(piece)

    def leave(self) -> None:
        """The innermost piece ends; the outermost one ends the iteration."""
        self._book()
        self.open.pop()
        if not self.open:
            self.iterations.append(self._current)
            self._current = Counter()

    def _book(self) -> None:
        now = self._now()
        if self.open:
            self._current[self.open[-1]] += now - self._since  # type: ignore[assignment]
        self._since = now

    @contextmanager
    def piece(self, name: str) -> Iterator[None]:
        """The body is this piece."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, booked on this piece."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.piece(name):
                return function(*args, **kwargs)

        return timed

    def wrap_excursion(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Learner.excursion with entry and exit booked apart; its body books on the pieces within."""

        @contextmanager
        def timed(*args: Any, **kwargs: Any) -> Iterator[Any]:
            manager = function(*args, **kwargs)
            with self.piece("snapshot"):
                inner = manager.__enter__()
            try:
                yield inner
            finally:
                with self.piece("restore"):
                    manager.__exit__(None, None, None)

        return timed


@contextmanager
def watching(clock: Clock) -> Iterator[None]:
    """The clock is around the pieces of every run in the body."""
    pieces = [
        (Trainer, "_one_step", "loop"),
        (Trainer, "_clip", "clip"),
        (Learner, "gradient", "gradient"),
        (Excursion, "step", "bookkeeping"),
        (Excursion, "keep_delta", "delta"),
        (Excursion, "keep_gradient", "delta"),
        (Excursion, "drift", "delta"),
        (Feed, "batch", "batch"),
        (Feed, "episode", "batch"),
    ]
    with ExitStack() as stack:
        for owner, method, piece in pieces:
            stack.enter_context(patch.object(owner, method, clock.wrap(piece, getattr(owner, method))))
        stack.enter_context(patch.object(Learner, "excursion", clock.wrap_excursion(Learner.excursion)))

        def before(*_: Any) -> None:
            clock.enter("inner step" if "bookkeeping" in clock.open else "outer step")

        def after(*_: Any) -> None:
            clock.leave()

        stack.callback(register_optimizer_step_pre_hook(before).remove)
        stack.callback(register_optimizer_step_post_hook(after).remove)
        yield


def measure_algorithm(name: str, *, weights: str, data: str, steps: int, batch: int) -> dict[str, Any]:
    """Share of each piece in a run's meta-iterations, and of all that is not the work, with quartiles."""
    clock = Clock()
    sets = [f"training.steps={steps + WARM_UP}", f"backbone.weights={weights}", "reporters=[]"]
    for task in ("sst", "para", "sts"):
        sets += [f"tasks.{task}.dev=sample", f"tasks.{task}.batch_size={batch}"]
        sets += [f"tasks.{task}.train=sample"] if data == "sample" else []
    with tempfile.TemporaryDirectory() as folder:
        root = folder if data == "sample" else data
        with watching(clock):
            run(RECIPES / f"{name}.yaml", overrides=sets, out=Path(folder) / "run", data_root=root, device="cpu")
    counted = clock.iterations[WARM_UP:]
    seconds: Counter[str] = sum(counted, Counter())
    total = sum(seconds.values())
    rest = [1 - sum(each[piece] for piece in WORK) / sum(each.values()) for each in counted]
    return {
        "iterations": len(counted),
        "seconds_per_iteration": round(total / len(counted), 3),
        **spread(rest).json("overhead", 5),
        "shares": {piece: round(seconds[piece] / total, 6) for piece in PIECES},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then print one table or one JSON document."""
    parser = ArgumentParser(prog="python -m benchmarks.meta", description=(__doc__ or "").partition("\n")[0])
    add_arguments(parser)
    parser.add_argument("--algorithms", default="reptile,fomaml")
    parser.add_argument("--steps", type=int, default=6, help="meta-iterations that count (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {"machine": machine(), "batch": options.batch, "algorithms": {}}
    for name in options.algorithms.split(","):
        given = {"weights": options.weights, "data": options.data, "steps": options.steps, "batch": options.batch}
        results["algorithms"][name] = measure_algorithm(name, **given)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    table = Table(title=f"share of a meta-iteration, batch {options.batch}")
    table.add_column("piece")
    for name in results["algorithms"]:
        table.add_column(name, justify="right")
    for piece in PIECES:
        table.add_row(piece, *(f"{each['shares'][piece]:.2%}" for each in results["algorithms"].values()))
    table.add_section()
    table.add_row("all but the work, median", *(f"{each['overhead']:.2%}" for each in results["algorithms"].values()))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
