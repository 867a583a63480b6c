"""The table of a run's results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from mtmeta.core.reports.table import shown_number
from mtmeta.core.reports.terminal.console import Folding, standard_output
from mtmeta.core.wording import safe


def show_results(summary: Mapping[str, Any]) -> None:
    """Print task, metric, value with 95% interval, examples, split and loss, and what the run cost."""
    console = standard_output()
    weights = f"best of {summary['steps']} steps" if "selected_on" in summary else f"weights of step {summary['steps']}"
    title = f"{summary['run']}: {summary['split']}, {weights}"
    table = Folding(console, title)
    for column in ("task", "metric", "value", "95% interval", "examples", "split", "loss"):
        table.add_column(column, justify="left" if column in ("task", "metric", "split") else "right")
    for name, score in summary["tasks"].items():
        examples = f"{score['examples']:,}" + (f" (+{score['skipped']} bad)" if score["skipped"] else "")
        interval = f"{score['low']:.3f} to {score['high']:.3f}" if score["low"] is not None else ""
        names = {key: safe(text) for key, text in (("metric", score["metric"]), ("split", summary["split"]))}
        row = [safe(name), names["metric"], f"{score['value']:.4f}", interval, examples, names["split"]]
        table.add_row(*map(Text, row), f"{score['loss']:.4f}")
        for metric, value in score["others"].items():  # without an interval, which only the primary one has
            table.add_row("", Text(safe(metric)), f"{value:.4f}")
    if len(summary["tasks"]) > 1:
        table.add_section()
        table.add_row("mean", "", f"{summary['mean']:.4f}")
    console.print(table)
    if any(score["skipped"] for score in summary["tasks"].values()):
        console.print("bad rows were skipped, see the warnings above")
    if "sampling" in summary:
        _show_cost(console, summary)
    for name, fitted in summary.get("calibration", {}).items():
        losses = " to ".join(f"{loss:.4f}" for loss in fitted["loss"])
        text = f"{safe(name)}: temperature {fitted['temperature']:.3f} fitted on {summary['selected_on']}"
        console.print(f"{text}, log loss {losses}")
    for name, details in summary.get("details", {}).items():
        _show_details(console, name, details)


def _show_cost(console: Console, summary: Mapping[str, Any]) -> None:
    lines = []
    for name, used in summary["sampling"].items():
        planned = f" of {used['planned_draws']:.1f} planned" if used["planned_draws"] else ""
        draws = f"{used['draws']} draws{planned}, " if used["draws"] else ""
        lines.append(f"  {safe(name)}: {draws}{used['examples']:,} examples, {used['epochs']:.2f} epochs")
    console.print("\n".join(lines))
    memory = summary["peak_memory_bytes"] / 2**30
    spent = f"{summary['examples']:,} example-forwards in training"
    if summary.get("teacher_examples"):
        spent += f" and {summary['teacher_examples']:,} of its teachers"
    console.print(f"{summary['total_seconds']:.0f} s in all, {spent}, peak memory {memory:.2f} GiB")


def _show_details(console: Console, name: str, details: Mapping[str, Any]) -> None:
    """Print the confusion matrix of a task with classes, or how far predictions of numbers are off."""
    if "confusion" in details:
        table = Folding(console, f"{safe(name)}: rows are labels, columns predictions")
        table.add_column("")
        for label in details["classes"]:
            table.add_column(Text(safe(label, 20)), justify="right")
        for label, row in zip(details["classes"], details["confusion"], strict=True):
            table.add_row(Text(safe(label, 20)), *map(str, row))
        console.print(table)
        return
    if "table" in details:
        _show_table(console, name, details["table"])
        return
    if not details:
        return
    console.print(
        f"{safe(name)}: mean error {details['mean_error']:+.3f}, "
        f"mean absolute error {details['mean_absolute_error']:.3f}, "
        f"root mean square {details['root_mean_square_error']:.3f}; farthest off:"
    )
    for row in details["worst"]:
        console.print(f"  {safe(row['id'])}: label {row['label']:.3g}, predicted {row['prediction']:.3g}")


def _show_table(console: Console, name: str, own: Mapping[str, Any]) -> None:
    """Print the table that an objective makes of labels and predictions."""
    table = Folding(console, f"{safe(name)}: {safe(own['caption'], 200)}")
    table.add_column("")
    for column in own["columns"]:
        table.add_column(Text(safe(column, 20)), justify="right")
    for label, numbers in own["rows"]:
        table.add_row(Text(safe(label, 20)), *map(shown_number, numbers))
    console.print(table)
