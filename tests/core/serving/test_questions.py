"""Bodies and the interface of tasks with several texts, and with several numbers; the rest is in test_serve.py."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mtmeta.core.serving.openapi import describe, document
from mtmeta.core.serving.questions import Limits, Refused, texts_of
from mtmeta.plugins.tasks.generic import RegressionTask
from mtmeta.plugins.tasks.multiple_choice import MultipleChoiceTask

LIMITS = Limits()


def asked(body: Any, count: int) -> list[Any]:
    return list(texts_of(json.dumps(body).encode(), count=count, limits=LIMITS))


def test_a_text_with_its_choices_is_a_list() -> None:
    assert asked({"text": ["which", "a", "b", "c"]}, 4) == [("which", "a", "b", "c")]
    assert asked({"texts": [["which", "a", "b"], ["who", "c", "d"]]}, 3) == [("which", "a", "b"), ("who", "c", "d")]
    for body, words in (
        ({"text": "which"}, "text is a string, this task takes a list of 4 texts"),
        ({"texts": [["which", "a"]]}, r"texts\[0\] is a list of 2, this task takes a list of 4 texts"),
        ({"text": ["which", "a", " ", "c"]}, "text is empty"),
    ):
        with pytest.raises(Refused, match=words):
            asked(body, 4)


def test_the_interface_names_choices_and_numbers() -> None:
    ask = MultipleChoiceTask(train="t", choices=("a", "b", "c"))
    two = RegressionTask(train="t", label=("x", "y"), low=0.0, high=5.0)
    described = describe({"ask": ask, "two": two})
    assert described["ask"]["texts"] == 4 and described["two"]["targets"] == ["x", "y"]
    paths = document("title", "1", described, LIMITS)["paths"]
    text = paths["/predict/ask"]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]["text"]
    assert (text["minItems"], text["maxItems"]) == (4, 4)
    answer = paths["/predict/two"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    fields = answer["properties"]["predictions"]["items"]["properties"]
    assert list(fields) == ["scores"] and list(fields["scores"]["properties"]) == ["x", "y"]
