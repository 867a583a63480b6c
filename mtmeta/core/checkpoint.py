"""Checkpoints: a directory of safetensors and JSON, committed by one rename. No pickle on any path.

    checkpoints/step-00000400/    model.safetensors  optimizer.safetensors  state.json  MANIFEST.json
    checkpoints/best-00000380/    model.safetensors  MANIFEST.json
    checkpoints/best -> best-00000380, best-sst -> ...

A directory is written beside its target, every file and the directory flushed to disk, then renamed. MANIFEST.json
holds the size and SHA-256 of every file and is written last; a directory without a valid one does not exist to us.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtmeta.core.errors import CheckpointError, MachineError, safe

__all__ = ["Checkpoints", "read_json", "write_file"]

MANIFEST = "MANIFEST.json"
BEST_FILES = ("model.safetensors",)
STEP_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one learner, in `folder`."""

    folder: Path
    keep: int = 2

    def save(self, step: int, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: Any) -> Path:
        """Commit a full checkpoint, then drop all but the newest `keep`."""
        tensors = {"model.safetensors": model, "optimizer.safetensors": optimizer}
        path = self._commit(f"step-{step:08d}", tensors, {"state.json": json.dumps(state, indent=1).encode()})
        for old in self._steps()[: -self.keep]:
            _remove(old)
        return path

    def save_best(self, step: int, model: Mapping[str, Tensor], links: list[str]) -> None:
        """Commit the weights of `step` and point `best` links at them; weights no link points at are dropped."""
        name = f"best-{step:08d}"
        self._commit(name, {"model.safetensors": model}, {})
        for link in links:
            with _disk_errors(self.folder):
                scratch = self.folder / f".{link}.tmp"
                scratch.unlink(missing_ok=True)
                scratch.symlink_to(name)
                scratch.replace(self.folder / link)
                _sync(self.folder)
        kept = {os.readlink(path) for path in self.folder.iterdir() if path.is_symlink()}
        for path in self.folder.glob("best-????????"):
            if not path.is_symlink() and path.name not in kept:
                _remove(path)

    def best(self, name: str = "best") -> dict[str, Tensor]:
        """The best weights. Raises CheckpointError if there are none or they are damaged."""
        path = self.folder / name
        if not path.exists():
            raise CheckpointError(str(path), "no such checkpoint; has the run evaluated yet?")
        _verify(path, BEST_FILES)
        return load_file(path / "model.safetensors")

    def newest(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that verifies, and a line for each newer one that does not."""
        damaged = []
        for path in reversed(self._steps()):
            try:
                _verify(path, STEP_FILES)
            except CheckpointError as error:
                damaged.append(str(error))
            else:
                return path, damaged
        return None, damaged

    def load(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
        """Model tensors, optimizer tensors and state of a full checkpoint."""
        _verify(path, STEP_FILES)
        try:
            model, optimizer = load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors")
            return model, optimizer, json.loads((path / "state.json").read_bytes())
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(str(path), f"damaged ({safe(str(error))})") from error

    def _steps(self) -> list[Path]:
        return sorted(self.folder.glob("step-????????"))

    def _commit(self, name: str, tensors: Mapping[str, Mapping[str, Tensor]], files: Mapping[str, bytes]) -> Path:
        target, scratch = self.folder / name, self.folder / f".{name}.tmp"
        with _disk_errors(target):
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            for file, data in files.items():
                _write_synced(scratch / file, data)
            for file, named in tensors.items():
                _write_tensors(scratch / file, named)
            manifest = {file: _fingerprint(scratch / file) for file in (*files, *tensors)}
            _write_synced(scratch / MANIFEST, json.dumps({"files": manifest}, indent=1).encode())
            _sync(scratch)
            if target.exists():  # left by a run that was stopped after this step and went back further
                _remove(target)
            scratch.rename(target)
            _sync(self.folder)
        return target


def _verify(path: Path, needed: tuple[str, ...]) -> None:
    """Raise CheckpointError unless the `needed` files are listed and every one equals its size and SHA-256."""
    try:
        listed = json.loads((path / MANIFEST).read_bytes())["files"]
        wanted = {str(name): (entry["size"], entry["sha256"]) for name, entry in listed.items()}
    except FileNotFoundError as error:
        raise CheckpointError(str(path), f"not a committed checkpoint (no {MANIFEST})") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(str(path / MANIFEST), "damaged") from error
    for name in needed:
        if name not in wanted:
            raise CheckpointError(str(path / MANIFEST), f"damaged (does not list {name})")
    for name, (size, sha256) in wanted.items():
        if Path(name).name != name:
            raise CheckpointError(str(path / MANIFEST), "names a file outside the checkpoint")
        try:
            found = _fingerprint(path / name)
        except OSError as error:
            raise CheckpointError(str(path / name), f"cannot be read ({error.strerror})") from error
        if found["size"] != size:
            raise CheckpointError(str(path / name), f"damaged (size {found['size']} of {size})")
        if found["sha256"] != sha256:
            raise CheckpointError(str(path / name), "damaged (sha256 mismatch)")


def _fingerprint(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, streamed."""
    with open(path, "rb") as file:
        return {"size": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file, flushed to disk, readable to whom other files are; the library sees to neither."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)
    _sync(path)


def write_file(path: Path, data: bytes | str) -> None:
    """Replace a file as a whole: readers see the old or the new one, never half."""
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.tmp")
        _write_synced(scratch, data.encode() if isinstance(data, str) else data)
        scratch.replace(path)
        _sync(path.parent)


def read_json(path: Path) -> Any:
    """The JSON in `path`. Raises CheckpointError if it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(str(path), f"cannot be read ({safe(str(error))})") from error


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    """Out of sight by one rename first, so that a half-removed checkpoint is never taken for a whole one."""
    trash = path.with_name(f".{path.name}.trash")
    shutil.rmtree(trash, ignore_errors=True)
    with _disk_errors(path):
        path.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MachineError(str(path), f"cannot be written ({error.strerror}); nothing older was touched") from error
