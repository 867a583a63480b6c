"""Types of options that several kinds of parts share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

PositiveInt = Annotated[int, Field(ge=1, le=10_000_000)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]

Inputs = Literal["single", "separate", "cross", "choices"]
"""The way of an example into the encoder: one text; two texts, each alone; two texts in one sequence; one text with
each of several others, in as many sequences."""
Pooling = Literal["mean", "first"]
"""What becomes of a sequence's hidden states before a head takes them: their mean, or that of the first token alone."""
InnerState = Literal["per_task", "shared", "reset"]
"""The life of an inner optimizer's state: with its task, shared by all tasks, or for one inner loop only."""

SAMPLE = "sample"
"""The word for the sample data set in place of a file name."""


@dataclass(frozen=True, kw_only=True)
class Carve:
    """A dev split that is taken out of the training file: `dev: {fraction: 0.1}`."""

    fraction: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
    """Share of the examples, kept in every class (of numbers, in every fifth of their ranking)."""
    together: Literal["example", "sentence", "none"] = "example"
    """What stays on one side: equal examples (letter case and punctuation aside, pairs in either order), or all that
    share a sentence, or nothing."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    """Seed of the choice; default: the recipe's."""


@dataclass(frozen=True, kw_only=True)
class LongText:
    """Texts longer than the encoder takes, read in windows that overlap: `long: {window: 128, stride: 64}`.

    Every window is a sequence of its own, with special tokens; heads get the pool of the windows' vectors.
    """

    window: Annotated[int, Field(ge=8, le=100_000)] = 128
    """Most tokens of a window, special tokens included; at most the encoder's max_length."""
    stride: PositiveInt = 64
    """Tokens from the beginning of a window to that of the next (not those that two windows share, which other
    libraries call so): at most as many as a window has of the text, so that none is left out."""
    pool: Literal["mean", "max"] = "mean"
    """What becomes of the vectors of a text's windows: their mean, or the greatest of each number."""
    most: Annotated[int, Field(ge=1, le=100_000)] = 64
    """Most windows of a text; one that would take more is cut, and counted as cut."""

    def too_wide(self, max_length: int) -> str:
        """Return what is wrong where an encoder takes no window of this length; empty where it does."""
        if self.window <= max_length:
            return ""
        return f"is {self.window}, and backbone.max_length {max_length}; lower the one or raise the other"


@dataclass(frozen=True, kw_only=True)
class LeaveOut:
    """A fold that a run does not see: `leave_out: {folds: 5, fold: 2}`; `mtmeta teach` trains a run for each.

    An example's fold is a function of its id, its task's name and the recipe's seed, so equal ids are in one fold.
    """

    folds: Annotated[int, Field(ge=2, le=100)]
    """Parts that every training set falls into, about equal in size."""
    fold: Annotated[int, Field(ge=1, le=100)]
    """The part that is left out, from 1."""
