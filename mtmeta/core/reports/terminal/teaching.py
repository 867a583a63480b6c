"""What `mtmeta teach` wrote, in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from mtmeta.core.reports.terminal.console import Folding, standard_output
from mtmeta.core.wording import safe


def show_teaching(taught: Mapping[str, Any]) -> None:
    """Print a row for each table of labels: who made it, how far it agrees with the labels of the data, its hash."""
    console = standard_output()
    folders = ", ".join(dict.fromkeys(safe(row["table"].rpartition("/")[0]) for row in taught["tables"]))
    table = Folding(console, f"{folders}: labels of training sets, and how far they agree with those of the data")
    for column in ("task", "examples", "labelled by", "agreement", "sha256"):
        table.add_column(column, justify="right" if column == "examples" else "left")
    for row in taught["tables"]:
        made = f"{row['folds']} fold models" if row["folds"] else "a run"
        agreement = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in row["agreement"].items())
        cells = [safe(row["task"]), f"{row['rows']:,}", made, agreement, f"{row['sha256'][:8]}.."]
        table.add_row(*map(Text, cells))
    console.print(table)
    # the models of a folder were trained once, for all their tasks
    spent = {row["table"].rpartition("/")[0]: row["training_examples"] for row in taught["tables"]}
    labelled = sum(row["rows"] for row in taught["tables"])
    console.print(f"labelling took {labelled:,} example-forwards, training the models {sum(spent.values()):,}")
