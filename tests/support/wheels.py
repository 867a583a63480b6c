"""Wheels written by hand, and a folder of installed packages that commands see beside those of this interpreter."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from tests.support.commands import QUIET, Outcome

VERSION = "0.3"

# runs command lines given as JSON one after the other, as a user would, and answers with what each left behind
DRIVER = """
import contextlib, io, json, sys
from mtmeta.cli import main

answers = []
for arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as end:
            answers.append([end.code, out.getvalue(), err.getvalue()])
print(json.dumps(answers))
"""


def write_wheel(folder: Path, name: str, module: str, entry_point: str | None = None) -> Path:
    """A wheel of one module with one entry point of the group `mtmeta`; no build tool has a say in it."""
    stem = name.replace("-", "_")
    info = f"{stem}-{VERSION}.dist-info"
    files = {
        f"{stem}.py": dedent(module),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {VERSION}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[mtmeta]\n{entry_point or stem} = {stem}\n",
    }
    path = folder / f"{stem}-{VERSION}-py3-none-any.whl"
    record = ""
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record += f"{file},sha256={digest},{len(text.encode())}\n"
        wheel.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    return path


@dataclass(frozen=True)
class Installed:
    """A folder in which pip has installed wheels, and which commands have on their path."""

    folder: Path
    site: Path

    def environ(self, extra: Mapping[str, str]) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("MTMETA_")}
        kept["MTMETA_CACHE"] = os.environ["MTMETA_CACHE"]
        paths = [str(self.site), *filter(None, [os.environ.get("PYTHONPATH")])]
        return kept | QUIET | {"PYTHONPATH": os.pathsep.join(paths)} | dict(extra)

    def each(self, commands: Sequence[Sequence[str]], **extra: str) -> list[Outcome]:
        """Command lines in one process, one after the other."""
        done = subprocess.run(
            [sys.executable, "-c", DRIVER],
            cwd=self.folder,
            env=self.environ(extra),
            input=json.dumps(commands),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [Outcome(*answer) for answer in json.loads(done.stdout)]

    def command(self, *arguments: str, **extra: str) -> Outcome:
        """`python -m mtmeta ARGUMENTS` in a process of its own."""
        done = subprocess.run(
            [sys.executable, "-m", "mtmeta", *arguments],
            cwd=self.folder,
            env=self.environ(extra),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)


def install(folder: Path, wheels: Sequence[Path], *options: str) -> Installed:
    """The wheels, or folders of packages, installed by pip from their files alone."""
    site = folder / "site"
    arguments = ["install", "--target", str(site), "--no-deps", "--no-index", "--no-compile", "--quiet"]
    environ = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    command = [sys.executable, "-m", "pip", *arguments, *options, *map(str, wheels)]
    subprocess.run(command, check=True, capture_output=True, env=environ, timeout=600)
    return Installed(folder, site)
