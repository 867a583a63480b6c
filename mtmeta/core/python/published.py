"""Runs on the hub: `push_to_hub` puts there what predicting takes, and `mtmeta.load("hf:ORG/NAME")` brings it back.

    mtmeta.json         the files with their sizes and SHA-256, and where the links to best weights point
    README.md           tasks and figures
    recipe.yaml, recipe.lock.yaml, summary.json, backbone/, encoder/, checkpoints/best-N/

The data of a run is not among them, nor is the path that it had. What is fetched is checked against mtmeta.json and
laid into mtmeta's own cache as a run directory, whole or not at all, and read as warily as any that somebody else made.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from mtmeta.core.api.contracts import count_texts
from mtmeta.core.environment import cache_folder
from mtmeta.core.errors import CheckpointError, MachineError, MtmetaError, UsageError, WeightsError
from mtmeta.core.python.results import Run
from mtmeta.core.recipe.resolved import describe, dump
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.run.directory import RunDir
from mtmeta.core.run.evaluate import open_run
from mtmeta.core.run.predictor import Predictor
from mtmeta.core.run.request import RunRequest
from mtmeta.core.run.session import Session
from mtmeta.core.run.summary import RunSummary
from mtmeta.core.storage.addresses import is_pinned, parse_model
from mtmeta.core.storage.atomic import make_folder, replace_link, staged_folder
from mtmeta.core.storage.disk import BEST, LINK, disk_errors, fingerprint, write_synced
from mtmeta.core.storage.download import Watcher
from mtmeta.core.storage.hub import is_offline
from mtmeta.core.storage.reading import LIMITS, open_regular, parse_json, read_bytes
from mtmeta.core.storage.sources import Sources
from mtmeta.core.wording import exception_line, markdown, plural, quote, safe

PREFIX = "hf:"
MANIFEST, FORMAT = "mtmeta.json", 1
MOST_FILES = 1000
FILE = re.compile(
    r"recipe\.yaml|recipe\.lock\.yaml|summary\.json|(backbone|encoder)(/[\w+-][\w.+-]*)+"
    r"|checkpoints(/[a-z][a-z0-9_+-]*)?/best-[0-9]{8}/(model\.safetensors|MANIFEST\.json)"
)
FOLDER = re.compile(r"checkpoints(/[a-z][a-z0-9_+-]*)?")
NEEDED = ("recipe.yaml", "recipe.lock.yaml")


def load(
    run: str | Path | Run,
    *,
    device: str = "auto",
    block: Sequence[str] = (),
    plugins: Sequence[Any] = (),
    warn: Callable[[str], None] = lambda text: None,
    watcher: Watcher | None = None,
) -> Predictor:
    """Load the best weights of a run to predict with: of a run directory, or of one that was pushed to the hub.

    `run` is a folder, or `hf:ORG/NAME@REVISION`, best pinned to the whole commit hash; what is fetched once is not
    fetched again. `device` is auto, cpu, cuda or cuda:N; `block` names plugins to leave out, `plugins` are the classes
    in no package that it was trained with. Raises UsageError if it is no run, WeightsError and MachineError for what
    the hub does not have, and CheckpointError for what is damaged.
    """
    folder = run.path if isinstance(run, Run) else Path(run)
    if isinstance(run, str) and run.startswith(PREFIX):
        folder = _fetched(run.removeprefix(PREFIX), watcher)
    return Predictor(open_run(folder, RunRequest(device=device, block=block, plugins=plugins, warn=warn)))


def push_to_hub(
    run: str | Path | Run,
    repository: str,
    *,
    private: bool | None = None,
    branch: str = "main",
    message: str = "A run of mtmeta",
    plugins: Sequence[Any] = (),
    token: str | None = None,
) -> str:
    """Put a finished run into a model repository ORG/NAME, made if need be; return `hf:ORG/NAME@COMMIT`.

    There go recipe, lock, summary, tokenizer and best weights, in one commit; not the data, the predictions or the
    state of the optimizer, and of paths those that tasks name. `private` is as the account has it by default; `token`
    is by default the one that `hf auth login` keeps. Raises UsageError for a run that is not finished, MachineError
    where the hub cannot be reached or refuses.
    """
    folder = RunDir(run.path if isinstance(run, Run) else Path(run))
    session = open_run(folder.path, RunRequest(device="cpu", plugins=plugins))
    summary = folder.finished()
    if summary is None:
        raise UsageError(str(folder.path), "is not finished; run it to its end first")
    name = _named(repository).repository
    place = f"hub: {quote(name)}"
    if is_offline():
        raise MachineError(place, "cannot be written to, HF_HUB_OFFLINE is set; unset it")
    files = {**_texts(session, summary, name), **dict(_large(session))}
    manifest = _manifest(files, _links(session))
    from huggingface_hub import CommitOperationAdd, HfApi

    operations = [
        CommitOperationAdd(path, os.fspath(data) if isinstance(data, Path) else data)
        for path, data in {MANIFEST: manifest, **files}.items()
    ]
    try:
        api = HfApi(token=token, library_name="mtmeta")
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.create_commit(name, operations, commit_message=message, revision=branch)
    except MtmetaError:
        raise
    except Exception as error:  # whatever the library raises of what it met
        reason = f"cannot be written to ({exception_line(error)})"
        raise MachineError(place, f"{safe(reason, 300)}; check the name, the network and 'hf auth login'") from error
    return f"{PREFIX}{name}@{commit.oid}"


# ------------------------------------------------------------------------------------------------------------- pushing


def _named(repository: str) -> Any:
    try:
        return parse_model(repository.removeprefix(PREFIX))
    except ValueError as error:
        raise UsageError(safe(f"{PREFIX}{repository}"), "is no model on the hub; write hf:ORG/NAME") from error


def _texts(session: Session, summary: RunSummary, name: str) -> dict[str, bytes | Path]:
    """Return the small files by their paths: those of the run without the paths of this machine, and a card."""
    recipe = replace(session.recipe, data_root="data")
    described = {**describe(recipe), "data_root": "."}
    return {
        "README.md": _card(recipe, summary, name).encode(),
        "recipe.yaml": dump(described).encode(),
        "recipe.lock.yaml": read_bytes(session.folder.lock_file, "lock", within=session.folder.path),
        "summary.json": (json.dumps(summary.moved(Path(name)).plain(), indent=2) + "\n").encode(),
    }


def _large(session: Session) -> Iterator[tuple[str, bytes | Path]]:
    """Yield the files that are sent as they lie there: tokenizer, best weights, an encoder that was not trained."""
    root = session.folder.path
    folders = [session.folder.backbone, root / "encoder"]
    for group in session.groups:
        checkpoints = session.checkpoints(group)
        checkpoints.best_and_step()  # whole, or not sent
        folders.append(checkpoints.folder / os.readlink(checkpoints.folder / "best"))
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            inner = path.relative_to(root).as_posix()
            if not path.is_dir():
                if not FILE.fullmatch(inner):
                    raise CheckpointError(str(path), "is no file of a run; remove it")
                open_regular(path, LIMITS["weights"], within=root).close()
                yield inner, path


def _links(session: Session) -> dict[str, str]:
    """Return where the link to the best weights of each group points, by its path in the run."""
    folders = [session.checkpoints(group).folder for group in session.groups]
    root = session.folder.path
    return {(folder / "best").relative_to(root).as_posix(): os.readlink(folder / "best") for folder in folders}


def _manifest(files: Mapping[str, bytes | Path], links: Mapping[str, str]) -> bytes:
    listed = {}
    for path, data in files.items():
        if isinstance(data, Path):
            listed[path] = fingerprint(data)
        else:
            listed[path] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    own = {path: listed[path] for path in listed if FILE.fullmatch(path)}
    return json.dumps({"format": FORMAT, "files": own, "links": dict(links)}, indent=1).encode()


def _card(recipe: Recipe, summary: RunSummary, name: str) -> str:
    """Return the README: what the model does, how well, and how it is loaded."""
    rows = [
        f"| {markdown(task)} | {markdown(score.metric)} | {score.value:.4f} | {score.examples} |"
        for task, score in summary.tasks.items()
    ]
    task = next(iter(recipe.tasks))
    count = count_texts(recipe.tasks[task])
    choices = ['"A choice."', '"Another."', *['"One more."'] * (count - 3)]
    texts = ['"One text."', *(choices if count > 2 else ['"Another."'])][:count]
    text = f"({', '.join(texts)})" if count > 1 else texts[0]
    return "\n".join(
        [
            "---\nlibrary_name: mtmeta\ntags:\n- mtmeta\n---\n",
            f"# {markdown(recipe.name)}\n",
            f"An encoder with heads for {plural(len(recipe.tasks), 'task')}, by {markdown(summary.algorithm)}.\n",
            f"| task | metric | {markdown(summary.split)} | examples |",
            "|---|---|---|---|",
            *rows,
            f'\n```python\nimport mtmeta\n\nrun = mtmeta.load("{PREFIX}{name}")\nrun.predict("{task}", {text})\n```\n',
        ]
    )


# ------------------------------------------------------------------------------------------------------------ fetching


@dataclass(frozen=True)
class _Published:
    """What mtmeta.json of a repository says."""

    files: dict[str, dict[str, Any]]
    links: dict[str, str]


def _fetched(repository: str, watcher: Watcher | None) -> Path:
    """Return the run directory of a repository in mtmeta's cache, fetched if it is not there yet."""
    source = _named(repository)
    cache = cache_folder()
    if cache is None:
        raise MachineError("MTMETA_CACHE", "is off, and a run from the hub lies in the cache; name a folder")
    sources = Sources(watcher=watcher, remedy="load it once where there is a network")
    name = f"{source.repository}@{source.revision}"
    snapshot = sources.folder(name, [MANIFEST])
    commit = next(iter(sources.artifacts.values())).commit
    place = cache / "runs" / f"{source.repository.replace('/', '--')}-{commit}"
    if is_pinned(commit) and place.is_dir():
        return place
    published = _read_manifest(snapshot / MANIFEST, source.repository)
    pinned = f"{source.repository}@{commit}"
    snapshot = sources.folder(pinned, sorted(published.files))
    with disk_errors(place):
        make_folder(cache)
        with staged_folder(place, replace=lambda: False, mode=0o700) as draft:
            for path, listed in published.files.items():
                _lay(snapshot / path, draft / path, listed, f"hub: {quote(source.repository)}")
            for path, target in published.links.items():
                replace_link(draft / path, target, draft)
    return place


def _read_manifest(path: Path, repository: str) -> _Published:
    """Return what a repository's mtmeta.json lists. Raises WeightsError for what no run has."""
    place = f"hub: {quote(repository)}"
    with open_regular(path, LIMITS["manifest"], links=True) as file:
        raw = file.read()
    try:
        data = parse_json(raw)
        files, links, version = data["files"], data["links"], data["format"]
        listed = {str(name): {"size": int(one["size"]), "sha256": str(one["sha256"])} for name, one in files.items()}
        pointed = {str(link): str(target) for link, target in links.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(place, f"its {MANIFEST} is damaged; push the run again") from error
    if version != FORMAT:
        raise WeightsError(place, f"holds a run of format {quote(version)}, this mtmeta reads {FORMAT}; upgrade mtmeta")
    bad = [name for name in listed if not FILE.fullmatch(name) or ".." in PurePosixPath(name).parts]
    bad += [link for link, target in pointed.items() if not _is_link(link, target)]
    bad += [name for name in NEEDED if name not in listed]
    if bad or len(listed) > MOST_FILES:
        shown = quote(bad[0]) if bad else f"{len(listed)} files"
        raise WeightsError(place, f"its {MANIFEST} is not that of a run ({shown}); name another repository")
    return _Published(listed, pointed)


def _is_link(link: str, target: str) -> bool:
    folder, _, name = link.rpartition("/")
    return bool(FOLDER.fullmatch(folder) and re.fullmatch(LINK, name) and re.fullmatch(BEST, target))


def _lay(source: Path, target: Path, listed: Mapping[str, Any], place: str) -> None:
    """Copy a file of the hub's cache, which is a link there, and compare it with what is listed."""
    make_folder(target.parent)
    with open_regular(source, LIMITS["weights"], links=True) as file:
        written = write_synced(target, file.read())
    if written != dict(listed):
        raise WeightsError(place, f"{target.name} is not the file that {MANIFEST} lists; push the run again")
