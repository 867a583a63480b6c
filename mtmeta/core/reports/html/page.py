"""HTML pages that need nothing but themselves (no script, no font, no picture from elsewhere), by the templates."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mtmeta.core.wording import visible

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Figure:
    """A plot by `plots`, and its title for a screen reader."""

    title: str
    svg: str


@dataclass(frozen=True)
class HeatTable:
    """A table of (text, strength from -1 to 1) cells, each row with its name."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]


@functools.cache
def environment() -> Environment:
    """Return the environment of the templates: every text is escaped, and a name that is not given raises."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=lambda value: visible(value) if type(value) is str else value,  # not of markup, which is made of such
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(template: str, **values: Any) -> str:
    """Return a page by the name of its template."""
    return environment().get_template(template).render(values)
