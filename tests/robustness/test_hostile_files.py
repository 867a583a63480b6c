"""Files made to do harm: nothing in them runs, nothing huge is made of them, nothing raw of them reaches a terminal.

Rows 12 to 14, 35, 36 and 43 to 49 of our list of bad inputs, beyond what the tests of those rows hold already.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import mtmeta
from mtmeta.core.api.events import DataLoaded, RunStarted, StepDone, StepSkipped, Warned
from mtmeta.core.recipe.part_help import describe_part
from mtmeta.core.registry.discovery import Plugin, Plugins
from mtmeta.core.registry.registry import Registry
from mtmeta.plugins.backbones.checkpoint.config import BertConfig
from mtmeta.plugins.backbones.checkpoint.names import hugging_face_names, shapes
from mtmeta.plugins.backbones.checkpoint.shards import SPARE
from mtmeta.plugins.backbones.encoder.encoder import Encoder
from mtmeta.plugins.reporters import ConsoleReporter
from tests.robustness.test_fuzz import write_bert
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import HEADER, ROWS, SMALL, Outcome, assert_refused, call, contents, data_folder

Capture = pytest.CaptureFixture[str]
Change = Callable[[Path], None]
EVIL = "\x1b]0;owned\x07\x1b[2J[red]x[/red]\u202e\r\u2028"  # title, clear, markup, right-to-left, line ends


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Data, a recipe, and good weights in `w`."""
    made = data_folder(tmp_path / "here")
    write_bert(made / "w")
    return made


def validate(folder: Path, capsys: Capture) -> Outcome:
    sets = ("--set", "backbone.weights=./w", "--set", "backbone.max_length=8")
    return call("validate", "--data", "--weights", "r.yaml", *sets, cwd=folder, capsys=capsys)


def assert_plain(outcome: Outcome) -> None:
    """Nothing but printable characters and line ends."""
    assert all(line.isprintable() for line in [*outcome.out.split("\n"), *outcome.err.split("\n")]), outcome


# ------------------------------------------------------------------------------------------------------ safetensors


def header(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def write(path: Path, head: str, content: bytes, stated: int | None = None) -> None:
    size = len(head.encode()) if stated is None else stated
    path.write_bytes(size.to_bytes(8, "little") + head.encode() + content)


def tensors(change: Callable[[dict[str, Any]], object]) -> Change:
    """The good file with another header over the same data."""

    def spoil(folder: Path) -> None:
        head, content = header(folder / "model.safetensors")
        change(head)
        write(folder / "model.safetensors", json.dumps(head), content)

    return spoil


def named_twice(folder: Path) -> None:
    head, content = header(folder / "model.safetensors")
    again = json.dumps({NORM: head[NORM]})
    write(folder / "model.safetensors", f"{json.dumps(head)[:-1]}, {again[1:]}", content)


def lying(stated: int) -> Change:
    def spoil(folder: Path) -> None:
        head, content = header(folder / "model.safetensors")
        write(folder / "model.safetensors", json.dumps(head), content, stated)

    return spoil


def enormous(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", SPARE + 10**9)  # sparse: it takes no room until somebody reads it


def circular(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")


def put(file: str, text: str | bytes) -> Change:
    def spoil(folder: Path) -> None:
        (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode())

    return spoil


def pipe(*names: str) -> Change:
    """Pipes nobody writes to: whoever opened one would wait for ever."""

    def spoil(folder: Path) -> None:
        for name in names:
            (folder / name).unlink(missing_ok=True)
            os.mkfifo(folder / name)

    return spoil


def config(**changes: object) -> Change:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def tokenizer(change: Callable[[dict[str, Any]], object]) -> Change:
    def spoil(folder: Path) -> None:
        path = folder / "tokenizer.json"
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return spoil


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "pytorch_model.bin")


def empty_extra(name: str) -> Callable[[dict[str, Any]], object]:
    def change(head: dict[str, Any]) -> None:
        end = max(entry["data_offsets"][1] for entry in head.values())
        head[name] = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}

    return change


def overlapping(head: dict[str, Any]) -> None:
    head["embeddings.LayerNorm.weight"] = head[NORM]


def renamed(head: dict[str, Any]) -> None:
    head[EVIL] = head.pop(NORM)


NORM = "embeddings.LayerNorm.bias"
PANICS = "BAAAAAAAAAAA"  # a charsmap that loads, and indexes outside itself at the first text
SPOILT: dict[str, tuple[Change, tuple[str, ...]]] = {
    "name twice": (named_twice, ("is damaged (its header names 'embeddings.LayerNorm.bias' twice)",)),
    "two names": (tensors(empty_extra(f"bert.{NORM}")), (f"{NORM}' is there under another name too",)),
    "overlap": (tensors(overlapping), ("model.safetensors: is damaged (", "invalid offset")),
    "length too large": (lying(2**63), ("is damaged (a header of 9223372036854775808 bytes",)),
    "length too small": (lying(9), ("is damaged (its header is not JSON",)),
    "length zero": (lying(0), ("is damaged (its header is not JSON",)),
    "header deep": (put("model.safetensors", (10**5).to_bytes(8, "little") + b"[" * 10**5), ("is not JSON",)),
    "name gone": (tensors(renamed), (f"tensor '{NORM}' is missing",)),
    "huge shape": (tensors(lambda head: head[NORM].update(shape=[2**62, 4])), ("is damaged (", "overflow")),
    "negative shape": (tensors(lambda head: head[NORM].update(shape=[-1])), ("is damaged (",)),
    "enormous": (enormous, ("model.safetensors: is 1.27 GB, the encoder of config.json needs",)),
    "pipe for weights": (pipe("model.safetensors"), ("w/model.safetensors: is not a regular file",)),
    "pipe for config": (pipe("config.json"), ("w/config.json: is not a regular file",)),
    "pipe for tokenizer": (pipe("tokenizer.json"), ("w/tokenizer.json: is not a regular file",)),
    "pickle": (only_pickle, ("pytorch_model.bin: pickle files can run code and are not read",)),
    "link to itself": (circular, ("config.json: cannot be read (Too many levels of symbolic links)",)),
    "auto_map": (config(model_type="evil", auto_map={"AutoModel": "evil.Model"}), ("model_type 'evil' is not",)),
    "model_type": (config(model_type=EVIL), ("model_type '\\x1b]0;owned\\x07", "is not supported (bert, ")),
    "model_type list": (config(model_type=["bert"]), ("model_type ['bert'] is not supported",)),
    "wide": (config(hidden_size=2**29, num_attention_heads=1), ("billion parameters (limit 2 billion)",)),
    "layers": (config(num_hidden_layers=10**6, hidden_size=1, intermediate_size=1), ("asks for 1000000 layers",)),
    "positions": (config(max_position_embeddings=10**9 - 1), ("billion parameters (limit 2 billion)",)),
    "boolean": (config(hidden_size=True), ("'hidden_size' must be a positive integer, found true",)),
    "text": (config(layer_norm_eps="0"), ("'layer_norm_eps' must be a number from 0 to 1, found '0'",)),
    "digits": (put("config.json", b'{"vocab_size": ' + b"9" * 5000 + b"}"), ("config.json: is not JSON (Exceeds",)),
    "nested": (put("config.json", b'{"a":' * 5000), ("config.json: is not JSON (",)),
    "large": (put("config.json", b" " * 1_000_001), ("config.json: is larger than a config.json can be",)),
    "panic": (
        tokenizer(lambda v: v.update(normalizer={"type": "Precompiled", "precompiled_charsmap": PANICS})),
        ("tokenizer.json: cannot be used (index out of bounds",),
    ),
    "no unknown": (tokenizer(lambda v: v["model"].update(unk_token="?")), ("tokenizer.json: cannot be used (Word",)),
    "no special": (tokenizer(lambda v: v["model"]["vocab"].pop("[CLS]") and v.update(added_tokens=[])), ("[CLS]",)),
    "last id": (tokenizer(lambda v: v["model"]["vocab"].update(z=2**32 - 1)), ("has 4294967296 entries, embeddings",)),
    "gap": (tokenizer(lambda v: v["model"]["vocab"].update(word=9)), ("has 10 entries, embeddings have 4",)),
    "deep tokenizer": (
        put("tokenizer.json", b'{"normalizer":' + b'{"type":"Sequence","normalizers":[' * 2000),
        ("tokenizer.json: cannot be loaded (recursion limit exceeded",),
    ),
    "evil type": (tokenizer(lambda v: v["model"].update(type=EVIL)), ("tokenizer.json: cannot be loaded (",)),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILT)
def test_weights(what: str, folder: Path, capfd: Capture) -> None:
    spoil, words = SPOILT[what]
    spoil(folder / "w")
    assert_refused(validate(folder, capfd), 4, *words)


def test_every_size_a_reader_trusts_is_what_the_encoder_has() -> None:
    """Sizes come from config.json by name, so that no encoder need be made to refuse a file."""
    config = BertConfig(
        vocab_size=11,
        hidden_size=6,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=7,
        max_position_embeddings=13,
        type_vocab_size=3,
    )
    made = Encoder(config).state_dict()
    for ours, theirs in hugging_face_names(config).items():
        whole = (made[ours].shape[0] // len(theirs), *made[ours].shape[1:])
        assert [shapes(config)[name] for name in theirs] == [whole] * len(theirs), ours


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", EVIL])
def test_a_tensor_of_no_use_is_of_no_harm(name: str, folder: Path, capfd: Capture) -> None:
    tensors(empty_extra(name))(folder / "w")
    before = contents(folder.parent)
    outcome = validate(folder, capfd)
    assert (outcome.code, outcome.err) == (0, "")
    assert_plain(outcome)
    assert contents(folder.parent) == before


def test_a_pickle_beside_good_weights_stays_unread(folder: Path, capfd: Capture) -> None:
    pipe("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth")(folder / "w")
    assert validate(folder, capfd).code == 0


def test_code_beside_good_weights_stays_unread(folder: Path, capfd: Capture) -> None:
    pipe("modeling_bert.py", "configuration_bert.py")(folder / "w")
    put("tokenizer_config.json", json.dumps({"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}))(folder / "w")
    before = set(sys.modules)
    assert validate(folder, capfd).code == 0
    assert not {name for name in set(sys.modules) - before if "evil" in name or "modeling" in name}


def test_a_folder_named_to_be_a_hub_id_is_a_folder(folder: Path, capfd: Capture) -> None:
    """No network is asked where a folder is there."""
    shutil.copytree(folder / "w", folder / "owner" / "name")
    outcome = call(
        "validate", "--data", "r.yaml", "--set", "backbone.weights=owner/name", "--set", "backbone.max_length=8",
        cwd=folder, capsys=capfd,
    )  # fmt: skip
    assert (outcome.code, outcome.err) == (0, "")


# ---------------------------------------------------------------------------------------------------------- recipes

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
RECIPES: dict[str, tuple[bytes, str]] = {
    "billion laughs": (LAUGHS.encode(), "r.yaml:1:4: YAML anchors and aliases are not allowed in recipes"),
    "merge": (b"name: x\n<<: {}\n", "r.yaml:2:1: YAML anchors and aliases are not allowed in recipes"),
    "object": (b"name: !!python/object/new:os.system [echo]\n", "tag '!!python/object/new:os.system' is not allowed"),
    "module": (b"name: !!python/module:os\n", "YAML tag '!!python/module:os' is not allowed"),
    "own tag": (b"name: !evil x\n", "YAML tag '!evil' is not allowed"),
    "tag directive": (b"%TAG ! tag:evil,2000:\n---\nname: !x 1\n", "YAML directives are not allowed in recipes"),
    "deep flow": (b"a: " + b"{b: " * 100_000, "nested deeper than 32 levels at 1:"),
    "deep block": (b"".join(b" " * i + b"a:\n" for i in range(500)), "nested deeper than 32 levels at 33:"),
    "large": (b"# " + b"x" * 2**20, "r.yaml: larger than 1 MiB"),
    "evil key": ((SMALL + json.dumps(EVIL) + ": 1\n").encode(), "unknown key '\\x1b]0;owned\\x07\\x1b[2J[red]x"),
    "evil value": (SMALL.replace("joint", json.dumps(EVIL)).encode(), "unknown algorithm '\\x1b]0;owned\\x07"),
    "evil task": (SMALL.replace("pairs:", json.dumps(EVIL) + ":").encode(), "task name '\\x1b]0;owned\\x07"),
    "evil name": (SMALL.replace("name: small", f"name: {json.dumps(EVIL)}").encode(), "name '\\x1b]0;owned\\x07"),
    "evil metric": (SMALL.replace("    train:", f"    metrics: [{json.dumps(EVIL)}]\n    train:", 1).encode(),
                    "unknown metric '\\x1b]0;owned\\x07"),
}  # fmt: skip


@pytest.mark.parametrize("what", RECIPES)
def test_recipe(what: str, tmp_path: Path, capsys: Capture) -> None:
    raw, words = RECIPES[what]
    (tmp_path / "r.yaml").write_bytes(raw)
    assert_refused(call("validate", "r.yaml", cwd=tmp_path, capsys=capsys), 2, words)


def test_a_file_name_is_as_foreign_as_its_content(tmp_path: Path, capsys: Capture) -> None:
    name = "\x1b[2J[red]\u202e.yaml"
    (tmp_path / name).write_text("- 1\n")
    outcome = call("validate", name, cwd=tmp_path, capsys=capsys)
    assert_refused(outcome, 2, "error: \\x1b[2J[red]\\u202e.yaml:1:1: expected a mapping")
    (tmp_path / "r.yaml").write_text(SMALL)
    outcome = call("validate", "r.yaml", "--set", f"tasks.pairs.train={EVIL[:12]}", cwd=tmp_path, capsys=capsys)
    assert_refused(outcome, 2, "--set tasks.pairs.train: character U+001B is not allowed")


# ------------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("entailment", EVIL.replace("\r", "").replace("\u2028", ""), "is not one of contradiction,"),
        ("sentence2", EVIL.replace("\r", ""), "no column 'sentence2'; columns are: idx, sentence1, \\x1b]0;"),
    ],
    ids=["label", "column"],
)  # fmt: skip
def test_data(old: str, new: str, words: str, folder: Path, capsys: Capture) -> None:
    (folder / "data" / "train.tsv").write_text((HEADER + ROWS).replace(old, new))
    assert_refused(call("validate", "--data", "r.yaml", cwd=folder, capsys=capsys), 3, words)


def test_what_a_good_run_shows_of_evil_texts(folder: Path, capfd: Capture) -> None:
    """Class names, texts, ids and file names of the worst kind, in progress, table, detail and warnings."""
    named, file = "\x1b[31m[bold]\u202e", "\x1b[2Jdev.tsv"
    rows = ROWS.replace("entailment", named).replace("word", "\x1b[31m[red]")
    for name in ("train.tsv", file):
        (folder / "data" / name).write_text(HEADER + rows.replace("\n0", "\n\x1b[5m"))
    with (folder / "data" / file).open("a") as last:
        last.write("short\n")
    text = SMALL.replace("entailment", json.dumps(named)).replace("dev: dev.tsv", f"dev: {json.dumps(file)}")
    (folder / "r.yaml").write_text(text + "data: {on_bad_rows: skip}\nreporters: [console, jsonl]\n")
    for arguments in (
        ("validate", "--data", "r.yaml"),
        ("run", "r.yaml", "--out", "out"),
        ("eval", "out", "--data-root", "data", "--verbose"),
    ):
        outcome = call(*arguments, cwd=folder, capsys=capfd)
        assert outcome.code == 0, outcome.err
        assert_plain(outcome)
        assert "\\x1b[" in outcome.out + outcome.err


def test_what_the_console_shows_of_evil_events(capsys: Capture, tmp_path: Path) -> None:
    """Also of those a plugin's parts may bring: names of tasks are checked, but not here."""
    events: list[Any] = [
        RunStarted(EVIL, EVIL, [EVIL], [[EVIL]], EVIL, 1),
        DataLoaded(EVIL, EVIL, EVIL, 1, 1, 1, 1),
        Warned(EVIL),
        StepDone(EVIL, 1, 2, {EVIL: [1.0]}, 0.1, 1.0, 1, 1.0),
        StepSkipped(EVIL, 1, EVIL),
    ]
    with ConsoleReporter().open(tmp_path) as handle:
        for event in events:
            handle(event)
    shown = capsys.readouterr()
    assert_plain(Outcome(0, shown.out, shown.err))
    assert shown.err.count("\\x1b]0;owned\\x07") >= len(events)


@pytest.fixture
def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """rich believes it draws on one."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    yield


@pytest.mark.usefixtures("on_a_terminal")
def test_what_the_live_bar_shows_of_evil_events(capsys: Capture, tmp_path: Path) -> None:
    with ConsoleReporter().open(tmp_path) as handle:
        handle(Warned(EVIL))
        handle(StepDone(EVIL, 1, 2, {EVIL: [1.0]}, 0.1, 1.0, 1, 1.0))
    shown = capsys.readouterr().err
    assert "\\x1b]0;owned\\x07" in shown  # told, and not done
    assert "\x1b]0;" not in shown and "\x1b[2J" not in shown and "\u202e" not in shown
    assert "[red]x[/red]" in shown


def test_torch_loads_nothing_by_pickle(folder: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one function that would is never called, whatever the folder holds."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", refuse)
    put("pytorch_model.bin", b"\x80\x04.")(folder / "w")
    assert validate(folder, capfd).code == 0
    assert mtmeta.quote(EVIL).isprintable()


def test_what_show_says_of_evil_options() -> None:
    """The words a plugin's option admits are printed as they stand."""

    @dataclass(frozen=True)
    class Evil(mtmeta.Algorithm):
        name = "evil"
        word: Literal["\x1b[2J", "\u202e"] = "\u202e"

    registry = Registry(Plugins([Plugin("p", "1.0", "mtmeta-p", parts={"algorithms": [Evil]})]))
    (option,) = describe_part(registry, "algorithm", "evil")["options"]
    assert option["takes"] == "one of \\x1b[2J, \\u202e"
