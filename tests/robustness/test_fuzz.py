"""Whatever bytes stand in a recipe, a data file, weights or a run directory: a code we know, never a traceback.

`pytest -m slow tests/robustness/test_fuzz.py` tries 20,000 of each kind, which takes an hour or two on
one core; without it a few of each. The cases of one version of this file are the same everywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import mtmeta.core.run.evaluate
import mtmeta.core.run.run
import mtmeta.core.studies.compare
import mtmeta.core.training.evaluation
from mtmeta.core.errors import CheckpointError, MtmetaError
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.resolved import digest
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.tables.data_file import Dialect
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.backbones.checkpoint.config import BertConfig
from mtmeta.plugins.backbones.checkpoint.names import hugging_face_names
from mtmeta.plugins.backbones.tokenizers.wordpiece import WordPiece
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import HEADER, LABELS, RECIPE, ROWS, SMALL, data_folder
from tests.support.fuzzing import WORDS, call, desk, grafted, json_bytes, mutated, survives, trees
from tests.support.spoilt_runs import pieces, run_directory, spoilt
from tests.support.tables import check_dialects, check_json, delimited_files, json_files

FEW, MANY = 15, 20_000
VALIDATE = ("validate", "--data", "small.yaml")
WEIGHTS = (*VALIDATE, "--weights", "--set", "backbone.weights=./w", "--set", "backbone.max_length=8")
RESUME = ("run", "small.yaml", "--out", "out", "--set", "reporters=[jsonl]", "--set", "checkpoint.every=1")


@dataclass(frozen=True)
class Fuzzer:
    """What is tried: `strategy` draws it, `attempt` puts it where it belongs and asserts what must hold."""

    strategy: st.SearchStrategy[Any]
    attempt: Callable[[Any], None]


# ---------------------------------------------------------------------------------------------------------- recipes


def as_yaml(tree: Any) -> bytes:
    """In YAML's own words, with block style and the anchors PyYAML gives what stands there twice."""
    return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")


def recipe_bytes(good: str) -> st.SearchStrategy[bytes]:
    tree = yaml.safe_load(good)
    return st.one_of(mutated(good.encode()), json_bytes(tree), grafted(tree).map(as_yaml), st.binary(max_size=200))


def recipe(raw: bytes) -> None:
    Path("r.yaml").write_bytes(raw)
    assert survives("validate", "r.yaml").code in (0, 2)


KEYS = [
    "name", "seed", "data_root", "backbone", "backbone.weights", "tasks", "tasks.sst", "tasks.sst.dialect", "data",
    "data.encoding", "sampler", "algorithm", "algorithm.inner_optimizer", "algorithm.inner_optimizer.betas",
    "algorithm.inner_schedule", "optimizer", "optimizer.lr", "schedule", "training", "training.steps", "evaluation",
    "evaluation.every", "evaluation.gradients", "checkpoint", "reporters", "format", "budget", "budget.examples",
    "optimizer.head_lr", "optimizer.head_lr.sst", "optimizer.layer_decay", "algorithm.weighting",
]  # fmt: skip
values = trees.map(lambda tree: json.dumps(tree).replace("NaN", ".nan").replace("Infinity", ".inf"))
assignments = st.tuples(st.sampled_from(KEYS), values).map("=".join)


def override(text: str) -> None:
    Path("r.yaml").write_text(RECIPE)
    assert survives("validate", "r.yaml", "--set", text).code in (0, 2)


# ------------------------------------------------------------------------------------------------------------- data

TABLES = ["x.tsv", "x.csv", "x.jsonl"]
DIALECTS = [
    "{}",
    "{on_bad_rows: skip}",
    "{quoting: none}",
    "{multiline: true}",
    "{max_field: 3}",
    "{encoding: latin-1}",
]
DIALECTS += ["{encoding: cp932, on_bad_rows: skip}", "{multiline: true, on_bad_rows: skip}", "{encoding: big5}"]
FIELDS = [*WORDS, *LABELS, "1", '"', '""', '"a', 'a"b', "a\nb", "a\r", "\t", ",", "NaN", "x" * 300, "Entailment", " "]
columns = st.permutations(["idx", "sentence1", "sentence2", "label"])


@st.composite
def table(draw: st.DrawFn) -> bytes:
    """A table in no dialect in particular."""
    mark, end = draw(st.sampled_from("\t,;")), draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n"]))
    names = draw(columns)
    rows = [names]
    for _ in range(draw(st.integers(0, 8))):
        row = [draw(st.sampled_from(LABELS)) if n == "label" else draw(st.sampled_from(FIELDS)) for n in names]
        rows.append(row[: draw(st.integers(0, 4))] if draw(st.integers(0, 5)) == 0 else row)
    quoted = draw(st.booleans())
    lines = [mark.join('"' + f.replace('"', '""') + '"' if quoted else f for f in row) for row in rows]
    return (end.join(lines) + draw(st.sampled_from(["", end]))).encode("utf-8", "surrogatepass")


row = {"idx": 1, "sentence1": "a b", "sentence2": "c", "label": "neutral"}
lines = st.lists(st.one_of(json_bytes(row), mutated(json.dumps(row).encode())), max_size=5).map(b"\n".join)
TABLE = (HEADER + ROWS).encode()
files = st.one_of(mutated(TABLE), mutated(TABLE.replace(b"\t", b",")), table(), lines, st.binary(max_size=200))


def data(drawn: tuple[bytes, str, str]) -> None:
    raw, name, dialect = drawn
    Path("data", name).write_bytes(raw)
    assert survives("validate", "--data", f"{name}.yaml", "--set", f"data={dialect}").code in (0, 3)


@contextmanager
def table_file(name: str, raw: bytes) -> Iterator[Path]:
    """A data file for a while; nothing else is written beside it or in the folder above."""
    path, before = Path("data", name), [sorted(os.listdir(folder)) for folder in ("data", ".")]
    path.write_bytes(raw)
    try:
        yield path
    finally:
        path.unlink()
    assert [sorted(os.listdir(folder)) for folder in ("data", ".")] == before


def json_form(drawn: tuple[bytes, str, str]) -> None:
    """Any form of JSON: the rows that `json.loads` of the whole gives, or a refusal, by the reader and by a command."""
    raw, suffix, table = drawn
    with table_file(f"j{suffix}", raw) as path:
        check_json(path, table)
        assert survives("validate", "--data", "j.yaml", "--set", f"tasks.pairs.train='{path.name}{table}'").code in (
            0,
            3,
        )


def quoting_dialect(drawn: tuple[bytes, str, Dialect]) -> None:
    """Any dialect: the rows that a plain split, or `csv`, gives, and every other reading as it is promised."""
    raw, suffix, dialect = drawn
    options = f"{{quoting: {dialect.quoting}, multiline: {str(dialect.multiline).lower()}, on_bad_rows: skip}}"
    command = ("validate", "--data", "j.yaml", "--set", f"tasks.pairs.train=d{suffix}", "--set", f"data={options}")
    with table_file(f"d{suffix}", raw) as path:
        check_dialects(path, dialect)
        assert survives(*command).code in (0, 3)


# ---------------------------------------------------------------------------------------------------------- weights


def write_bert(folder: Path) -> None:
    """A good folder of tiny weights, small enough that mutations hit what matters."""
    folder.mkdir()
    vocabulary = ["[UNK]", "[CLS]", "[SEP]", "word"]
    config = BertConfig(
        vocab_size=4,
        hidden_size=2,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=2,
        max_position_embeddings=8,
    )
    matrices = {"word": (4, 2), "position": (8, 2), "token_type": (2, 2)}
    tensors = {}
    for names in hugging_face_names(config).values():
        for name in names:
            kind = next((shape for key, shape in matrices.items() if f"{key}_embeddings" in name), (2, 2))
            matrix = name.endswith("weight") and "LayerNorm" not in name
            tensors[name] = torch.ones(kind if matrix else (2,))
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **asdict(config)}))
    (folder / "tokenizer.json").write_text(WordPiece.from_vocabulary(vocabulary).json())
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "strip_accents": None}))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")


def weights_file(name: str) -> Callable[[bytes], None]:
    def attempt(raw: bytes) -> None:
        path = Path("w", name)
        before = path.read_bytes()
        path.write_bytes(raw)
        try:
            # 2: max_length may exceed the positions that config.json gives
            assert survives(*WEIGHTS).code in (0, 2, 4)
        finally:
            path.write_bytes(before)

    return attempt


def vocabulary_file(name: str) -> Callable[[bytes], None]:
    """Of a folder without tokenizer.json, where these are read in its place."""

    def attempt(raw: bytes) -> None:
        Path("w", "tokenizer.json").rename("w/away")
        try:
            weights_file(name)(raw)
        finally:
            Path("w", "away").rename("w/tokenizer.json")

    return attempt


@st.composite
def tensors(draw: st.DrawFn, good: bytes) -> bytes:
    """A safetensors file whose header is another, or whose header, length and data do not belong together."""
    size = int.from_bytes(good[:8], "little")
    header = draw(st.one_of(json_bytes(json.loads(good[8 : 8 + size])), mutated(good[8 : 8 + size])))
    header += b" " * draw(st.integers(0, 9))
    content = draw(st.one_of(st.just(good[8 + size :]), mutated(good[8 + size :])))
    stated = draw(st.one_of(st.just(len(header)), st.integers(0, 2 * len(header)), st.integers(0, 2**64 - 1)))
    return stated.to_bytes(8, "little") + header + content


# ---------------------------------------------------------------------------------------------------- run directory


def run_file(pattern: str, *commands: tuple[str, ...], vouched: bool = False) -> Callable[[bytes], None]:
    """A file of a run, spoilt; if `vouched`, by someone who put its new size and hash into the manifest as well."""

    def attempt(raw: bytes) -> None:
        for command in commands:
            shutil.rmtree("out")
            shutil.copytree("good", "out", symlinks=True)
            if command[0] == "run":
                Path("out/summary.json").unlink(missing_ok=True)
            for path in Path("out").glob(pattern):
                before = path.read_bytes()
                path.write_bytes(raw)
                if vouched:
                    manifest = path.parent / "MANIFEST.json"
                    text = manifest.read_text().replace(sha256(before), sha256(raw))
                    manifest.write_text(text.replace(f'"size": {len(before)}', f'"size": {len(raw)}'))
            assert survives(*command).code in (0, 2, 3, 4)  # 3: data that is not what the lock says

    return attempt


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def either(good: bytes) -> st.SearchStrategy[bytes]:
    """Near the good bytes, near the tree they stand for, or anything at all."""
    return st.one_of(mutated(good), json_bytes(json.loads(good)), st.binary(max_size=200))


RECIPES: dict[Any, Any] = {}
EVAL = ("eval", "out", "--data-root", "data")
# what reads a run directory; drawing a page takes longest
ON_RUNS = [
    *[("runs", "."), ("runs", "out", "--json"), EVAL, RESUME, EVAL, RESUME] * 12,
    ("predict", "out", "--input", "texts.txt", "--output", "answers.csv"),
    ("report", "out", "--out", "page.html"),
    ("report", "out", "good", "--out", "page.html"),
    ("compare", "small.yaml", "--seeds", "1", "--out", "compared", *RESUME[4:]),
]


def no_processes(jobs: Sequence[Any], *, failed: Callable[[Any, MtmetaError], None], **options: Any) -> None:
    """In place of training the runs of a comparison that are not finished."""
    for job in jobs:
        failed(job, CheckpointError(str(job.folder), "is not finished"))


@pytest.fixture(scope="module")
def fuzzers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Fuzzer]]:
    """Every fuzzer, in a folder with data, weights and a finished run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTMETA_CACHE", "off")
        # what takes time and is not the matter here
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr(mtmeta.core.training.evaluation, "BOOTSTRAP_DRAWS", 2)
        # the built-in encoder is the same in every case
        kept: dict[tuple[Bert, int], Any] = {}
        load = Bert.load

        def load_once(self: Bert, seed: int) -> Any:
            if self.weights != "tiny":
                return load(self, seed)
            if (self, seed) not in kept:
                kept[self, seed] = load(self, seed)
            return kept[self, seed]

        with desk(data_folder(tmp_path_factory.mktemp("fuzz"))) as folder:
            write_bert(folder / "w")
            (folder / "small.yaml").write_text(SMALL)
            (folder / "j.yaml").write_text(SMALL)
            for name in TABLES:
                (folder / f"{name}.yaml").write_text(SMALL.replace("train.tsv", name))
            assert call(*WEIGHTS).code == 0
            assert call(*RESUME).code == 0
            os.rename("out", "good")
            patch.setattr("mtmeta.core.studies.launching.placement.run_all", no_processes)
            patch.setattr("mtmeta.core.reports.terminal.study_progress.StudyView.say", lambda view, text: None)
            recipe = load_recipe("small.yaml", build_registry(), overrides=["reporters=[jsonl]", "checkpoint.every=1"])
            Path("compared").mkdir()
            Path("compared", f"{recipe.name}-{recipe.seed}-{digest(recipe)[:8]}").symlink_to("../out")
            Path("texts.txt").write_text("one\tother\n")
            Path("decoy", "folder").mkdir(parents=True)
            Path("decoy", "file").write_text("precious")
            Path("decoy", "folder", "model.safetensors").write_text("precious too")
            shutil.copytree("good", "out", symlinks=True)
            patch.setattr(Bert, "load", load_once)
            for name in ("recipe.reader", "run.session", "run.evaluate"):
                patch.setattr(f"mtmeta.core.{name}.load_recipe", load_recipe_once)
            yield make_fuzzers(folder)


def load_recipe_once(path: Path, registry: Any, *, overrides: Sequence[str] = (), **options: Any) -> Any:
    """The recipes that no fuzzer touches, read once each."""
    if path.name == "r.yaml":
        return load_recipe(path, registry, overrides=overrides, **options)
    key = (path, tuple(overrides), repr(options))
    if key not in RECIPES:
        RECIPES[key] = load_recipe(path, registry, overrides=overrides, **options)
    return RECIPES[key]


def make_fuzzers(folder: Path) -> dict[str, Fuzzer]:
    def first(pattern: str) -> bytes:
        return sorted((folder / "good").glob(pattern))[0].read_bytes()

    config, tokenizer, tokenizer_config, vocabulary, model = (
        (folder / "w" / name).read_bytes()
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "model.safetensors")
    )
    manifest, state, summary, lock = (
        "checkpoints/step-*/MANIFEST.json",
        "checkpoints/step-*/state.json",
        "summary.json",
        "recipe.lock.yaml",
    )
    best = "checkpoints/best*/MANIFEST.json"
    good, decoy = folder / "good", folder / "decoy"
    return {
        "recipe": Fuzzer(st.one_of(recipe_bytes(RECIPE), recipe_bytes(SMALL)), recipe),
        "override": Fuzzer(st.one_of(st.text(max_size=30), assignments), override),
        "data": Fuzzer(st.tuples(files, st.sampled_from(TABLES), st.sampled_from(DIALECTS)), data),
        "json": Fuzzer(json_files(), json_form),
        "dialects": Fuzzer(delimited_files(), quoting_dialect),
        "safetensors": Fuzzer(
            st.one_of(mutated(model), tensors(model), st.binary(max_size=200)), weights_file("model.safetensors")
        ),
        "config.json": Fuzzer(either(config), weights_file("config.json")),
        "tokenizer.json": Fuzzer(either(tokenizer), weights_file("tokenizer.json")),
        "tokenizer_config.json": Fuzzer(either(tokenizer_config), vocabulary_file("tokenizer_config.json")),
        "vocab.txt": Fuzzer(st.one_of(mutated(vocabulary), st.binary(max_size=200)), vocabulary_file("vocab.txt")),
        "manifest": Fuzzer(either(first(manifest)), run_file(manifest, RESUME)),
        "best manifest": Fuzzer(either(first(best)), run_file(best, EVAL)),
        "state.json": Fuzzer(either(first(state)), run_file(state, RESUME, vouched=True)),
        "summary.json": Fuzzer(either(first(summary)), run_file(summary, RESUME)),
        "lock": Fuzzer(recipe_bytes(first(lock).decode()), run_file(lock, EVAL)),
        "rundir": Fuzzer(
            st.tuples(spoilt(good, decoy, pieces(good)), st.integers(0, len(ON_RUNS) - 1)),
            run_directory(good, decoy, ON_RUNS),
        ),
    }


NAMES = [
    "recipe", "override", "data", "json", "dialects", "safetensors", "config.json", "tokenizer.json",
    "tokenizer_config.json", "vocab.txt", "manifest", "best manifest", "state.json", "summary.json", "lock",
    "rundir",
]  # fmt: skip


@pytest.mark.parametrize("cases", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_fuzz(name: str, cases: int, fuzzers: Mapping[str, Fuzzer]) -> None:
    fuzzer, tried = fuzzers[name], 0

    @settings(
        max_examples=cases,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn=fuzzer.strategy)
    def attempt(drawn: Any) -> None:
        nonlocal tried
        tried += 1
        fuzzer.attempt(drawn)

    attempt()
    assert tried >= cases


def test_every_fuzzer_is_run(fuzzers: Mapping[str, Fuzzer]) -> None:
    assert list(fuzzers) == NAMES


def test_the_good_files_pass(fuzzers: Mapping[str, Fuzzer]) -> None:
    """Else every case would be refused for a reason that has nothing to do with what was changed."""
    shutil.rmtree("out")
    shutil.copytree("good", "out", symlinks=True)
    for arguments in (VALIDATE, WEIGHTS, EVAL, RESUME):
        assert survives(*arguments).code == 0
