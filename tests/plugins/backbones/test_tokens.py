"""A folder's tokenizer by the commands: what is told of it, when a run goes on with it, and recipes drafted for it."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, pre_tokenizers

import mtmeta
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.backbones.tokenizers.contradictions import contradictions
from mtmeta.plugins.backbones.tokenizers.fast import AnyTokenizer
from tests.support.commands import assert_refused, call
from tests.support.folder_shapes import (
    NAMED_WORDS,
    SHAPES,
    byte_pairs,
    changed,
    flagged,
    listed,
    roberta_files,
    save,
    unigram,
    vocab_txt,
    words,
)
from tests.support.quick import killed_before_step, quick

pytestmark = pytest.mark.usefixtures("one_thread")
Capture = pytest.CaptureFixture[str]
CASED = "bert, cased tokenizer.json, do_lower_case beside it"
NOTE = "w/tokenizer.json holds, though tokenizer_config.json says do_lower_case true (it keeps capitals)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder `w` whose files contradict each other, and a recipe for it."""
    SHAPES[CASED].write(tmp_path / "w")
    quick(tmp_path, backbone={"name": "bert", "weights": "./w", "max_length": 16}, data_root=".")
    return tmp_path


def done(*arguments: str, cwd: Path, capsys: Capture) -> tuple[str, str]:
    found = call(*arguments, cwd=cwd, capsys=capsys)
    assert found.code == 0, found.err
    return found.out, found.err


# ------------------------------------------------------------------------------------------------ what the user is told


@pytest.mark.parametrize("backbone", ["bert", "hf"])
def test_a_contradiction_is_one_line(backbone: str, folder: Path, capsys: Capture) -> None:
    more = ("--set", f"backbone.name={backbone}")
    for command in (
        ("run", "quick.yaml", "--dry-run", "--probe", "0"),
        ("validate", "quick.yaml", "--data"),
        ("validate", "quick.yaml", "--weights"),
        ("validate", "quick.yaml", "--weights", "--data"),
        ("run", "quick.yaml", "--out", f"out-{backbone}", "--set", "reporters=[console,jsonl]"),
    ):
        _, err = done(*command, *more, cwd=folder, capsys=capsys)
        assert [line for line in err.splitlines() if NOTE in line] == [f"warning: {NOTE}"], command
    events = (folder / f"out-{backbone}" / "events.jsonl").read_text().splitlines()
    assert [event["text"] for event in map(json.loads, events) if event["type"] == "warning"] == [NOTE]
    _, err = done("eval", f"out-{backbone}", cwd=folder, capsys=capsys)
    assert NOTE not in err


TOKENIZERS: dict[str, Callable[[], str]] = {
    "words": words,
    "cased": lambda: words(lower=False),
    "accents": lambda: _edited(words(), "normalizer", strip_accents=False),
    "chinese": lambda: _edited(words(), "normalizer", handle_chinese_chars=False),
    "bytes": byte_pairs,
    "space": lambda: _edited(byte_pairs(), "pre_tokenizer", add_prefix_space=True),
    "pieces": unigram,
}


def _edited(text: str, part: str, **values: Any) -> str:
    return changed(text, **{part: json.loads(text)[part] | values})


COUNT = len(listed(words()))
SAID: list[tuple[str, dict[str, Any], str]] = [
    ("words", {"do_lower_case": False}, "tokenizer_config.json says do_lower_case false (it lowercases)"),
    ("cased", {"do_lower_case": True, "strip_accents": None}, "do_lower_case true (it keeps capitals)"),
    ("accents", {"strip_accents": True}, "strip_accents true (it keeps accents)"),
    ("words", {"strip_accents": False}, "strip_accents false (it drops accents)"),
    ("chinese", {"tokenize_chinese_chars": True}, "true (it does not set Chinese characters apart)"),
    ("words", {"tokenize_chinese_chars": False}, "false (it sets Chinese characters apart)"),
    ("bytes", {"add_prefix_space": True}, "add_prefix_space true (it begins a text without a space)"),
    ("space", {"add_prefix_space": False}, "add_prefix_space false (it begins a text with a space)"),
    ("pieces", {"tokenizer_class": "BertTokenizerFast"}, "tokenizer_class 'BertTokenizerFast' (it is Unigram)"),
    ("words", {"tokenizer_class": "RobertaTokenizer"}, "tokenizer_class 'RobertaTokenizer' (it is WordPiece)"),
    ("bytes", {"tokenizer_class": "XLMRobertaTokenizer"}, "tokenizer_class 'XLMRobertaTokenizer' (it is BPE)"),
    ("words", {"cls_token": "<s>"}, "cls_token '<s>' (it has no such token)"),
    ("words", {"sep_token": "the"}, "sep_token 'the' (it puts '[SEP]' there)"),
    ("words", {"mask_token": {"content": "<mask>"}}, "mask_token '<mask>' (it has no such token)"),
    ("words", {"additional_special_tokens": ["@USER"]}, "additional_special_tokens '@USER' (it has no such token)"),
    ("words", {"added_tokens_decoder": {str(COUNT): flagged("@USER")}}, f"'@USER' is {COUNT} (it has no such token)"),
    ("words", {"added_tokens_decoder": {"9": flagged("[MASK]")}}, "'[MASK]' is 9 (it has id 4)"),
    (
        "words",
        {"added_tokens_decoder": {"4": flagged("[MASK]", special=True, lstrip=True)}},
        "lstrip true of '[MASK]' (it says otherwise)",
    ),
    (
        "words",
        {"added_tokens_decoder": {str(listed(words()).index("the")): flagged("the")}},
        "added token 'the' (it does not keep it whole)",
    ),
]
AGREEING: list[tuple[str, dict[str, Any]]] = [
    ("words", {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True, **NAMED_WORDS}),
    ("words", {"tokenizer_class": "BertTokenizer", "model_max_length": 512, "do_basic_tokenize": True}),
    ("words", {"tokenizer_class": "OwnTokenizer", "add_prefix_space": True, "cls_token": None}),
    ("words", {"added_tokens_decoder": {"4": flagged("[MASK]", special=True)}}),
    ("cased", {"do_lower_case": False, "strip_accents": False}),
    ("bytes", {"tokenizer_class": "RobertaTokenizerFast", "add_prefix_space": False, "trim_offsets": True}),
    ("pieces", {"tokenizer_class": "XLMRobertaTokenizer", "add_prefix_space": True, "sp_model_kwargs": {}}),
]


@pytest.mark.parametrize(("kind", "settings", "expected"), SAID)
def test_what_contradicts_a_tokenizer_json_is_named(
    kind: str, settings: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    (line,) = contradictions(tmp_path, TOKENIZERS[kind](), settings)
    assert line.startswith(f"{tmp_path}/tokenizer.json holds, though tokenizer_config.json says ")
    assert line.endswith(expected)


@pytest.mark.parametrize(("kind", "settings"), AGREEING)
def test_what_agrees_is_not_told(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    assert list(contradictions(tmp_path, TOKENIZERS[kind](), settings)) == []


def test_other_files_are_compared_too(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text(vocab_txt(words()))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(NAMED_WORDS))
    (tmp_path / "added_tokens.json").write_text('{"[MASK]": 4}')
    assert list(contradictions(tmp_path, words(), {})) == []
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[SEP]\n")
    (tmp_path / "special_tokens_map.json").write_text('{"cls_token": "<s>"}')
    added = {token: 500 + number for number, token in enumerate(("a b", "c d", "e f", "g h", "i j", "k l"))}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    (line,) = contradictions(tmp_path, words(), {"do_lower_case": False})
    said = line.split(", and ")
    assert said[0].endswith("tokenizer_config.json says do_lower_case false (it lowercases)")
    shown = ", ".join(f"'{token}' is {number} (it has no such token)" for token, number in list(added.items())[:4])
    assert said[1:] == [
        "special_tokens_map.json says cls_token '<s>' (it has no such token)",
        f"added_tokens.json says {shown}",
        "2 more",
        "vocab.txt says '[SEP]' is 2 (it has id 3)",
    ]


# -------------------------------------------------------------------------------------------------------- a run goes on


@pytest.mark.parametrize("backbone", ["bert", "hf"])
def test_a_run_does_not_go_on_with_other_tokens(backbone: str, folder: Path, capsys: Capture) -> None:
    """Its weights' folder got another tokenizer.json, or the run began when another one was read from it."""
    arguments = ("run", "quick.yaml", "--out", "out", "--set", f"backbone.name={backbone}")
    overrides = [f"backbone.name={backbone}"]
    with killed_before_step(3), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        mtmeta.run("quick.yaml", out="out", overrides=overrides)
    mine, theirs = folder / "out" / "backbone" / "tokenizer.json", folder / "w" / "tokenizer.json"
    good = mine.read_text()
    before = sorted((path, path.stat().st_mtime_ns) for path in (folder / "out").rglob("*"))
    for kind in ("words", "chinese", "accents"):
        theirs.write_text(TOKENIZERS[kind]())
        refused = call(*arguments, cwd=folder, capsys=capsys)
        what = "the run began with another tokenizer than its weights' folder has now, with other tokens"
        assert_refused(
            refused, 4, f"out/backbone/tokenizer.json: {what}; choose another --out, or --fresh to start over"
        )
    assert sorted((path, path.stat().st_mtime_ns) for path in (folder / "out").rglob("*")) == before
    theirs.write_text(good)
    mine.write_text(words())
    assert_refused(call(*arguments, cwd=folder, capsys=capsys), 4, what)
    mine.write_text("{")
    assert_refused(call(*arguments, cwd=folder, capsys=capsys), 4, what)
    # the same tokens, written otherwise: with padding, without a decoder, with all that an older version leaves out
    other = Tokenizer.from_str(good)
    other.enable_padding(length=8)
    other.decoder = None
    other.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    mine.write_text(json.dumps(json.loads(other.to_str()), indent=1))
    done(*arguments, cwd=folder, capsys=capsys)


def test_same_tokens_are_told_from_others() -> None:
    tokenizer = AnyTokenizer.from_json(words(), "here")
    assert tokenizer.same_as(words()) and tokenizer.same_as(changed(words(), truncation=None))
    others = [
        "{",
        words(lower=False),
        TOKENIZERS["chinese"](),
        unigram(),
        words(around=("[CLS]", "[SEP]", "[SEP]", "")),
    ]
    others.append(changed(words(), post_processor=None))
    assert not any(map(tokenizer.same_as, others))


def test_a_finished_run_needs_the_folder_no_more(folder: Path, capsys: Capture) -> None:
    done("run", "quick.yaml", "--out", "out", cwd=folder, capsys=capsys)
    shutil.rmtree(folder / "w")
    summary = json.loads((folder / "out" / "summary.json").read_text())
    assert mtmeta.evaluate(folder / "out")["tasks"] == summary["tasks"]


MIXED = ("bert, XLM-R pieces, class missing", "roberta, WordPiece, vocab.txt alone", "bert with RoBERTa's vocab.json")


@pytest.mark.parametrize("shape", ["bert, vocab.txt and added_tokens_decoder", *MIXED])
@pytest.mark.parametrize("backbone", ["bert", "hf"])
def test_a_run_holds_all_of_its_tokenizer(shape: str, backbone: str, tmp_path: Path, capsys: Capture) -> None:
    """Evaluated from its own directory alone, by the same ids."""
    SHAPES[shape].write(tmp_path / "w")
    recipe = quick(tmp_path, backbone={"name": backbone, "weights": "./w", "max_length": 16}, data_root=".")
    loaded = Bert(weights=str(tmp_path / "w"), max_length=16).load(0)
    done("run", recipe.name, "--out", "out", cwd=tmp_path, capsys=capsys)
    shutil.rmtree(tmp_path / "w")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert mtmeta.evaluate(tmp_path / "out")["tasks"] == summary["tasks"]
    kept = AnyTokenizer.from_json if backbone == "hf" else type(loaded.tokenizer).from_json  # type: ignore[attr-defined]
    again = kept((tmp_path / "out" / "backbone" / "tokenizer.json").read_text(), "kept")
    assert again.same_as(loaded.tokenizer.json()) or backbone == "hf"  # type: ignore[attr-defined]
    texts = ["@USER said IT is covid-19", "\u4e2d\u6587 caf\xe9"]
    assert again.encode(texts) == loaded.tokenizer.encode(texts)
    assert (again.prefix, again.middle, again.suffix) == (
        loaded.tokenizer.prefix,
        loaded.tokenizer.middle,
        loaded.tokenizer.suffix,
    )


# ------------------------------------------------------------------------------------- classes that disagree with files


def test_a_class_that_does_not_know_its_own_words_is_refused(tmp_path: Path, capsys: Capture) -> None:
    """HerBERT's class reads whole words where RoBERTa's vocabulary has byte-level pieces."""
    files = roberta_files(byte_pairs())
    save(tmp_path / "w", "Bert", byte_pairs(), None, {"tokenizer_class": "HerbertTokenizer"}, files)
    quick(tmp_path, backbone={"name": "hf", "weights": "./w", "max_length": 16}, data_root=".")
    refused = call("run", "quick.yaml", "--out", "out", cwd=tmp_path, capsys=capsys)
    assert_refused(refused, 4, "w: tokenizer_class 'HerbertTokenizer' does not know ", "words of its own vocabulary")


def test_a_class_with_other_ids_than_its_vocabulary_is_refused(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    SHAPES["mpnet, vocab.txt"].write(tmp_path / "w")
    quick(tmp_path, backbone={"name": "hf", "weights": "./w", "max_length": 16}, data_root=".")
    library = importlib.import_module("transformers")
    original = library.AutoTokenizer.from_pretrained

    def other(folder: Path, **options: Any) -> Any:
        lines = (folder / "vocab.txt").read_text().splitlines()
        (folder / "vocab.txt").write_text("\n".join([*lines[:7], lines[8], lines[7], *lines[9:]]))
        try:
            return original(folder, **options)
        finally:
            (folder / "vocab.txt").write_text("\n".join(lines) + "\n")

    monkeypatch.setattr(library.AutoTokenizer, "from_pretrained", other)
    refused = call("run", "quick.yaml", "--out", "out", cwd=tmp_path, capsys=capsys)
    assert_refused(
        refused, 4, "w/vocab.txt: and tokenizer_class 'MPNetTokenizer' disagree (", "save its tokenizer.json"
    )


# --------------------------------------------------------------------------------------------------------------- drafts


@pytest.mark.parametrize("shape", ["modernbert", "mpnet, other special tokens", CASED])
def test_a_recipe_is_drafted_for_another_backbone(shape: str, tmp_path: Path, capsys: Capture) -> None:
    SHAPES[shape].write(tmp_path / "w")
    rows = "".join(f"word {i} {'good' * (i % 2)},{('no', 'yes')[i % 2]}\n" for i in range(40))
    (tmp_path / "a.csv").write_text("text,label\n" + rows)
    _, err = done("new", "recipe", "my.yaml", "--task", "a=a.csv", "--backbone", "hf:w", cwd=tmp_path, capsys=capsys)
    assert "backbone: {name: hf, weights: w, max_length: " in (tmp_path / "my.yaml").read_text()
    assert ("holds, though" in err) == bool(SHAPES[shape].note)
    done("validate", "my.yaml", "--weights", "--data", cwd=tmp_path, capsys=capsys)


def test_the_backbone_of_a_draft_is_named_before_its_weights(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"word {i},{i % 2}\n" for i in range(40)))

    def drafted(backbone: str) -> Any:
        arguments = ("new", "recipe", "my.yaml", "--task", "a=a.csv", "--force", "--backbone", backbone)
        return call(*arguments, cwd=tmp_path, capsys=capsys)

    assert drafted("bert:tiny").code == 0
    assert "backbone: {name: bert, weights: tiny, " in (tmp_path / "my.yaml").read_text()
    assert_refused(drafted("hff:w"), 2, "--backbone: ", "'hff'", "did you mean 'hf'?")
    assert_refused(drafted("hf:./no"), 4, "./no: no such folder")
    assert_refused(drafted("hf:tiny"), 2, "--backbone: has no tokenizer that can be loaded alone")
    SHAPES[CASED].write(tmp_path / "bert:x")  # a folder of that name comes first
    assert drafted("bert:x").code == 0
    assert 'backbone: {name: bert, weights: "bert:x", ' in (tmp_path / "my.yaml").read_text()
    SHAPES["modernbert"].write(tmp_path / "m")
    assert_refused(drafted("m"), 4, "model_type 'modernbert' is not supported (", "for others use backbone hf")
