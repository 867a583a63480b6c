"""Built-in backbones."""

from __future__ import annotations

import mtmeta
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.backbones.hf import HuggingFace


@mtmeta.hookimpl
def register_backbones() -> list[type[mtmeta.Backbone]]:
    return [Bert, HuggingFace]
