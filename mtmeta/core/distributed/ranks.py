"""The ranks that torchrun started: how many processes train together, and which of them this one is."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from mtmeta.core.errors import MachineError
from mtmeta.core.wording import quote

OF_TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
"""Variables that torchrun sets beside WORLD_SIZE."""
TIMEOUT = "MTMETA_RANK_TIMEOUT"
"""Variable with the seconds after which a rank that does not answer counts as lost."""
SECONDS = 120.0
"""Its default. PyTorch's own is half an hour, all of which the others would wait."""


@dataclass(frozen=True)
class Ranks:
    """The number of processes that train together, and the place of this one among them."""

    rank: int = 0
    world: int = 1
    local: int = 0
    """Place among those on this host."""
    beside: int = 1
    """How many are on this host."""


def ranks_of(environ: Mapping[str, str] = os.environ) -> Ranks:
    """Return the ranks of this process. Raises MachineError unless torchrun started it, or it is alone."""
    world = environ.get("WORLD_SIZE")
    if world is None:
        if "RANK" in environ:
            raise MachineError("RANK", "is set but WORLD_SIZE is not; unset it, or start several ranks with torchrun")
        return Ranks()
    if not world.isdecimal() or not 1 <= int(world[:9]) < 10**8:
        raise MachineError("WORLD_SIZE", f"is {quote(world)}, expected a whole number from 1; start it with torchrun")
    if int(world) == 1:
        return Ranks()
    missing = [name for name in OF_TORCHRUN if not environ.get(name)]
    if missing:
        message = f"is {quote(world)}, but torchrun did not start this process ({missing[0]} is not set)"
        raise MachineError("WORLD_SIZE", f"{message}; use `torchrun --nproc-per-node N -m mtmeta run RECIPE`")
    numbers = {name: environ[name] for name in ("RANK", "LOCAL_RANK")}
    for name, number in numbers.items():
        if not number.isdecimal() or int(number[:9]) >= int(world):
            raise MachineError(name, f"is {quote(number)} of {int(world)} ranks; start it with torchrun")
    beside = environ.get("LOCAL_WORLD_SIZE", "")
    here = min(int(beside[:9]), int(world)) if beside.isdecimal() else 1
    return Ranks(int(numbers["RANK"]), int(world), int(numbers["LOCAL_RANK"]), max(here, 1))


def timeout_of(environ: Mapping[str, str] = os.environ) -> float:
    """Return the seconds after which a rank that does not answer counts as lost. Raises MachineError for no number."""
    given = environ.get(TIMEOUT, "")
    try:
        seconds = float(given) if given else SECONDS
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds <= 10**6:
        raise MachineError(TIMEOUT, f"is {quote(given)}, expected seconds from 1 to 1000000")
    return seconds
