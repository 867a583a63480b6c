"""Where the files lie that a recipe names on the hub or by an address: looked up, fetched, checked, and remembered.

A recipe is gone through twice. A `planning` Sources is asked by every part for what it needs, and fetches nothing;
`fetch` brings what is missing, and tells at once all that stands in its way; then the parts ask again and are given
local paths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtmeta.core.environment import cache_folder
from mtmeta.core.errors import DataError, MachineError, MtmetaError, WeightsError, raise_all
from mtmeta.core.storage.addresses import HubFile, WebFile, is_pinned, parse_model
from mtmeta.core.storage.artifacts import (
    Found,
    Status,
    Stored,
    Want,
    by_name,
    check_pin,
    server_of,
    stored,
    tell,
    want_file,
)
from mtmeta.core.storage.disk import fingerprint
from mtmeta.core.storage.download import Download, Unreachable, Watcher, WrongHash, download, reason
from mtmeta.core.storage.hub import ABSENT, Absent, Repository, explain, is_offline, size_of
from mtmeta.core.wording import quote, safe

__all__ = ["Sources"]

MAX_LISTED = 20
FOLDER = "files"  # in our cache, beside tokens and kernels; those go when unused, these stay


class Sources:
    """The files that recipes name elsewhere. `pins` are commits by name, which win over a branch.

    Nothing is fetched in `planning`; what is asked for is only noted in `wants`.
    """

    def __init__(
        self,
        pins: Mapping[str, str] | None = None,
        watcher: Watcher | None = None,
        *,
        planning: bool = False,
        remedy: str = "fetch it where there is a network",
    ) -> None:
        self.pins = dict(pins or {})
        self.watcher = watcher or Watcher()
        self.planning = planning
        self.remedy = remedy
        self.wants: dict[str, Want] = {}
        self.found: dict[str, Found] = {}

    # -- what parts ask for

    def file(self, name: str) -> Path:
        """The local path of a data file `hf://...` or `https://...#sha256=...`. Raises DataError, MachineError."""
        want = want_file(name)
        if self.planning:
            self.wants[name] = want
            return Path(want.files[0])
        path = self._get(want).files[want.files[0]].path
        assert path is not None
        return path

    def folder(self, name: str, needed: Sequence[str], optional: Sequence[str] = ()) -> Path:
        """A folder with files of the model repository `ORG/NAME@REVISION` (`hf://` may stand before it).

        `optional` files are left out where the repository has none. Raises WeightsError, MachineError.
        """
        try:
            source = parse_model(name)
        except ValueError as error:
            raise WeightsError(safe(name), str(error)) from None
        want = Want(name, source, (*optional, *needed), tuple(optional), weights=True)
        if self.planning:
            self.wants[name] = want
            return Path(source.repository)
        return self._get(want).folder

    def _get(self, want: Want) -> Found:
        before = self.found.get(want.name)
        if before is None or not set(want.files) <= set(before.files):
            self.found.pop(want.name, None)
            self.fetch(by_name([before.want, want] if before else [want]).values())
        return self.found[want.name]

    # -- all at once

    def fetch(self, wants: Iterable[Want]) -> None:
        """Bring everything that is missing. Raises what stands in the way, all of it at once."""
        problems: list[MtmetaError] = []
        missing: list[Found] = []
        offline = is_offline()
        down: dict[str, str] = {}  # servers that did not answer, and how: what else lies there is not asked for
        for want in wants:
            if want.name in self.found:
                continue
            server = server_of(want)
            try:
                found = self.look(want) if offline or server in down else self._bring(want)
            except Unreachable as error:
                down[server] = f"{server} cannot be reached ({error})"
                found = self.look(want)
            except MtmetaError as error:
                problems.append(error)
                continue
            if found.missing:
                missing.append(found)
                continue
            try:
                check_pin(found)
            except DataError as error:
                problems.append(error)
            else:
                self.found[want.name] = found
        if missing:
            why = "HF_HUB_OFFLINE is set" if offline else " and ".join(down.values())
            problems.append(self._missing(missing, why))
        raise_all(problems)

    def _missing(self, missing: Sequence[Found], why: str) -> MachineError:
        count = sum(len(found.missing) for found in missing)
        listed = "; ".join(tell(found) for found in missing[:MAX_LISTED]) + ("; ..." * (len(missing) > MAX_LISTED))
        are = f"{count} file{'s are' if count > 1 else ' is'} not in the cache"
        return MachineError("", f"{are} and {why}: {listed}; {self.remedy}")

    def look(self, want: Want) -> Found:
        """What the cache holds of a want; asks nobody."""
        if isinstance(want.source, WebFile):
            return Found(want, files=self._look_web(want.source))
        repository = Repository(want.source.kind, want.source.repository)
        revision = self.pins.get(want.name, want.revision)
        files: dict[str, Stored] = {}
        commit = revision if is_pinned(revision) else ""
        for file in want.files:
            path = repository.find(file, revision)
            if isinstance(path, Path):
                commit = repository.commit_of(path, file)
                files[file] = stored(file, path)
            else:
                known: Status = "absent" if path is ABSENT else "unknown"
                files[file] = Stored(file, known if file in want.optional else "missing")
        return Found(want, commit, files)

    def sizes(self, found: Found) -> tuple[str, list[Stored]]:
        """The commit and the files of a want, with the sizes that the hub or the server says of what is missing."""
        want, commit, files = found.want, found.commit, dict(found.files)
        for file in reversed(want.files):  # those first that must be there
            if files[file].path is not None or files[file].status == "absent":
                continue
            try:
                if isinstance(want.source, WebFile):
                    size = size_of(want.source.url)
                else:
                    repository = Repository(want.source.kind, want.source.repository)
                    told = repository.ask(file, commit or self.pins.get(want.name, want.revision))
                    commit, size = commit or told.commit, told.size
                files[file] = replace(files[file], status="missing", size=size)
            except Absent:
                if file not in want.optional:
                    assert isinstance(want.source, HubFile)
                    raise self._no_file(want, want.source, file) from None
                files[file] = Stored(file, "absent")
            except Unreachable:
                break
            except Exception as error:
                raise self._refused(want, error) from error
        return commit, [files[file] for file in want.files]

    def _look_web(self, source: WebFile) -> dict[str, Stored]:
        path = self._place(source)
        if not path.is_file():
            return {source.file: Stored(source.file, "missing")}
        found = fingerprint(path)
        good = found["sha256"] == source.sha256
        one = Stored(source.file, "cached" if good else "damaged", path, found["size"], found["sha256"])
        return {source.file: one}

    @staticmethod
    def _place(source: WebFile) -> Path:
        root = cache_folder()
        if root is None:
            message = "leaves no place for files fetched by address; set it to a folder, or unset it"
            raise MachineError("MTMETA_CACHE", message)
        return root / FOLDER / source.sha256 / source.file

    # -- one after the other

    def _bring(self, want: Want) -> Found:
        """A want with its files in the cache, fetched where they were not."""
        kind: Callable[[str, str], MtmetaError] = WeightsError if want.weights else DataError
        try:
            if isinstance(want.source, WebFile):
                return self._bring_web(want, want.source)
            return self._bring_hub(want, want.source)
        except WrongHash as error:
            raise kind(safe(want.name, 300), f"refused, its {error}; check the name and the hash") from error
        except (MtmetaError, Unreachable):
            raise
        except Exception as error:
            raise self._refused(want, error) from error

    def _refused(self, want: Want, error: Exception) -> MtmetaError:
        """What the hub's library raised, whose classes change between releases, as one line."""
        if isinstance(error, MtmetaError):
            return error
        if isinstance(want.source, HubFile):
            message = "weights" if want.weights else f"{want.source.kind} file"
            return explain(want.source.repository, self.pins.get(want.name, want.revision), message, error)
        status = getattr(getattr(error, "response", None), "status_code", None)
        why = f"the server answers {status}" if status else reason(error)
        return DataError(safe(want.source.url, 300), f"cannot be fetched ({why}); check the address")

    def _bring_web(self, want: Want, source: WebFile) -> Found:
        before = self._look_web(source)[source.file]
        if before.status == "cached":
            return Found(want, files={source.file: before})
        if damaged := before.status == "damaged":
            self.watcher.note(f"{before.path}: damaged; fetching it again")
        message = Download(
            label=source.file,
            url=source.url,
            target=self._place(source),
            algorithm="sha256",
            digest=source.sha256,
            replace=damaged,
        )
        fetched = download(message, self.watcher)
        one = self._look_web(source)[source.file]
        return Found(want, files={source.file: replace(one, status="fetched") if fetched else one})

    def _bring_hub(self, want: Want, source: HubFile) -> Found:
        repository = Repository(source.kind, source.repository)
        given = self.pins.get(want.name, source.revision)
        commit = given if is_pinned(given) else self._resolve(repository, want, given)
        files: dict[str, Stored] = {}
        for file in want.files:
            path = repository.find(file, commit)
            if isinstance(path, Path):
                files[file] = stored(file, path)
                if files[file].status == "cached":
                    continue
                self.watcher.note(f"{path}: damaged; fetching it again")
            elif path is ABSENT and file in want.optional:
                files[file] = Stored(file, "absent")
                continue
            try:
                files[file] = self._bring_one(repository, file, commit, given, damaged=file in files)
            except Absent:
                if file not in want.optional:
                    raise self._no_file(want, source, file) from None
                files[file] = Stored(file, "absent")
        return Found(want, commit, files)

    def _bring_one(self, repository: Repository, file: str, commit: str, given: str, *, damaged: bool) -> Stored:
        path, fetched = repository.bring(file, commit, given, self.watcher, damaged=damaged)
        one = stored(file, path)
        if one.status == "damaged":  # it was there already, in another snapshot
            self.watcher.note(f"{path}: damaged; fetching it again")
            path, fetched = repository.bring(file, commit, given, self.watcher, damaged=True)
            one = stored(file, path)
        return replace(one, status="fetched") if fetched else one

    def _resolve(self, repository: Repository, want: Want, revision: str) -> str:
        """The commit a branch or tag stands for; without a network the one it stood for when it was last seen."""
        file = want.files[-1]
        try:
            return repository.ask(file, revision).commit
        except Absent:
            assert isinstance(want.source, HubFile)
            raise self._no_file(want, want.source, file) from None
        except Unreachable:
            found = self.look(want)
            if found.missing:
                raise
            return found.commit

    @staticmethod
    def _no_file(want: Want, source: HubFile, file: str) -> MtmetaError:
        place = f"hub: {quote(source.repository)}"
        if want.weights:
            return WeightsError(place, f"has no {file} at revision {quote(source.revision)}; name another repository")
        return DataError(place, f"has no file {quote(file)} at revision {quote(source.revision)}; check the name")

    # -- what a run remembers

    def lock(self) -> list[dict[str, Any]]:
        """Name, commit and hashes of everything that was asked for, for recipe.lock.yaml."""
        return [
            {
                "name": name,
                "for": "backbone" if found.want.weights else "data",
                **({"commit": found.commit} if found.commit else {}),
                "files": {one.file: one.sha256 for one in found.files.values() if one.sha256},
            }
            for name, found in sorted(self.found.items())
        ]
