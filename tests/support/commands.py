"""The command line as a user meets it: in a process of its own, or inside this one where a process adds nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from mtmeta.cli import main

RECIPE = """\
name: t
data_root: data
backbone: {name: bert, weights: tiny, max_length: 32}
tasks:
  sst: {train: sample, dev: sample}
  para: {train: sample, dev: sample}
algorithm:
  name: reptile
  inner_optimizer: {name: adamw, lr: 1e-3}
optimizer: {name: sgd, lr: 1.0}
training: {steps: 2}
"""
# one task on files, for what needs data or a run
SMALL = """\
name: small
data_root: data
backbone: {name: bert, weights: tiny, max_length: 32}
tasks:
  pairs:
    task: pair_classification
    labels: [contradiction, entailment, neutral]
    train: train.tsv
    dev: dev.tsv
    batch_size: 4
algorithm: joint
optimizer: {name: sgd, lr: 0.1}
training: {steps: 1}
"""
LABELS = ("contradiction", "entailment", "neutral")
HEADER = "idx\tsentence1\tsentence2\tlabel\n"
ROWS = "".join(f"{i}\tword {i}\tother {i}\t{LABELS[i % 3]}\n" for i in range(9))
QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def data_folder(folder: Path) -> Path:
    """`data/train.tsv`, `data/dev.tsv` and a recipe on them."""
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "train.tsv").write_text(HEADER + ROWS)
    (folder / "data" / "dev.tsv").write_text(HEADER + ROWS.replace("word", "new").replace("other", "more"))
    (folder / "r.yaml").write_text(SMALL)
    return folder


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


def command(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> Outcome:
    """`python -m mtmeta ARGUMENTS` in `cwd`."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("MTMETA_")} | QUIET
    variables |= {key: os.environ[key] for key in ("MTMETA_CACHE",) if key in os.environ}
    done = subprocess.run(
        [sys.executable, "-m", "mtmeta", *arguments],
        cwd=cwd,
        env=variables | dict(env or {}),
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=600,  # a busy machine is no fault of the command
        check=False,
    )
    return Outcome(done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8"))


def call(*arguments: str, cwd: Path, capsys: pytest.CaptureFixture[str]) -> Outcome:
    """The same in this process."""
    before = Path.cwd()
    capsys.readouterr()
    os.chdir(cwd)
    try:
        with pytest.raises(SystemExit) as stopped:
            main(list(arguments))
    finally:
        os.chdir(before)
    captured = capsys.readouterr()
    return Outcome(int(str(stopped.value.code)), captured.out, captured.err)


def assert_refused(outcome: Outcome, code: int, *words: str) -> None:
    """One line `error: `, the exit code, and every one of `words` (a place, the user's token, the fix) in the line."""
    assert outcome.code == code, outcome.err
    assert len(outcome.errors) == 1, outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    assert "Traceback" not in outcome.err
    assert "bug in mtmeta" not in outcome.err
    (line,) = outcome.errors
    for word in words:
        assert word in line, f"{word!r} is not in {line!r}"
    assert not re.search(r"[\x00-\x1f\x7f]", line), "control characters reach the terminal"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, byte for byte, and where links point."""
    return {
        str(path.relative_to(folder)): os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@contextmanager
def quietly() -> Iterator[None]:
    """Within, processes that are started have one thread and no hub; for fixtures of a wider scope than a test."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in QUIET.items():
            patch.setenv(key, value)
        yield
