"""Code blocks of the Markdown pages: collected, run in the order a reader would, and what is not run checked.

    python -m tests.support.docs_blocks docs/tutorial.md       run a page's blocks and write their real output into it

A block's info string is its language, and `title="FILE"` where the reader is to save it. Blocks of a page share one
folder. A `text` block after a `bash` or `python` block is its output: a line `...` stands for any lines. Comments in
the line above a block say more:

    <!-- not run: REASON -->            only checked: commands and options exist, Python compiles, recipes validate
    <!-- page not run: REASON -->       the same for all blocks from here on
    <!-- exit 2 -->                     what the block ends with, if not 0; its output is then what stands on stderr
    <!-- numbers vary -->               of the output, digits are not compared
    <!-- wrong on purpose -->           a recipe that does not validate
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.docs_checks import check
from tests.support.paths import ROOT

__all__ = ["PAGES", "Block", "Reader", "blocks_of", "matches"]

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = ("bash", "python", "yaml", "toml")
LANGUAGES = (*RUN, "text", "console")
FENCE = re.compile(r"^(?P<indent> *)(?P<marks>`{3,})(?P<info>[^`]*)$")
COMMENT = re.compile(r"^\s*<!-- (.*) -->\s*$")


@dataclass(frozen=True)
class Block:
    """A fenced block with its place and its comments."""

    page: Path
    line: int
    language: str
    title: str
    text: str
    notes: tuple[str, ...]
    why_not_run: str

    @property
    def name(self) -> str:
        return (
            f"{self.page.relative_to(ROOT)}:{self.line}"
            if self.page.is_relative_to(ROOT)
            else f"{self.page}:{self.line}"
        )

    @property
    def exit_code(self) -> int:
        return next((int(note.removeprefix("exit ")) for note in self.notes if note.startswith("exit ")), 0)


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page, in order. Raises ValueError for a comment or a language that is not known."""
    blocks: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    notes: list[str] = []
    page_not_run = ""
    at = 0
    while at < len(lines):
        line, at = lines[at], at + 1
        if comment := COMMENT.match(line):
            note = comment[1]
            if not re.fullmatch(r"(page )?not run: .{8,}|exit \d+|numbers vary|wrong on purpose|test command", note):
                raise ValueError(f"{page}:{at}: no comment that is known: {note}")
            if note.startswith("page not run: "):
                page_not_run = note.removeprefix("page not run: ")
            else:
                notes.append(note)
        elif fence := FENCE.match(line):
            start = at
            while not re.match(rf"^ *{fence['marks']}\s*$", lines[at]):
                at += 1
            language, _, rest = fence["info"].strip().partition(" ")
            if language not in LANGUAGES:
                raise ValueError(f"{page}:{start}: language {language!r} is none of {', '.join(LANGUAGES)}")
            title = re.search(r'title="([^"]+)"', rest)
            text = textwrap.dedent("".join(f"{line}\n" for line in lines[start:at]))
            why = next((note.removeprefix("not run: ") for note in notes if note.startswith("not run: ")), page_not_run)
            blocks.append(Block(page, start, language, title[1] if title else "", text, tuple(notes), why))
            at, notes = at + 1, []
        elif line.strip():
            notes = []
    return blocks


# ------------------------------------------------------------------------------------------------------------- running


@dataclass
class Reader:
    """Somebody who goes through a page in a folder of their own, block by block."""

    page: Path
    folder: Path
    done: int = 0
    output: str = ""
    """Of the last block that was run."""
    real: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.blocks = blocks_of(self.page)

    def go_to(self, index: int) -> None:
        """Go through the blocks up to and with that one. Raises AssertionError where the page and the world differ."""
        while self.done <= index:
            block, self.done = self.blocks[self.done], self.done + 1
            self._take(block)

    def _take(self, block: Block) -> None:
        if block.language == "text":
            if self.output:
                self.real[block.line] = self.output
                assert matches(block.text, self.output, numbers="numbers vary" not in block.notes), (
                    f"{block.name}: the page says\n{block.text}\nand it was\n{self.output}"
                )
            self.output = ""
            return
        self.output = ""
        if block.why_not_run or not (block.title or block.language in ("bash", "python")):
            check(block)
            return
        if block.title:
            (self.folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.language in ("bash", "python"):
            self.output = self._run(block)
        assert block.language != "console", f"{block.name}: write what is run as bash, and its output as text"

    def _run(self, block: Block) -> str:
        if block.language == "bash":
            command = ["bash", "-euo", "pipefail", "-c", block.text]
        else:  # in a file, where what looks at its own source finds it
            script = self.folder / f"block_{block.line}.py"
            script.write_text(block.text, encoding="utf-8")
            command = [sys.executable, str(script)]
        options: dict[str, Any] = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
        process = subprocess.run(command, cwd=self.folder, env=self._environ(), timeout=1200, check=False, **options)
        assert process.returncode == block.exit_code, (
            f"{block.name}: ended with {process.returncode}\n{process.stdout}{process.stderr}"
        )
        output: str = process.stderr if block.exit_code else process.stdout
        return output.replace(str(self.folder.resolve()), f"/home/you/{self.page.stem}")

    def _environ(self) -> dict[str, str]:
        """Return our environment without mtmeta's settings, in which `pip install` puts packages beside the folder."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("MTMETA_", "PIP_", "PYTHON"))}
        kept |= {key: os.environ[key] for key in ("MTMETA_CACHE",) if key in os.environ}
        packages = str(self.folder.parent / f"{self.folder.name}-packages")
        kept |= {"PYTHONPATH": packages, "PIP_TARGET": packages, "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1"}
        kept |= {"PIP_NO_BUILD_ISOLATION": "0", "PIP_ROOT_USER_ACTION": "ignore", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        return kept | {"COLUMNS": "120", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}


def matches(page: str, real: str, *, numbers: bool = True) -> bool:
    """Return whether output is as the page says; `...` on a line of its own stands for any lines, none included."""
    parts = [_plain(part, numbers) for part in re.split(r"^[ \t]*\.\.\.[ \t]*(?:\n|\Z)", page, flags=re.MULTILINE)]
    return re.fullmatch(r"(?:.*\n)*?".join(map(re.escape, parts)), _plain(real, numbers)) is not None


def _plain(text: str, numbers: bool) -> str:
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    text = "".join(f"{line}\n" for line in lines)
    if numbers:
        return text
    text = re.sub(r"[+-]?\d[\d,.:]*(?<=\d)(?:e[+-]?\d+)?", "#", text).replace(" worse", "")
    text = re.sub(r"# (s|min|h)\b", "#", text)  # of a time
    return re.sub(r"-{2,}", "--", re.sub(r" +", " ", text))


def main(pages: Sequence[str]) -> None:
    """Run pages and write what their blocks really print in place of what they say."""
    for name in pages:
        page = Path(name).resolve()
        with tempfile.TemporaryDirectory() as folder:
            reader = Reader(page, Path(folder) / page.stem)
            reader.folder.mkdir()
            lines = page.read_text(encoding="utf-8").splitlines()
            for index in range(len(reader.blocks)):
                try:
                    reader.go_to(index)
                except AssertionError as error:
                    if reader.blocks[index].language != "text":
                        raise
                    print(error)
            for block in reversed(reader.blocks):
                real = reader.real.get(block.line)
                elided = re.search(r"^\s*\.\.\.\s*$", block.text, re.MULTILINE)
                if real and not (elided and matches(block.text, real, numbers=False)):
                    lines[block.line : block.line + block.text.count("\n")] = real.rstrip("\n").splitlines()
            page.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
