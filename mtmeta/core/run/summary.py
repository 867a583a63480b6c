"""What summary.json of a finished run holds, checked when it is read back."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

__all__ = ["check_summary"]

Count = Annotated[int, Field(ge=0, le=2**63)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class _Score(_Strict):
    metric: str
    value: Finite
    low: Finite | None
    high: Finite | None
    examples: Count
    loss: Finite
    skipped: Count
    others: dict[str, Finite]


class _Usage(_Strict):
    planned_draws: Finite
    draws: Count
    batches: Count
    examples: Count
    epochs: Finite


class _Summary(_Strict):
    run: str
    split: str
    tasks: Annotated[dict[str, _Score], Field(min_length=1)]
    mean: Finite
    name: str
    algorithm: str
    seed: Count
    selected_on: str
    steps: Count
    seconds: Seconds
    total_seconds: Seconds
    examples: Count
    skipped_steps: Count
    sampling: dict[str, _Usage]
    peak_memory_bytes: Count


def check_summary(found: Any) -> dict[str, Any]:
    """The summary as it was read. Raises ValueError, of one line, if it is none."""
    try:
        _Summary.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg'].lower()}") from error
    made: dict[str, Any] = found
    return made
