"""The storeys of mtmeta: a folder imports only from those below it, for types too."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = (  # from the top down; folders on one line know nothing of each other
    ("mtmeta.cli",),
    ("mtmeta.core.authoring", "mtmeta.core.export", "mtmeta.core.reports"),
    ("mtmeta.core.studies",),
    ("mtmeta.core.run",),
    ("mtmeta.core.training",),
    ("mtmeta.core.data",),
    ("mtmeta.core.recipe",),
    ("mtmeta.core.registry",),
    ("mtmeta.core.api",),
    ("mtmeta.core.storage", "mtmeta.core.tables"),
    ("mtmeta.core.environment", "mtmeta.core.machine", "mtmeta.core.signals"),
    ("mtmeta.core.errors",),
    ("mtmeta.core.rng", "mtmeta.core.wording"),
)
FLOOR = {name: number for number, names in enumerate(LAYERS) for name in names}


def layer(module: str) -> str | None:
    """The storey that a module belongs to."""
    return next((name for name in FLOOR if module == name or module.startswith(f"{name}.")), None)


def imported(tree: ast.Module) -> set[str]:
    """Every module that is imported anywhere, `if TYPE_CHECKING:` and inside functions included."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize(
    "file", sorted((ROOT / "mtmeta").rglob("*.py")), ids=lambda file: file.relative_to(ROOT).as_posix()
)
def test_imports_run_downward(file: Path) -> None:
    here = layer(".".join(file.relative_to(ROOT).with_suffix("").parts))
    if here is None:
        return
    reached = {
        below for module in imported(ast.parse(file.read_text())) if (below := layer(module)) not in (None, here)
    }
    assert not [below for below in reached if FLOOR[below] <= FLOOR[here]]
