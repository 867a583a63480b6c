"""Every way we know to get a recipe or the command line wrong: one line, the place, the user's token, the exit code.

The numbers are the rows of our list of bad inputs. The first case of each row runs in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import RECIPE, assert_refused, call, command

TASKS = "  sst: {train: sample, dev: sample}\n  para: {train: sample, dev: sample}"
GENERIC = "c: {task: classification, labels: 3, train: a.csv"


def changed(old: str, new: str) -> str:
    """The good recipe with one thing wrong."""
    assert RECIPE.count(old) == 1, old
    return RECIPE.replace(old, new)


def lr(value: str) -> str:
    return changed("lr: 1.0", f"lr: {value}")


def steps(value: str) -> str:
    return changed("steps: 2", f"steps: {value}")


def section(text: str) -> str:
    return f"{RECIPE}{text}\n"


def task(text: str) -> str:
    return changed("sst: {train: sample, dev: sample}", f"{text}, dev: a.csv}}")


NOT_FINITE = "optimizer.lr must be a number > 0 and finite"
CASES: list[tuple[int, str | bytes, tuple[str, ...]]] = [
    (3, "", ("r.yaml: empty recipe",)),
    (3, "# only a comment\n", ("r.yaml: empty recipe",)),
    (4, "- a\n- b\n", ("r.yaml:1:1: expected a mapping, found a list",)),
    (4, "hello\n", ("r.yaml:1:1: ", "found 'hello'")),
    (5, changed("  name: reptile", "\tname: reptile"), ("r.yaml:8:1: tab used for indentation; use spaces",)),
    (5, section("x: [1, 2"), ("r.yaml:13:1: ", "starts at line 12", "check indentation and quotes")),
    (5, "a: b: c\n", ("r.yaml:1:5: mapping values are not allowed here",)),
    (6, changed("steps: 2", "steps: 2, steps: 3"), ("r.yaml:11:22: key 'steps' already given at line 11",)),
    (
        7,
        changed("{steps: 2}", "{stpes: 2}"),
        ("r.yaml:11:12: unknown key 'stpes' in 'training'; did you mean 'steps'?",),
    ),
    (7, section("optimiser: 1"), ("r.yaml:12:1: unknown key 'optimiser'; did you mean 'optimizer'?",)),
    (7, section("zzz: 1"), ("r.yaml:12:1: unknown key 'zzz'; one of format, name, seed",)),
    (7, section('"[red]\\e[31m": 1'), ("r.yaml:12:1: unknown key '[red]\\x1b[31m'",)),
    (7, section("x" * 300 + ": 1"), ("x" * 77 + "...'",)),
    (
        7,
        task("sst: {dialect: {encodin: x}, train: sample"),
        ("r.yaml:5:19: unknown key 'encodin' in 'tasks.sst.dialect'",),
    ),
    (8, lr("1e-5x"), ("r.yaml:10:28: optimizer.lr: expected a number, found '1e-5x'",)),
    (8, lr("'1e-5'"), ("found '1e-5'; remove the quotes",)),
    (8, lr("[1]"), (NOT_FINITE, "found a list of 1")),
    (9, section("data: {multiline: no}"), ("r.yaml:12:19: 'no' is not a boolean here; write true or false",)),
    (9, section("data: {multiline: on}"), ("'on' is not a boolean here",)),
    (9, section("data: {multiline: 1}"), ("data.multiline must be true or false, found 1",)),
    (10, lr("-1"), ("r.yaml:10:28: ", NOT_FINITE, "found -1")),
    (10, lr("0"), (NOT_FINITE, "found 0")),
    (10, lr(".nan"), (NOT_FINITE, "found nan")),
    (10, lr(".inf"), (NOT_FINITE, "found inf")),
    (10, lr("1e999"), ("number '1e999' is too large",)),
    (11, steps("1.5"), ("r.yaml:11:19: training.steps must be an integer from 1 to 10000000", "found 1.5")),
    (11, steps("10000000000"), ("found 10000000000",)),
    (11, steps("10_000"), ("training.steps: expected an integer, found '10_000'",)),
    (11, steps("1" * 700), ("r.yaml:11:19: number '111", "is too large")),
    (12, "a: &x 1\nb: *x\n", ("r.yaml:1:4: YAML anchors and aliases are not allowed",)),
    (12, "<<: {a: 1}\n", ("r.yaml:1:1: YAML anchors and aliases are not allowed",)),
    (
        13,
        changed("name: t\n", "name: !!python/object/apply:os.system ['touch pwned']\n"),
        ("r.yaml:1:7: YAML tag '!!python/object/apply:os.system' is not allowed",),
    ),
    (14, "a: " + "[" * 40 + "]" * 40, ("r.yaml: nested deeper than 32 levels at 1:35",)),
    (14, "#" * (1 << 20) + "\n#", ("r.yaml: larger than 1 MiB",)),
    (15, b"a: 1\nb: \xff\n", ("r.yaml: byte 0xff at line 2 is not UTF-8",)),
    (15, b"a: 1\n\x00\n", ("r.yaml: NUL byte at line 2",)),
    (15, RECIPE.encode("utf-16"), ("byte 0xff at line 1 is not UTF-8",)),
    (16, section("---\na: 1"), ("r.yaml:12:1: second '---' document",)),
    (
        17,
        changed("name: reptile", "name: reptil"),
        (
            "r.yaml:8:9: unknown algorithm 'reptil'; did you mean 'reptile'?",
            "anil, fomaml, individual, joint, maml, metasgd, protonet, reptile, surgery, weighting",
        ),
    ),
    (17, changed("name: reptile", "name: os.path:join"), ("unknown algorithm 'os.path:join'", "joint")),
    (17, changed("name: reptile", "name: [reptile]"), ("algorithm must be a name", "one of anil, fomaml")),
    (17, changed("  name: reptile\n", ""), ("algorithm needs 'name'; one of anil, fomaml",)),
    (17, changed("name: sgd", "name: sdg"), ("r.yaml:10:19: unknown optimizer 'sdg'; did you mean 'sgd'?",)),
    (17, changed("{name: sgd, lr: 1.0}", "{lr: 1.0}"), ("optimizer needs 'name'; one of sgd, adam",)),
    (17, section("schedule: cosin"), ("r.yaml:12:11: unknown schedule 'cosin'; did you mean 'cosine'?",)),
    (17, section("reporters: [consol]"), ("r.yaml:12:13: unknown reporter 'consol'; did you mean 'console'?",)),
    (17, section("reporters: console"), ("reporters must be a list, found 'console'",)),
    (17, task("sstt: {train: sample"), ("r.yaml:5:9: unknown task 'sstt'; did you mean 'sst'?",)),
    (17, task(f"{GENERIC}, metrics: [acuracy]"), ("unknown metric 'acuracy'; did you mean 'accuracy'?",)),
    (17, task(f"{GENERIC}, metrics: []"), ("tasks.c.metrics must be a list of at least 1, found an empty list",)),
    (17, task("c: {task: classification, labels: [x, x], train: a.csv"), ("tasks.c.labels name 'x' twice",)),
    (
        17,
        task("c: {task: classification, labels: [1, x], train: a.csv"),
        ("labels.0 must be text, found 1; put it in q",),
    ),
    (17, task("c: {task: regression, low: 5, high: 1, train: a.csv"), ("tasks.c.low must be below high",)),
    (17, task("c: {task: classification, labels: 2, train: sample"), ("r.yaml:5:", "has no sample data; name a file")),
    (
        18,
        changed("sst: {", "a/../b: {"),
        ("r.yaml:5:3: task name 'a/../b' is not allowed; use a letter, then at most 63 of a-z",),
    ),
    (18, changed("sst: {", "a b: {"), ("task name 'a b' is not allowed",)),
    (18, changed("sst: {", "\U0001f600: {"), ("task name '\U0001f600' is not allowed",)),
    (18, changed("para: {", "sst: {"), ("r.yaml:6:3: key 'sst' already given at line 5",)),
    (18, changed(f"tasks:\n{TASKS}", "tasks: {}"), ("r.yaml:4:8: tasks must be a mapping, found an empty mapping",)),
    (18, changed(f"tasks:\n{TASKS}", ""), ("r.yaml: the recipe needs 'tasks'; add it",)),
    (18, changed(TASKS, "  sst: sample"), ("tasks.sst must be a mapping, found 'sample'",)),
    (
        19,
        changed("name: reptile", "name: reptile\n  tasks_per_step: 8"),
        ("r.yaml:9:19: algorithm.tasks_per_step is 8 but only 2 tasks exist; set with_replacement: true or lower it",),
    ),
    (21, changed("max_length: 32", "max_length: 2"), ("r.yaml:3:51: backbone.max_length must be", "found 2")),
    (23, section("format: 3"), ("r.yaml:12:9: recipe format 3, this mtmeta reads up to 1; upgrade mtmeta",)),
    (23, section("format: x"), ("format must be 1, found 'x'",)),
    (0, changed("{steps: 2}", "{}"), ("training needs either steps or epochs; give one of them",)),
    (0, changed("{steps: 2}", "{epochs: 2}"), ("r.yaml:11:20: training.epochs: algorithm 'reptile' counts steps",)),
    (0, steps("2, precision: fp16"), ("training.precision must be one of auto, fp32, bf16, found 'fp16'",)),
    (0, section("evaluation: {select: sstt}"), ("evaluation.select must be one of mean, sst, para, found 'sstt'",)),
    (0, section("sampler: {name: fixed, weights: {sst: 1, para: x}}"), ("sampler.weights.para: expected a number",)),
    (0, section("sampler: {name: fixed, weights: {sst: 0, para: 0}}"), ("sampler.weights are all 0",)),
    (0, changed("lr: 1e-3", "lr: 1e-3, betas: [0.9]"), ("betas must be a list of 2", "found a list of 1")),
    (0, changed("name: t\n", "name: ../t\n"), ("r.yaml:1:7: name '../t' is not allowed",)),
]


def first_of_each_row() -> list[bool]:
    rows = [row for row, *_ in CASES]
    return [row not in rows[:i] for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("text", "words", "own_process"),
    [
        pytest.param(text, words, first, id=f"{row}-{words[0][:60]}")
        for (row, text, words), first in zip(CASES, first_of_each_row(), strict=True)
    ],
)
def test_recipe(
    text: str | bytes, words: tuple[str, ...], own_process: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    arguments = ("validate", "r.yaml")
    outcome = command(*arguments, cwd=tmp_path) if own_process else call(*arguments, cwd=tmp_path, capsys=capsys)
    assert_refused(outcome, 2, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


def test_every_recipe_row_is_here() -> None:
    assert {row for row, *_ in CASES} >= {*range(3, 20), 21, 23}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(("validate", "recipe.yml"), ("recipe.yml: no such file; did you mean 'recipe.yaml'?",), id="1"),
        pytest.param(("validate", "a.d/"), ("a.d/: is a directory, expected a YAML file",), id="2"),
        pytest.param(("validate", "/dev/null"), ("/dev/null: not a regular file",), id="2 device"),
        pytest.param(("rnu", "recipe.yaml"), ("no such command 'rnu'; did you mean 'run'?",), id="60"),
        pytest.param(
            ("run", "recipe.yaml", "--seet", "a=1"), ("--seet: no such option; did you mean '--set'?",), id="60 option"
        ),
        pytest.param(("run",), ("mtmeta run: missing argument 'RECIPE'; see mtmeta run --help",), id="60 argument"),
        pytest.param(("show", "tsk", "sst"), ("KIND: no kind 'tsk'; did you mean 'task'?",), id="60 kind"),
        pytest.param(("eval", "a.d"), ("a.d: is no mtmeta run",), id="eval of no run"),
        pytest.param(
            ("eval", "a.d", "--split", "tset"), ("--split: must be dev, test or train, found 'tset'",), id="split"
        ),
        pytest.param(("eval", "a.d", "--file", "x"), ("--file 'x': expected TASK=PATH",), id="file"),
    ],
)
def test_command_line(arguments: tuple[str, ...], words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "a.d").mkdir()
    assert_refused(command(*arguments, cwd=tmp_path), 2, *words)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.lr=abc", ("--set optimizer.lr: expected a number, found 'abc'",)),
        ("foo", ("--set 'foo': expected KEY=VALUE",)),
        ("training..steps=1", ("--set 'training..steps=1': expected KEY=VALUE",)),
        ("training.steps=1.5", ("--set training.steps: must be an integer from 1 to 10000000", "found 1.5")),
        ("training.stps=1", ("--set training.stps: unknown key 'stps' in 'training'; did you mean 'steps'?",)),
        ("training.steps.x=1", ("--set training.steps.x: training.steps is not a mapping",)),
        ("tasks.foo.train=x", ("--set tasks.foo.train: unknown task 'foo'",)),
        ("algorithm=jint", ("--set algorithm: unknown algorithm 'jint'; did you mean 'joint'?",)),
        ("training.steps=[1", ("--set training.steps: expected ',' or ']'",)),
        ("training.steps=1 # x", ("--set training.steps: '1 # x' is not one value",)),
        ("seed=&a 1", ("--set seed: YAML anchors and aliases are not allowed",)),
        ("seed=\x1b[31m", ("--set seed: character U+001B is not allowed",)),
        ("format=3", ("--set format: recipe format 3",)),
    ],
)
def test_override(override: str, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    arguments = ("validate", "r.yaml", "--set", override)
    own_process = override.endswith("abc")
    outcome = command(*arguments, cwd=tmp_path) if own_process else call(*arguments, cwd=tmp_path, capsys=capsys)
    assert_refused(outcome, 2, *words)


def test_all_problems_of_all_recipes_at_once(tmp_path: Path) -> None:
    bad = "\n".join(f"zzz{i}: 1" for i in range(23))
    (tmp_path / "a.yaml").write_text(steps("0") + bad)
    (tmp_path / "b.yaml").write_text(lr("x"))
    (tmp_path / "c.yaml").write_text(RECIPE)
    outcome = command("validate", "b.yaml", "c.yaml", "a.yaml", "--set", "oops", cwd=tmp_path)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    lines = outcome.err.splitlines()
    assert len(outcome.errors) == 10
    # three times the override, one learning rate, and 24 problems of a.yaml
    assert lines[10:] == ["and 18 more"]
    assert lines[0].startswith("error: --set 'oops'")
    assert "b.yaml:10:28: optimizer.lr" in lines[1]
    assert "a.yaml:12:1: unknown key 'zzz0'" in outcome.err


def test_numbers_as_people_write_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbf" + lr("1e-5").encode())  # row 8, and a byte order mark
    outcome = call("validate", "r.yaml", cwd=tmp_path, capsys=capsys)
    assert (outcome.code, outcome.out, outcome.err) == (0, "r.yaml: ok\n", "")


def test_validate_never_loads_torch(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    program = "import sys; from mtmeta.core.registry.registry import build_registry;"
    program += "from mtmeta.core.recipe.reader import load_recipe;"
    program += "load_recipe('r.yaml', build_registry()); print('torch' in sys.modules, 'sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_a_reader_that_has_enough(tmp_path: Path) -> None:
    """Row 62: `mtmeta plugins | head -1`."""
    process: Any = subprocess.Popen(
        [sys.executable, "-m", "mtmeta", "plugins"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait() in (0, 141)
    assert err == b""


def test_a_full_disk_behind_stdout(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full, which Linux has")
    with full.open("w") as out:
        done = subprocess.run(
            [sys.executable, "-m", "mtmeta", "plugins"], stdout=out, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 6
    assert done.stderr == "error: system: No space left on device; check the disk and its permissions\n"


def test_help_and_version(tmp_path: Path) -> None:
    assert command(cwd=tmp_path).out.startswith("Usage: mtmeta ")
    assert command("--version", cwd=tmp_path).out.startswith("mtmeta ")
