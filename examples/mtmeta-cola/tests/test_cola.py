from __future__ import annotations

import numpy as np
import pytest
from mtmeta_cola import Cola, cola_matthews
from sklearn.metrics import matthews_corrcoef

import mtmeta
from mtmeta.testing import check_task

ROWS: list[dict[str, object]] = [
    {"sentence": "The child reads a book.", "label": 1},
    {"sentence": "The child a book reads the.", "label": 0},
    {"sentence": "They open the door.", "label": 1},
]


def test_contract() -> None:
    check_task(Cola, ROWS)


def test_a_label_that_is_neither_names_file_and_line() -> None:
    with pytest.raises(mtmeta.DataError, match=r"train\.csv:3: label 'yes' is not one of 0, 1"):
        check_task(Cola, [ROWS[0], {"sentence": "They sleep.", "label": "yes"}])


def test_the_metric_is_the_matthews_correlation() -> None:
    draw = np.random.default_rng(0).integers(0, 2, (2, 50)).astype(float)
    assert cola_matthews(*draw) == pytest.approx(matthews_corrcoef(*draw), abs=1e-12)
    assert cola_matthews(draw[0], draw[0]) == pytest.approx(1.0)
    assert cola_matthews(draw[0], np.ones(50)) == 0.0
