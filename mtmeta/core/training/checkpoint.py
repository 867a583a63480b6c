"""Checkpoints: a directory of safetensors and JSON, committed by one rename. No pickle on any path.

    checkpoints/step-00000400/    model.safetensors  optimizer.safetensors  state.json  MANIFEST.json
    checkpoints/best-00000380/    model.safetensors  MANIFEST.json
    checkpoints/best -> best-00000380, best-sst -> ...
    encoder/                      model.safetensors  MANIFEST.json     where the encoder is not trained

A directory is written beside its target, every file and the directory flushed to disk, then renamed, read back and
compared; only then is an older one dropped. MANIFEST.json holds the size and SHA-256 of every file and is written
last; a directory without a valid one does not exist to us. state.json says where the best links pointed when it was
written, and what any kept checkpoint names is kept with it, so that going back to it goes back in the links too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mtmeta.core.errors import CheckpointError, MachineError
from mtmeta.core.storage import disk
from mtmeta.core.storage.atomic import clear_leftovers, remove, remove_entry, replace_link, staged_folder
from mtmeta.core.storage.disk import BEST, LINK
from mtmeta.core.storage.reading import UnfitFile, parse_json, read_bytes, read_json, why
from mtmeta.core.wording import quote, safe

MANIFEST = "MANIFEST.json"
BEST_FILES = ("model.safetensors",)
STEP_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one learner, in `folder`, which no link below `root` may lead to."""

    folder: Path
    keep: int = 2
    root: Path | None = None
    frozen: Path | None = None
    """Where the weights lie that are not trained and in no checkpoint; None where all are."""

    # -- writing

    def save(
        self,
        step: int,
        model: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        state: Mapping[str, Any],
        scheduled: Callable[[int], bool] = lambda step: True,
    ) -> Path:
        """Commit a full checkpoint, then drop all but it and the newest `keep` of the scheduled ones.

        One that was saved off schedule, because the run was asked to stop, goes when the run has got further.
        """
        tensors = {"model.safetensors": model, "optimizer.safetensors": optimizer}
        path = self._commit(
            self.folder / f"step-{step:08d}", tensors, {"state.json": json.dumps(state, indent=1).encode()}
        )
        for later in self._steps():  # damaged, or the run would have gone on from there
            if _number(later) > step:
                self._remove(later)
        self._retain(step, scheduled)
        return path

    def save_best(self, step: int, model: Mapping[str, Tensor], links: list[str]) -> str:
        """Commit the weights of `step` and point `links` at them; returns the name of their directory."""
        name = f"best-{step:08d}"
        self._commit(self.folder / name, {"model.safetensors": model}, {})
        for link in links:
            self._point(link, name)
        self._prune()
        return name

    def go_back(
        self, step: int, links: Mapping[str, str], scheduled: Callable[[int], bool] = lambda step: True
    ) -> None:
        """Have exactly these links, each at the directory it names: those of the checkpoint that a run resumes from.

        What a kill left half-done goes, and so do best weights of steps that the run has yet to come to again.
        """
        clear_leftovers(self.folder, self.root)
        for link in self._links():
            if link not in links:
                with disk.disk_errors(self.folder / link, newest=self._newest_name):
                    remove_entry(self.folder / link, self.root)
        for link, name in links.items():
            if (self.folder / link).is_dir() and not (self.folder / link).is_symlink():
                self._remove(self.folder / link)  # a copy of the run that followed the links
            if self._links().get(link) != name:
                self._point(link, name)
        self._retain(step, scheduled)

    def keep_frozen(self, weights: Mapping[str, Tensor]) -> str:
        """Commit the weights that no checkpoint holds, unless they are there; returns a line if what was is damaged."""
        assert self.frozen is not None
        damaged = ""
        if os.path.lexists(self.frozen):
            try:
                there = self._frozen_weights()
                if there.keys() == weights.keys() and all(torch.equal(there[name], weights[name]) for name in weights):
                    return ""
                damaged = f"{self.frozen}: other weights than the run began with; written again"
            except CheckpointError as error:
                damaged = f"{error}; written again"
        self._commit(self.frozen, {"model.safetensors": weights}, {})
        return damaged

    def check_space(self, *parts: Mapping[str, Tensor]) -> None:
        """Raise MachineError unless these tensors fit on the disk."""
        needed = sum(tensor.nbytes for part in parts for tensor in part.values())
        disk.check_space(self.folder, needed, self._newest_name)

    # -- reading

    def best(self, name: str = "best") -> dict[str, Tensor]:
        """Return the best weights, frozen ones too. Raises CheckpointError if there are none or they are damaged."""
        return self.best_and_step(name)[0]

    def best_and_step(self, name: str = "best") -> tuple[dict[str, Tensor], int]:
        """Return the best weights and their step; 0 where a copy of the run has directories in place of links."""
        link = self.folder / name
        while True:
            target = self._links().get(name, "")
            try:
                if not link.exists():
                    raise CheckpointError(str(link), "no such checkpoint; has the run evaluated yet?")
                _verify(link, BEST_FILES)
                weights = load_file(link / "model.safetensors")
            except (CheckpointError, OSError, SafetensorError) as error:
                if self._links().get(name, "") != target:
                    continue  # a run that is under way has just found better ones
                if isinstance(error, CheckpointError):
                    raise
                raise CheckpointError(str(link), f"cannot be read ({safe(str(error))})") from error
            if self._links().get(name, "") == target:
                return self._frozen_weights() | weights, _number(Path(target)) if target else 0

    def newest(self) -> tuple[Path | None, list[str]]:
        """Return the newest checkpoint that verifies, its best weights too, and a line for each damaged one."""
        damaged: list[str] = []
        for path in reversed(self._steps()):
            try:
                _verify(path, STEP_FILES)
                for name in sorted(set(_links_of(path).values())):
                    _verify(self.folder / name, BEST_FILES)
            except CheckpointError as error:
                if str(error) not in damaged:
                    damaged.append(str(error))
            else:
                return path, damaged
        return None, damaged

    def load(self, path: Path, *, verified: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
        """Model tensors, optimizer tensors and state of a full checkpoint; `verified` if `newest` just gave it."""
        if not verified:
            _verify(path, STEP_FILES)
        try:
            model, optimizer = load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(str(path), f"damaged ({safe(str(error))})") from error
        return model, optimizer, read_json(path / "state.json", "state")

    # -- within

    def _frozen_weights(self) -> dict[str, Tensor]:
        """Return the weights that no checkpoint holds. Raises CheckpointError if they are gone or damaged."""
        if self.frozen is None:
            return {}
        _verify(self.frozen, BEST_FILES)
        try:
            return load_file(self.frozen / "model.safetensors")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(str(self.frozen), f"damaged ({safe(str(error))})") from error

    def _steps(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if re.fullmatch(r"step-[0-9]{8}", path.name))

    def _links(self) -> dict[str, str]:
        """Return where each link points."""
        targets = {}
        for path in sorted(self.folder.glob("best*")):
            with contextlib.suppress(OSError):  # no link, or gone by now
                targets[path.name] = os.readlink(path)
        return targets

    def _point(self, link: str, name: str) -> None:
        with disk.disk_errors(self.folder / link, newest=self._newest_name):
            replace_link(self.folder / link, name, self.root)

    def _newest_name(self) -> str:
        newest, _ = self.newest()
        return newest.name if newest else ""

    def _retain(self, step: int, scheduled: Callable[[int], bool]) -> None:
        """Of the checkpoints up to `step`, keep that one and the newest scheduled ones; and their best weights."""
        paths = {_number(path): path for path in self._steps() if _number(path) <= step}
        regular = [number for number in paths if scheduled(number)]
        for number in sorted(paths.keys() - {step, *regular[-self.keep :]}):
            self._remove(paths[number])
        self._prune()

    def _prune(self) -> None:
        """Drop the best weights that neither a link nor a checkpoint names."""
        named = set(self._links().values())
        for path in self._steps():
            with contextlib.suppress(CheckpointError):
                named |= set(_links_of(path).values())
        for path in sorted(self.folder.glob("best-????????")):
            if not path.is_symlink() and path.name not in named:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        with disk.disk_errors(path, "cannot remove an old checkpoint", self._newest_name):
            remove(path, self.root)

    def _commit(self, target: Path, tensors: Mapping[str, Mapping[str, Tensor]], files: Mapping[str, bytes]) -> Path:
        self.check_space(*tensors.values())
        with disk.disk_errors(target, "cannot write checkpoint", self._newest_name):
            # what is there already is damaged, or of a timeline that the run has left
            with staged_folder(target, replace=lambda: True, root=self.root) as scratch:
                manifest = {file: disk.write_synced(scratch / file, data) for file, data in files.items()}
                manifest |= {file: disk.write_tensors(scratch / file, named) for file, named in tensors.items()}
                disk.write_synced(scratch / MANIFEST, _manifest(manifest))
            try:
                _verify(target, tuple(manifest))
                if read_bytes(target / MANIFEST, "manifest") != _manifest(manifest):
                    raise CheckpointError(str(target / MANIFEST), "damaged")
            except CheckpointError as error:
                remove(target, self.root)
                good = self._newest_name()
                message = f"does not read back as it was written ({error}); check the disk"
                raise MachineError(str(target), f"{message}; {good or 'no other checkpoint'} is intact") from error
        return target


def _number(path: Path) -> int:
    """Return the step in the name of a checkpoint."""
    digits = path.name.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else 0


def _links_of(path: Path) -> dict[str, str]:
    """Return where the best links pointed when a checkpoint was saved."""
    state = read_json(path / "state.json", "state", within=path.parent)
    links = state.get("links", {}) if isinstance(state, dict) else None
    if not isinstance(links, dict) or not all(
        re.fullmatch(LINK, link) and re.fullmatch(BEST, str(name)) for link, name in links.items()
    ):
        raise CheckpointError(str(path / "state.json"), "damaged (names no best weights)")
    return links


def _manifest(files: Mapping[str, Any]) -> bytes:
    return json.dumps({"files": dict(files)}, indent=1).encode()


def _verify(path: Path, needed: tuple[str, ...]) -> None:
    """Raise CheckpointError unless the `needed` files are listed and every one equals its size and SHA-256."""
    _check_place(path)
    try:
        raw = read_bytes(path / MANIFEST, "manifest")
        listed = parse_json(raw)["files"]
        wanted = {str(name): (entry["size"], entry["sha256"]) for name, entry in listed.items()}
    except FileNotFoundError as error:
        raise CheckpointError(str(path), f"not a committed checkpoint (no {MANIFEST})") from error
    except UnfitFile as error:
        raise CheckpointError(str(path / MANIFEST), str(error)) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(str(path / MANIFEST), "damaged") from error
    if raw != _manifest(listed):  # so that no byte of it can change unnoticed, not even a space
        raise CheckpointError(str(path / MANIFEST), "damaged")
    for name in needed:
        if name not in wanted:
            raise CheckpointError(str(path / MANIFEST), f"damaged (does not list {name})")
    for name, (size, sha256) in wanted.items():
        if Path(name).name != name:
            raise CheckpointError(str(path / MANIFEST), "names a file outside the checkpoint")
        try:
            actual = {"size": os.lstat(path / name).st_size, "sha256": ""}
            if actual["size"] == size:  # else there is no need to read it, however long it may be
                actual = disk.fingerprint(path / name)
        except (OSError, ValueError) as error:
            raise CheckpointError(str(path / name), why(error)) from error
        if actual["size"] != size:
            raise CheckpointError(str(path / name), f"damaged (size {safe(str(actual['size']))} of {safe(str(size))})")
        if actual["sha256"] != sha256:
            raise CheckpointError(str(path / name), "damaged (sha256 mismatch)")


def _check_place(path: Path) -> None:
    """Raise CheckpointError for a checkpoint that lies elsewhere: only a best link is one, to a directory beside it."""
    if path.is_symlink():
        target = os.readlink(path)
        beside = re.fullmatch(LINK, path.name) and re.fullmatch(BEST, target)
        if not beside or (path.parent / target).is_symlink():
            raise CheckpointError(str(path), f"is a link to {quote(target)}, which is no checkpoint beside it")
