"""The documentation site: pages put together, built with warnings as errors, and checked.

    python -m tools.site [--out build/docs] [--serve]

Pages are docs/**.md, what `tools.reference` writes from the code, and the files of OUTSIDE. Links between them are
made to fit. The built site asks nothing of any other host; `check` holds it to that, and every link to its target.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from urllib.parse import unquote, urlsplit

from tools.reference import pages as reference_pages

__all__ = ["BadSite", "build", "check", "main", "relinked", "stage"]

ROOT = Path(__file__).parent.parent
OUTSIDE = {
    "benchmarks/RESULTS.md": "measurements.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "mtmeta/plugins/backbones/mini/README.md": "mini.md",
}
LINK = re.compile(r"(?<!!)\[([^\[\]]*)\]\(([^()\s]+)\)")
CODE = re.compile(r"^(`{3,}|~{3,}).*?^\1[ \t]*$|(?<!`)(`+)(?!`).*?(?<!`)\2(?!`)", re.MULTILINE | re.DOTALL)
FETCHED = {"link": "href"} | dict.fromkeys(("script", "img", "iframe", "source", "video", "audio"), "src")
NOT_FETCHED = {"canonical", "prev", "next", "alternate"}  # of <link rel>


class BadSite(Exception):
    """The problems of the pages or the site, a line each."""


def stage(out: Path) -> list[str]:
    """Put every page under `out`/pages and zensical.toml beside them; return the pages, relative. Raises BadSite."""
    pages = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "docs").rglob("*")) if path.is_file()}
    pages |= {name: ROOT / name for name in OUTSIDE}
    config = pages.pop("docs/zensical.toml")
    targets = {source: OUTSIDE.get(source) or _beneath_docs(source) for source in pages}
    generated = reference_pages()
    targets |= {f"docs/{page}": page for page in generated}
    shutil.rmtree(out / "pages", ignore_errors=True)
    problems: list[str] = []
    for source, target in targets.items():
        (out / "pages" / target).parent.mkdir(parents=True, exist_ok=True)
        if source in pages and not target.endswith(".md"):
            shutil.copyfile(pages[source], out / "pages" / target)
            continue
        text = pages[source].read_text(encoding="utf-8") if source in pages else generated[target]
        (out / "pages" / target).write_text(relinked(text, source, targets, problems), encoding="utf-8")
    shutil.copyfile(config, out / "zensical.toml")
    if problems:
        raise BadSite("\n".join(problems))
    return sorted(target for target in targets.values() if target.endswith(".md"))


def _beneath_docs(source: str) -> str:
    """Return where the site has a page of docs/: the README of a folder, which GitHub shows for it, is its index."""
    folder, _, name = relpath(source, "docs").rpartition("/")
    return join(folder, "index.md" if name == "README.md" else name)


def relinked(text: str, source: str, targets: dict[str, str], problems: list[str]) -> str:
    """Return the page with its links as the site lays them out; a link to what is no page becomes its words."""

    def mend(match: re.Match[str]) -> str:
        words, link = match[1], match[2]
        path, hash_, anchor = link.partition("#")
        if not path or urlsplit(link).scheme:
            return match[0]
        named = normpath(join(dirname(source), path))
        if named in targets:
            return f"[{words}]({relpath(targets[named], dirname(targets[source]) or '.')}{hash_}{anchor})"
        if not (ROOT / named).exists():
            problems.append(f"{source}: links to {link}, which is not there")
        return words if words.startswith("`") else f"{words} (`{named}`)" if words != named else f"`{named}`"

    pieces, at = [], 0
    for code in CODE.finditer(text):
        pieces += [LINK.sub(mend, text[at : code.start()]), code[0]]
        at = code.end()
    return "".join([*pieces, LINK.sub(mend, text[at:])])


def build(out: Path) -> Path:
    """Build what `stage` put under `out`, warnings as errors; return the folder of the site. Raises BadSite."""
    if find_spec("zensical") is None or find_spec("latex2mathml") is None:
        raise BadSite("the site needs zensical and latex2mathml; pip install 'mtmeta[docs]'")
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}  # for tools.mathml
    done = subprocess.run(command, cwd=out, env=environ, capture_output=True, text=True)
    output = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    if done.returncode or "Warning:" in output:
        raise BadSite(re.sub(r"^(Traceback|  ).*\n", "", output, flags=re.MULTILINE))
    return out / "site"


# ------------------------------------------------------------------------------------------------------------ checking


class _Page(HTMLParser):
    """A built page: its links, the addresses that it makes the browser fetch, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {key: value or "" for key, value in attrs}
        self.anchors |= {attributes[key] for key in ("id", "name") if key in attributes}
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        key = FETCHED.get(tag)
        if key in attributes and not (tag == "link" and set(attributes.get("rel", "").split()) & NOT_FETCHED):
            self.fetched.append(attributes[key])


def check(site: Path) -> int:
    """Check that links and anchors exist and nothing is fetched from another host; return the number of links.

    Raises BadSite.
    """
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}
    problems, count = list(_styles(site)), 0
    for path, page in pages.items():
        here = path.relative_to(site)
        for link in [*page.links, *page.fetched]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.fetched and parts.scheme != "data":
                    problems.append(f"{here}: fetches {link}")
                continue
            count += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                problems.append(f"{here}: links to {link}, which is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                problems.append(f"{here}: links to {link}, and there is no such anchor")
    if problems:
        raise BadSite("\n".join(problems))
    return count


def _styles(site: Path) -> Iterator[str]:
    """Yield a problem for every address of another host in a style sheet."""
    for path in site.rglob("*.css"):
        for url in re.findall(r"url\(\s*['\"]?((?:https?:)?//[^'\")]+)", path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(site)}: fetches {url}"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "docs", help="folder; the site is its site/")
    parser.add_argument("--serve", action="store_true", help="show the site on http://localhost:8000")
    options = parser.parse_args()
    try:
        pages = stage(options.out)
        site = build(options.out)
        print(f"{site / 'index.html'}: {len(pages)} pages, {check(site)} links")
        if options.serve:
            handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
            http.server.ThreadingHTTPServer(("localhost", 8000), handler).serve_forever()
    except (BadSite, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
