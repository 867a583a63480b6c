"""A comparison in words: title, cells and notes; as Markdown, and flat as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtmeta.core.reports.table import Cell, Table, Tone
from mtmeta.core.studies.comparison import TELLING
from mtmeta.core.wording import plural, safe

COSTS = ("examples", "time", "memory", "parameters", "encodings")
"""Headings of what a row cost, and of what it costs to use."""


def as_markdown(comparison: Mapping[str, Any]) -> str:
    """Return the table in GitHub's Markdown, bold what is surely the best of its column."""
    table = table_of(comparison)
    lines = [[*table.header], ["---:" if heading in COSTS else "---" for heading in table.header]]
    for cells in table.rows:
        values = [f"**{cell.value}**" if cell.best else cell.value for cell in cells]
        below = [f"\n{cell.below}".replace("\n", "<br>") if cell.below else "" for cell in cells]
        lines.append(list(map("".join, zip(values, below, strict=True))))
    text = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    notes = [re.sub(r"([\\`<>|])", r"\\\1", note) for note in notes_of(comparison)]  # values of locks are among them
    return "\n\n".join([title_of(comparison), text, *notes]) + "\n"


def table_of(comparison: Mapping[str, Any], between: str = " ", *, costs: bool = True) -> Table:
    """Return the table: mean and interval, below them the difference; `between` parts a number from its interval."""
    metrics = comparison["metrics"]
    columns = [f"{name} {metrics[name]}" if name in metrics else name for name in comparison["rows"][0]["columns"]]
    rows = []
    for row in comparison["rows"]:
        cells = [Cell(row["name"])]
        for column, cell in row["columns"].items():
            sign = sign_of(comparison, column)
            deltas = list(cell.get("deltas", {}).items())
            lines = [_delta_line(baseline, delta, comparison, between) for baseline, delta in deltas]
            value = f"{cell['mean']:.4f}{_of(cell, row, between)}"
            tones = [
                tone_of(delta, sign) for (_, delta), line in zip(deltas, lines, strict=True) for _ in line.split("\n")
            ]
            cells.append(Cell(value, "\n".join(lines), cell.get("surely_best", False), tones))
        rows.append([*cells, *map(Cell, costs_of(row) if costs else [])])
    return Table(["regime", *columns, *(COSTS if costs else ())], rows)


def other_metrics(comparison: Mapping[str, Any], between: str = " ") -> Table | None:
    """Return the table of the metrics beside the primary ones; None where there are none."""
    first = comparison["rows"][0]["columns"]
    columns = [(task, metric) for task, cell in first.items() for metric in cell.get("others", {})]
    if not columns:
        return None
    rows = []
    for row in comparison["rows"]:
        cells = [Cell(row["name"])]
        for task, metric in columns:
            score = row["columns"][task].get("others", {}).get(metric)
            cells.append(Cell("" if score is None else f"{score['mean']:.4f}{_of(score, row, between)}"))
        rows.append(cells)
    return Table(["regime", *(f"{task} {metric}" for task, metric in columns)], rows)


def cost_table(comparison: Mapping[str, Any]) -> Table:
    """Return what each row cost, and what it costs to use."""
    rows = [[*map(Cell, (row["name"], *costs_of(row)))] for row in comparison["rows"]]
    return Table(["regime", *COSTS], rows)


def interval_text(cell: Mapping[str, Any], few: int | None, between: str = " ", sign: str = "") -> str:
    """Return what stands behind a number: its interval, or `few`, the number of seeds if they are too few for one."""
    if few is not None:
        return f"{between}({plural(few, 'seed')})"
    return "" if cell["low"] is None else f"{between}[{cell['low']:{sign}.3f}, {cell['high']:{sign}.3f}]"


def _of(score: Mapping[str, Any], row: Mapping[str, Any], between: str) -> str:
    return interval_text(score, few_seeds(row), between)


def few_seeds(row: Mapping[str, Any]) -> int | None:
    """Return how many seeds a row has if they are too few for an interval over the seeds, but several."""
    return count if 1 < (count := len(row["seeds"])) < TELLING else None


def sign_of(comparison: Mapping[str, Any], column: str) -> float:
    """Return 1 where more is better in a column, -1 where less is, 0 where nothing is."""
    return float(comparison.get("signs", {}).get(column, 1.0))


def tone_of(delta: Mapping[str, Any], sign: float) -> Tone:
    """Return what a difference surely is: its interval excludes 0, and there are seeds enough for one."""
    low, high = delta["low"], delta["high"]
    if low is None or high is None or not sign or delta.get("too_few"):
        return ""
    if delta["negative_transfer"] is None:  # one seed, or examples alone, cannot tell
        return ""
    worst, best = (low, high) if sign > 0 else (-high, -low)
    return "better" if worst > 0 else "worse" if best < 0 else ""


def costs_of(row: Mapping[str, Any]) -> list[str]:
    """Return the costs of a row as texts, one for each of COSTS; empty where its summaries do not say."""
    memory = f"{row['peak_memory_bytes'] / 2**30:.2f} GiB"
    sizes = [f"{row[key]:,}" if row.get(key) is not None else "" for key in ("parameters", "encodings")]
    return [f"{row['examples']:,.0f}", f"{row['seconds']:,.0f} s", memory, *sizes]


def as_csv(comparison: Mapping[str, Any]) -> str:
    """Return a line for each regime and column, with every number of the table, unrounded."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = ("value", "low", "high", "p", "effect", "negative_transfer", "non_inferior")
    costs = ("examples", "seconds", "peak_memory_bytes", "parameters", "encodings")
    header = ["regime", "algorithm", "column", "metric", "split", "seeds", "mean", "low", "high", "best", "baseline"]
    writer.writerow([*header, *(f"delta_{key}" for key in keys), *costs, "delta_level"])
    for row in comparison["rows"]:
        seeds = " ".join(map(str, row["seeds"]))
        for column, cell in row["columns"].items():
            metric = comparison["metrics"].get(column, "")
            front = [row["name"], row["algorithm"], column, metric, comparison["split"], seeds]
            front += [cell[key] for key in ("mean", "low", "high", "best")]
            for baseline, delta in cell.get("deltas", {"": {}}).items():
                middle = [baseline, *(delta.get(key) for key in keys)]
                level = "" if not delta else row["look"]["level"] if column == "mean" and row["look"] else 0.95
                writer.writerow([*front, *middle, *(row[key] for key in costs), level])
    return text.getvalue()


def title_of(comparison: Mapping[str, Any]) -> str:
    """Return split and seeds in a line; of rows with other seeds, those of each row."""
    seeds = {row["name"]: _of_seeds(row["seeds"]) for row in comparison["rows"]}
    shown = {*seeds.values()} if len({*seeds.values()}) == 1 else [f"{name} {text}" for name, text in seeds.items()]
    return f"{comparison['split']}, best weights of each run, seeds: {'; '.join(shown)}"


def _of_seeds(seeds: Sequence[int]) -> str:
    """Return seeds in words: of more than three that follow each other the ends, and how many they are."""
    if len(seeds) > 3 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]} to {seeds[-1]} ({len(seeds)})"
    return ", ".join(map(str, seeds))


def few_of(delta: Mapping[str, Any]) -> int | None:
    """Return of how many seeds a difference is if they are too few for its interval."""
    return TELLING - 1 if delta.get("too_few") else None


def _delta_line(baseline: str, delta: Mapping[str, Any], comparison: Mapping[str, Any], between: str) -> str:
    """Return a difference, its interval, what it surely is, and of several baselines to which."""
    few, sure = few_of(delta), ""
    if few is None:
        sure = f"{between}worse" if delta["negative_transfer"] else ""
        sure += f"{between}not inferior" if delta["non_inferior"] else ""
    to = f"{between}to {safe(baseline)}" if len(comparison["baselines"]) > 1 else ""
    return f"{delta['value']:+.4f}{interval_text(delta, few, between, '+')}{sure}{to}"


def notes_of(comparison: Mapping[str, Any]) -> list[str]:
    """Return the lines under the table: what its numbers are, what was left out, and why."""
    rows = comparison["rows"]
    notes = [*_of_intervals(rows), _of_examples(rows)]
    if any(row.get("parameters") is not None for row in rows):
        notes.append(
            "Parameters: of all models that a run leaves. Encodings: passes of an encoder that answer all tasks on one "
            "text."
        )
    compared = [row for row in rows if any("deltas" in cell for cell in row["columns"].values())]
    if compared:
        baselines = ", ".join(map(safe, comparison["baselines"]))
        deltas = [delta for row in compared for c in row["columns"].values() for delta in c.get("deltas", {}).values()]
        covers = f" with a 95% interval. {_covers(comparison, compared)}"
        notes.append(f"Below: differences to {baselines}{'.' if all(map(few_of, deltas)) else covers}")
        notes += [*_of_pairs(comparison), *_of_margin(comparison), *_of_looks(comparison), *_effects(comparison)]
    if any(cell.get("surely_best") for row in rows for cell in row["columns"].values()):
        notes.append("Bold: better than every other row, by 95% intervals of its differences to each of them.")
    if len(rows) > 1 and not any(row["columns"]["mean"]["best"] for row in rows):
        notes.append("The metrics point in different directions, so of the mean nothing is better or worse.")
    if comparison["baseline"] is None and len(rows) > 1 and not comparison["left_out"]:
        notes.append("No recipe here trains each task alone; --baseline NAME shows differences to another one.")
    notes += [f"Left out: {safe(name)}, because of {safe(why, 500)}." for name, why in comparison["left_out"].items()]
    return notes + [safe(note, 1000) for note in comparison["notes"]]


def _of_intervals(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield lines on what brackets behind a mean are, and on rows that are of too few seeds to have any."""
    names = {row["name"]: len(row["seeds"]) for row in rows}
    single = [safe(name) for name, count in names.items() if count == 1]
    few = [safe(name) for name, count in names.items() if 1 < count < TELLING]
    if len(few) < len(names):
        over = "bootstrap over the examples of the one run"
        if len(single) + len(few) < len(names):
            of_single = f" (of {', '.join(single)}, with one run, bootstrap over its examples)" if single else ""
            over = f"Student's t over the seeds{of_single}"
        yield f"Brackets behind a mean: 95% interval, {over}."
    if few:
        of = "" if len(few) == len(names) else f" (of {', '.join(few)})"
        yield f"2 seeds: too few for an interval{of}; --json and --csv have the one that Student's t gives."


def _of_examples(rows: Sequence[Mapping[str, Any]]) -> str:
    examples = "Examples: example-forwards in training, mean of the seeds."
    if taught := [row for row in rows if row.get("teacher_examples")]:
        shares = ", ".join(f"{safe(row['name'])} {row['teacher_examples']:,.0f}" for row in taught)
        examples += f" Among them those of its teachers, whom one run would need as well: {shares}."
    return examples


def _of_pairs(comparison: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line on rows whose differences are of other seeds than those of the row, and on those not paired."""
    for baseline in comparison["baselines"]:
        for row in comparison["rows"]:
            delta = next((cell["deltas"].get(baseline) for cell in row["columns"].values() if "deltas" in cell), None)
            if row["name"] == baseline or delta is None or "paired" not in delta or row["look"] is not None:
                continue
            of = f"{safe(row['name'])} beside {safe(baseline)}"
            base = next(one for one in comparison["rows"] if one["name"] == baseline)
            if not delta["paired"]:
                yield f"{of}: fewer than two seeds are common, so seeds are not paired."
            elif {*delta["seeds"]} != {*row["seeds"], *base["seeds"]}:
                yield f"{of}: differences are of the seeds in common, {', '.join(map(str, delta['seeds']))}."


def _covers(comparison: Mapping[str, Any], compared: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence on what the intervals of the differences stand for."""
    alone = {row["name"]: len(row["seeds"]) == 1 for row in comparison["rows"]}
    single_base = any(alone[name] for name in comparison["baselines"])
    examples = [safe(row["name"]) for row in compared if single_base or alone[row["name"]]]
    one_seed = "covers other examples, not other seeds: one seed cannot tell, so nothing is marked 'worse'"
    one_seed += " or 'not inferior'" if comparison["margin"] is not None else ""
    if len(examples) == len(compared):
        return f"It {one_seed}."
    text = (
        "It covers other seeds and other examples (paired two-level bootstrap, the seeds' part as wide as "
        "Student's t); 'worse' marks negative transfer: no part of it is better."
    )
    return text + (f" Of {', '.join(examples)} it {one_seed}." if examples else "")


def _of_margin(comparison: Mapping[str, Any]) -> Iterator[str]:
    if comparison["margin"] is not None:
        yield (
            f"'not inferior': the whole interval is better than a loss of {comparison['margin']:g} (the margin; a "
            "one-sided test at 2.5%)."
        )


def _of_looks(comparison: Mapping[str, Any]) -> Iterator[str]:
    looked = [row for row in comparison["rows"] if row["look"] is not None]
    if not looked:
        return
    levels = ", ".join(f"{safe(row['name'])} {len(row['seeds'])} seeds, {row['look']['level']:.2%}" for row in looked)
    yield (
        "Of the mean, differences have intervals of another level, for rows were looked at on the way and got no "
        "further seeds once an interval excluded 0; all looks at a row together err in at most 5% of comparisons "
        f"between equals (error spending of Kim and DeMets, by the union bound): {levels}. A row with fewer seeds "
        "stands beside the same seeds of the baseline."
    )


def _effects(comparison: Mapping[str, Any]) -> Iterator[str]:
    """Yield the effect sizes of the means, in a line for each baseline."""
    for baseline in comparison["baselines"]:
        deltas = {row["name"]: row["columns"]["mean"].get("deltas", {}).get(baseline) for row in comparison["rows"]}
        effects = {name: delta["effect"] for name, delta in deltas.items() if delta and delta["effect"] is not None}
        sizes = [f"{safe(name)} {round(effect, 2) + 0.0:+.2f}" for name, effect in effects.items()]
        if sizes:
            yield (
                f"Effect on the mean, in standard deviations of the seeds (Hedges' g), beside {safe(baseline)}: "
                f"{', '.join(sizes)}."
            )
