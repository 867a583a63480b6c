"""Every shape of folder by both backbones: the reference's ids and states, or a refusal that names the way."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.census import BACKBONES, outcome
from tests.support.folder_shapes import OK, PROBES, SHAPES
from tests.support.parameters import some_quick

pytestmark = pytest.mark.usefixtures("one_thread")
CASES = [(name, backbone) for name in SHAPES for backbone in BACKBONES]


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    library = importlib.import_module("transformers")
    verbosity = library.logging.get_verbosity()
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    yield
    library.logging.set_verbosity(verbosity)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders that are written already, by shape."""
    return {}


def test_there_are_enough_of_them() -> None:
    assert len(SHAPES) >= 60 and len(PROBES) >= 20
    assert sum(shape.bert == OK for shape in SHAPES.values()) >= 30
    assert sum(shape.hf == OK for shape in SHAPES.values()) >= 45


@pytest.mark.parametrize(("name", "backbone"), some_quick(CASES, 60))
def test_a_folder_is_right_or_refused(
    name: str, backbone: str, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    shape = SHAPES[name]
    if name not in folders:
        folders[name] = tmp_path_factory.mktemp("shape")
        shape.write(folders[name])
    expected = shape.bert if backbone == "bert" else shape.hf
    found, notes = outcome(shape, folders[name], backbone)
    if expected == OK:
        assert found == OK
        assert any(shape.note in note for note in notes) if shape.note else notes == ()
    else:
        assert expected in found
        assert "\n" not in found
