"""The tables of docs/results.md for LEOPARD's tasks, from what `mtmeta adapt --json` printed.

    python -m benchmarks.leopard FILE...

Each FILE holds the adaptations of the same starts to one task or several, with `--baseline` and at least two draws.
Prints three tables in Markdown, with a row for each task and number of shots and then the means over tasks: mean and
standard deviation over the draws; the differences to the pretrained encoder on the same draws; and those to the
baseline; with 95% intervals, whose ends are rounded outwards from 0 where they leave it out.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtmeta.core.errors import MtmetaError, UsageError
from mtmeta.core.studies.adapt import means_over_tasks

SAME = ("recipe", "head", "split", "steps", "starts", "baseline", "draws")
"""What the files must agree in, to be parts of one table."""


def main() -> None:
    """Read the files, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    try:
        figures = joined([(str(path), json.loads(path.read_text(encoding="utf-8"))) for path in options.files])
    except (MtmetaError, OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    print("\n".join([*means(figures), "", *differences(figures, "gain"), "", *differences(figures, "beside")]))


def joined(parts: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the figures of several files as those of one call. Raises UsageError where they cannot be one."""
    first_path, first = parts[0]
    for path, part in parts:
        if not isinstance(part, dict) or not {*SAME, "cells", "adapted"} <= part.keys():
            raise UsageError(path, "is not what mtmeta adapt --json prints")
        if part["baseline"] is None or any(cell["draws"] < 2 for cell in part["cells"]):
            raise UsageError(path, "takes a --baseline and two draws at least")
        for key in SAME:
            if part[key] != first[key]:
                raise UsageError(path, f"has {key} {part[key]!r}, and {first_path} has {first[key]!r}")
    cells = [cell for _, part in parts for cell in part["cells"]]
    keys = [(cell["task"], cell["shots"]) for cell in cells]
    if len(set(keys)) < len(keys):
        raise UsageError(parts[-1][0], "has a task and number of shots that another file has, too")
    adapted = [one for _, part in parts for one in part["adapted"]]
    figures = {key: first[key] for key in SAME} | {"cells": cells, "adapted": adapted}
    return figures | {"means": means_over_tasks(figures)}


def means(figures: Mapping[str, Any]) -> list[str]:
    """Return the table of means and standard deviations."""
    starts = figures["starts"]

    def shown(cell: Mapping[str, Any]) -> list[str]:
        columns = [cell["starts"][start] for start in starts]
        return [f"{short(column['mean'])} ± {short(column['deviation'])}" for column in columns]

    return table(figures, [named(start) for start in starts], shown)


def differences(figures: Mapping[str, Any], key: str) -> list[str]:
    """Return the table of a `gain` over the pretrained encoder, or of what stands `beside` the baseline.

    Bold are intervals that leave out 0.
    """
    other = figures["baseline"] if key == "beside" else figures["starts"][0]
    starts = [start for start in figures["starts"] if key in figures["cells"][0]["starts"][start]]
    heads = [f"{named(start)} - {named(other)}" for start in starts]
    return table(figures, heads, lambda cell: [difference(cell["starts"][start][key]) for start in starts])


def table(
    figures: Mapping[str, Any], heads: Sequence[str], shown: Callable[[Mapping[str, Any]], Sequence[str]]
) -> list[str]:
    """Return the lines of a table, a row for each cell of `figures` and each mean; of fewer draws it says so."""
    lines = ["| task | k | " + " | ".join(heads) + " |", "|---|---:|" + "---|" * len(heads)]
    for cell in (*figures["cells"], *figures["means"]):
        fewer = f", {cell['draws']} draws" if cell["draws"] < figures["draws"] else ""
        lines.append(f"| {cell['task']}{fewer} | {cell['shots']} | " + " | ".join(shown(cell)) + " |")
    return lines


def named(start: str) -> str:
    """Return the name of a start, which is that of a recipe of recipes/leopard/, as a heading."""
    return start.removeprefix("leopard_")


def difference(found: Mapping[str, float]) -> str:
    """Return a difference with its interval, bold where that leaves out 0, which then no end is rounded to."""
    low, high = found["low"], found["high"]
    telling = low > 0 or high < 0
    ends = [outwards(low), outwards(high)] if telling else [low, high]
    text = f"{short(found['mean'], '+')} [{short(ends[0], '+')}, {short(ends[1], '+')}]"
    return f"**{text}**" if telling else text


def outwards(value: float) -> float:
    """Return a value that rounding to three decimals would make 0 as .001 or -.001."""
    return math.copysign(max(abs(value), 0.001), value)


def short(value: float, sign: str = "") -> str:
    """Return a number with three decimals, with its sign where `sign` is "+", and no zero before the point."""
    return re.sub(r"^([+-]?)0\.", r"\1.", f"{round(value, 3) + 0.0:{sign}.3f}")


if __name__ == "__main__":
    main()
