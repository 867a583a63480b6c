"""Where the files lie that a recipe names on the hub or by an address: looked up, fetched, checked, and remembered.

A recipe is gone through twice. A `planning` Sources is asked by every part for what it needs, and fetches nothing;
`fetch` brings what is missing, and tells at once all that stands in its way; then the parts ask again and are given
local paths.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtmeta.core.errors import DataError, MachineError, MtmetaError, WeightsError, raise_all
from mtmeta.core.storage.addresses import parse_model
from mtmeta.core.storage.artifacts import Artifact, Want, by_name, check_pin, missing_text, server_of, want_file
from mtmeta.core.storage.download import Unreachable, Watcher
from mtmeta.core.storage.fetcher import Fetcher
from mtmeta.core.storage.hub import is_offline
from mtmeta.core.wording import safe

MAX_LISTED = 20


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
        self.fetcher = Fetcher(pins or {}, watcher or Watcher())
        self.planning = planning
        self.remedy = remedy
        self.wants: dict[str, Want] = {}
        self.artifacts: dict[str, Artifact] = {}
        """Those that are in the cache, by name."""

    def file(self, name: str) -> Path:
        """Return the local path of a file `hf://...` or `https://...#sha256=...`. Raises DataError, MachineError."""
        want = want_file(name)
        if self.planning:
            self.wants[name] = want
            return Path(want.files[0])
        path = self._get(want).files[want.files[0]].path
        assert path is not None
        return path

    def folder(self, name: str, needed: Sequence[str], optional: Sequence[str] = ()) -> Path:
        """Return a folder with files of the model repository `ORG/NAME@REVISION` (`hf://` may stand before it).

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

    def _get(self, want: Want) -> Artifact:
        before = self.artifacts.get(want.name)
        if before is None or not set(want.files) <= set(before.files):
            self.artifacts.pop(want.name, None)
            self.fetch(by_name([before.want, want] if before else [want]).values())
        return self.artifacts[want.name]

    def fetch(self, wants: Iterable[Want]) -> None:
        """Bring everything that is missing. Raises what stands in the way, all of it at once."""
        problems: list[MtmetaError] = []
        missing: list[Artifact] = []
        offline = is_offline()
        down: dict[str, str] = {}  # servers that did not answer, and how: what else lies there is not asked for
        for want in wants:
            if want.name in self.artifacts:
                continue
            server = server_of(want)
            try:
                skip = offline or server in down
                artifact = self.fetcher.cached(want) if skip else self.fetcher.bring(want)
            except Unreachable as error:
                down[server] = f"{server} cannot be reached ({error})"
                artifact = self.fetcher.cached(want)
            except MtmetaError as error:
                problems.append(error)
                continue
            if artifact.missing:
                missing.append(artifact)
                continue
            try:
                check_pin(artifact)
            except DataError as error:
                problems.append(error)
            else:
                self.artifacts[want.name] = artifact
        if missing:
            why = "HF_HUB_OFFLINE is set" if offline else " and ".join(down.values())
            problems.append(self._missing(missing, why))
        raise_all(problems)

    def _missing(self, missing: Sequence[Artifact], why: str) -> MachineError:
        count = sum(len(artifact.missing) for artifact in missing)
        listed = [missing_text(artifact) for artifact in missing[:MAX_LISTED]] + ["..."] * (len(missing) > MAX_LISTED)
        are = f"{count} file{'s are' if count > 1 else ' is'} not in the cache"
        return MachineError("", f"{are} and {why}: {'; '.join(listed)}; {self.remedy}")

    def lock(self) -> list[dict[str, Any]]:
        """Return name, commit and hashes of everything that was asked for, for recipe.lock.yaml."""
        return [
            {
                "name": name,
                "for": "backbone" if artifact.want.weights else "data",
                **({"commit": artifact.commit} if artifact.commit else {}),
                "files": {one.file: one.sha256 for one in artifact.files.values() if one.sha256},
            }
            for name, artifact in sorted(self.artifacts.items())
        ]
