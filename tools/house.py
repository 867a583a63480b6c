"""The house in numbers: its folders, import circles, lines, long functions, private names and words to avoid.

    python -m tools.house [--root PATH]

`--root` is another checkout, an older one for instance. `tests/test_layers.py` holds this one to some of the numbers.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Module", "circles", "folders", "functions", "import_graph", "package", "private_uses"]

ROOT = Path(__file__).parent.parent
PACKAGE = "mtmeta"
WORDS = ("found", "made", "what", "told", "thing")
LONG = 50
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]
FOREIGN = set(SETTINGS["flake8-self"]["extend-ignore-names"])  # private names of other libraries
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """A file of the package: its dotted name, a folder's for an `__init__.py`, and its source."""

    name: str
    path: Path
    text: str
    tree: ast.Module


def package(root: Path = ROOT) -> dict[str, Module]:
    """Read every Python file of the package in the checkout `root`, by dotted name."""
    modules = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        text = path.read_text(encoding="utf-8")
        modules[name] = Module(name, path, text, ast.parse(text))
    return modules


def import_graph(modules: Mapping[str, Module]) -> dict[str, set[str]]:
    """Find the files of the package that each imports, for types and inside functions too."""
    graph: dict[str, set[str]] = {}
    for module in modules.values():
        imported = graph[module.name] = set()
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                # of `from folder import name`, the file `name` if there is one, else the folder's `__init__.py`
                for full_name in (f"{node.module}.{alias.name}" for alias in node.names):
                    imported.add(full_name if full_name in modules else node.module)
        imported.intersection_update(modules.keys() - {module.name})
    return graph


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Find the groups of files that import each other, directly or by way of others."""
    reached: dict[str, set[str]] = {}
    for name in graph:
        ahead, reached[name] = list(graph[name]), set()
        while ahead:
            if (next_name := ahead.pop()) not in reached[name]:
                reached[name].add(next_name)
                ahead += graph[next_name]
    groups = {tuple(sorted(other for other in reached[name] if name in reached[other])) for name in graph}
    return sorted(list(group) for group in groups if len(group) > 1)


def folders(modules: Mapping[str, Module], root: Path = ROOT) -> dict[str, int]:
    """Count the modules of each folder, its `__init__.py` not included."""
    paths = [module.path.relative_to(root) for module in modules.values()]
    return dict(Counter(path.parent.as_posix() for path in paths if path.name != "__init__.py"))


def functions(module: Module) -> Iterator[tuple[str, Function, int]]:
    """Yield the place of each function, the function, and the lines of its body without the docstring."""
    for node in ast.walk(module.tree):
        if isinstance(node, Function):
            body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            yield f"{module.name}.{node.name}:{node.lineno}", node, lines


def private_uses(module: Module) -> list[str]:
    """Find the private names that a file uses and does not define, FOREIGN ones aside."""
    used: list[tuple[int, str]] = []
    own: set[str] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, Function | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, ast.Attribute):
            if isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self":
                own.add(node.attr)
            used.append((node.lineno, node.attr))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            used += [(node.lineno, alias.name) for alias in node.names]
    return [
        f"{module.name}:{line}: {name}"
        for line, name in sorted(used)
        if re.match("_(?!_)", name) and name not in own and name not in FOREIGN
    ]


def word_counts(module: Module) -> Counter[str]:
    """Count the WORDS that stand as names in a file, and in its docstrings and comments."""
    tokens = list(tokenize.generate_tokens(io.StringIO(module.text).readline))
    counts = Counter(token.string for token in tokens if token.type == tokenize.NAME and token.string in WORDS)
    prose = [token.string for token in tokens if token.type == tokenize.COMMENT]
    prose += [
        str(node.value.value)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]
    words = re.findall(r"[a-z]+", " ".join(prose).lower())
    return counts + Counter(f"{word}, in prose" for word in words if word in WORDS)


def blame_blocks(module: Module) -> int:
    """Count the hand-written `with blame(...)` blocks of a file."""
    items = [item.context_expr for node in ast.walk(module.tree) if isinstance(node, ast.With) for item in node.items]
    return sum(ast.unparse(item).startswith("blame(") for item in items)


def report(root: Path) -> Iterator[str]:
    """Yield the numbers of a checkout, a line each."""
    modules = package(root)
    values = list(modules.values())
    yield "Modules by folder"
    yield from (f"  {count:4} {folder}" for folder, count in sorted(folders(modules, root).items()))
    groups = circles(import_graph(modules))
    yield f"Files in import circles: {sum(map(len, groups))}"
    yield from (f"  {', '.join(group)}" for group in groups)
    yield f"Lines: {sum(len(module.text.splitlines()) for module in values)} in {len(modules)} files"
    lengths = [
        ((node.end_lineno or 0) - node.lineno + 1, lines, place)
        for module in values
        for place, node, lines in functions(module)
    ]
    yield f"Functions over {LONG} lines: {sum(whole > LONG for whole, *_ in lengths)}"
    yield from (
        f"  {whole:4}, body {lines:3}: {place}" for whole, lines, place in sorted(lengths)[::-1] if whole > LONG
    )
    yield f"`with blame(...)` blocks: {sum(map(blame_blocks, values))}"
    counts = sum(map(word_counts, values), Counter())
    yield "Words: " + "; ".join(f"{word} {counts[word]}, in prose {counts[f'{word}, in prose']}" for word in WORDS)
    uses = [use for module in values for use in private_uses(module)]
    yield f"Private names of other files: {len(uses)}"
    yield from (f"  {use}" for use in uses)
    yield f"Words of the README: {len((root / 'README.md').read_text(encoding='utf-8').split())}"


def main() -> None:
    """Print the numbers of a checkout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to count; default: this one")
    print("\n".join(report(parser.parse_args().root.resolve())))


if __name__ == "__main__":
    main()
