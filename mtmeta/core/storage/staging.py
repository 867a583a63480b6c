"""The folder of an export: complete or not there, and never in the place of anything but an export of the same run."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mtmeta.core.errors import CheckpointError, UsageError
from mtmeta.core.storage.atomic import clear_leftovers, staged_folder
from mtmeta.core.storage.disk import Fingerprint, disk_errors, fingerprint, write_synced
from mtmeta.core.storage.outputs import run_root
from mtmeta.core.storage.reading import read_json
from mtmeta.core.wording import quote

MANIFEST = "export.json"
CACHE = "__pycache__"  # running modeling.py leaves one
FIX = "choose another directory with --out"


def identity(lock: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes two runs the same one: recipe, weights it began with, data files."""
    return {key: lock.get(key) for key in ("recipe", "backbone", "data")}


class Destination:
    """The place of an export. `run` is the identity of its run, `form` its format."""

    def __init__(self, path: Path, run: Mapping[str, Any], form: str, *, fresh: bool) -> None:
        self.path, self.run, self.form, self.fresh = path, dict(run), form, fresh

    def check(self) -> None:
        """Raise UsageError if something else is there, or was put in or changed since; --fresh allows the last."""
        path = self.path
        nearest = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
        if not nearest.is_dir() or path.is_symlink():
            raise UsageError(str(nearest), f"is a {'link' if nearest.is_symlink() else 'file'}; {FIX}")
        check_way(path, FIX)
        if Path.cwd().is_relative_to(path.resolve()):  # whoever stands there would be left in a removed folder
            raise UsageError("--out", f"{quote(str(path))} is the current folder or above it; give a folder in it")
        if not path.exists() or not any(path.iterdir()):
            return
        if (path / MANIFEST).is_symlink() or not (path / MANIFEST).is_file():
            raise UsageError(f"{path}/", f"not empty and no export of mtmeta; {FIX}")
        try:
            manifest = read_json(path / MANIFEST, "manifest")
            files = {str(name): dict(written) for name, written in manifest["files"].items()}
            before = (dict(manifest["run"]), str(manifest["format"]))
        except (CheckpointError, TypeError, KeyError, AttributeError, ValueError):
            raise UsageError(str(path / MANIFEST), f"is damaged; remove the folder, or {FIX}") from None
        there = {str(file.relative_to(path)): file for file in _files(path)}
        if strange := [name for name in sorted(there) if there[name].is_symlink() or not there[name].is_file()]:
            raise UsageError(f"{path}/", f"holds {quote(strange[0])}, which is no regular file; move it away, or {FIX}")
        if others := sorted(there.keys() - files.keys() - {MANIFEST}):
            raise UsageError(f"{path}/", f"holds {quote(others[0])}, which no export wrote; move it away, or {FIX}")
        if self.fresh:
            return
        if before != (self.run, self.form):
            which = "of another run" if before[0] != self.run else f"in format {quote(before[1])}"
            raise UsageError(f"{path}/", f"holds an export {which}; {FIX}, or give --fresh to replace it")
        for name in sorted(there.keys() - {MANIFEST}):
            if fingerprint(there[name]) != files[name]:
                raise UsageError(f"{path}/", f"{quote(name)} was changed since; {FIX}, or give --fresh to replace it")

    @contextlib.contextmanager
    def staged(self) -> Iterator[StagingFolder]:
        """Yield a folder beside the place, which takes it at the end; on an error nothing of it is left."""
        target = self.path.absolute()
        root = run_root(target)
        clear_leftovers(target.parent, root, name=target.name)

        def replace() -> bool:
            self.check()  # right before, for whatever came to be there meanwhile
            return True

        with disk_errors(self.path), staged_folder(target, replace=replace, root=root) as scratch:
            yield StagingFolder(scratch)
            self.check()

    def manifest(self, draft: StagingFolder, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Write export.json, the last file: what was exported, and every file's size and SHA-256."""
        manifest = {"mtmeta": version("mtmeta"), "format": self.form, "run": self.run, **facts, "files": draft.files}
        draft.write(MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        return manifest


def check_way(path: Path, fix: str) -> None:
    """Raise UsageError if a path leads through a link in a run directory, which somebody else may have made."""
    root = run_root(path)
    for place in path.absolute().parents if root is not None else ():
        if root in place.parents and place.is_symlink():
            raise UsageError(str(place), f"is a link; {fix}")


class StagingFolder:
    """A folder under way; `files` holds size and SHA-256 of what was written, by path in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, Fingerprint] = {}

    def path(self, name: str) -> Path:
        """Return where a file of this name goes, its folder made."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write(self, name: str, data: bytes | str) -> None:
        """Write a file and flush it to disk."""
        self.files[name] = write_synced(self.path(name), data.encode() if isinstance(data, str) else data)


def _files(folder: Path) -> Iterator[Path]:
    """Yield every file and link under a folder, without what Python leaves beside modules it ran."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != CACHE]
        yield from (Path(place) / name for name in files)
        yield from (Path(place) / name for name in folders if (Path(place) / name).is_symlink())
