"""`mtmeta fetch` and what runs do with names of files elsewhere, against a hub and a server on the loopback device."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtmeta.core.recipe import strict_yaml
from mtmeta.core.storage import download as downloads
from mtmeta.core.storage.addresses import parse_file, parse_model
from mtmeta.core.storage.sources import Sources
from mtmeta.plugins.backbones.embedded import embedded_folder
from tests.support.commands import HEADER, QUIET, ROWS, SMALL, Outcome, assert_refused, call, command, contents
from tests.support.loopback import COMMIT, Loopback, serving, sha256

LATER = "89abcdef0123456789abcdef0123456789abcdef"
TRAIN, DEV = (HEADER + ROWS).encode(), (HEADER + ROWS.replace("word", "new")).encode()
BIG = TRAIN + b"".join(b"%d\tword\tother\tneutral\n" % i for i in range(9, 60_000))
WEIGHTS = random.Random(1).randbytes(300_000)  # enough where nobody loads them
NEEDED = ("tokenizer.json", "config.json", "model.safetensors")


@pytest.fixture(scope="module")
def model() -> dict[str, bytes]:
    """The files of a repository that can be trained from, and one that nobody may ask for."""
    folder = embedded_folder()
    return {"pytorch_model.bin": b"a pickle"} | {name: (folder / name).read_bytes() for name in NEEDED}


@pytest.fixture
def server(model: dict[str, bytes]) -> Iterator[Loopback]:
    with serving() as found:
        found.repositories["owner/model"] = {COMMIT: {**model, "model.safetensors": WEIGHTS}}
        found.repositories["datasets/owner/pairs"] = {COMMIT: {"data/train.tsv": TRAIN, "big.tsv": BIG}}
        found.files["dev.tsv"] = DEV
        yield found


def recipe(folder: Path, server: Loopback, **changes: str) -> Path:
    """A recipe whose weights, training and dev files are elsewhere."""
    text = SMALL.replace("weights: tiny", f"weights: {changes.get('weights', 'owner/model')}")
    text = text.replace("train.tsv", changes.get("train", "hf://datasets/owner/pairs/data/train.tsv"))
    text = text.replace("dev.tsv", changes.get("dev", f"{server.url}/files/dev.tsv#sha256={sha256(DEV)}"))
    path = folder / "r.yaml"
    path.write_text(text)
    return path


def surroundings(folder: Path, server: Loopback, **more: str) -> dict[str, str]:
    cache = {"HF_HOME": str(folder / "hub"), "MTMETA_CACHE": str(folder / "cache")}
    return {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", **cache, **more}


class Call:
    """`mtmeta ARGUMENTS` in this process, with a hub and caches of the test's own."""

    def __init__(
        self, folder: Path, server: Loopback, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.folder, self.patch, self.capsys = folder, patch, capsys
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_CACHE": str(folder / "hub" / "hub"),
        }.items():
            patch.setattr(f"huggingface_hub.constants.{name}", value)
        for name, value in surroundings(folder, server).items():
            patch.setenv(name, value)  # of runs that compare starts
        patch.setattr(downloads, "WAITS", (0.0, 0.0, 0.0, 0.0))

    def __call__(self, *arguments: str, offline: bool = False) -> Outcome:
        self.patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        return call(*arguments, cwd=self.folder, capsys=self.capsys)


@pytest.fixture
def mtmeta(
    tmp_path: Path,
    server: Loopback,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    one_thread: None,
) -> Call:
    return Call(tmp_path, server, monkeypatch, capsys)


def incomplete(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.incomplete") if path.is_file()]


def wait_for(folder: Path, size: int) -> Path:
    """Wait until a download has come that far."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for path in incomplete(folder):
            if path.stat().st_size >= size:
                return path
        time.sleep(0.01)
    raise AssertionError("no download began")


# ------------------------------------------------------------------------------------------------ interrupted


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)], ids=["kill", "ctrl-c"])
@pytest.mark.parametrize("where", ["hub", "address"])
def test_what_was_interrupted_goes_on(
    number: int, code: int, where: str, server: Loopback, mtmeta: Call, tmp_path: Path
) -> None:
    server.files["big.tsv"] = BIG
    names = {"hub": "hf://datasets/owner/pairs/big.tsv", "address": f"{server.url}/files/big.tsv#sha256={sha256(BIG)}"}
    recipe(tmp_path, server, train=names[where], dev="sample", weights="tiny")
    (tmp_path / "r.yaml").write_text((tmp_path / "r.yaml").read_text().replace("dev: sample", f"dev: {names[where]}"))
    server.pace = 0.05
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MTMETA_")} | QUIET
    process = subprocess.Popen(
        [sys.executable, "-m", "mtmeta", "fetch", "r.yaml"],
        cwd=tmp_path,
        env=environ | surroundings(tmp_path, server),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    path = wait_for(tmp_path, 100_000)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == code, err
    assert b"Traceback" not in err
    there = path.stat().st_size
    assert 100_000 <= there < len(BIG)
    assert path.read_bytes() == BIG[:there]
    server.pace = 0.0
    outcome = mtmeta("fetch", "r.yaml", "--json")
    assert outcome.code == 0, outcome.err
    assert server.got("big.tsv") == ["", f"bytes={there}-"]
    (source,) = json.loads(outcome.out)["sources"]
    (file,) = source["files"]
    assert (file["status"], file["size"], file["sha256"]) == ("fetched", len(BIG), sha256(BIG))
    assert Path(file["path"]).read_bytes() == BIG
    assert f"big.tsv: {len(BIG) / 1e6:.1f} MB in" in outcome.err
    assert incomplete(tmp_path) == []


def test_a_cut_connection_goes_on_in_the_same_process(server: Loopback, mtmeta: Call, tmp_path: Path) -> None:
    recipe(tmp_path, server)
    size = len(WEIGHTS)
    server.cuts["model.safetensors"] = [size // 2]
    outcome = mtmeta("fetch", "r.yaml")
    assert outcome.code == 0, outcome.err
    assert server.got("model.safetensors") == ["", f"bytes={size // 2}-"]
    (path,) = (tmp_path / "hub" / "hub").glob("models--owner--model/snapshots/*/model.safetensors")
    assert path.read_bytes() == WEIGHTS


# ------------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("file", "code", "word"),
    [
        ("train.tsv", 3, "hf://datasets/owner/pairs/data/train.tsv: refused, its sha1 is "),
        ("dev.tsv", 3, "refused, its sha256 is "),
        ("model.safetensors", 4, "owner/model: refused, its sha256 is "),
        ("tokenizer.json", 4, "owner/model: refused, its sha1 is "),
    ],
)
def test_a_wrong_hash_is_refused(
    file: str, code: int, word: str, server: Loopback, mtmeta: Call, tmp_path: Path
) -> None:
    recipe(tmp_path, server)
    server.swapped[file] = b"something else"
    outcome = mtmeta("run" if file == "model.safetensors" else "fetch", "r.yaml")
    assert outcome.code == code, outcome.err
    (line,) = outcome.errors
    assert word in line
    assert line.endswith("; check the name and the hash")
    assert "Traceback" not in outcome.err
    kept = [data for root in ("hub", "cache") for data in contents(tmp_path / root).values()]
    assert b"something else" not in kept
    assert incomplete(tmp_path) == []
    assert not (tmp_path / "runs").exists()


def test_a_file_of_the_hub_with_a_hash_in_the_recipe(server: Loopback, mtmeta: Call, tmp_path: Path) -> None:
    name = "hf://datasets/owner/pairs/data/train.tsv#sha256="
    recipe(tmp_path, server, train=name + sha256(TRAIN))
    assert mtmeta("fetch", "r.yaml").code == 0
    recipe(tmp_path, server, train=name + "ab" * 32)
    outcome = mtmeta("fetch", "r.yaml", offline=True)
    assert_refused(outcome, 3, f"refused, its sha256 is {sha256(TRAIN)}, expected {'ab' * 32}")


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"train": "hf://owner/pairs/x.csv"}, 6, ("hub: 'owner/pairs': not found", "hf://datasets/ORG/NAME")),
        ({"train": "hf://datasets/owner/pairs/x.csv"}, 3, ("has no file 'x.csv' at revision 'main'",)),
        ({"train": "hf://datasets/owner/pairs@dev/x.csv"}, 6, ("hub: 'owner/pairs': has no revision 'dev'",)),
        ({"weights": "hf://owner/nane"}, 6, ("hub: 'owner/nane': not found, or private",)),
        ({"weights": "owner/gated"}, 6, ("hub: 'owner/gated': needs a token; set HF_TOKEN",)),
        ({"weights": "hf://datasets/owner/pairs"}, 4, ("is a data set; name a model repository",)),
    ],
)
def test_what_the_hub_has_not(
    changes: dict[str, str], code: int, words: tuple[str, ...], server: Loopback, mtmeta: Call, tmp_path: Path
) -> None:
    recipe(tmp_path, server, **changes)
    for arguments in (("fetch", "r.yaml"), ("fetch", "r.yaml", "--dry-run")):
        outcome = mtmeta(*arguments)
        assert outcome.code == code, outcome.err
        (line,) = outcome.errors
        assert all(word in line for word in words), line


HASH = "#sha256=" + "a" * 64


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("s3://bucket/x.csv", "s3:// is not known; use hf://datasets/ORG/NAME@REVISION/FILE, https://"),
        ("https://host/x.csv", "has no SHA-256; add #sha256=HEX"),
        ("https://host/x.csv#sha256=abc", "is not 64 hexadecimal digits"),
        ("http://host/x.csv" + HASH, "http is allowed on loopback only; use https"),
        ("https://host/" + HASH, "names no file"),
        ("https://me:secret@host/x.csv" + HASH, "holds a user name or password"),
        ("https://" + HASH, "is no address"),
        ("hf://datasets/owner/name", "names no file in the repository"),
        ("hf://owner", "names no repository"),
        ("hf://spaces/owner/name/x.csv", "is of a kind that holds no data"),
        ("hf://datasets/owner/name@main/../x.csv", "has a path that no file in a repository can have"),
        ("hf://datasets/owner/name@/x.csv", "has no usable revision"),
    ],
)
def test_names_that_are_none(name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text(SMALL.replace("train.tsv", f'"{name}"'))
    outcome = call("validate", "r.yaml", cwd=tmp_path, capsys=capsys)
    assert_refused(outcome, 2, "r.yaml:8:12: tasks.pairs.train: ", words)


def test_names_are_read_as_hugging_face_reads_them() -> None:
    hub = pytest.importorskip("huggingface_hub", minversion="2")  # where that is public
    for name in (
        "hf://datasets/owner/name/x.csv",
        "hf://datasets/owner/name@v1.0/data/x.csv",
        "hf://owner/name@refs/pr/12/x.csv",
        "hf://datasets/owner/name@refs/convert/parquet/data/x.csv",
        "hf://models/owner/name@feature%2Fone/x y.csv",
    ):
        theirs, ours = hub.parse_hf_uri(name), parse_file(name)
        assert (theirs.type, theirs.id, theirs.revision or "main", theirs.path_in_repo) == (
            *(ours.kind, ours.repository, ours.revision, ours.path),  # type: ignore[union-attr]
        )
        assert parse_file(str(ours)) == ours
    assert parse_model("hf://owner/name@a%2Fb") == parse_model("owner/name@a/b")
    assert parse_model("bert-base-uncased").repository == "bert-base-uncased"


# ------------------------------------------------------------------------------------------------ offline


def test_without_a_network_one_line_names_all_that_is_missing(server: Loopback, mtmeta: Call, tmp_path: Path) -> None:
    recipe(tmp_path, server)
    for verb in ("run", "fetch", "validate"):
        arguments = ("--data", "r.yaml") if verb == "validate" else ("r.yaml",)
        outcome = mtmeta(verb, *arguments, offline=True)
        assert_refused(
            outcome,
            6,
            "error: 3 files are not in the cache and HF_HUB_OFFLINE is set: owner/model@main (config.json); ",
            "; hf://datasets/owner/pairs/data/train.tsv; ",
            f"; {server.url}/files/dev.tsv#sha256={sha256(DEV)}; run 'mtmeta fetch r.yaml' where there is a network",
        )
    assert server.asked == []
    found = json.loads(mtmeta("fetch", "r.yaml", "--json", offline=True).out)
    assert (found["missing"], found["offline"]) == (3, True)
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_tells_sizes_and_fetches_nothing(
    server: Loopback, model: dict[str, bytes], mtmeta: Call, tmp_path: Path
) -> None:
    recipe(tmp_path, server)
    outcome = mtmeta("fetch", "r.yaml", "--dry-run", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    sizes = {one["file"]: (one["status"], one["size"]) for source in found["sources"] for one in source["files"]}
    assert sizes == {
        **{name: ("missing", len(model[name])) for name in NEEDED[:2]},
        "model.safetensors": ("missing", len(WEIGHTS)),
        "data/train.tsv": ("missing", len(TRAIN)),
        "dev.tsv": ("missing", len(DEV)),
    }
    assert {source["commit"] for source in found["sources"]} == {COMMIT, None}
    assert [path for kind, path, _ in server.asked if kind == "GET" and not path.startswith("/api/")] == []
    assert mtmeta("fetch", "r.yaml").code == 0
    before = len(server.asked)
    outcome = mtmeta("fetch", "r.yaml", "--dry-run", offline=True)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.isascii()
    assert outcome.out.endswith("\n5 cached\n")
    assert len(server.asked) == before


def test_recipes_together_get_what_any_of_them_needs(server: Loopback, mtmeta: Call, tmp_path: Path) -> None:
    whole = recipe(tmp_path, server)
    shape = tmp_path / "shape.yaml"  # only the shape of the model, which needs no weights
    shape.write_text(whole.read_text().replace("owner/model,", "owner/model, pretrained: false,"))
    found = json.loads(mtmeta("fetch", "shape.yaml", "--json").out)
    assert [one["file"] for one in found["sources"][0]["files"]] == ["tokenizer.json", "config.json"]
    for names in (("r.yaml", "shape.yaml"), ("shape.yaml", "r.yaml")):
        found = json.loads(mtmeta("fetch", *names, "--json").out)
        assert {one["file"] for one in found["sources"][0]["files"]} == set(NEEDED)
        assert found["sources"][0]["used_by"] == [f"{name}: backbone" for name in names]


def test_a_backbone_may_ask_for_more_once_it_has_read_some(server: Loopback, mtmeta: Call) -> None:
    mtmeta("recipes")  # for the surroundings
    sources = Sources()
    first = sources.folder("owner/model", ("config.json",))
    assert not (first / "model.safetensors").exists()
    assert sources.folder("owner/model", ("model.safetensors",)) == first
    assert (first / "model.safetensors").read_bytes() == WEIGHTS
    assert list(sources.lock()[0]["files"]) == ["config.json", "model.safetensors"]


def test_a_path_cannot_be_fetched(server: Loopback, mtmeta: Call, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(SMALL)
    outcome = mtmeta("fetch", "r.yaml")
    assert outcome.code == 0, outcome.err
    assert "nothing to fetch" in outcome.out
    assert "train.tsv, dev.tsv" in outcome.out
    assert server.asked == []


# ------------------------------------------------------------------------------------------------ runs and their lock


@pytest.fixture
def whole(server: Loopback, model: dict[str, bytes]) -> Loopback:
    """The same server with weights that can be loaded."""
    server.repositories["owner/model"] = {COMMIT: model}
    return server


def test_a_run_fetches_remembers_and_goes_on_with_what_it_began_with(
    whole: Loopback, model: dict[str, bytes], mtmeta: Call, tmp_path: Path
) -> None:
    recipe(tmp_path, whole)
    arguments = ("run", "r.yaml", "--out", "out", "--json")
    outcome = mtmeta(*arguments)
    assert outcome.code == 0, outcome.err
    first = json.loads(outcome.out)
    lock = strict_yaml.read_file(tmp_path / "out" / "recipe.lock.yaml").data
    assert lock["sources"] == [
        {
            "name": "hf://datasets/owner/pairs/data/train.tsv",
            "for": "data",
            "commit": COMMIT,
            "files": {"data/train.tsv": sha256(TRAIN)},
        },
        {"name": f"{whole.url}/files/dev.tsv#sha256={sha256(DEV)}", "for": "data", "files": {"dev.tsv": sha256(DEV)}},
        {
            "name": "owner/model",
            "for": "backbone",
            "commit": COMMIT,
            "files": {name: sha256(model[name]) for name in NEEDED},
        },
    ]
    assert lock["data"] == {"pairs-train": sha256(TRAIN), "pairs-dev": sha256(DEV)}
    assert not [path for _, path, _ in whole.asked if path.endswith("pytorch_model.bin")]

    # the branches move on; the run does not
    moved = dict(model, **{"config.json": model["config.json"].replace(b"0.1", b"0.2")})
    whole.repositories["owner/model"][LATER] = moved
    whole.repositories["datasets/owner/pairs"][LATER] = {"data/train.tsv": TRAIN.replace(b"word 1", b"word 2")}
    whole.branches["main"] = LATER
    shutil.rmtree(tmp_path / "hub")
    for name in ("summary.json", "events.jsonl"):
        (tmp_path / "out" / name).unlink()
    shutil.rmtree(tmp_path / "out" / "checkpoints")
    again = mtmeta(*arguments)
    assert again.code == 0, again.err
    assert json.loads(again.out)["tasks"] == first["tasks"]
    assert mtmeta("eval", "out", "--split", "train", offline=True).code == 0

    shutil.rmtree(tmp_path / "hub")
    found = json.loads(mtmeta("fetch", "out/recipe.yaml", "--json").out)
    assert {source["commit"] for source in found["sources"]} == {COMMIT, None}

    # a new run has what the branches are now
    assert mtmeta(*arguments[:2], "--out", "new").code == 0
    new = strict_yaml.read_file(tmp_path / "new" / "recipe.lock.yaml").data
    assert {one.get("commit") for one in new["sources"]} == {LATER, None}
    assert new["data"]["pairs-train"] != lock["data"]["pairs-train"]


def test_a_resumed_run_checks_the_hashes(whole: Loopback, mtmeta: Call, tmp_path: Path) -> None:
    recipe(tmp_path, whole)
    arguments = ("run", "r.yaml", "--out", "out", "--set", "reporters=[jsonl]")
    assert mtmeta(*arguments).code == 0
    (tmp_path / "out" / "summary.json").unlink()
    lock = tmp_path / "out" / "recipe.lock.yaml"
    good = lock.read_text()
    data, _, weights = strict_yaml.read_file(lock).data["sources"]
    for digest, code, words in (
        (weights["files"]["config.json"], 4, ("owner/model: config.json: sha256 0000", "choose another --out")),
        (data["files"]["data/train.tsv"], 3, ("changed since this run started (sha256 0000..", "--allow-changed-data")),
    ):
        lock.write_text(good.replace(digest, "0000" + digest[4:]))
        assert_refused(mtmeta(*arguments), code, *words)


def test_a_branch_is_what_it_was_where_there_is_no_network(whole: Loopback, mtmeta: Call, tmp_path: Path) -> None:
    recipe(tmp_path, whole)
    assert mtmeta("fetch", "r.yaml").code == 0
    before = len(whole.asked)
    outcome = mtmeta("validate", "--data", "r.yaml", offline=True)
    assert (outcome.code, outcome.err) == (0, "")
    assert len(whole.asked) == before
    # nor is a pinned revision asked for again
    pinned = {"weights": f"owner/model@{COMMIT}", "train": f"hf://datasets/owner/pairs@{COMMIT}/data/train.tsv"}
    recipe(tmp_path, whole, **pinned)
    assert mtmeta("fetch", "r.yaml").code == 0
    assert len(whole.asked) == before


def test_a_damaged_file_of_the_hub_is_fetched_again(
    whole: Loopback, model: dict[str, bytes], mtmeta: Call, tmp_path: Path
) -> None:
    recipe(tmp_path, whole)
    assert mtmeta("fetch", "r.yaml").code == 0
    for name in ("model.safetensors", "config.json"):
        (path,) = (tmp_path / "hub" / "hub").glob(f"models--owner--model/snapshots/*/{name}")
        path.write_bytes(model[name][:-1] + b"?")
        refused = mtmeta("fetch", "r.yaml", offline=True)
        assert_refused(
            refused, 6, f"1 file is not in the cache and HF_HUB_OFFLINE is set: owner/model@{COMMIT[:12]} ({name}"
        )
        outcome = mtmeta("fetch", "r.yaml")
        assert outcome.code == 0, outcome.err
        assert f"{name}: damaged; fetching it again" in outcome.err
        assert path.read_bytes() == model[name]
    # also where only the blob is there
    path.write_bytes(model[name][:-1] + b"?")
    path.unlink()
    assert mtmeta("fetch", "r.yaml").code == 0
    assert path.read_bytes() == model[name]


@pytest.mark.slow
def test_compare_fetches_before_its_runs(whole: Loopback, mtmeta: Call, tmp_path: Path) -> None:
    recipe(tmp_path, whole)
    arguments = ("compare", "r.yaml", "--seeds", "2", "--jobs", "2", "--json")
    outcome = mtmeta(*arguments)
    assert outcome.code == 0, outcome.err
    assert whole.got("model.safetensors") == [""]
    assert json.loads(outcome.out)["rows"][0]["seeds"] == [0, 1]
    assert mtmeta(*arguments, offline=True).code == 0  # finished runs, nothing to ask


def test_a_terminal_sees_a_bar_and_a_file_sees_lines(server: Loopback, tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    server.files["big.tsv"] = BIG
    server.pace = 0.05
    name = f"{server.url}/files/big.tsv#sha256={sha256(BIG)}"
    recipe(tmp_path, server, weights="tiny", train=name, dev=name)
    ours, theirs = pty.openpty()
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MTMETA_")}
    environ |= {"TERM": "xterm", "COLUMNS": "100", **surroundings(tmp_path, server)}
    with subprocess.Popen(
        [sys.executable, "-m", "mtmeta", "fetch", "r.yaml", "--json"],
        cwd=tmp_path,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # which is how a terminal tells that nobody is there any more
            while block := os.read(ours, 4096):
                seen += block
        os.close(ours)
        assert process.stdout is not None
        assert json.loads(process.stdout.read())["missing"] == 0
    text = seen.decode()
    assert "\x1b[" in text
    assert f"/{len(BIG) / 1e6:.1f} MB" in text
    assert f"fetched big.tsv: {len(BIG) / 1e6:.1f} MB in " in text
    shutil.rmtree(tmp_path / "cache")
    server.cuts["big.tsv"] = [100_000]
    outcome = command("fetch", "r.yaml", cwd=tmp_path, env=surroundings(tmp_path, server))
    assert outcome.code == 0, outcome.err
    assert "\x1b" not in outcome.err
    assert outcome.err.splitlines()[0] == "fetching big.tsv"


def test_a_token_goes_to_the_hub_alone(
    server: Loopback, mtmeta: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    recipe(tmp_path, server)
    assert mtmeta("fetch", "r.yaml", "--dry-run").code == 0
    assert mtmeta("fetch", "r.yaml").code == 0
    assert [path for path in server.authorized if "/resolve/" in path]
    assert not [path for path in server.authorized if path.startswith(("/cdn/", "/files/"))]


def test_torch_is_not_loaded(server: Loopback, tmp_path: Path) -> None:
    recipe(tmp_path, server)
    code = "import sys, mtmeta.cli\ntry: mtmeta.cli.main(['fetch', 'r.yaml', '--json'])\n"
    code += "finally: assert 'torch' not in sys.modules"
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MTMETA_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environ | surroundings(tmp_path, server),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["missing"] == 0
