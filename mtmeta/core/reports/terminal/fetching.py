"""Fetching on stderr, as a progress bar or a line now and then, and the list of files that recipes name elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mtmeta.core.reports.terminal.console import console_for_tables
from mtmeta.core.storage.download import Watcher
from mtmeta.core.wording import byte_text, safe

if TYPE_CHECKING:
    from rich.progress import Progress

EVERY = 5.0  # seconds between two plain lines
LARGE = 10_000_000  # bytes that are worth a line before they come
NAME, WIDE = 24, 80  # columns of a file's name in the bar, and of a terminal that has room for all of it
DIGEST = 12  # characters of a hash that tell it from another
COUNTED = ("cached", "fetched", "missing", "damaged")


class FetchView(Watcher):
    """Progress of a download on stderr: a bar on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._label, self._began, self._last_line = "", 0.0, 0.0
        self._start, self._done = 0, 0

    def begin(self, label: str, done: int, total: int | None) -> None:
        self._label, self._start, self._done = label, done, done
        self._began = self._last_line = time.monotonic()
        console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        if console.is_terminal and not console.is_dumb_terminal:
            self._open_bar(console, done, total)
        elif done or total is None or total >= LARGE:
            size = f", {byte_text(total)}" if total is not None else ""
            _say(f"fetching {label}{size}{f', going on from {byte_text(done)}' if done else ''}")

    def advance(self, done: int, total: int | None) -> None:
        self._done = done
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total)
        elif now - self._last_line >= EVERY:
            self._last_line = now
            rate = (done - self._start) / (now - self._began)
            of = f" of {byte_text(total)}" if total is not None else ""
            _say(f"  {byte_text(done)}{of}, {byte_text(int(max(rate, 0)))}/s")

    def end(self, label: str, complete: bool) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if complete:
            _say(f"fetched {label}: {byte_text(self._done)} in {time.monotonic() - self._began:.1f} s")
        else:
            _say(f"stopped at {byte_text(self._done)} of {label}; the same command goes on from there")

    def note(self, text: str) -> None:
        _say(text)

    def _open_bar(self, console: Console, done: int, total: int | None) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import TransferSpeedColumn as SpeedColumn

        name = self._label if len(self._label) <= NAME else ".." + self._label[2 - NAME :]  # files differ in their ends
        columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), DownloadColumn()]
        if console.width >= WIDE:
            columns = [columns[0], BarColumn(bar_width=16), columns[1], SpeedColumn(), TimeRemainingColumn()]
        self._bar = Progress(*columns, console=console, transient=True)
        self._bar.add_task(safe(name), total=total, completed=done)
        self._bar.start()


def _say(text: str) -> None:
    if sys.stderr is not None:
        print(safe(text, 500), file=sys.stderr, flush=True)


def show_fetched(fetched: Mapping[str, Any]) -> None:
    """Print what recipes name elsewhere, file by file: whether it is there, its size and how its SHA-256 begins."""
    console = console_for_tables()  # names are long and tell all: lines, not a table that would fold them
    sources = fetched["sources"]
    files = [file for source in sources for file in source["files"]]
    width = max((len(safe(file["file"], 200)) for file in files), default=0)
    for source in sources:
        console.print(safe(source["pinned"], 500))
        for file in source["files"]:
            size = byte_text(file["size"]) if file["size"] is not None else ""
            digest = f"sha256 {file['sha256'][:DIGEST]}.." if file["sha256"] else ""
            status = "perhaps" if file["status"] == "unknown" else file["status"]  # only the hub knows
            console.print(f"  {safe(file['file'], 200):{width}}  {status:9}  {size:>9}  {digest}".rstrip())
    if sources:
        counts = Counter(file["status"] for file in files)
        summary = ", ".join(f"{counts[status]} {status}" for status in COUNTED if counts[status])
        came = f"; {byte_text(fetched['fetched_bytes'])} came" if fetched["fetched_bytes"] else ""
        console.print(f"{summary}{came}")
    else:
        console.print("nothing to fetch: the recipes name no weights and no data elsewhere")
    missing = list(dict.fromkeys(file["path"] for file in fetched["local"] if not file["exists"]))
    if missing:
        folder = Path(missing[0]).parent
        names = ", ".join(Path(path).name if Path(path).parent == folder else path for path in missing)
        console.print(f"not in {safe(str(folder), 300)}, and a path cannot be fetched: {safe(names, 500)}")
