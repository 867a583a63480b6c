"""A plugin package to start from: the templates under mtmeta/templates, filled in, as a folder of its own."""

from __future__ import annotations

import importlib.metadata
import keyword
import os
import re
from pathlib import Path

from mtmeta.core.errors import UsageError
from mtmeta.core.registry.registry import Registry
from mtmeta.core.storage.atomic import staged_folder
from mtmeta.core.storage.disk import disk_errors, write_synced
from mtmeta.core.wording import choose, quote

TEMPLATES = Path(__file__).parents[2] / "templates"
NAME = re.compile("[a-z][a-z0-9]*([_-][a-z0-9]+)*")
LONGEST = 40  # characters; the name stands in file names, a class name and recipes
# words that YAML, unquoted, does not take for text, or that mean something else in recipes
RESERVED = ("false", "mean", "no", "none", "null", "off", "on", "true", "yes")
KINDS_OF = {"task": ("classification", "pair", "regression"), "algorithm": ("gradient", "inner_loop", "stateful")}
ABOUT = {
    "classification": "one sentence with one of two labels.",
    "pair": "whether the second of two sentences follows from the first.",
    "regression": "how urgent a message is, from 0 to 5.",
    "gradient": "the mean of the gradients of a few drawn tasks.",
    "inner_loop": "an inner loop on each of a few drawn tasks, in the manner of Reptile.",
    "stateful": "a few drawn tasks, weighted by their losses over the means of those before.",
}
COLUMNS = {
    "classification": "`sentence` and `label`",
    "pair": "`sentence1`, `sentence2` and `label`",
    "regression": "`message` and `score`",
}
OPTIMIZER = {"inner_loop": "{name: sgd, lr: 1.0}"} | dict.fromkeys(("gradient", "stateful"), "{name: adamw, lr: 3e-4}")


def _distribution(name: str) -> str:
    """Return the package's name on an index: `mtmeta-` and the name as PEP 503 normalises it."""
    return re.sub("[-_.]+", "-", f"mtmeta-{name}").lower()


def make_package(
    part_kind: str, name: str, registry: Registry, *, kind: str | None = None, out: Path | None = None
) -> Path:
    """Write a package with a task or an algorithm called `name`; returns its folder, by default mtmeta-NAME here.

    `part_kind` is `task` or `algorithm`; `kind` is one of KINDS_OF[part_kind], by default the first. Nothing is left
    behind where it fails or is cut. Raises UsageError for a name or a folder that cannot be used, MachineError where
    the disk refuses.
    """
    _check_name(part_kind, name, registry)
    kinds = KINDS_OF[part_kind]
    if kind is not None and kind not in kinds:
        raise UsageError("--kind", f"no kind {quote(kind)} of {part_kind}{choose(kind, kinds)}")
    folder = out if out is not None else Path(_distribution(name))
    if os.path.lexists(folder):
        raise UsageError(str(folder), "is there already; choose another folder with --out")
    files = _files(part_kind, kind or kinds[0], name)
    with disk_errors(folder), staged_folder(folder) as scratch:
        for path, text in files.items():
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            write_synced(scratch / path, text.encode())
    return folder


def _check_name(part_kind: str, name: str, registry: Registry) -> None:
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        fitting = re.sub("[^a-z0-9]+", "_", re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_0123456789")
        hint = f", such as {quote(fitting[:LONGEST])}" if NAME.fullmatch(fitting[:LONGEST]) else ", such as my_task"
        rule = f"use at most {LONGEST} characters a-z, 0-9, _ and -, a letter first{hint}"
        article = "an" if part_kind == "algorithm" else "a"
        raise UsageError("NAME", f"{quote(name)} cannot be the name of {article} {part_kind}; {rule}")
    if re.match("mtmeta[_-]", name):
        raise UsageError("NAME", f"{quote(name)}: the package gets the prefix mtmeta- anyway; leave it out")
    if name in RESERVED:
        raise UsageError("NAME", f"{quote(name)} means something else in recipes; choose another name")
    if supplied := registry.suppliers(part_kind, name):
        plugin = supplied[0].plugin
        owner = f"{plugin.distribution!r}" if plugin.foreign else "mtmeta itself"
        raise UsageError("NAME", f"{part_kind} {quote(name)} is supplied by {owner} already; choose another name")


def _files(part_kind: str, kind: str, name: str) -> dict[str, str]:
    """Return the text of each file by its path in the package."""
    shared, own, module = TEMPLATES / part_kind, TEMPLATES / part_kind / kind, name.replace("-", "_")
    sources = {
        "pyproject.toml": TEMPLATES / "pyproject.toml.txt",
        ".gitignore": TEMPLATES / "gitignore.txt",
        "README.md": shared / "README.md.txt",
        "recipe.yaml": shared / "recipe.yaml.txt",
        f"mtmeta_{module}.py": own / "module.py.txt",
        f"tests/test_{module}.py": own / "test.py.txt",
    }
    sources |= {f"data/{path.name}": path for path in sorted(own.glob("*.csv"))}
    words = {
        "NAME": name,
        "DIST": _distribution(name),
        "MODULE": f"mtmeta_{module}",
        "CLASS": class_name(name),
        "KIND": part_kind,
        "VERSION": importlib.metadata.version("mtmeta"),
        "ABOUT": ABOUT[kind],
        "COLUMNS": COLUMNS.get(kind, ""),
        "OPTIMIZER": OPTIMIZER.get(kind, ""),
    }
    return {
        path: re.sub("@([A-Z]+)@", lambda match: words[match[1]], source.read_text(encoding="utf-8"))
        for path, source in sources.items()
    }


def class_name(name: str) -> str:
    """Return the name of its class: `my_task` gives `MyTask`."""
    words = "".join(part.capitalize() for part in re.split("[_-]", name))
    return f"{words}_" if keyword.iskeyword(words) else words
