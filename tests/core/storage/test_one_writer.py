"""One writer: no module of the package writes, links or deletes but those that are named here, each with its reason."""

from __future__ import annotations

import ast
import re

import pytest

from tools import house

MODULES = house.package()
# what changes a file system, by the name it is called by
CHANGING = {
    *("rmtree", "copyfile", "copytree", "copy2", "move", "unlink", "rmdir", "write_text", "write_bytes", "touch"),
    *("symlink", "symlink_to", "hardlink_to", "link_to", "chmod", "fchmod", "lchmod", "chown", "utime", "mkfifo"),
    *("mkdir", "makedirs", "removedirs", "renames", "truncate", "ftruncate", "mkstemp", "mkdtemp", "memmap"),
    *("NamedTemporaryFile", "TemporaryDirectory", "TemporaryFile", "SpooledTemporaryFile", "tofile", "savez"),
    *("savefig", "save_file", "write_png", "to_csv", "symlinkat", "extractall"),
}
# of str, list and dataclasses, too: these are meant where the receiver is a module or is named for a path
AMBIGUOUS = {"replace", "rename", "remove", "link", "save"}
ALLOWED = {
    "mtmeta.core.storage.atomic": "the writer",
    "mtmeta.core.storage.reading": "the reader, which opens for reading alone",
    "mtmeta.core.storage.outputs": "what a user names, such as /dev/stdout, is opened and written into",
    "mtmeta.core.storage.lock": "the lock of a run directory, opened without following links, and refused if shared",
    "mtmeta.core.storage.leases.lease": "the time of a lease of our own, and its end; the writer makes it",
    "mtmeta.core.storage.staging": "folders within a staged one, which nobody else can name",
    "mtmeta.core.storage.cache": "arrays in a staged folder of the user's own cache, and files that have no name",
    "mtmeta.core.storage.download": "a part of a download, opened without following links, which goes on after a kill",
    "mtmeta.core.storage.artifacts": "folders and modes of the user's own cache, which nobody else may write to",
    "mtmeta.core.storage.hub": "links under random names in the cache of huggingface_hub, in its layout",
    "mtmeta.core.export.int8": "a graph of onnxruntime's, in a temporary folder",
    "mtmeta.core.export.obstacles": "the tokenizer's files, in a temporary folder",
    "mtmeta.core.authoring.scaffold": "folders within a staged one, which nobody else can name",
    "mtmeta.core.run.event_stream": "cuts events.jsonl, which the writer opened",
    "mtmeta.plugins.trackers": "cuts metrics.jsonl, which the writer opened",
    "mtmeta.plugins.backbones.encoder.kernels": "a compiler writes into a staged folder of the user's own cache",
    "mtmeta.core.reports.html.plots": "a figure to text in memory",
    "mtmeta.core.studies.tuning.journal": "cuts journal.log, which the writer opened, before Optuna writes on",
    "mtmeta.core.studies.processes.error_pipe": "a pipe to the parent process, by its number",
    "mtmeta.cli.application": "/dev/null in place of a closed stdout",
    "mtmeta.cli.completion.answer": "/dev/null in place of stderr",
    "mtmeta.plugins.backbones.tokenizers.fast": "/dev/null in place of stderr",
    "mtmeta.testing.launchers": "checks of plugins, in a folder that their caller gives",
    "mtmeta.testing.reporters": "checks of plugins, in a folder that their caller gives",
    "mtmeta.testing.tasks": "checks of plugins, in a temporary folder",
}


def _changes(tree: ast.Module) -> list[str]:
    """The calls in a module that change files, as `line: name`."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
        of_files = (
            owner in ("os", "shutil", "np", "torch", "onnx")
            or re.search(r"(path|folder|file|scratch|target|link)s?$", owner) is not None
        )
        if (
            name in CHANGING
            or (name in AMBIGUOUS and of_files)
            or (name in ("open", "fdopen") and _writes(node, owner))
        ):
            found.append(f"{node.lineno}: {name}")
    return found


def _writes(node: ast.Call, owner: str) -> bool:
    """Whether a call of `open` may write: by its mode, or by flags that are not all for reading."""
    given = [*node.args, *(word.value for word in node.keywords if word.arg in ("mode", "flags"))]
    if owner == "os" and ast.unparse(node.func) != "os.fdopen":
        return bool(re.search("O_(WRONLY|RDWR|CREAT|TRUNC|APPEND)|flags", " ".join(map(ast.unparse, given[1:]))))
    modes = [part for part in given if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return any(set(str(part.value)) <= set("rwxab+t") and set(str(part.value)) & set("wxa+") for part in modes)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_module_writes_by_itself(name: str) -> None:
    changes = _changes(MODULES[name].tree)
    assert not changes or name in ALLOWED, f"{name} changes files without the writer: {changes}"


def test_every_exception_is_needed() -> None:
    assert [name for name in ALLOWED if name not in MODULES or not _changes(MODULES[name].tree)] == []


@pytest.mark.parametrize(
    "line",
    [
        *("open(path, 'w')", "open(path, mode='ab')", "path.open('x')", "os.open(path, os.O_RDWR | os.O_CREAT)"),
        *("shutil.rmtree(folder)", "path.unlink()", "path.write_text(x)", "path.write_bytes(x)", "os.replace(a, b)"),
        *("path.rename(other)", "link.symlink_to(x)", "os.symlink(a, b)", "scratch.replace(path)", "path.mkdir()"),
        *("tempfile.mkdtemp()", "os.fdopen(handle, 'r+b')", "os.remove(x)", "figure.savefig('x')", "np.save(x, y)"),
    ],
)
def test_what_writes_is_seen(line: str) -> None:
    assert len(_changes(ast.parse(line))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "open(path)",
        "open(path, 'rb')",
        "path.open()",
        "os.open(path, os.O_RDONLY)",
        "'a'.replace('b', 'c')",
        "names.remove(x)",
    ],
)
def test_what_reads_is_not(line: str) -> None:
    assert _changes(ast.parse(line)) == []
