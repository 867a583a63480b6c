"""A run directory: its files, whether a command may use it, and checks that nothing has changed since it began.

recipe.yaml  recipe.lock.yaml  backbone/  checkpoints/  events.jsonl  predictions/  summary.json
encoder/, where it is not trained; rows/, where the data came from memory
metrics.jsonl and tensorboard/, where the recipe has these reporters

`.lock` and `.lease` are there while a process trains in it.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from mtmeta.core.api.backbone import LoadedBackbone
from mtmeta.core.errors import CheckpointError, DataError, MtmetaError, UsageError, WeightsError
from mtmeta.core.recipe import strict_yaml
from mtmeta.core.recipe.reader import ROWS
from mtmeta.core.recipe.resolved import decisive, describe, differences, digest, dump
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.registry.guard import plugin_of
from mtmeta.core.registry.registry import Registry
from mtmeta.core.registry.source import hash_of_code
from mtmeta.core.run.summary import RunSummary
from mtmeta.core.storage.atomic import clear_leftovers, remove_entry
from mtmeta.core.storage.disk import BEST, LINK, check_own, disk_errors, write_file
from mtmeta.core.storage.leases.lease import LEASE_NAME
from mtmeta.core.storage.lock import LOCK_NAME
from mtmeta.core.storage.reading import LIMITS, open_regular, read_bytes, why
from mtmeta.core.wording import safe

if TYPE_CHECKING:  # PyTorch takes a second to load, and whoever only reads a run needs none of it
    import torch

    from mtmeta.core.training.checkpoint import Checkpoints

CONTENTS = (  # beside recipe and lock
    *(
        "backbone",
        "checkpoints",
        "encoder",
        "events.jsonl",
        "metrics.jsonl",
        "predictions",
        "summary.json",
        "teachers",
        "tensorboard",
    ),
)
ROW_FILE = re.compile(r"[a-z][a-z0-9_-]*-(train|dev|test)-[0-9a-f]{16}\.jsonl")
"""The name of a file in rows/: task, split, and the beginning of its SHA-256."""
MAX_BACKBONE_FILES = 1000  # a configuration and a tokenizer are a handful
# files that are replaced as a whole, and folders of such: that one of them has another name elsewhere does no harm
REPLACED = (
    "recipe.yaml",
    "recipe.lock.yaml",
    "summary.json",
    "backbone",
    "checkpoints",
    "encoder",
    "predictions",
    "teachers",
    "export",
    ROWS,
)
TOKENIZER = "tokenizer.json"  # of `backbone`
# entries of the lock that must be equal for the very same weights, beside recipe, data and backbone
EXACT = ("mtmeta", "torch", "numpy", "tokenizers", "threads", "device", "processor", "kernels", "precision")
PLUGINS = "plugins"  # versions, by distribution
CODE = "plugin_code"  # hashes of the source of installed plugins, likewise
# one more, which is there for bf16 on a CPU alone; earlier versions, which computed it otherwise, wrote none
INSTRUCTIONS = "instructions"
# earlier versions of mtmeta that give the same bits as this one, so that their runs go on; from the next change of any
# number in training on, this is empty again
SAME_BITS = ("0.1.0",)


@dataclass(frozen=True)
class RunDir:
    """The paths of one run."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def lock_file(self) -> Path:
        return self.path / "recipe.lock.yaml"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def backbone(self) -> Path:
        return self.path / "backbone"

    def checkpoints(self, group: str, groups: int, keep: int = 2, *, frozen: bool = False) -> Checkpoints:
        """Return the checkpoints of a group, which has a folder of its own where there are several.

        A `frozen` encoder is the same in all of them, and lies beside.
        """
        from mtmeta.core.training.checkpoint import Checkpoints

        folder = self.path / "checkpoints"
        encoder = self.path / "encoder" if frozen else None
        return Checkpoints(folder / group if groups > 1 else folder, keep, self.path, encoder)

    def check_is_run(self) -> None:
        """Raise UsageError if no run ever began here, CheckpointError if a part of it lies elsewhere."""
        try:
            self.recipe.lstat()
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
                raise  # which is told as such
            message = "is no mtmeta run (no recipe.yaml); give the directory of a run"
            raise UsageError(str(self.path), message) from error
        for path in (self.recipe, self.lock_file, *(self.path / name for name in (*CONTENTS, ROWS))):
            if path.is_symlink():
                raise CheckpointError(str(path), "is a symbolic link; put what it leads to in its place")

    def check_backbone(self) -> None:
        """Raise CheckpointError if what lies in backbone/ may not be read, by whatever plugin it is for."""
        waiting, count = [self.backbone], 0
        while waiting:
            try:
                entries = sorted(waiting.pop().iterdir())
            except FileNotFoundError:
                return  # the backbone says what it misses
            for path in entries:
                count += 1
                if count > MAX_BACKBONE_FILES:
                    raise CheckpointError(str(self.backbone), f"holds more than {MAX_BACKBONE_FILES} files")
                if path.is_dir() and not path.is_symlink():
                    waiting.append(path)
                    continue
                try:
                    open_regular(path, LIMITS["tokenizer"]).close()
                except OSError as error:
                    raise CheckpointError(str(path), why(error)) from error

    def check_own(self, *, appending: bool = False) -> None:
        """Raise CheckpointError for what would have us write elsewhere, at any depth: links but those to best weights.

        And for devices, pipes and the like. Where we go on `appending` to files, for those with another name, too.
        """
        check_own(self.path, _stays, REPLACED if appending else None)

    def write(self, name: str, data: bytes | str) -> None:
        """Replace the file of this name, a path from the run directory, as a whole. Raises MachineError."""
        write_file(self.path / name, data, self.path)

    def lock(self) -> dict[str, Any]:
        """Read the lock written when the run began. Raises CheckpointError if it is damaged."""
        try:
            data = strict_yaml.read_file(self.lock_file, links=False).data
        except MtmetaError as error:
            raise CheckpointError(str(self.lock_file), f"damaged ({error.message}); --fresh starts over") from error
        if not isinstance(data.get("recipe"), str) or not isinstance(data.get("data"), dict):
            raise CheckpointError(str(self.lock_file), "damaged; --fresh starts over")
        return data

    def check_usable(self, recipe: Recipe, *, fresh: bool) -> bool:
        """Return whether a run of this very recipe is here already.

        Raises UsageError, or CheckpointError for a run of another recipe, if the directory cannot be used.
        """
        nearest = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not nearest.is_dir():
            raise UsageError(str(nearest), "is a file; choose another directory with --out")
        if nearest != self.path or not any(map(_counts, self.path.iterdir())):
            return False
        if not os.path.lexists(self.recipe) and not os.path.lexists(self.lock_file):
            raise UsageError(f"{self.path}/", "not empty and not an mtmeta run; choose another directory with --out")
        try:
            self.check_own()
        except CheckpointError as error:
            raise UsageError(error.place, f"{error.message}, or choose another directory with --out") from error
        if fresh or not self.recipe.exists():  # a lock without a recipe: a run that was stopped while it began
            return False
        lock = self.lock()
        if lock.get("recipe") == digest(recipe):
            return True
        here = decisive(json.loads(json.dumps(describe(recipe))))
        differs = list(differences(decisive(strict_yaml.read_file(self.recipe).data), here))
        shown = ", ".join(differs[:6]) + (", ..." if len(differs) > 6 else "") or "recipe.lock.yaml only"
        was, now = str(lock.get("recipe"))[:4], digest(recipe)[:4]
        message = f"was trained with recipe {was}..; this recipe is {now}.. (differs in: {shown})"
        raise CheckpointError(str(self.path), f"{message}; choose another --out, or --fresh to start over")

    def check_same(
        self,
        lock: Mapping[str, Any],
        files: Mapping[str, tuple[str, str]],
        *,
        allow_changed_data: bool,
        allow_inexact: bool,
    ) -> None:
        """Refuse to go on with other data files, weights, torch, threads or device kind than the run began with."""
        before = self.lock()
        if not allow_changed_data:
            check_hashes(before.get("data", {}), files)
            _check_teachers(before, lock)
        _check_sources(before, lock)
        if before.get("backbone") != lock["backbone"]:
            message = f"began with backbone weights {before.get('backbone')}, now they are {lock['backbone']}"
            raise CheckpointError(str(self.path), f"{message}; choose another --out")
        # locks of earlier versions have no hash of the code: it is taken to be what it was
        was, now = _exact(before), _exact(lock if CODE in before else {**lock, CODE: {}})
        changed = [key for key in dict.fromkeys([*was, *now]) if was.get(key) != now.get(key)]
        if not changed:
            return
        absent = {key: "unset" if key.isupper() else "absent" for key in changed}  # names of variables are capitals
        shown = [", ".join(f"{key} {safe(facts.get(key, absent[key]))}" for key in changed) for facts in (was, now)]
        if not allow_inexact:
            message = f"run used {shown[0]}; now {shown[1]}; results would differ: pass --allow-inexact to go on"
            raise CheckpointError(str(self.path), message)
        # from here on it is this machine that must not change; and whoever reads the lock should know
        keys = (*EXACT, INSTRUCTIONS, PLUGINS, CODE, "packages", "environment")
        after = {**before, **{key: lock[key] for key in keys if key in lock}}
        if INSTRUCTIONS not in lock:
            after.pop(INSTRUCTIONS, None)
        earlier = before.get("inexact")
        notes = [*(earlier if isinstance(earlier, list) else []), f"{shown[0]}, then {shown[1]}"]
        self.write(self.lock_file.name, dump({**after, "inexact": notes}))

    def check_tokenizer(self, backbone: LoadedBackbone) -> None:
        """Raise CheckpointError if the backbone's tokenizer gives other ids than that of the run."""
        path, now = self.backbone / TOKENIZER, backbone.files.get(TOKENIZER)
        if now is None or not path.is_file():
            return
        try:
            was = read_bytes(path, "tokenizer", within=self.path)
        except OSError as error:
            raise CheckpointError(str(path), why(error)) from error
        if was == now:
            return
        same_as = getattr(backbone.tokenizer, "same_as", None)
        if same_as is None or not same_as(was.decode("utf-8", "replace")):
            message = "the run began with another tokenizer than its weights' folder has now, with other tokens"
            raise CheckpointError(str(path), f"{message}; choose another --out, or --fresh to start over")

    def begin(self, recipe: Recipe, lock: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """Start a new run: clear an old one's files, then write recipe, lock and backbone files.

        Wherever this is stopped, there is a lock and no recipe: `check_usable` takes that for a beginning.
        """
        with disk_errors(self.path):
            remove_entry(self.recipe, self.path)
            self.clear()  # leftovers of an earlier beginning
            self.write(self.lock_file.name, dump(dict(lock)))
            for name in CONTENTS:
                remove_entry(self.path / name, self.path)
        for name, data in files.items():
            self.write(f"{self.backbone.name}/{name}", data)
        self.write(self.recipe.name, dump(describe(recipe)))

    def clear(self) -> None:
        """Remove files that a kill left half-written."""
        for folder in (self.path, self.backbone, self.path / "predictions"):
            clear_leftovers(folder, self.path)

    def finished(self) -> RunSummary | None:
        """Return the summary if the run is over. Raises CheckpointError if it is damaged."""
        return RunSummary.read(self.summary) if os.path.lexists(self.summary) else None


def _stays(path: PurePath, target: str) -> bool:
    """Return whether a link, by its path from the run directory, may be there.

    Those that mtmeta makes may: best weights by name, in the folder they lie in. So may a reporter's, in a folder of
    its own, which lead down from where they lie.
    """
    folder, *below = path.parts
    if folder == "checkpoints":
        name = re.sub(r"^\.(.*?)(\.[0-9a-f]{16})?\.tmp$", r"\1", path.name)  # about to take its place
        return bool(re.fullmatch(LINK, name) and not re.fullmatch(BEST, name) and re.fullmatch(BEST, target))
    down = not PurePath(target).is_absolute() and ".." not in PurePath(target).parts
    return bool(below) and folder not in (*CONTENTS, "export", ROWS) and down


def _counts(path: Path) -> bool:
    """Return whether a file makes its directory not empty; leftovers of a kill, and rows of a run to be, do not."""
    if path.name == ROWS and path.is_dir() and not path.is_symlink():
        return any(not ROW_FILE.fullmatch(row.name) and _counts(row) for row in path.iterdir())
    return path.name not in (LOCK_NAME, LEASE_NAME) and not (path.name.startswith(".") and path.name.endswith(".tmp"))


def _exact(lock: Mapping[str, Any]) -> dict[str, str]:
    """Return the entries of a lock that must be equal, as text."""
    versions: dict[str, str] = {}
    for key, noun in ((PLUGINS, "plugin"), (CODE, "code of plugin")):
        plugins = lock.get(key)
        versions |= {f"{noun} {name}": str(of) for name, of in plugins.items()} if isinstance(plugins, dict) else {}
    packages = lock.get("packages")
    versions |= {str(name): str(number) for name, number in packages.items()} if isinstance(packages, dict) else {}
    exact = {key: str(lock.get(key, "unknown")) for key in EXACT} | versions
    exact |= {key: str(lock[key]) for key in (INSTRUCTIONS,) if key in lock}
    variables = lock.get("environment")  # runs of earlier versions have none: they are taken to have been unset
    exact |= {str(name): str(value) for name, value in variables.items()} if isinstance(variables, dict) else {}
    if exact["mtmeta"] in SAME_BITS:
        exact["mtmeta"] = version("mtmeta")
    return exact


def _check_sources(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise WeightsError if a file of the backbone's repository is not the one the run began with."""
    entries = before.get("sources")
    known = {str(one.get("name")): one for one in entries if isinstance(one, dict)} if isinstance(entries, list) else {}
    for entry in now.get("sources", ()):
        one = known.get(entry["name"], entry)
        if entry["for"] != "backbone":  # data files are checked as such
            continue
        was, files = one.get("files"), entry["files"]
        for file in files if isinstance(was, dict) else ():
            if was.get(file, files[file]) != files[file]:
                message = f"{file}: sha256 {str(was[file])[:8]}.. in recipe.lock.yaml, now {files[file][:8]}.."
                raise WeightsError(safe(entry["name"]), f"{message}; choose another --out")


def _check_teachers(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise DataError if a table of what teachers say is not the one that the run began with."""
    was = before.get("teachers")
    for task, tables in now.get("teachers", {}).items():
        known = was.get(task) if isinstance(was, dict) else None
        hashes = {str(one.get("table")): str(one.get("sha256")) for one in known or () if isinstance(one, dict)}
        check_hashes(hashes, {one["table"]: (one["table"], one["sha256"]) for one in tables})


def make_lock(
    recipe: Recipe,
    registry: Registry,
    data: Mapping[str, str],
    backbone: LoadedBackbone,
    device: torch.device,
    precision: str,
) -> dict[str, Any]:
    """Build the lock: versions and hashes that pin a run down. `data` maps TASK-SPLIT to a SHA-256."""
    import torch

    from mtmeta.core.machine import arithmetic, bf16_instructions, processor

    instructions = bf16_instructions(device, precision)
    return {
        "recipe": digest(recipe),
        "mtmeta": version("mtmeta"),
        **_plugins(recipe, registry),
        "packages": {name: version(name) for name in backbone.packages},
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": version("numpy"),
        "tokenizers": version("tokenizers"),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "processor": processor(device),
        "kernels": _kernels(backbone, precision) if device.type == "cpu" else "none",
        "precision": precision,
        **({INSTRUCTIONS: instructions} if instructions else {}),
        "environment": arithmetic(device),
        "backbone": backbone.identity,
        "data": dict(data),
    }


def _kernels(backbone: LoadedBackbone, precision: str) -> str:
    """Return the name of the compiled code that a CPU runs."""
    return backbone.kernels_bf16() if precision == "bf16" and backbone.kernels_bf16 else backbone.kernels


def _plugins(recipe: Recipe, registry: Registry) -> dict[str, dict[str, str]]:
    """Return version and code of each third-party plugin that may change a number of the run, by distribution.

    The code is a hash of its source; classes in no package have that for a version.
    """
    labels = [part for task in recipe.tasks.values() for part in task.parts.values()]
    parts = (recipe.backbone, *recipe.tasks.values(), *labels, recipe.sampler, recipe.algorithm)
    metrics = [name for task in recipe.scored.values() for name in task.metrics]
    used = [(plugin_of(part), type(part)) for part in parts]
    used += [(one.plugin, one.part.function) for name in metrics for one in registry.suppliers("metric", name)]
    versions: dict[str, str] = {}
    sources: dict[str, list[Any]] = {}
    for plugin, part in used:
        if plugin and plugin.foreign:
            versions[plugin.distribution] = plugin.version
            if not plugin.family:
                sources.setdefault(plugin.distribution, []).append(part)
    return {PLUGINS: versions, CODE: {name: hash_of_code(own) for name, own in sources.items()}}


def check_hashes(before: Mapping[str, str], now: Mapping[str, tuple[str, str]]) -> None:
    """Raise DataError for the first file whose SHA-256 changed since the run began. `now` holds (file, SHA-256)."""
    for key, (file, sha256) in now.items():
        if key in before and before[key] != sha256:
            message = f"changed since this run started (sha256 {str(before[key])[:4]}.. -> {sha256[:4]}..)"
            raise DataError(file, f"{message}; start a new run or pass --allow-changed-data")
