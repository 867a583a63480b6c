"""Print the table of identities."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from benchmarks.identities import all_rows


def main() -> int:
    """Print each row as it comes to be; return 1 if one does not hold."""
    rows = list(all_rows())
    if "--json" in sys.argv[1:]:
        print(json.dumps([{**asdict(row), "holds": row.holds} for row in rows], indent=1))
    else:
        table = Table("method", "must equal", "largest difference", "bound")
        for row in rows:
            table.add_row(row.method, row.formula, f"{row.difference:.1e}", f"{row.bound:.0e}" if row.bound else "0")
        Console(width=140).print(table)
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
