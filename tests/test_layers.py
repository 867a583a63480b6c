"""The storeys of mtmeta: a folder imports only from those below it, for types too; and the size of the rooms."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tools import house

LAYERS = (  # from the top down; folders on one line know nothing of each other
    ("mtmeta.__main__",),
    ("mtmeta.cli",),
    ("mtmeta.plugins", "mtmeta.testing"),
    ("mtmeta",),  # the public names of its __init__.py
    ("mtmeta.core.python",),
    ("mtmeta.core.authoring", "mtmeta.core.export", "mtmeta.core.reports", "mtmeta.core.serving"),
    ("mtmeta.core.studies",),
    ("mtmeta.core.run",),
    ("mtmeta.core.training",),
    ("mtmeta.core.methods",),
    ("mtmeta.core.data",),
    ("mtmeta.core.recipe",),
    ("mtmeta.core.registry",),
    ("mtmeta.core.api",),
    ("mtmeta.core.storage", "mtmeta.core.tables"),
    ("mtmeta.core.distributed",),
    ("mtmeta.core.environment", "mtmeta.core.machine", "mtmeta.core.signals", "mtmeta.core.web"),
    ("mtmeta.core.errors",),
    ("mtmeta.core.rng", "mtmeta.core.wording"),
    ("mtmeta.sample",),
    ("mtmeta.core",),  # its __init__.py
)
FLOOR = {name: number for number, names in enumerate(LAYERS) for name in names}
MODULES = house.package()
IMPORTS = house.import_graph(MODULES)
MOST_MODULES = 12
LONGEST_BODY = 50


def layer(module: str) -> str:
    """The storey that a module belongs to."""
    return max((name for name in FLOOR if f"{module}.".startswith(f"{name}.")), key=len)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_run_downward(name: str) -> None:
    here = layer(name)
    reached = {layer(module) for module in IMPORTS[name]} - {here}
    assert not [below for below in reached if FLOOR[below] <= FLOOR[here]]


@pytest.mark.parametrize("name", sorted(name for name in MODULES if layer(name) == "mtmeta.plugins"))
def test_plugins_import_public_names_alone(name: str) -> None:
    assert not [
        module for module in IMPORTS[name] if layer(module) not in ("mtmeta", "mtmeta.plugins", "mtmeta.sample")
    ]


def test_no_files_import_each_other_in_a_circle() -> None:
    assert house.circles(IMPORTS) == []
    assert house.circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "d"}}) == [["a", "b", "c"]]


def test_no_folder_has_more_modules_than_one_takes_in() -> None:
    assert not {folder: count for folder, count in house.folders(MODULES).items() if count > MOST_MODULES}


def test_no_function_is_longer_than_a_page() -> None:
    lengths = [(place, lines) for module in MODULES.values() for place, _, lines in house.functions(module)]
    assert not [(place, lines) for place, lines in lengths if lines > LONGEST_BODY]


def test_private_names_are_those_that_a_file_does_not_define() -> None:
    source = "from mtmeta.core import _a\nclass B:\n  def f(self):\n    self._b = self._c\n    return x._foreach_sub"
    module = house.Module("m", Path("m.py"), source, ast.parse(source))
    assert house.private_uses(module) == ["m:1: _a", "m:4: _c"]


def test_no_file_uses_the_private_names_of_another() -> None:
    assert not [use for module in MODULES.values() for use in house.private_uses(module)]
