"""Outputs that a user names: files replaced as a whole, links kept, pipes and devices written into."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import mtmeta
from mtmeta.core.errors import UsageError
from mtmeta.core.storage import outputs
from mtmeta.core.storage.outputs import is_stream, output_file, run_root, write_output
from tests.support.commands import QUIET, call, contents, quietly
from tests.support.paths import ROOT
from tests.support.quick import quick

Capture = pytest.CaptureFixture[str]
RANDOM = "0123456789abcdef"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run and texts; nothing is changed in it."""
    made = tmp_path_factory.mktemp("outputs")
    with quietly():
        mtmeta.run(quick(made / "data", training={"steps": 1}), out=made / "run", device="cpu")
    (made / "texts.txt").write_text("a text\nanother one\nand good\n")
    return made


def arguments(folder: Path, name: str, out: str) -> list[str]:
    """A command that writes a file to `out`."""
    recipe, run = str(folder / "data" / "quick.yaml"), str(folder / "run")
    return {
        "predict": ["predict", run, "--task", "kind", "--input", str(folder / "texts.txt"), "--output", out],
        "schema": ["schema", "--out", out],
        "report": ["report", run, "--out", out],
        "adapt": ["adapt", run, recipe, "--shots", "1", "--seeds", "1", "--task", "kind", "--out", out],
    }[name]


COMMANDS = ("predict", "schema", "report", "adapt")
QUICK = ("predict", "schema")
SLOW = pytest.mark.slow
# adapt's page holds times, so that only its beginning and its end are the same each time
SAME: dict[str, Callable[[bytes], object]] = {"adapt": lambda page: (page[:200], page[-20:])}


@pytest.fixture(scope="module")
def expected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What each command writes to a file."""
    found, place = {}, tmp_path_factory.mktemp("expected")
    for name in COMMANDS:
        done = shell(arguments(folder, name, f"{name}.out"), place, '"$@"')
        assert done.returncode == 0, done.stderr
        found[name] = (place / f"{name}.out").read_bytes()
        assert len(found[name]) > 60
    return found


def assert_same(name: str, found: bytes, expected: dict[str, bytes]) -> None:
    if name in SAME:
        assert SAME[name](found) == SAME[name](expected[name])
    else:
        assert found == expected[name]


def shell(words: list[str], cwd: Path, script: str) -> subprocess.CompletedProcess[bytes]:
    """Run `mtmeta WORDS` where a shell script says "$@"."""
    env = {**os.environ, **QUIET, "PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(cwd)}
    command = ["bash", "-c", script, "bash", sys.executable, "-m", "mtmeta", *words]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, timeout=300, check=False)


# -------------------------------------------------------------------------------------------------- pipes and devices
# None of these tests may replace a file in /dev of the machine where mtmeta has a fault and the user is root: links and
# devices are made anew, as the system's are.


@pytest.fixture
def stdout(tmp_path: Path) -> Path:
    """What /dev/stdout is."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "stdout").symlink_to("/proc/self/fd/1")
    return tmp_path / "dev" / "stdout"


@pytest.fixture
def null(tmp_path: Path) -> Path:
    """What /dev/null is; itself where nobody could replace it."""
    if os.geteuid():
        return Path("/dev/null")
    try:
        os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        (tmp_path / "null").write_bytes(b"x")
    except OSError as error:
        pytest.skip(f"no devices can be made here: {error.strerror}")
    return tmp_path / "null"


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    "out", ["stdout", *(pytest.param(name, marks=SLOW) for name in ("/dev/fd/1", "/proc/self/fd/1"))]
)
def test_standard_output(
    name: str, out: str, folder: Path, expected: dict[str, bytes], tmp_path: Path, stdout: Path
) -> None:
    """Nothing else is printed there but adapt's table; the link is what it was."""
    if out != "stdout" and name != "schema":
        pytest.skip("one command stands for all: they write by one function")
    done = shell(arguments(folder, name, str(stdout) if out == "stdout" else out), tmp_path, '"$@"')
    assert done.returncode == 0, done.stderr
    page = done.stdout[done.stdout.index(b"<!") :] if name == "adapt" else done.stdout
    assert_same(name, page, expected)
    assert os.readlink(stdout) == "/proc/self/fd/1" and list(stdout.parent.iterdir()) == [stdout]


@pytest.mark.parametrize("name", [pytest.param("predict", marks=pytest.mark.slow), "schema", "report"])
def test_standard_output_that_goes_to_a_file_is_not_cut(
    name: str, folder: Path, expected: dict[str, bytes], tmp_path: Path, stdout: Path
) -> None:
    (tmp_path / "log").write_bytes(b"before\n")
    done = shell(arguments(folder, name, str(stdout)), tmp_path, '"$@" >> log; echo after >> log')
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log").read_bytes() == b"before\n" + expected[name] + b"after\n"
    done = shell(arguments(folder, name, str(stdout)), tmp_path, '{ echo first; "$@"; echo last; } > log')
    assert (tmp_path / "log").read_bytes() == b"first\n" + expected[name] + b"last\n"


@pytest.mark.parametrize("name", [one if one in QUICK else pytest.param(one, marks=SLOW) for one in COMMANDS])
def test_a_pipe_is_written_into(name: str, folder: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for out in ("pipe", "link"):
        read: list[bytes] = []
        reader = threading.Thread(target=lambda seen=read: seen.append((tmp_path / "pipe").read_bytes()))
        reader.start()
        done = shell(arguments(folder, name, out), tmp_path, '"$@"')
        reader.join(60)
        assert done.returncode == 0, done.stderr
        assert_same(name, read[0], expected)
        assert stat.S_ISFIFO((tmp_path / "pipe").lstat().st_mode) and (tmp_path / "link").is_symlink()


def test_a_substituted_process_is_written_into(folder: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    words = arguments(folder, "predict", "OUT")[:-1]
    done = shell(words, tmp_path, '"$@" >(cat > seen); sleep 1')
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "seen").read_bytes() == expected["predict"]


def test_a_terminal_is_written_into(folder: Path, expected: dict[str, bytes], tmp_path: Path, capsys: Capture) -> None:
    ours, theirs = os.openpty()
    name, read = os.ttyname(theirs), bytearray()
    outcome = call(*arguments(folder, "predict", name), cwd=tmp_path, capsys=capsys)
    assert outcome.code == 0, outcome.err
    while len(read) < len(expected["predict"]):
        read += os.read(ours, 1000).replace(b"\r\n", b"\n")
    assert bytes(read) == expected["predict"]
    assert stat.S_ISCHR(os.stat(name).st_mode)
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_device_stays_one(name: str, folder: Path, tmp_path: Path, null: Path, capsys: Capture) -> None:
    before = os.lstat(null)
    outcome = call(*arguments(folder, name, str(null)), cwd=tmp_path, capsys=capsys)
    assert outcome.code == 0, outcome.err
    after = os.lstat(null)
    assert (before.st_ino, before.st_mode, before.st_rdev) == (after.st_ino, after.st_mode, after.st_rdev)


def test_a_reader_that_has_enough(folder: Path, tmp_path: Path, stdout: Path) -> None:
    """As on standard output itself: no error, and the exit code of a closed pipe."""
    (tmp_path / "many.txt").write_text("a text\n" * 3000)
    words = arguments(folder, "predict", str(stdout))
    words[words.index("--input") + 1] = "many.txt"
    done = shell(words, tmp_path, '"$@" | head -n 1; exit "${PIPESTATUS[0]}"')
    assert (done.returncode, done.stdout, done.stderr) == (141, b"id,label,score,probability_no,probability_yes\n", b"")


# --------------------------------------------------------------------------------------------------------- files, links


@pytest.mark.parametrize("name", COMMANDS)
def test_a_link_stays_and_the_file_that_it_leads_to_is_replaced(
    name: str, folder: Path, expected: dict[str, bytes], tmp_path: Path, capsys: Capture
) -> None:
    """In its own folder, with its own permissions; also through several links, and to a file that is not there yet."""
    (tmp_path / "there").mkdir()
    target = tmp_path / "there" / "file"
    target.write_text("old")
    target.chmod(0o640)
    (tmp_path / "second").symlink_to("there/file")
    (tmp_path / "link").symlink_to(tmp_path / "second")
    (tmp_path / "to nothing").symlink_to("there/new")
    old = target.stat().st_ino
    for out, place in (("link", target), ("to nothing", tmp_path / "there" / "new")):
        outcome = call(*arguments(folder, name, out), cwd=tmp_path, capsys=capsys)
        assert outcome.code == 0, outcome.err
        assert_same(name, place.read_bytes(), expected)
    assert target.stat().st_ino != old, "written into, and half of it would be there after a kill"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert os.readlink(tmp_path / "link") == str(tmp_path / "second")
    assert os.readlink(tmp_path / "to nothing") == "there/new"
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["file", "new"]


@pytest.mark.parametrize(("mode", "kept"), [(0o600, 0o600), (0o664, 0o664), (0o4755, 0o755), (None, 0o640)])
def test_permissions_are_those_of_the_file_that_is_replaced(mode: int | None, kept: int, tmp_path: Path) -> None:
    """And of the umask for a new one; never more than reading, writing and executing."""
    path = tmp_path / "out"
    if mode is not None:
        path.write_text("old")
        path.chmod(mode)
    before = os.umask(0o027)
    try:
        write_output(path, "new")
    finally:
        os.umask(before)
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", kept)


def test_another_name_of_the_file_keeps_what_it_had(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old")
    os.link(tmp_path / "out", tmp_path / "other")
    write_output(tmp_path / "out", "new")
    assert contents(tmp_path) == {"out": b"new", "other": b"old"}


def test_an_error_leaves_the_old_file_and_the_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(KeyError), output_file(tmp_path / "link") as file:
        file.write("half")
        raise KeyError
    assert contents(tmp_path) == {"file": b"old", "link": b"file"}


def test_only_leftovers_of_this_very_file_go(tmp_path: Path) -> None:
    for name in (f".out.{RANDOM}.tmp", f".other.{RANDOM}.tmp", ".out.tmp", ".out.123.tmp", f"out.{RANDOM}.tmp", ".swp"):
        (tmp_path / name).write_text("x")
    write_output(tmp_path / "out", "new")
    left = {".out.123.tmp", ".out.tmp", f".other.{RANDOM}.tmp", f"out.{RANDOM}.tmp", ".swp", "out"}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_two_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    """Neither takes the other's scratch for a leftover."""
    path = tmp_path / "out"
    with output_file(path) as first:
        first.write("first")
        first.flush()
        write_output(path, "second")
        assert path.read_text() == "second"
        first.write(" and more")
    assert contents(tmp_path) == {"out": b"first and more"}


@pytest.mark.parametrize("length", [200, 230, 255])
def test_a_long_name(length: int, tmp_path: Path) -> None:
    name = "\u00e9" * 20 + "x" * (length - 40)
    write_output(tmp_path / name, "new")
    assert contents(tmp_path) == {name: b"new"}


# ------------------------------------------------------------------------------------------------------ run directories


@pytest.mark.parametrize("inside", ["out.csv", "predictions/out.csv", "a/b/out.csv"])
@pytest.mark.parametrize("way", ["symlink", "FIFO", "folder"])
def test_nothing_is_followed_in_a_run_directory(
    inside: str, way: str, folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Where somebody else may have put the link; the directory itself may be reached through one."""
    run, victim = tmp_path / "run", tmp_path / "home"
    shutil.copytree(folder / "run", run, symlinks=True)
    victim.mkdir()
    (victim / "out.csv").write_text("precious")
    place = run / inside
    place.parent.mkdir(parents=True, exist_ok=True)
    if way == "symlink":
        place.symlink_to(victim / "out.csv")
    elif way == "FIFO":
        os.mkfifo(place)
    elif place.parent == run:
        return
    else:
        shutil.rmtree(place.parent)
        place.parent.symlink_to(victim)
    (tmp_path / "scratch disk").symlink_to(run)
    before = contents(victim)
    for given in (run, tmp_path / "scratch disk"):
        outcome = call(*arguments(folder, "predict", str(given / inside)), cwd=tmp_path, capsys=capsys)
        assert outcome.code in (2, 6), outcome.err
        assert len(outcome.errors) == 1 and inside.split("/")[-1] in outcome.errors[0]
        assert contents(victim) == before
    good = call(*arguments(folder, "predict", str(tmp_path / "scratch disk" / "mine.csv")), cwd=tmp_path, capsys=capsys)
    assert good.code == 0 and (run / "mine.csv").is_file()


def test_the_outermost_run_directory_counts(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert run_root(tmp_path / "a" / "b" / "c") is None
    for folder in ("a/b", "a"):
        (tmp_path / folder / "recipe.lock.yaml").write_text("")
        assert run_root(tmp_path / "a" / "b" / "c") == tmp_path / folder


def test_our_own_default_follows_no_link(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    """`mtmeta report RUN` in a folder of somebody else's."""
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "report.html").symlink_to("victim")
    outcome = call("report", str(folder / "run"), cwd=tmp_path, capsys=capsys)
    assert outcome.code == 2 and "report.html: is a symbolic link; name another file" in outcome.err
    assert contents(tmp_path) == {"victim": b"precious", "report.html": b"victim"}
    given = call("report", str(folder / "run"), "--out", "report.html", cwd=tmp_path, capsys=capsys)
    assert given.code == 0 and (tmp_path / "victim").read_bytes().startswith(b"<!")


def test_what_is_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    assert all(map(is_stream, map(Path, ("/dev/stdout", "/dev/null", "/dev/fd/7", "/proc/self/fd/0"))))
    assert is_stream(tmp_path / "pipe")
    assert not any(is_stream(tmp_path / name) for name in ("file", "none", "loop", "none/1"))
    with pytest.raises(OSError), output_file(tmp_path / "loop"):
        pass
    (tmp_path / "recipe.lock.yaml").write_text("")
    with (
        pytest.raises(UsageError, match="pipe: is no regular file, in a run directory"),
        output_file(tmp_path / "pipe"),
    ):
        pass
    assert outputs.RUN_MARK == "recipe.lock.yaml"


# ------------------------------------------------------------------------------------------------------------- schemas


@pytest.mark.parametrize("link", [".mtmeta", ".mtmeta/recipe.schema.json"])
def test_recipes_that_are_copied_follow_no_link(link: str, tmp_path: Path, capsys: Capture) -> None:
    """Into a folder of somebody else's, whose schema may lead anywhere."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    (home / "recipe.schema.json").write_text('{"description": "Made by `mtmeta schema`"}')
    (here / link).parent.mkdir(parents=True)
    (here / link).symlink_to(home if link == ".mtmeta" else home / "recipe.schema.json")
    before = contents(home)
    outcome = call("recipes", "copy", "reptile_three_task", str(here), cwd=tmp_path, capsys=capsys)
    assert outcome.code == 2, outcome.err
    assert f"{link}: is a symbolic link; remove it" in outcome.err
    assert contents(home) == before
    assert list(here.glob("*.yaml")) == []


def test_a_recipe_goes_to_no_pipe_and_through_a_link_that_the_user_named(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    """A recipe is written twice, the second time with the line that names its schema."""
    words = ("--task", f"kind={folder / 'data' / 'train.tsv'}", "--columns", "kind=sentence,label", "--force")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file.yaml").write_text("old")
    (tmp_path / "link.yaml").symlink_to("there/file.yaml")
    refused = call("new", "recipe", "pipe", *words, cwd=tmp_path, capsys=capsys)
    assert refused.code == 2 and refused.err.endswith("error: pipe: is no regular file; name another file\n")
    made = call("new", "recipe", "link.yaml", *words, cwd=tmp_path, capsys=capsys)
    assert made.code == 0, made.err
    assert (tmp_path / "link.yaml").is_symlink() and "kind:" in (tmp_path / "there" / "file.yaml").read_text()
    assert stat.S_ISFIFO((tmp_path / "pipe").lstat().st_mode)
