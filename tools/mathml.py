r"""LaTeX in Markdown to MathML, when the site is built: browsers show it without a script or a font from elsewhere.

A Python-Markdown extension: `$\theta$` within a line, and a paragraph of its own for a displayed equation, which may
have a number that links can name:

    $$ \theta \leftarrow \theta + \epsilon (\theta' - \theta) \tag{4} $$        [equation 4](#eq-4)
"""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.blockprocessors import BlockProcessor
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.util import AtomicString

__all__ = ["BadMath", "MathML", "makeExtension", "mathml"]

INLINE = r"(?<![\\$\w])\$(?![\s$])([^$\n]*[^$\s\\])\$(?![\w$])"
DISPLAY = re.compile(r"\$\$(.+?)(?:\\tag\{(\w+)\})?\s*\$\$", re.DOTALL)
CHILDREN = {"mfrac": 2, "msub": 2, "msup": 2, "msubsup": 3, "munder": 2, "mover": 2, "munderover": 3, "mroot": 2}


class BadMath(ValueError):
    """LaTeX that is no formula."""


def mathml(latex: str, *, display: bool = False) -> str:
    """Convert a formula to a `<math>` element. Raises BadMath, also for what the converter lets pass unfinished."""
    try:
        element_text = convert(latex, display="block" if display else "inline")
        root = ElementTree.fromstring(element_text)
    except Exception as error:
        raise BadMath(f"not LaTeX that can be shown: {latex!r} ({type(error).__name__} {error})".rstrip()) from error
    for element in root.iter():
        name = element.tag.rpartition("}")[2]
        if "\\" in (element.text or "") or len(element) != CHILDREN.get(name, len(element)):
            raise BadMath(f"not LaTeX that can be shown: {latex!r} (near <{name}>{element.text or ''})")
    if latex.count("{") != latex.count("}"):
        raise BadMath(f"not LaTeX that can be shown: {latex!r} (braces do not match)")
    return element_text


class _Inline(InlineProcessor):  # type: ignore[misc]
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:
        return self.md.htmlStash.store(mathml(m[1])), m.start(0), m.end(0)


class _Display(BlockProcessor):  # type: ignore[misc]
    def test(self, parent: ElementTree.Element, block: str) -> bool:
        return DISPLAY.fullmatch(block.strip()) is not None

    def run(self, parent: ElementTree.Element, blocks: list[str]) -> None:
        equation = DISPLAY.fullmatch(blocks.pop(0).strip())
        assert equation is not None
        attributes = {"class": "equation"} | ({"id": f"eq-{equation[2]}"} if equation[2] else {})
        box = ElementTree.SubElement(parent, "div", attributes)
        formula = ElementTree.SubElement(box, "div", {"class": "formula"})
        formula.text = AtomicString(self.parser.md.htmlStash.store(mathml(equation[1], display=True)))
        if equation[2]:
            ElementTree.SubElement(box, "span", {"class": "number"}).text = AtomicString(f"({equation[2]})")


class MathML(Extension):  # type: ignore[misc]
    """The extension: `markdown.Markdown(extensions=["tools.mathml"])`."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.inlinePatterns.register(_Inline(INLINE, md), "mathml", 185)  # after code spans, before emphasis
        md.parser.blockprocessors.register(_Display(md.parser), "mathml", 75)  # before lists and paragraphs
        md.ESCAPED_CHARS.append("$")


def makeExtension(**options: Any) -> MathML:
    """Make the extension; Python-Markdown looks for this name."""
    return MathML(**options)
