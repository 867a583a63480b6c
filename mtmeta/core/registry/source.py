"""The source of a part, as files and as a hash: by it the cache and the lock of a run know that a part was edited."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import linecache
import sys
import sysconfig
import textwrap
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

MAIN = "__main__"
MADE = ("__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__")  # by dataclass
INSTALLED = ("stdlib", "platstdlib", "purelib", "platlib")  # folders of packages that nobody edits


def files_of(module: str) -> list[Path]:
    """Return the files that a module's code is in, empty where it is in none.

    They are all .py files of the package that it belongs to, at any depth, or its own file where it belongs to none. Of
    mtmeta they are those beside the module.
    """
    loaded = sys.modules.get(module)
    source = getattr(loaded, "__file__", None)
    if source is None:
        return []
    path = Path(source)
    if module == MAIN or not getattr(loaded, "__package__", "") or not _is_package(path.parent):
        return [path]
    return sorted(path.parent.glob("*.py") if _top(module) == "mtmeta" else _package(path).rglob("*.py"))


def hash_of_code(parts: Iterable[Any]) -> str:
    """Return a hash of the source of parts (classes, functions, metrics), of those they derive from, and all beside it.

    What stands in `__main__`, a script or a notebook, counts by itself, with the functions, classes and plain values of
    there that it names: the rest of a script is not the part.
    """
    lines: dict[str, None] = {}
    for part in map(_code, parts):
        for kind in getattr(part, "__mro__", (part,)):
            if kind.__module__ == MAIN:
                lines |= dict.fromkeys(_of_main(kind))
            elif _is_edited(kind.__module__, _top(part.__module__)):
                lines |= dict.fromkeys(_of_files(kind.__module__))
    return hashlib.sha256("\x1f".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _code(part: Any) -> Any:
    """Return the class or function that a part is, without what is wrapped around it."""
    part = inspect.unwrap(part)
    while isinstance(part, functools.partial):
        part = inspect.unwrap(part.func)
    return part if isinstance(part, type) or inspect.isfunction(part) else type(part)


def _top(module: str) -> str:
    return module.partition(".")[0]


def _is_edited(module: str, own: str) -> bool:
    """Return whether a class that a part of `own` derives from is its author's, and not of a library."""
    top = _top(module)
    if top == "mtmeta" or top in sys.stdlib_module_names - {MAIN}:
        return False
    source = getattr(sys.modules.get(module), "__file__", None)
    folders = {Path(sysconfig.get_path(name)) for name in INSTALLED}
    return top == own or source is None or folders.isdisjoint(Path(source).parents)


def _is_package(folder: Path) -> bool:
    return (folder / "__init__.py").is_file()


def _package(path: Path) -> Path:
    """Return the folder of the outermost package that a file is in."""
    folder = path.parent
    while _is_package(folder.parent):
        folder = folder.parent
    return folder


def _of_files(module: str) -> Iterator[str]:
    files = files_of(module)
    if not files:  # made by a program
        yield module
        return
    base = _package(files[0]) if len(files) > 1 else files[0].parent
    for path in files:
        yield f"{_top(module)} {path.relative_to(base).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}"


def _of_main(part: Any) -> Iterator[str]:
    """Yield the source of a part of `__main__`, and of all there that it names, once each."""
    waiting, found, here = [part], set(), vars(sys.modules[MAIN])
    while waiting:
        one = waiting.pop()
        if one in found:
            continue
        found.add(one)
        text, names = _text(one)
        yield f"{one.__qualname__} {text}"
        for name in filter(here.__contains__, names):
            value = here[name]
            if (isinstance(value, type) or inspect.isfunction(value)) and value.__module__ == MAIN:
                waiting.append(value)
            elif isinstance(value, type) or inspect.isfunction(value):
                yield from _of_files(value.__module__) if _is_edited(value.__module__, MAIN) else ()
            elif _is_plain(value):
                yield f"{name} = {value!r}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, str | bytes | int | float | complex) or value is None


def _text(one: Any) -> tuple[str, list[str]]:
    """Return the source of a class or function and the names in it; what was typed at a prompt counts as compiled."""
    try:
        text = textwrap.dedent(inspect.getsource(one))
    except (OSError, TypeError):
        text = _in_cell(one) if isinstance(one, type) else ""
    if not text:
        return _compiled(one)
    return text, sorted({node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)})


def _functions(kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the methods and properties that a class has itself, by name."""
    for name, member in vars(kind).items():
        inner = (getattr(member, key, None) for key in ("fget", "func", "__func__"))
        function = inspect.unwrap(next((one for one in inner if one is not None), member))
        if inspect.isfunction(function) and function.__module__ == kind.__module__:  # others are put there by guard.py
            yield name, function


def _in_cell(kind: type[Any]) -> str:
    """Return the source of a class in a cell of a notebook, which has no file, by its methods; empty without one."""
    for _, function in _functions(kind):
        cell = "".join(linecache.getlines(function.__code__.co_filename))
        for node in ast.walk(ast.parse(cell)):
            if isinstance(node, ast.ClassDef) and node.name == kind.__name__:
                return ast.get_source_segment(cell, node) or ""
    return ""


def _compiled(one: Any) -> tuple[str, list[str]]:
    """Return the same of a class or function whose source is nowhere, by what it was compiled to."""
    functions = _functions(one) if isinstance(one, type) else [(one.__name__, inspect.unwrap(one))]
    codes = [(name, function.__code__) for name, function in functions if name not in MADE]
    lines, names = [], set[str]()
    while codes:
        name, code = codes.pop()
        nested = [value for value in code.co_consts if isinstance(value, types.CodeType)]
        values = [value for value in code.co_consts if _is_plain(value)]
        lines.append(f"{name} {code.co_code.hex()} {code.co_names} {code.co_varnames} {values}")
        names |= set(code.co_names)
        codes += [(f"{name}.{inner.co_name}", inner) for inner in nested]
    for name, value in vars(one).items() if isinstance(one, type) else ():
        if _is_plain(value) and not name.startswith("__"):
            lines.append(f"{name} = {value!r}")
        names.add(type(getattr(value, "constant", value)).__name__)  # an objective, under guard
    return "\x1e".join(sorted(lines)), sorted(names)
