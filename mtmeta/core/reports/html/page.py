"""Pieces of an HTML page that needs nothing but itself: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["details", "figures", "heading", "heat_table", "page", "paragraph", "preformatted", "table"]

CSS = """
:root { color-scheme: light dark; --bg: #ffffff; --fg: #1b1f24; --muted: #5b6470; --grid: #d9dee4; --card: #f6f8fa;
  --s0: #1f6feb; --s1: #d1690e; --s2: #1a7f37; --s3: #a626a4; --s4: #b3261e; --s5: #0e7c86; --s6: #7a5c00;
  --s7: #57606a; }
@media (prefers-color-scheme: dark) { :root { --bg: #0f1318; --fg: #e4e8ee; --muted: #9aa5b1; --grid: #333b45;
  --card: #171c23; --s0: #6cb0ff; --s1: #ffa657; --s2: #56d364; --s3: #e2a6f0; --s4: #ff8a80; --s5: #4fd1d9;
  --s6: #e3c04b; --s7: #aab4bf; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem clamp(0.8rem, 3vw, 2.5rem) 4rem; max-width: 84rem; background: var(--bg);
  color: var(--fg); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.4rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2rem 0 0.4rem; padding-top: 0.6rem; border-top: 1px solid var(--grid); }
h3 { font-size: 1rem; margin: 1.2rem 0 0.3rem; overflow-wrap: anywhere; }
p { margin: 0.4rem 0; max-width: 70ch; color: var(--muted); }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 0.8rem; }
.wide { grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); }
figure { margin: 0; padding: 0.5rem; background: var(--card); border-radius: 8px; min-width: 0; }
svg { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 0.5rem 0; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); padding-bottom: 0.2rem; white-space: nowrap; }
th, td { padding: 0.3rem 0.45rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--grid);
  white-space: pre; }
tr > :first-child { position: sticky; left: 0; background: var(--bg); }
td.number, th.number { text-align: right; }
td.heat { text-align: center; min-width: 3rem; }
summary { cursor: pointer; padding: 0.4rem 0; font-weight: 600; overflow-wrap: anywhere; }
pre { overflow-x: auto; padding: 0.8rem; background: var(--card); border-radius: 8px; font-size: 0.8rem; }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """The whole document."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    # whatever a label may hold, the browser runs nothing and fetches nothing
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head += f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    head += f"<title>{escape(title)}</title><style>{CSS}</style>"
    body = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def heading(text: str, level: int = 2) -> str:
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def preformatted(text: str) -> str:
    return f'<pre tabindex="0">{escape(text)}</pre>'


def details(summary: str, parts: Iterable[str], *, open_: bool = False) -> str:
    """Parts that a reader can fold away."""
    body = "\n".join(parts)
    return f"<details{' open' if open_ else ''}><summary>{escape(summary)}</summary>\n{body}\n</details>"


def figures(titled: Iterable[tuple[str, str]], *, wide: bool = False) -> str:
    """Plots beside each other: (what a screen reader says, SVG); `wide` where they share the width of the page."""
    drawn = "".join(f'<figure aria-label="{escape(title)}">{svg}</figure>' for title, svg in titled)
    return f'<div class="figures{" wide" * wide}">{drawn}</div>'


def table(header: Sequence[str], rows: Iterable[Sequence[tuple[str, bool]]], *, numbers: int = 0) -> str:
    """A table of (text, whether its first line is strong) cells; the last `numbers` columns are flush right."""
    right = range(len(header) - numbers, len(header))

    def cell(tag: str, at: int, text: str, strong: bool = False) -> str:
        first, below, rest = escape(text).partition("\n")
        inside = f"<strong>{first}</strong>{below}{rest}" if strong else escape(text)
        return f"<{tag}{' class=number' if at in right else ''}>{inside}</{tag}>"

    lines = ["".join(cell("th", at, text) for at, text in enumerate(header))]
    lines += ["".join(cell("td", at, *made) for at, made in enumerate(row)) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll" tabindex="0"><table>{body}</table></div>'


def heat_table(caption: str, columns: Sequence[str], rows: Iterable[tuple[str, Sequence[tuple[str, float]]]]) -> str:
    """A table of (text, strength from -1 to 1) cells: strong ones are filled, negative ones in another colour."""
    lines = ["<th></th>" + "".join(f"<th>{escape(column)}</th>" for column in columns)]
    for name, cells in rows:
        made = [f"<th>{escape(name)}</th>"]
        for text, strength in cells:
            colour, share = ("--s0" if strength >= 0 else "--s1"), round(55 * min(1.0, abs(strength)))
            style = f"background: color-mix(in srgb, var({colour}) {share}%, transparent)"
            made.append(f'<td class="heat" style="{style}">{escape(text)}</td>')
        lines.append("".join(made))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll" tabindex="0"><table><caption>{escape(caption)}</caption>{body}</table></div>'
