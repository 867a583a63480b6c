"""`tools.build_mini`: what is learned from, the smaller vocabulary, words matched across vocabularies, exact resume."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mtmeta import sample
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.backbones.checkpoint.config import BertConfig
from mtmeta.plugins.backbones.checkpoint.names import hugging_face_names
from mtmeta.plugins.backbones.encoder.encoder import Encoder
from mtmeta.plugins.backbones.tokenizers.wordpiece import WordPiece
from tools import build_mini
from tools.corpus import normal, read_corpus
from tools.distil import Encoded, encode, losses, make_student
from tools.vocabulary import count_pieces, prune

TEXTS = [row.text for task in ("sst", "para") for row in sample.examples(task, "train")[:150]]
TEACHER = WordPiece.from_vocabulary(sample.vocabulary())
LEAST = 5 + len([piece for piece in sample.vocabulary() if len(piece.removeprefix("##")) == 1])
CONFIG = BertConfig(TEACHER.size, 32, 4, 4, 64, max_position_embeddings=160)


def teacher() -> Encoder:
    encoder = Encoder(CONFIG)
    encoder.initialise(1)
    return encoder.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher on disk, with text to learn from and tables beside it."""
    made = tmp_path_factory.mktemp("teacher")
    config = {"model_type": "bert"} | asdict(CONFIG)
    (made / "config.json").write_text(json.dumps(config))
    (made / "tokenizer.json").write_text(TEACHER.json())
    state: dict[str, torch.Tensor] = {}
    for ours, theirs in hugging_face_names(CONFIG).items():
        parts = teacher().state_dict()[ours].chunk(len(theirs))
        state |= {name: part.contiguous() for name, part in zip(theirs, parts, strict=True)}
    save_file(state, made / "model.safetensors")
    with gzip.open(made / "plain.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(TEXTS[:200]) + "\n")
    (made / "train.csv").write_text("sentence\tlabel\n" + "".join(f"{text}\t1\n" for text in TEXTS[150:]))
    (made / "dev.csv").write_text(
        f"sentence1\tsentence2\tlabel\n{TEXTS[3].upper()}!!\t{TEXTS[160]}\t0\nUnseen.\tNever.\t1\n"
    )
    return made


def command(folder: Path, out: Path, **options: object) -> list[str]:
    given: dict[str, object] = {
        "teacher": folder,
        "text": folder / "plain.txt.gz",
        "tables": folder / "train.csv",
        "out": out,
    }
    given |= {"held-out": folder / "dev.csv", "layers": "1,3", "intermediate": 48, "vocabulary": LEAST + 60}
    given |= {"tokens": 2500, "batch": 16, "save-every": 0}
    return [part for name, value in (given | options).items() for part in (f"--{name}", str(value))]


# --------------------------------------------------------------------------------------------------------------- text


def test_held_out_sentences_are_left_out_and_counted(folder: Path) -> None:
    corpus = read_corpus([folder / "plain.txt.gz"], [folder / "train.csv"], [folder / "dev.csv"])
    found = corpus.plain + corpus.tables
    assert (corpus.held_out, corpus.dropped) == (4, 3)  # the second one stands in both files
    assert len(set(map(normal, found))) == len(found) == len(set(map(normal, TEXTS))) - 2
    assert not {normal(TEXTS[3]), normal(TEXTS[160])} & set(map(normal, found))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("A dog, barks.", "a  DOG barks", True),
        ("\ufb01ne caf\u00e9", "FINE CAFE\u0301!", True),
        ("a dog barks", "a dogbarks", False),
        ("3 dogs", "4 dogs", False),
    ],
)
def test_sentences_are_compared_by_their_words(one: str, other: str, same: bool) -> None:
    assert (normal(one) == normal(other)) is same


# --------------------------------------------------------------------------------------------------------- vocabulary


def pruned(size: int) -> tuple[WordPiece, str, np.ndarray[Any, Any]]:
    text, pieces = prune(TEACHER.json(), count_pieces(TEACHER, TEXTS), size)
    return WordPiece.from_json(text, "pruned"), text, pieces


def test_the_most_frequent_pieces_stay() -> None:
    tokenizer, text, pieces = pruned(LEAST + 40)
    old, new = (json.loads(t)["model"]["vocab"] for t in (TEACHER.json(), text))
    assert tokenizer.size == len(new) == len(pieces) == LEAST + 40
    assert [old[piece] for piece in new] == pieces.tolist()  # which embedding goes where
    counts = count_pieces(TEACHER, TEXTS)
    free = [piece for piece in old if len(piece.removeprefix("##")) > 1 and piece not in ("[PAD]", "[UNK]", "[MASK]")]
    kept = [int(counts[old[piece]]) for piece in free if piece in new and piece not in ("[CLS]", "[SEP]")]
    left = [int(counts[old[piece]]) for piece in free if piece not in new]
    assert len(kept) == 40 and min(kept) >= max(left)
    with pytest.raises(ValueError, match="too few"):
        pruned(LEAST - 1)


@given(st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyz' .,?0189\u00e9\u4e2d"), max_size=60))
@settings(max_examples=300, deadline=None)
def test_nothing_becomes_unknown_that_was_not(text: str) -> None:
    unknown = sample.vocabulary().index("[UNK]")
    tokenizer, _, pieces = pruned(LEAST)
    before, after = TEACHER.encode([text])[0], pieces[tokenizer.encode([text])[0]].tolist()
    assert after.count(unknown) == before.count(unknown)


# ------------------------------------------------------------------------------------------------------- distillation


def sides(size: int) -> tuple[Encoded, Encoded]:
    tokenizer, text, _ = pruned(size)
    return encode(TEXTS, tokenizer, build_mini.continuing(text)), encode(
        TEXTS, TEACHER, build_mini.continuing(TEACHER.json())
    )


def test_words_are_the_same_in_both_vocabularies() -> None:
    given, wanted = sides(LEAST)
    assert (given.word_counts == wanted.word_counts).all()
    assert given.tokens.offsets[-1] > 1.2 * wanted.tokens.offsets[-1]  # though their tokens are not
    for number, text in enumerate(TEXTS[:40]):
        words = TEACHER._tokenizer.pre_tokenizer.pre_tokenize_str(text.lower())
        assert given.word_counts[number] == len(words) + 2  # [CLS] and [SEP]


def test_tokens_of_a_batch_know_their_words() -> None:
    given, _ = sides(LEAST)
    indices = np.array([7, 3, 100])
    packed, words = given.chosen(indices)
    assert int(words.max()) + 1 == given.word_counts[indices].sum()
    by_sentence = [int(n) for n in np.argsort(given.tokens.lengths[indices], kind="stable")]
    firsts = np.cumsum(given.word_counts[indices]) - given.word_counts[indices]
    at = 0
    for place in by_sentence:
        length = int(given.tokens.lengths[indices[place]])
        own = words[at : at + length]
        assert int(own[0]) == firsts[place] and int(own[-1]) == firsts[place] + given.word_counts[indices[place]] - 1
        assert bool((own.diff() >= 0).all())
        at += length
    assert at == len(packed.ids)


def test_a_student_that_is_its_teacher_has_no_loss() -> None:
    _, wanted = sides(LEAST)
    batch = wanted.chosen(np.arange(12))
    student = make_student(teacher(), [0, 1, 2, 3], CONFIG.intermediate_size, np.arange(TEACHER.size)).eval()
    with torch.no_grad():
        found = losses(student, teacher(), [0, 1, 2, 3], batch, batch)
    assert {name: pytest.approx(0.0, abs=1e-6) for name in found} == {n: float(v) for n, v in found.items()}


def test_losses_are_those_of_the_definitions() -> None:
    given, wanted = sides(LEAST)
    indices = np.array([4, 9, 2])
    _, _, pieces = pruned(LEAST)
    student = make_student(teacher(), [1, 3], 48, pieces).eval()
    with torch.no_grad():
        found = losses(student, teacher(), [1, 3], given.chosen(indices), wanted.chosen(indices))

    def states(encoder: Encoder, side: Encoded, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Word states and pooled vectors, sentence by sentence."""
        words, pooled = [], []
        for index in indices:
            packed, numbers = side.chosen(np.array([index]))
            with torch.no_grad():
                x = list(encoder.hidden_states(packed))[layer]
            words += [x[numbers == word].mean(0) for word in range(int(numbers.max()) + 1)]
            pooled.append(x.mean(0) / x.mean(0).norm())
        return torch.stack(words), torch.stack(pooled)

    (s1, _), (s2, sp), (t1, _), (t2, tp) = (
        states(encoder, side, layer)
        for encoder, side, layer in (
            (student, given, 1),
            (student, given, 2),
            (teacher(), wanted, 2),
            (teacher(), wanted, 4),
        )
    )
    expected = {
        "last": (s2 - t2).square().sum() / t2.square().sum(),
        "layers": (s1 - t1).square().sum() / t1.square().sum(),
        "pooled": 1 - (sp * tp).sum(1).mean(),
        "relations": (sp @ sp.t() - tp @ tp.t()).square().mean(),
    }
    assert {n: float(v) for n, v in found.items()} == {
        n: pytest.approx(float(v), rel=1e-4) for n, v in expected.items()
    }


def test_the_strongest_neurons_are_kept() -> None:
    full = teacher()
    state = full.state_dict()
    state["layers.2.up.weight"][::2] *= 1e-3  # every second neuron hardly speaks
    own = make_student(full, [2], 32, np.arange(TEACHER.size)).state_dict()
    for part in ("up.weight", "up.bias"):
        assert torch.equal(own[f"layers.0.{part}"], state[f"layers.2.{part}"][1::2])
    assert torch.equal(own["layers.0.down.weight"], state["layers.2.down.weight"][:, 1::2])


# -------------------------------------------------------------------------------------------------------------- build


def build(*arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["build_mini", *arguments])
        build_mini.main()


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    build(*command(folder, out))
    return out


def test_a_build_is_a_backbone(folder: Path, whole: Path) -> None:
    assert sorted(path.name for path in whole.iterdir()) == [
        "config.json",
        "model.safetensors",
        "progress.safetensors",
        "tokenizer.json",
    ]
    loaded = Bert(weights=str(whole), max_length=128).load(0)
    assert isinstance(loaded.encoder, Encoder)
    assert loaded.encoder.config == replace(
        CONFIG, vocab_size=LEAST + 60, num_hidden_layers=2, intermediate_size=48, max_position_embeddings=128
    )
    assert {tensor.dtype for tensor in load_file(whole / "model.safetensors").values()} == {torch.float16}


def test_a_stopped_build_goes_on_to_the_same_weights(folder: Path, whole: Path, tmp_path: Path) -> None:
    learn, left = build_mini.Build._learn, iter([1, 1, 1, 0, 1, 1, 0])

    def stopping(self: build_mini.Build, indices: np.ndarray[Any, Any]) -> Any:
        if not next(left, 1):
            raise KeyboardInterrupt
        return learn(self, indices)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_mini.Build, "_learn", stopping)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                build(*command(folder, tmp_path))
        build(*command(folder, tmp_path))
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def test_another_build_is_not_gone_on_with(folder: Path, whole: Path) -> None:
    with pytest.raises(SystemExit, match="another build"):
        build(*command(folder, whole, seed=1))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
