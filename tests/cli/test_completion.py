"""Completion: the proposals at each place, in the protocol of each shell, and in real shells that are installed."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from mtmeta.cli import app
from mtmeta.cli.completion.answer import VARIABLE, propose
from mtmeta.cli.completion.command import FOLDER
from mtmeta.core.recipe.shipped import shipped_recipes
from tests.support.commands import RECIPE, call

COMMAND = typer.main.get_command(app)
RUN = "name: t\ntasks:\n  one: {task: sst, train: sample}\n  two: {task: sts, train: sample}\n"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with recipes and runs, and names that shells find hard."""
    (tmp_path / "my recipes").mkdir()
    (tmp_path / "my recipes" / "a b$.yaml").write_text(RECIPE)
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / ".hidden").mkdir()
    for name in ("first", "group/second", "damaged"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "recipe.yaml").write_text(RUN if name != "damaged" else "{")
        (tmp_path / "runs" / name / "recipe.lock.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def values(*words: str) -> list[str]:
    *before, word = words
    return [value for value, _ in propose(COMMAND, before, word)]


def test_commands_and_options() -> None:
    assert values("ru") == ["run", "runs"]
    assert values("recipes", "") == ["copy"]
    assert values("run", "--dev") == ["--device"]
    assert set(values("eval", "-")) >= {"--split", "--task", "--json", "--help", "--verbose"}
    assert "--json" not in values("eval", "--json", "--")
    assert "--set" in values("run", "--set", "seed=1", "--")  # may come again
    assert values("nonsense", "") == values("run", "r.yaml", "") == values("run", "--no-such", "x", "r") == []
    assert {"run", "validate", "show", "schema", "completion"} <= set(values(""))


def test_every_command_and_option_has_help() -> None:
    for name, text in propose(COMMAND, [], ""):
        assert text, name
        for option, help_text in propose(COMMAND, [name], "--"):
            assert help_text, f"{name} {option}"


def test_recipes_are_files_and_shipped_names() -> None:
    assert values("run", "") == [*shipped_recipes(), "my recipes/", "r.yaml", "runs/"]
    assert values("validate", "r.yaml", "my recipes/") == ["my recipes/a b$.yaml"]
    assert values("compare", "r.yaml", "minilm/re") == ["minilm/reptile"]
    assert values("recipes", "copy", "paper/joint_") == ["paper/joint_10"]
    assert values("run", "no/such/folder/") == []


def test_runs_are_run_directories() -> None:
    assert values("eval", "") == ["runs/damaged", "runs/first", "runs/group/second"]
    assert values("report", "runs/first", "runs/g") == ["runs/group/second", "runs/group/"]
    assert values("adapt", "runs/f") == ["runs/first"]
    both = ["runs/damaged", "runs/first", "runs/group/second", "runs/", "reptile_three_task", "r.yaml"]
    assert values("adapt", "runs/first", "r") == both


def test_names() -> None:
    assert values("show", "s") == ["sampler", "section", "schedule"]
    assert values("show", "task", "st") == ["sts"]
    assert values("show", "schedule", "c") == ["constant", "cosine"]
    assert values("show", "metric", "m") == ["macro_f1", "mae", "matthews", "micro_f1", "mrr_at_10"]
    assert values("show", "nothing", "") == []
    assert values("eval", "runs/first", "--task", "") == values("predict", "--task=x", "runs/first", "--task", "")
    assert values("eval", "runs/first", "--task", "") == ["one", "two"]
    assert values("eval", "runs/damaged", "--task", "") == values("eval", "--task", "") == []
    assert values("eval", "runs/first", "--file", "o") == ["one="]
    assert values("eval", "runs/first", "--file", "one=r.") == ["one=r.yaml"]
    assert values("eval", "runs/first", "--file", "one=n") == ["one=notes.txt"]
    assert values("eval", "runs/first", "--split=d") == ["--split=dev"]
    assert values("run", "--device", "c") == ["cpu", "cuda"]
    assert values("completion", "") == ["bash", "zsh", "fish"]


def test_keys() -> None:
    def of(word: str, recipe: str = "r.yaml") -> list[str]:
        return values("run", recipe, "--set", word)

    assert of("training.ste") == ["training.steps="]
    assert of("tr") == ["training."]
    assert of("sampler") == ["sampler.", "sampler="]
    assert of("sampler=u") == ["sampler=uniform"]
    assert of("optimizer") == ["optimizer."]  # it needs a learning rate, so its name alone will not do
    assert of("tasks.") == ["tasks.sst.", "tasks.para."]
    assert of("tasks.para.pair_mode=") == ["tasks.para.pair_mode=separate", "tasks.para.pair_mode=cross"]
    assert of("algorithm.inner_optimizer.b") == ["algorithm.inner_optimizer.betas="]
    assert of("algorithm.inner_sch") == ["algorithm.inner_schedule.", "algorithm.inner_schedule="]
    assert of("algorithm.inner_schedule.g") == ["algorithm.inner_schedule.gamma="]  # of the default
    assert of("algorithm.weighting=u", "minilm/joint") == ["algorithm.weighting=uncertainty"]
    assert of("evaluation.gradients=") == ["evaluation.gradients=true", "evaluation.gradients=false"]
    assert of("backbone.w", "no.yaml") == []  # which backbone it is, nobody knows
    assert of("training.c", "no.yaml") == ["training.clip="]
    assert of("no.such.key") == of("training.steps.") == of("seed=") == []


# ---------------------------------------------------------------------------------------------- the shells' protocols


def ask(shell: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    given = [sys.executable, "-m", "mtmeta", *words]
    return subprocess.run(
        given, env=os.environ | {VARIABLE: shell} | env, capture_output=True, text=True, check=False, timeout=600
    )


@pytest.mark.parametrize(
    ("shell", "words", "expected"),
    [
        ("zsh", ["runs"], ["runs\tList the runs"]),
        ("fish", ["run", "my recipes/"], ["my recipes/a b$.yaml"]),
        ("bash", ["run", "my\\ recipes/"], ["my\\ recipes/a\\ b\\$.yaml"]),
        ("bash", ["run", '"my recipes/'], ["my recipes/a b\\$.yaml"]),
        ("zsh", ["run", "my\\ recipes/"], ["my recipes/a b$.yaml"]),
        # bash breaks words at = and replaces only the text after it
        ("bash", ["run", "r.yaml", "--set", "sampler", "=", "u"], ["uniform"]),
        ("bash", ["run", "r.yaml", "--set", "seed", "=", "1", "--set", "training.ste"], ["training.steps="]),
        ("bash", ["eval", "runs/first", "--split", "="], ["dev", "test", "train"]),
        ("zsh", ["eval", "runs/first", "--split="], ["--split=dev", "--split=test", "--split=train"]),
        ("bash", [], None),
        ("no-shell", [""], None),
    ],
)
def test_protocol(shell: str, words: list[str], expected: list[str] | None) -> None:
    done = ask(shell, *words)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    if expected is None:
        assert {line.split("\t")[0] for line in lines} == set(values(""))
    else:
        assert [line[: len(start)] for line, start in zip(lines, expected, strict=True)] == expected


def test_it_never_prints_an_error(place: Path) -> None:
    for words in (
        ["eval", "runs/damaged", "--task", ""],
        ["run", "\udcff"],
        ["run", "$(touch gone)", "--set", "a\nb"],
        ["show", "task", "'"],  # and a plugin is asked for that does not exist
    ):
        done = ask("zsh", *words, PYTHONWARNINGS="error", MTMETA_PLUGINS="no-such-plugin")
        assert (done.returncode, done.stderr) == (0, "")
    assert not (place / "gone").exists()


def test_torch_is_never_loaded() -> None:
    code = (
        "import os, sys, mtmeta.cli as c\n"
        "os._exit = lambda code: print('torch' in sys.modules)\n"
        f"os.environ['{VARIABLE}'] = 'zsh'\n"
        "try:\n    c.main(['show', 'task', ''])\nexcept SystemExit:\n    pass\n"
    )
    # descriptors 1 and 2 are silenced by then, so the answer goes to a file
    code = code.replace("print('torch' in sys.modules)", "open('loaded', 'w').write(str('torch' in sys.modules))")
    subprocess.run([sys.executable, "-c", code], check=False, timeout=600, capture_output=True)
    assert Path("loaded").read_text() == "False"


def test_the_command_prints_the_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert (
            call("completion", shell, cwd=tmp_path, capsys=capsys).out == (FOLDER / f"completion.{shell}").read_text()
        )
    refused = call("completion", "tcsh", cwd=tmp_path, capsys=capsys)
    assert (refused.code, refused.err) == (2, "error: SHELL: no completion for 'tcsh'; one of bash, zsh, fish\n")


# ------------------------------------------------------------------------------------------------------- real shells


def program(folder: Path) -> dict[str, str]:
    """An environment in which `mtmeta` is this one."""
    path = folder / "bin" / "mtmeta"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mtmeta "$@"\n')
    path.chmod(0o755)
    home = {"HOME": str(folder), "TERM": "dumb", "PS1": "$ ", "COLUMNS": "200", "LINES": "50"}
    return os.environ | home | {"PATH": f"{path.parent}:{os.environ['PATH']}"}


def typed(arguments: list[str], env: dict[str, str], line: str, until: str) -> str:
    """Return the screen of an interactive shell after a line, once `until` is there."""
    child, handle = pty.fork()
    if child == 0:
        os.execvpe(arguments[0], arguments, env)
    shown = ""

    def read(wanted: str) -> None:
        nonlocal shown
        start, end = len(shown), time.monotonic() + 60
        while wanted not in shown[start:] and time.monotonic() < end:
            if select.select([handle], [], [], 0.5)[0]:
                try:
                    shown += os.read(handle, 65536).decode("utf-8", "replace")
                except OSError:
                    break

    for part, wanted in (
        (f'eval "$(mtmeta completion {Path(arguments[0]).name})"; echo re""ady\n', "ready"),
        (line, until),
    ):
        os.write(handle, part.encode())
        read(wanted)
    os.write(handle, b"\x15exit\n")
    os.close(handle)
    os.waitpid(child, 0)
    return shown


@pytest.mark.parametrize(("shell", "options"), [("bash", ["--norc", "-i"]), ("zsh", ["-f", "-i"])])
@pytest.mark.parametrize(
    ("line", "until"),
    [
        ("mtmeta run my\t\t", "my\\ recipes/a\\ b\\$.yaml "),
        ("mtmeta run r.yaml --set training.ste\t", "training.steps="),
    ],
)
def test_in_a_real_shell(shell: str, options: list[str], line: str, until: str, tmp_path: Path) -> None:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed")
    assert until in typed([path, *options], program(tmp_path), line, until)


HOSTILE = [
    "$(touch made)", "`touch made`", "a;touch made", "a|touch made", "a&touch made", "a>made", "${HOME}", "a b", "it's",
    'say "x"', "back\\slash", "a\\$(touch made)", "'$(touch made)'", '"$(touch made)"', "'; touch made; '",
    "*", "?x", "[ab]", "{a,b}", "~root", "~", "--fresh", "-x", "#no", "a!!b", "!touch", "a=b", "a:b", "x=$(touch made)",
    "a\nb", "a\tb", "\x1b[31m", "\u202eb", "(x)", "<x>", "^a^b", "é $(touch made)",
]  # fmt: skip


@pytest.mark.parametrize("quote", ["", '"', "'"], ids=["bare", "double", "single"])
@pytest.mark.parametrize("kind", ["files", "runs", "tasks"])
def test_hostile_names_are_put_in_as_they_are_and_run_nothing(quote: str, kind: str, place: Path) -> None:
    """What bash puts into the line is taken by it as that very name, once Enter is pressed."""
    folder = place / "hostile"
    folder.mkdir()
    words = {"files": ["run"], "runs": ["eval"], "tasks": ["eval", "its", "--task"]}[kind]
    tasks = {name: {"task": "sst", "train": "sample"} for name in HOSTILE}
    for name in HOSTILE if kind != "tasks" else ["its"]:
        made = folder / name if kind != "runs" else folder / "runs" / name
        made.mkdir(parents=True)
        if kind != "files":
            (made / "recipe.yaml").write_text(json.dumps({"name": "t", "tasks": tasks}))
            (made / "recipe.lock.yaml").write_text("")
    env = program(place) | {"WORD": quote}
    script = 'eval "$(mtmeta completion bash)"; COMP_WORDS=(mtmeta "$@" "$WORD"); COMP_CWORD=$(($# + 1))'
    script += "; _mtmeta_complete; printf '%s\\0' \"${COMPREPLY[@]}\""
    done = subprocess.run(["bash", "-c", script, "bash", *words], env=env, cwd=folder, capture_output=True, check=True)
    replies = done.stdout.decode().split("\0")[:-1]
    assert not done.stderr and "\n" not in done.stdout.decode()
    taken = []
    for reply in replies:
        line = f"set -- {quote}{reply}{quote}; printf '%s\\0' \"$@\""
        one = subprocess.run(["bash", "-c", line], env=env, cwd=folder, capture_output=True, check=True)
        taken.append(one.stdout.decode().split("\0")[:-1])
        assert all(character.isprintable() for character in reply)
    hidden = {name for name in HOSTILE if not name.isprintable() or (quote == '"' and "!" in name)}
    expected = {
        "files": {("./" if name[0] in "-~" else "") + name + "/" for name in HOSTILE if name not in hidden},
        "runs": {f"runs/{name}" for name in HOSTILE if name not in hidden},
        "tasks": {name for name in HOSTILE if name not in hidden},
    }[kind]
    found = [words[0] for words in taken if len(words) == 1]
    assert len(found) == len(taken)
    if kind == "files":
        found = [name for name in found if name not in shipped_recipes()]
    assert sorted(found) == sorted(expected)
    assert not list(place.rglob("made"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mtmeta run my", "my recipes/"),
        ("mtmeta run my\\ recipes/", "my recipes/a b$.yaml"),
        ("mtmeta eval runs/f", "runs/first"),
    ],
)
def test_in_fish(line: str, expected: str, tmp_path: Path) -> None:
    path = shutil.which("fish")
    if path is None:
        pytest.skip("fish is not installed")
    script = f"mtmeta completion fish | source; complete -C '{line}'"
    done = subprocess.run(
        [path, "--no-config", "-c", script],
        env=program(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert (done.returncode, done.stderr, done.stdout.splitlines()) == (0, "", [expected])


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (["export", "runs/first", "--format"], ["transformers", "onnx", "sentence-transformers", "peft"]),
        (["new", "algorithm", "x", "--kind"], ["gradient", "inner_loop", "stateful"]),
        (["new", "task", "x", "--kind"], ["classification", "pair", "regression"]),
        (["new", "recipe", "x.yaml", "--algorithm"], ["fomaml", "individual", "joint", "reptile"]),
    ],
)
def test_options_of_new_and_export(before: list[str], expected: list[str]) -> None:
    assert set(expected) <= {value for value, _ in propose(COMMAND, before, "")}
