"""Tables of what teachers say: whole or refused, and every row that of its example."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import mtmeta
from mtmeta.core.api.option_types import LeaveOut
from mtmeta.core.data.dataset import Dataset, select
from mtmeta.core.data.loading import from_examples
from mtmeta.core.data.packing import pack
from mtmeta.core.data.subsets import folds_of, without_fold
from mtmeta.core.data.teachers import Table, TableFacts, read_table, table_folder, teachers_of, write_table
from mtmeta.core.errors import DataError
from mtmeta.core.recipe.sections import TeacherOptions
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.tasks.sst import Sst
from mtmeta.plugins.tasks.sts import Sts
from tests.support.fuzzing import no_hang

TEXTS = ("a good film", "a dull plot", "not bad at all", "very fine", "the very worst", "a film")
IDS = ("17", "4", "4", "ü", "a b", "5")


def dataset(texts: tuple[str, ...] = TEXTS, ids: tuple[str, ...] = IDS) -> Dataset:
    examples = [
        mtmeta.Example(text, label=i % 5, id=name) for i, (text, name) in enumerate(zip(texts, ids, strict=True))
    ]
    return from_examples("sst", Sst(train="sample"), "train", examples, Bert(weights="tiny").load(0))


def facts(**changes: Any) -> TableFacts:
    known: dict[str, Any] = {
        "task": "sst",
        "classes": [str(i) for i in range(5)],
        "objective": "",
        "folds": 3,
        "seed": 7,
        "weights": ["a" * 64],
        "train": "b" * 64,
        "training_examples": 480,
    }
    return TableFacts(**(known | changes))


def said(count: int = len(TEXTS), seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).dirichlet(np.ones(5), count).astype(np.float32)


def options(*folders: Path, folds: int | None = None) -> TeacherOptions:
    return TeacherOptions(runs=tuple(map(str, folders)), folds=folds)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_table(tmp_path, facts(), dataset(), said())
    return tmp_path


def table(folder: Path) -> Table:
    found = read_table(folder, "sst")
    assert found is not None
    return found


def test_a_table_is_what_was_written(folder: Path) -> None:
    found, path = table(folder), table_folder(folder, "sst") / "table.safetensors"
    assert found.facts == facts()
    assert list(found.ids) == list(IDS)
    assert np.array_equal(found.outputs, said())
    assert np.array_equal(found.texts, dataset().examples)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not found.outputs.flags.writeable
    assert isinstance(found.outputs.base, np.memmap), "it lies on disk"
    assert np.array_equal(load_file(path)["outputs"], said()), "other libraries read it"
    assert subprocess.run(["sha256sum", "-c", "table.sha256"], cwd=path.parent, capture_output=True).returncode == 0
    assert read_table(folder, "para") is None


def test_the_same_labels_are_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    assert write_table(tmp_path / "other", facts(), dataset(), said()) == table(folder).sha256


def test_every_byte_flipped_is_noticed(folder: Path) -> None:
    """One bit of each byte of both files, another one from byte to byte."""
    for path in sorted(table_folder(folder, "sst").iterdir()):
        before = path.read_bytes()
        for at in range(len(before)):
            path.write_bytes(before[:at] + bytes([before[at] ^ (1 << at % 8)]) + before[at + 1 :])
            with pytest.raises(DataError, match="damaged"):
                read_table(folder, "sst")
        path.write_bytes(before[:-1])
        with pytest.raises(DataError, match="damaged"):
            read_table(folder, "sst")
        path.write_bytes(before)
    assert table(folder)


def resign(folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change arrays and facts of the table, and bring its hash up to date, as somebody might who made it."""
    path = table_folder(folder, "sst") / "table.safetensors"
    arrays, about = dict(load_file(path)), table(folder).facts.model_dump()
    change(arrays, about)
    save_file(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()},
        path,
        {"mtmeta.teacher": json.dumps(about)},
    )
    (path.parent / "table.sha256").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")


def spoil(name: str, at: Any, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(arrays: dict[str, Any], about: dict[str, Any]) -> None:
        arrays[name] = arrays[name].copy()
        arrays[name][at] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil("outputs", (2, 3), np.nan), "not finite"),
        (spoil("outputs", (2, 3), 0.9), "no probabilities"),
        (spoil("outputs", (2, 3), -0.1), "no probabilities"),
        (spoil("offsets", 2, 99), "ids that do not fit"),
        (
            spoil("offsets", slice(1, 3), (2**63 - 1, -2)),
            "ids that do not fit",
        ),  # their difference is positive in 64 bits
        (spoil("ids", 0, 0xFF), "no table of mtmeta teach"),  # no text
        (lambda arrays, about: arrays.update(outputs=arrays["outputs"][1:]), "other sizes"),
        (lambda arrays, about: arrays.update(outputs=arrays["outputs"].astype("f8")), "other types"),
        (lambda arrays, about: arrays.pop("texts"), "no table of mtmeta teach"),
        (lambda arrays, about: about.update(task="para"), "of task 'para', not 'sst'"),
        (lambda arrays, about: about.update(format=2), "format 2"),
        (lambda arrays, about: about.update(folds="3"), "no table of mtmeta teach"),
        (lambda arrays, about: about.update(folds=10**300), "no table of mtmeta teach"),
        (lambda arrays, about: about.update(training_examples=2**53 + 1), "no table of mtmeta teach"),
        (lambda arrays, about: about.update(training_examples=-1), "no table of mtmeta teach"),
    ],
)
def test_a_table_that_means_nothing(folder: Path, change: Any, message: str) -> None:
    resign(folder, change)
    with pytest.raises(DataError, match=message) as error:
        read_table(folder, "sst")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("grown", "message"), [(True, "arrays of other sizes"), (False, "no header")])
def test_a_file_that_is_a_hole_is_not_read_through(grown: bool, message: str, folder: Path) -> None:
    """Nor is its hash asked for, which would take minutes."""
    path = table_folder(folder, "sst") / "table.safetensors"
    if not grown:
        path.write_bytes(b"")
    try:
        os.truncate(path, 2**36)
    except OSError:
        pytest.skip("no room for a file with a hole of that size")
    with no_hang(), pytest.raises(DataError, match=message):
        read_table(folder, "sst")


def test_what_lies_elsewhere_is_not_read(folder: Path) -> None:
    path = table_folder(folder, "sst") / "table.safetensors"
    path.rename(folder / "elsewhere")
    path.symlink_to(folder / "elsewhere")
    with pytest.raises(DataError, match="link"):
        read_table(folder, "sst")


# ---------------------------------------------------------------------------------------- rows and examples


def test_rows_go_by_id_and_text_wherever_they_stand(folder: Path) -> None:
    order = np.array([5, 3, 0, 2])
    data = select(dataset(), order)
    taught = replace(data, teacher=teachers_of(data, Sst(train="x").objective, options(folder), seed=1))
    (one, two) = pack(taught, np.array([3, 1, 0]), chunks=2).chunks
    assert one.teacher is not None and two.teacher is not None
    rows = np.concatenate([one.teacher.numpy(), two.teacher.numpy()])
    assert np.array_equal(rows, said()[[2, 3, 5]]), "two examples have the id '4', each a text of its own"
    assert pack(data, np.array([0])).chunks[0].teacher is None


def test_several_teachers_are_averaged(folder: Path, tmp_path: Path) -> None:
    write_table(tmp_path / "two", facts(folds=0), dataset(), said(seed=1))
    rows = teachers_of(dataset(), Sst(train="x").objective, options(folder, tmp_path / "two"), seed=1).rows(
        np.array([4, 0])
    )
    by_hand = (said()[[4, 0]].astype(np.float64) + said(seed=1)[[4, 0]]) / 2
    assert rows.dtype == np.float32
    assert np.array_equal(rows, by_hand.astype(np.float32))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (dataset(ids=("17", "4", "4", "ü", "99", "5")), r"lacks 1 of 6 .*\(none has the id '99'\); teach with"),
        (dataset(texts=(*TEXTS[:5], "another film")), r"lacks 1 of 6 .*\(with id '5' it has another text\)"),
    ],
)
def test_examples_that_nobody_labelled(folder: Path, data: Dataset, message: str) -> None:
    with pytest.raises(DataError, match=message):
        teachers_of(data, Sst(train="x").objective, options(folder), seed=1)


def test_labels_of_another_kind(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"says 0, 1, 2, 3, 4 of task 'sst', whose labels are no, yes; name another"):
        teachers_of(dataset(), mtmeta.Classification(labels=("no", "yes")), options(folder), seed=1)
    with pytest.raises(DataError, match=r"was labelled by 3 fold models, teachers.sst.folds is 5"):
        teachers_of(dataset(), Sst(train="x").objective, options(folder, folds=5), seed=1)
    assert teachers_of(dataset(), Sst(train="x").objective, options(folder, folds=3), seed=1)
    with pytest.raises(DataError, match="no labels of task 'sst' by a teacher; `mtmeta teach RECIPE`"):
        teachers_of(dataset(), Sst(train="x").objective, options(tmp_path / "none"), seed=1)
    values = np.linspace(0, 5, len(TEXTS), dtype=np.float32)
    scaled = facts(classes=[], objective=repr(mtmeta.Regression(low=0, high=1)))
    write_table(tmp_path / "values", scaled, dataset(), (values / 5).astype(np.float32))
    with pytest.raises(DataError, match=r"is of Regression\(low=0.*1\), task 'sst' is Regression\(low=0.0, high=5.0\)"):
        teachers_of(dataset(), Sts(train="x").objective, options(tmp_path / "values"), seed=1)


# ---------------------------------------------------------------------------------------------------- folds


def test_folds_are_a_function_of_the_id() -> None:
    names = tuple(str(number) for number in range(400))
    data = dataset(texts=tuple(f"film {name}" for name in names), ids=names)
    folds = folds_of(data, 5, 1, "sst")
    assert set(folds.tolist()) == {1, 2, 3, 4, 5}
    assert np.bincount(folds)[1:].min() > 400 / 5 - 40
    turned = np.arange(400)[::-1].copy()
    assert np.array_equal(folds_of(select(data, turned), 5, 1, "sst"), folds[turned])
    assert not np.array_equal(folds_of(data, 5, 2, "sst"), folds)
    kept = without_fold(data, LeaveOut(folds=5, fold=2), 1, "sst")
    assert list(kept.ids) == [name for name, fold in zip(names, folds, strict=True) if fold != 2]
    assert without_fold(data, None, 1, "sst") is data


def test_examples_with_one_id_are_in_one_fold() -> None:
    folds = folds_of(dataset(), 50, 0, "sst")
    assert folds[1] == folds[2]
    assert len(set(folds.tolist())) > 2


def test_a_fold_of_nothing() -> None:
    empty = next(fold for fold in range(1, 51) if fold not in folds_of(dataset(), 50, 0, "sst"))
    with pytest.raises(DataError, match=rf"task 'sst': has too few examples \(6\) for 50 folds, fold {empty} has none"):
        without_fold(dataset(), LeaveOut(folds=50, fold=empty), 0, "sst")
