"""What state.json of a checkpoint holds beside the tensors, checked when it is read back."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

__all__ = ["BEST", "LINK", "Saved", "read_state"]

LINK, BEST = r"best(-[A-Za-z0-9_-]+)?", r"best-[0-9]{8}"
"""Names of the best links, which become paths, and of the directories they point at."""

Count = Annotated[int, Field(ge=0, le=2**53)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Plateau(_Strict):
    best: Finite
    waited: Count
    factor: Finite


class _Stream(_Strict):
    epoch: Count
    offset: Count
    batches: Count
    examples: Count
    draws: Count
    planned: Finite


class Saved(_Strict):
    """The counters of a learner in training; `Trainer` says what each one counts."""

    step: Count
    seconds: Finite
    skipped: Count
    bests: dict[str, Finite]
    links: dict[Annotated[str, Field(pattern=f"^{LINK}$")], Annotated[str, Field(pattern=f"^{BEST}$")]]
    plateau: _Plateau | None
    examples: Count
    episodes: dict[str, Count]
    feed: dict[str, _Stream]
    warned: list[str]


def read_state(state: Any) -> Saved:
    """The state as it was saved. Raises ValueError, of one line, if it is no such state."""
    try:
        return Saved.model_validate_json(json.dumps(state))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
