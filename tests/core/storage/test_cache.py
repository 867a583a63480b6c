"""The cache of tokenized files: the same arrays from it as without it, and nothing stale, damaged or half written."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mtmeta
from mtmeta.core.data.cache_key import cache_key
from mtmeta.core.data.dataset import Dataset, select
from mtmeta.core.data.loading import load_split
from mtmeta.core.data.subsets import overlap, shared
from mtmeta.core.environment import cache_folder
from mtmeta.core.recipe.sections import DataOptions
from mtmeta.core.storage import cache as cache_module
from mtmeta.core.storage.cache import Cache, Writer, in_memory
from mtmeta.core.tables.data_file import DataFile, Dialect
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.backbones.tokenizers.wordpiece import WordPiece
from mtmeta.plugins.tasks.generic import ClassificationTask
from mtmeta.plugins.tasks.para import Para
from mtmeta.plugins.tasks.sst import Sst
from mtmeta.plugins.tasks.sts import Sts
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import call
from tests.support.groups import set_group

READS: list[str] = []
SKIP = DataOptions(on_bad_rows="skip")
ROWS = 20_000  # more than two blocks
TASKS: dict[str, mtmeta.Task] = {
    "single": Sst(train="d.tsv"),
    "separate": Sts(train="d.tsv"),
    "cross": Para(train="d.tsv", pair_mode="cross"),
    "both": Para(train="d.tsv", pair_mode="cross", orders="both"),
}
WORDS = ("the", "film", "was", "good", "bad", "not", "very", "unbelievable", "caf\u00e9", "!", "\u4e2d\u6587")


@dataclass(frozen=True, kw_only=True)
class Counted(Sst):
    """Notes every reading."""

    name = "counted"
    column: str = "sentence"

    def read(self, file: DataFile) -> Iterable[mtmeta.Example]:
        READS.append(str(file.path))
        for row in file.rows(self.column, "sentiment"):
            yield mtmeta.Example(row[self.column], label=row["sentiment"], id=row.id, line=row.line)


@pytest.fixture(scope="module")
def backbone() -> mtmeta.LoadedBackbone:
    return Bert(weights="tiny", max_length=16).load(0)


@pytest.fixture(autouse=True)
def nothing_read() -> Iterator[None]:
    READS.clear()
    yield


def write(folder: Path, rows: int = 60, name: str = "d.tsv") -> Path:
    """A file that every task here can read, with a bad row at line 12."""
    draw = np.random.default_rng(3)
    made = ["id\tsentence\tsentence1\tsentence2\tsentiment\tis_duplicate\tsimilarity\n"]
    for i in range(rows):
        one, two = (" ".join(draw.choice(WORDS, draw.integers(1, 12))) for _ in range(2))
        made.append(f"n{i}\t{one}\t{one}\t{two}\t{i % 5}\t{i % 2}\t{i % 11 / 2.5}\n")
    made.insert(11, "x\ty\n")
    (folder / name).write_text("".join(made), encoding="utf-8")
    return folder / name


def get(folder: Path, task: mtmeta.Task, loaded: mtmeta.LoadedBackbone, cache: Cache, split: str = "train") -> Dataset:
    return load_split("t", task, split, SKIP, str(folder), loaded, cache=cache)


def arrays(data: Dataset) -> dict[str, Any]:
    """Everything a dataset holds, as bytes."""
    found: dict[str, Any] = {"labels": data.labels, "texts": data.texts, "cut": data.cut}
    for number, store in enumerate(data.stores):
        found |= {f"ids-{number}": store.ids, f"offsets-{number}": store.offsets}
        if store.types is not None:
            found[f"types-{number}"] = store.types
    values = {name: (value.dtype, value.shape, value.tobytes()) for name, value in found.items()}
    rest = (list(data.ids), data.skipped, data.truncated, data.bad, data.sha256, data.whole, data.tokens)
    return values | {"rest": rest}


def entries(root: Path) -> list[Path]:
    """The folders of a cache; there is never anything else."""
    found = sorted(root.iterdir()) if root.exists() else []
    assert all(path.name.startswith("tokens-") for path in found), found
    return found


# ------------------------------------------------------------------------------------------------------ same arrays


@pytest.mark.parametrize("name", TASKS)
def test_cached_and_uncached_are_equal(name: str, tmp_path: Path, backbone: mtmeta.LoadedBackbone) -> None:
    task, cache = TASKS[name], Cache(tmp_path / "cache", pytest.fail)
    write(tmp_path, ROWS)
    plain = get(tmp_path, task, backbone, Cache(None))
    built, found = (get(tmp_path, task, backbone, cache) for _ in range(2))
    assert arrays(plain) == arrays(built) == arrays(found)
    assert (len(plain), plain.skipped, plain.bad[0].line) == (ROWS, 1, 12)
    assert plain.truncated > 1000
    assert plain.stores[0].ids.dtype == np.uint16
    assert len(entries(tmp_path / "cache")) == 1


def longest_first(one: list[int], other: list[int]) -> tuple[list[int], list[int]]:
    one, other = list(one), list(other)
    while len(one) + len(other) > 13:
        (one if len(one) > len(other) else other).pop()
    return one, other


@pytest.mark.parametrize("name", TASKS)
def test_the_ids_are_those_of_one_text_at_a_time(name: str, tmp_path: Path, backbone: mtmeta.LoadedBackbone) -> None:
    task = TASKS[name]
    file = write(tmp_path, 300)
    data, tokenizer = get(tmp_path, task, backbone, Cache(None)), backbone.tokenizer
    for i, example in enumerate(task.read(DataFile(file))):
        texts = [example.text, *([example.pair] if example.pair else [])]
        parts = [tokenizer.encode([text])[0] for text in texts]
        if task.inputs == "cross":
            pairs = [parts, parts[::-1]] if task.both_orders else [parts]
            parts = [[*one, *tokenizer.middle, *other] for one, other in (longest_first(*pair) for pair in pairs)]
        for store, part in zip(data.stores, parts, strict=True):
            wanted = [*tokenizer.prefix, *part[:14], *tokenizer.suffix]
            assert store.ids[store.offsets[i] : store.offsets[i + 1]].tolist() == wanted
        assert data.ids[i] == example.id == data.ids[i - len(data)]
    assert data.ids[3:6] == ["n3", "n4", "n5"]
    with pytest.raises(IndexError):
        data.ids[len(data)]


def test_nothing_can_be_written_to_the_arrays(tmp_path: Path, backbone: mtmeta.LoadedBackbone) -> None:
    write(tmp_path, 300)
    cache = Cache(tmp_path / "cache")
    for _ in range(2):
        data = get(tmp_path, TASKS["cross"], backbone, cache)
        for array in (data.stores[0].ids, data.stores[0].types, data.stores[0].offsets, data.labels, data.texts):
            assert array is not None
            assert not array.flags.writeable


ODD = st.text(" \t\n\r\x00\x1c\x85\xa0\u2028\u200baAb\u00e9\u0301\u00df\u03a3\u4e2d.,'-[]#\U0001f600", max_size=20)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(ODD, st.text(max_size=12), st.sampled_from(["[MASK]", "a[SEP] b", "b" * 150])), max_size=9))
def test_word_by_word_is_the_same_as_text_by_text(texts: list[str]) -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer._words is not None
    ids, lengths = tokenizer.encode_flat(texts)
    wanted = tokenizer.encode(texts)
    assert ids.tolist() == list(chain.from_iterable(wanted))
    assert lengths.tolist() == [len(part) for part in wanted]


def tiny_tokenizer(made: list[WordPiece] = []) -> WordPiece:  # noqa: B006
    if not made:
        loaded = Bert(weights="tiny", max_length=16).load(0).tokenizer
        assert isinstance(loaded, WordPiece)
        made.append(loaded)
    return made[0]


def test_words_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtmeta.plugins.backbones.tokenizers.words.MAX_WORDS", 3)
    tokenizer = WordPiece.from_json(tiny_tokenizer().json(), "here")
    assert tokenizer._words is not None
    for texts in (["the film was good"], ["not very good", "the end"], ["the film"]):
        assert tokenizer.encode_flat(texts)[0].tolist() == list(chain.from_iterable(tokenizer.encode(texts)))
        assert len(tokenizer._words._numbers) <= 6


def test_a_tokenizer_that_looks_across_spaces_is_asked_for_whole_texts() -> None:
    from tokenizers import Tokenizer

    other = Tokenizer.from_str(tiny_tokenizer().json())
    other.add_special_tokens(["the film"])
    tokenizer = WordPiece(other, "here")
    assert tokenizer._words is None
    assert len(tokenizer.encode_flat(["see the film now"])[0]) == len(tokenizer.encode(["see the film now"])[0])
    assert tokenizer.encode_flat(["the film"])[0].tolist() == [tokenizer.size - 1]


# ------------------------------------------------------------------------------------------------------- hits and keys


def test_a_hit_does_not_read(tmp_path: Path, backbone: mtmeta.LoadedBackbone) -> None:
    write(tmp_path)
    cache = Cache(tmp_path / "cache", pytest.fail)
    for _ in range(3):
        get(tmp_path, Counted(train="d.tsv"), backbone, cache)
    get(tmp_path, Counted(train="x", dev="d.tsv", batch_size=7), backbone, cache, "dev")
    (tmp_path / "moved").mkdir()
    (tmp_path / "d.tsv").rename(tmp_path / "moved" / "d.tsv")
    get(tmp_path / "moved", Counted(train="d.tsv"), backbone, cache)
    assert READS == [str(tmp_path / "d.tsv")]


def test_what_decides_the_arrays_decides_the_key(tmp_path: Path, backbone: mtmeta.LoadedBackbone) -> None:
    file = DataFile(write(tmp_path))
    task, sha256 = Counted(train="d.tsv"), file.sha256()
    json = tiny_tokenizer().json().encode()
    base = cache_key(task, file, sha256, backbone)
    assert base is not None
    assert base == cache_key(replace(task, train="e", batch_size=1, inner_steps=2), file, sha256, backbone)
    classes = ClassificationTask(train="d.tsv", labels=("a", "b"), text="sentence")
    others = [
        cache_key(task, file, "0" * 64, backbone),
        cache_key(replace(task, column="sentence1"), file, sha256, backbone),
        cache_key(Sst(train="d.tsv"), file, sha256, backbone),
        cache_key(task, DataFile(file.path, Dialect(quoting="none")), sha256, backbone),
        cache_key(task, DataFile(file.path.with_suffix(".csv")), sha256, backbone),
        cache_key(task, file, sha256, replace(backbone, max_length=17)),
        cache_key(task, file, sha256, replace(backbone, files={**backbone.files, "tokenizer.json": json + b" "})),
        cache_key(classes, file, sha256, backbone),
        cache_key(replace(classes, labels=("b", "a")), file, sha256, backbone),
        cache_key(replace(classes, text="sentence1"), file, sha256, backbone),
        cache_key(Para(train="d.tsv"), file, sha256, backbone),
        cache_key(Para(train="d.tsv", pair_mode="cross"), file, sha256, backbone),
        cache_key(Para(train="d.tsv", pair_mode="cross", orders="both"), file, sha256, backbone),
    ]
    assert None not in others
    assert len({base, *others}) == 1 + len(others)
    config = replace(backbone, files={**backbone.files, "config.json": b"{}"})  # it has no part in the ids
    assert cache_key(task, file, sha256, config) == base


def test_what_cannot_be_named_is_not_kept(tmp_path: Path, backbone: mtmeta.LoadedBackbone) -> None:
    write(tmp_path)

    class Local(Counted):
        name = "local"

    cache = Cache(tmp_path / "cache", pytest.fail)
    tasks = (Local(train="d.tsv"), Counted(train="d.tsv"))
    assert len(get(tmp_path, tasks[0], backbone, cache)) == 60
    assert len(get(tmp_path, tasks[1], replace(backbone, files={}), cache)) == 60
    assert entries(tmp_path / "cache") == []


def test_an_edited_file_or_plugin_is_read_again(
    tmp_path: Path, backbone: mtmeta.LoadedBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    plugin, helper = tmp_path / "upper_plugin" / "__init__.py", tmp_path / "upper_plugin" / "helper.py"
    plugin.parent.mkdir()
    plugin.write_text(
        dedent("""
        from mtmeta.plugins.tasks.sst import Sst
        from upper_plugin.helper import change

        class Upper(Sst):
            name = "upper"
            def read(self, file):
                return map(change, super().read(file))
        """)
    )
    helper.write_text("def change(example):\n    return example\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import upper_plugin  # type: ignore[import-not-found]

    cache = Cache(tmp_path / "cache", pytest.fail)
    task = upper_plugin.Upper(train="d.tsv")
    first = get(tmp_path, task, backbone, cache)
    for edited in (plugin, helper, tmp_path / "d.tsv"):
        stat = edited.stat()
        edited.write_text(edited.read_text() + ("\n" if edited.suffix == ".py" else "a\tthe film\tb\tc\t1\t1\t1\n"))
        os.utime(edited, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the time of change is not what counts
        before = len(entries(tmp_path / "cache"))
        data = get(tmp_path, task, backbone, cache)
        assert len(entries(tmp_path / "cache")) == before + 1
    assert len(data) == len(first) + 1
    del sys.modules["upper_plugin"], sys.modules["upper_plugin.helper"]


def test_bad_rows_stay_an_error_on_a_hit(tmp_path: Path, backbone: mtmeta.LoadedBackbone) -> None:
    write(tmp_path)
    cache, task = Cache(tmp_path / "cache", pytest.fail), Counted(train="d.tsv")

    def refusal() -> str:
        with pytest.raises(mtmeta.DataError) as caught:
            load_split("t", task, "train", DataOptions(), str(tmp_path), backbone, cache=cache)
        return str(caught.value)

    text = refusal()
    assert text == f"{tmp_path / 'd.tsv'}:12: 2 fields, expected 7; mend it or set data.on_bad_rows: skip"
    assert entries(tmp_path / "cache") == []
    get(tmp_path, task, backbone, cache)
    assert (refusal(), len(READS)) == (text, 2)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, backbone: mtmeta.LoadedBackbone) -> None:
    file = write(tmp_path)
    cache, task = Cache(tmp_path / "cache"), Growing(train="d.tsv")
    with pytest.raises(mtmeta.DataError, match="changed while it was read; run the same command again"):
        get(tmp_path, task, backbone, cache)
    assert entries(tmp_path / "cache") == []
    assert file.exists()


class Growing(Sst):
    name = "growing"

    def read(self, file: DataFile) -> Iterable[mtmeta.Example]:
        yield from super().read(file)
        with open(file, "a") as end:
            end.write("\n")


# -------------------------------------------------------------------------------------------------- damage and no room


def test_every_flipped_byte_is_noticed_and_made_again(tmp_path: Path, backbone: mtmeta.LoadedBackbone) -> None:
    write(tmp_path)
    warned: list[str] = []
    cache, task = Cache(tmp_path / "cache", warned.append), TASKS["cross"]
    wanted = arrays(get(tmp_path, task, backbone, cache))
    (folder,) = entries(tmp_path / "cache")
    files = sorted(path.name for path in folder.iterdir())
    expected = [
        "MANIFEST.json",
        "cut",
        "full-0",
        "ids-0",
        "labels",
        "name-offsets",
        "names",
        "offsets-0",
        "texts",
        "types-0",
    ]
    assert files == expected
    for name in files:
        for damage in ("flip", "cut", "gone", "directory"):
            path = folder / name
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.unlink()
            if damage == "directory":
                path.mkdir()
            elif damage != "gone":
                path.write_bytes(data if damage == "flip" else data[:-1])
            warned.clear()
            assert arrays(get(tmp_path, task, backbone, cache)) == wanted
            assert len(warned) == 1, (name, damage, warned)
            assert warned[0].startswith(f"{folder}: damaged (") and warned[0].endswith("); it is made again")
            assert entries(tmp_path / "cache") == [folder]
            warned.clear()
            assert arrays(get(tmp_path, task, backbone, cache)) == wanted
            assert warned == []


def test_a_large_array_is_mapped_and_checked(tmp_path: Path) -> None:
    values = np.arange(300_000, dtype=np.int64)

    def fill(writer: Writer) -> dict[str, Any]:
        writer.append("a", values[:1000])
        writer.append("a", values[1000:])
        return {"n": 1}

    warned: list[str] = []
    cache = Cache(tmp_path, warned.append)
    assert cache.get("k") is None
    for entry in (cache.put("k", fill), cache.get("k"), Cache(None).put("k", fill), Cache(tmp_path).put(None, fill)):
        assert entry is not None
        assert isinstance(entry.arrays["a"].base, np.memmap)
        assert (entry.arrays["a"].tolist(), entry.meta) == (values.tolist(), {"n": 1})
    with open(tmp_path / "tokens-k" / "a", "r+b") as file:
        file.seek(2_000_000)
        file.write(b"\xff")
    assert cache.get("k") is None
    assert warned == [f"{tmp_path / 'tokens-k'}: damaged (sha256 mismatch in a); it is made again"]


@pytest.mark.parametrize("where", ["file", "below a file", "full", "no scratch"])
def test_a_cache_that_cannot_be_written_is_one_warning(
    where: str, tmp_path: Path, backbone: mtmeta.LoadedBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, ROWS)
    wanted = arrays(get(tmp_path, TASKS["separate"], backbone, Cache(None)))
    root = tmp_path / "cache"
    if "file" in where:
        root.write_text("")
        root = root / "x" if "below" in where else root
    real = cache_module._Column.append

    def full(column: Any, values: Any) -> None:
        if str(getattr(column.file, "name", "")).startswith(str(root)) and column.rows > 8000:
            raise OSError(28, "No space left on device")
        real(column, values)

    def no_room(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    if where in ("full", "no scratch"):
        monkeypatch.setattr(cache_module._Column, "append", full)
    if where == "no scratch":  # nor anywhere else: what is left is memory
        monkeypatch.setattr("tempfile.TemporaryFile", no_room)
    warned: list[str] = []
    cache = Cache(root, warned.append)
    for _ in range(2):
        assert arrays(get(tmp_path, TASKS["separate"], backbone, cache)) == wanted
    assert len(warned) == 1
    assert warned[0].startswith(f"{root}: cannot be written (")
    assert warned[0].endswith("); tokens are not kept for the next run")
    if root.is_dir():
        assert list(root.iterdir()) == []


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    def fill(writer: Writer) -> dict[str, Any]:
        writer.append("a", np.zeros(5))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Cache(tmp_path).put("k", fill)
    assert list(tmp_path.iterdir()) == []


def test_the_slower_of_two_builders_leaves_the_entry_of_the_faster(tmp_path: Path) -> None:
    def fill(writer: Writer) -> dict[str, Any]:
        writer.append("a", np.arange(5))
        return {"by": "the slower"}

    def slower(writer: Writer) -> dict[str, Any]:
        Cache(tmp_path).put("k", lambda other: fill(other) | {"by": "the faster"})
        return fill(writer)

    cache = Cache(tmp_path, pytest.fail)
    assert cache.put("k", slower).arrays["a"].tolist() == [0, 1, 2, 3, 4]
    found = cache.get("k")
    assert found is not None
    assert found.meta == {"by": "the faster"}
    assert len(entries(tmp_path)) == 1


def test_two_processes_build_the_same_entry(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    code = """
        import hashlib, sys, time
        from pathlib import Path
        from mtmeta.core.storage.cache import Cache
        from mtmeta.core.data.loading import load_split
        from mtmeta.core.recipe.sections import DataOptions
        from mtmeta.plugins.backbones.bert import Bert
        from mtmeta.plugins.tasks.sst import Sst

        folder, me, other = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
        backbone = Bert(weights="tiny", max_length=16).load(0)
        (folder / me).touch()
        while not (folder / other).exists():
            time.sleep(0.001)
        warned = []
        for _ in range(2):
            data = load_split("t", Sst(train="d.tsv"), "train", DataOptions(on_bad_rows="skip"), str(folder), backbone,
                              cache=Cache(folder / "cache", warned.append))
            print(hashlib.sha256(data.stores[0].ids.tobytes()).hexdigest(), len(data), warned)
    """
    started = [
        subprocess.Popen(
            [sys.executable, "-c", dedent(code), str(tmp_path), *names],
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
        )
        for names in (("one", "two"), ("two", "one"))
    ]
    printed = [process.communicate(timeout=120)[0] for process in started]
    lines = [line for text in printed for line in text.splitlines()]
    assert len(lines) == 4
    assert len(set(lines)) == 1
    assert lines[0].endswith(f" {ROWS} []")
    assert len(entries(tmp_path / "cache")) == 1


def test_what_was_not_used_for_long_goes(tmp_path: Path) -> None:
    def fill(writer: Writer) -> dict[str, Any]:
        writer.append("a", np.arange(5))
        return {}

    cache = Cache(tmp_path)
    for key in ("old", "used", "recent"):
        cache.put(key, fill)
    for name in (".mtmeta-killed.tmp", ".mtmeta-running.tmp", "notes", ".other.tmp"):
        (tmp_path / name).mkdir()
    past = time.time() - 40 * 86400
    for path in ("tokens-old/MANIFEST.json", "tokens-used/MANIFEST.json", ".mtmeta-killed.tmp", "notes", ".other.tmp"):
        os.utime(tmp_path / path, (past, past))
    assert cache.get("used") is not None
    cache.put("new", fill)
    kept = {".mtmeta-running.tmp", ".other.tmp", "notes", "tokens-new", "tokens-recent", "tokens-used"}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_where_the_cache_is(tmp_path: Path) -> None:
    def root(**environ: str) -> Path | None:
        return cache_folder(environ)

    assert root(MTMETA_CACHE="off") is None
    assert root(MTMETA_CACHE="/a/b", XDG_CACHE_HOME="/c") == Path("/a/b")
    assert root(XDG_CACHE_HOME="/c") == root(MTMETA_CACHE="", XDG_CACHE_HOME="/c") == Path("/c/mtmeta")
    assert root() == root(XDG_CACHE_HOME="relative") == Path.home() / ".cache" / "mtmeta"


# ------------------------------------------------------------------------------------------------- runs, memory, counts


def test_a_run_has_the_same_weights_with_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path)
    write(tmp_path, 40, "dev.tsv")
    (tmp_path / "r.yaml").write_text(
        dedent("""
        name: cached
        backbone: {name: bert, weights: tiny, max_length: 16}
        tasks:
          sst: {train: d.tsv, dev: dev.tsv, batch_size: 4, inner_steps: 2}
          para: {train: d.tsv, dev: dev.tsv, batch_size: 4, inner_steps: 2, pair_mode: cross}
        data: {on_bad_rows: skip, train_fraction: 0.5}
        algorithm: {name: reptile, inner_optimizer: {name: adamw, lr: 1e-3}}
        optimizer: {name: sgd, lr: 1.0}
        training: {steps: 3}
        reporters: [jsonl]
        """)
    )
    seen = set()
    for name, where in (("off", "off"), ("miss", str(tmp_path / "c")), ("hit", str(tmp_path / "c"))):
        monkeypatch.setenv("MTMETA_CACHE", where)
        outcome = call("run", "r.yaml", "--out", name, "--data-root", ".", cwd=tmp_path, capsys=capsys)
        assert outcome.code == 0, outcome.err
        weights = (tmp_path / name / "checkpoints" / "best" / "model.safetensors").read_bytes()
        events = [line for line in (tmp_path / name / "events.jsonl").read_text().splitlines() if "data_" in line]
        seen.add((hashlib.sha256(weights).hexdigest(), *events))
        assert len(events) == 4
        if name != "off":
            assert len(entries(tmp_path / "c")) == 4
    assert len(seen) == 1


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path, backbone: mtmeta.LoadedBackbone) -> None:
    rows = 200_000
    text = "the film was not good but the play, oh, so very pretty"
    with open(tmp_path / "d.tsv", "w", encoding="utf-8") as file:
        file.write("sentence\tsentiment\n")
        file.writelines(f"{text} {i}\t{'x' if i % 2 else i % 5}\n" for i in range(rows))
    assert (tmp_path / "d.tsv").stat().st_size > 11_000_000
    peaks = []
    for _ in range(2):
        tracemalloc.start()
        data = get(tmp_path, Sst(train="d.tsv"), backbone, Cache(tmp_path / "cache", pytest.fail))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (len(data), data.skipped) == (rows // 2, rows // 2)
        assert len(data.bad) == 100
    building, loading = peaks
    assert building < 30_000_000  # a block of rows, and the words that were met
    assert loading < 6_000_000


def test_counts_by_hash_are_those_by_text(tmp_path: Path, backbone: mtmeta.LoadedBackbone) -> None:
    draw = np.random.default_rng(0)
    names = [f"{a} {b}" for a in WORDS for b in WORDS]
    made = {}
    for split, rows in (("train", 90), ("dev", 70)):
        pairs = [tuple(draw.choice(names[:40], 2)) for _ in range(rows)]
        made[split] = pairs
        lines = "".join(f"{one}\t{two}\t{i % 2}\n" for i, (one, two) in enumerate(pairs))
        (tmp_path / f"{split}.tsv").write_text("sentence1\tsentence2\tis_duplicate\n" + lines, encoding="utf-8")
    task = Para(train="train.tsv", dev="dev.tsv")
    train, dev = (get(tmp_path, task, backbone, Cache(None), split) for split in ("train", "dev"))
    plain = {  # as words alone, and pairs in either order
        split: [tuple(sorted(" ".join(re.findall(r"\w+", text.lower())) for text in pair)) for pair in pairs]
        for split, pairs in made.items()
    }
    both, sentences = set(plain["train"]), set(chain.from_iterable(plain["train"]))
    assert overlap(train, dev) == sum(pair in both for pair in plain["dev"]) > 0
    turned = select(dev, np.arange(len(dev)))
    turned = replace(turned, texts=turned.texts[:, ::-1])
    assert overlap(train, turned) == overlap(train, dev)
    assert len(np.unique(dev.examples)) == len(set(plain["dev"]))
    touching = np.any([shared(column, train.texts.reshape(-1)) for column in dev.texts.T], axis=0)
    assert touching.tolist() == [one in sentences or two in sentences for one, two in plain["dev"]]
    empty = np.empty(0, dtype=np.uint64)
    assert shared(empty, dev.examples).tolist() == []
    assert not shared(dev.examples, empty).any()


def test_a_system_error_of_what_fills_an_entry_is_not_the_caches(tmp_path: Path) -> None:
    """It is raised as it is, once, and the cache goes on."""
    calls, warnings = [], list[str]()

    def fill(writer: Writer) -> dict[str, Any]:
        calls.append(1)
        raise FileNotFoundError(2, "tokenizer file is gone")

    cache = Cache(tmp_path, warnings.append)
    with pytest.raises(FileNotFoundError, match="tokenizer file is gone"):
        cache.put("key", fill)
    assert (len(calls), warnings, cache.root) == (1, [], tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="tokenizer file is gone"):
        in_memory(fill)


# ----------------------------------------------------------------------------------------- what others may write to


def numbers(first: int) -> Any:
    def fill(writer: Writer) -> dict[str, Any]:
        writer.append("a", np.arange(first, first + 5))
        return {}

    return fill


def test_entries_that_changed_places_are_noticed(tmp_path: Path) -> None:
    """Every byte of both is as it was written, and each under the key of the other."""
    warned: list[str] = []
    cache = Cache(tmp_path, warned.append)
    for key, first in (("one", 0), ("two", 100)):
        cache.put(key, numbers(first))
    (tmp_path / "tokens-one").rename(tmp_path / "away")
    (tmp_path / "tokens-two").rename(tmp_path / "tokens-one")
    (tmp_path / "away").rename(tmp_path / "tokens-two")
    for key, first in (("one", 0), ("two", 100)):
        assert cache.get(key) is None
        assert cache.put(key, numbers(first)).arrays["a"][0] == first
        entry = cache.get(key)
        assert entry is not None and entry.arrays["a"][0] == first
    places = [f"{tmp_path / f'tokens-{key}'}: damaged (it is the entry of another key)" for key in ("one", "two")]
    assert [line.partition(";")[0] for line in warned] == places


@pytest.mark.parametrize("lies_there", ["link to an entry", "file", "pipe", "dangling link"])
def test_what_is_no_folder_in_the_place_of_an_entry_is_replaced(lies_there: str, tmp_path: Path) -> None:
    warned: list[str] = []
    root = tmp_path / "root"
    cache = Cache(root, warned.append)
    cache.put("k", numbers(0))
    place, away = root / "tokens-k", tmp_path / "away"
    place.rename(away)
    if lies_there == "file":
        place.write_bytes(b"x")
    elif lies_there == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(away if "entry" in lies_there else tmp_path / "nowhere")
    assert cache.get("k") is None
    assert len(warned) == 1 and "is no folder of its own); it is made again" in warned[0]
    cache.put("k", numbers(0))
    assert place.is_dir() and not place.is_symlink()
    assert cache.get("k") is not None
    assert sorted(path.name for path in away.iterdir()) == ["MANIFEST.json", "a"]
    assert [path.name for path in root.iterdir()] == ["tokens-k"]


@pytest.mark.parametrize("name", ["a", "MANIFEST.json"])
@pytest.mark.parametrize("lies_there", ["link", "pipe", "zeros", "group may write", "all may write"])
def test_files_of_an_entry_are_its_own(
    lies_there: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_group(monkeypatch, "eve")
    warned: list[str] = []
    root = tmp_path / "root"
    cache = Cache(root, warned.append)
    cache.put("k", numbers(0))
    path, away = root / "tokens-k" / name, tmp_path / "away"
    if "write" in lies_there:
        path.chmod(0o620 if "group" in lies_there else 0o602)
    else:
        path.rename(away)
        if lies_there == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(away if lies_there == "link" else "/dev/zero")
    assert cache.get("k") is None
    (line,) = warned
    assert line.startswith(f"{root / 'tokens-k'}: damaged (") and name in line, line
    cache.put("k", numbers(0))
    entry = cache.get("k")
    assert entry is not None and entry.arrays["a"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_a_root_that_others_may_write_to_is_not_used(
    mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_group(monkeypatch, "ada", "eve")
    root, warned = tmp_path / "root", list[str]()
    assert Cache(root).put("k", numbers(7)).arrays["a"][0] == 7
    root.chmod(mode)
    cache = Cache(root, warned.append)
    assert cache.get("k") is None
    assert cache.put("k", numbers(0)).arrays["a"][0] == 0
    assert cache.get("k") is None
    text = "may be written to by others, so nothing is kept there; chmod go-w it, or set MTMETA_CACHE"
    assert warned == [f"{root}: {text}"]
    root.chmod(0o1777)  # as /tmp: nobody can change what belongs to others
    assert Cache(root, pytest.fail).get("k") is not None


def test_a_root_that_a_group_of_nobody_else_may_write_to_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Debian and Ubuntu every user has such a group, and folders they make are open to it."""
    root = tmp_path / "root"
    root.mkdir()
    root.chmod(0o775)
    for members in ((), ("ada",)):
        set_group(monkeypatch, *members)
        Cache(root, pytest.fail).put("k", numbers(7))
        assert Cache(root, pytest.fail).get("k") is not None
    for others in ({"name": "staff"}, {"first": os.getgid() + 1}):  # whose members are those who have it first
        set_group(monkeypatch, **others)
        warned = list[str]()
        assert Cache(root, warned.append).get("k") is None
        assert len(warned) == 1 and "may be written to by others" in warned[0]


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize("what", ["root", "entry", "array"])
def test_what_belongs_to_another_user_is_passed_over(what: str, tmp_path: Path) -> None:
    root, warned = tmp_path / "root", list[str]()
    Cache(root).put("k", numbers(7))
    os.chown({"root": root, "entry": root / "tokens-k", "array": root / "tokens-k" / "a"}[what], 12345, -1)
    cache = Cache(root, warned.append)
    assert cache.get("k") is None
    assert cache.put("k", numbers(0)).arrays["a"].tolist() == [0, 1, 2, 3, 4]
    assert len(warned) == 1 and "belongs to another user (12345)" in warned[0]
    assert np.fromfile(root / "tokens-k" / "a", dtype=np.int64)[0] == 7  # left as it was


def test_a_generous_umask_opens_nothing(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Cache(tmp_path / "root").put("k", numbers(0))
    finally:
        os.umask(before)
    paths = [tmp_path / "root", *(tmp_path / "root").rglob("*")]
    assert [oct(path.stat().st_mode & 0o777) for path in paths] == ["0o700", "0o700", "0o600", "0o600"]
    assert Cache(tmp_path / "root", pytest.fail).get("k") is not None


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "", ".", "A", "a" * 41])
def test_a_manifest_names_no_file_elsewhere(name: str, tmp_path: Path) -> None:
    import json

    warned: list[str] = []
    cache = Cache(tmp_path, warned.append)
    cache.put("k", numbers(0))
    path = tmp_path / "tokens-k" / "MANIFEST.json"
    manifest = json.loads(path.read_bytes().partition(b"\n")[2])
    manifest["arrays"] = {name: manifest["arrays"]["a"]}
    text = json.dumps(manifest)
    path.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")
    assert cache.get("k") is None
    assert warned == [f"{tmp_path / 'tokens-k'}: damaged (unknown format of MANIFEST.json); it is made again"]
