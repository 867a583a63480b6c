"""What kind of bad a row is, told by the reason that was given for it."""

from __future__ import annotations

import re

__all__ = ["kind_of"]

KINDS = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        (r"\d+ fields?, expected", "wrong number of fields"),
        (r"text is empty", "text is empty"),
        (r"label (is empty|''|nothing)", "label is empty"),
        (r"label .* is not a finite number", "label is not a number"),
        (r"label .* is outside", "label out of range"),
        (r"label .* is not one of", "unknown label"),
        (r"byte 0x", "wrong encoding"),
        (r"field .* is not UTF-8", "wrong encoding"),
        (r"NUL byte", "NUL byte"),
        (r"field .* characters \(limit", "field too long"),
        (r"field .* lone surrogate", "lone surrogate"),
        (r"field .* is nested", "nested value"),
        (r"text after a closing quote", "stray quote"),
        (r"line of more than", "line too long"),
        (r"no column", "column missing"),
        (r"duplicate key", "duplicate key"),
        (r"not JSON|not a JSON object|nested deeper|\S+ is not JSON", "not a JSON object"),
    )
)


def kind_of(reason: str) -> str:
    """The kind, `other` for what a plugin's own task or objective says."""
    return next((kind for pattern, kind in KINDS if pattern.match(reason)), "other")
