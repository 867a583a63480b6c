"""Runs on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import mtmeta


@dataclass(frozen=True, kw_only=True)
class Local(mtmeta.Launcher):
    """Processes of the command itself, `--jobs` at a time, which end with it; so it is without `--on`.

    What a command says of a failed run is all there is: nothing is started again, so `lost` and `every` say nothing.
    """

    name = "local"

    in_pool: ClassVar[bool] = True
