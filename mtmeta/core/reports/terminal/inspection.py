"""The facts of `mtmeta validate --data` in lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mtmeta.core.wording import safe

__all__ = ["lines"]

MAX_CLASSES = 12


def lines(facts: dict[str, Any]) -> Iterator[str]:
    """Lines on every task and split."""
    for name, task in facts["tasks"].items():
        for split, made in task["splits"].items():
            yield from _split(name, split, made, facts["max_length"], pairs=task["inputs"] != "single")
    for made in facts["across"]:
        share = _share(made["rows"], made["of"])
        message = f"{made['split']} examples share a sentence with what {made['train_of']} trains on"
        yield f"{made['task']}: {made['rows']} of {made['of']} {message} ({share})"


def _split(name: str, split: str, made: dict[str, Any], max_length: int, *, pairs: bool) -> Iterator[str]:
    rows, bad = made["rows"], made["bad"]
    taken = " taken out of" if made["carved"] else ""
    yield f"{name} {split}: {rows:,} rows,{taken} {safe(made['file'], 200)}"
    if bad["rows"]:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in bad["kinds"].items())
        first = bad["first"][0]
        yield f"    bad rows: {bad['rows']:,} ({kinds}); first line {first['line']}: {safe(first['reason'], 200)}"
    else:
        yield "    bad rows: 0"
    yield f"    labels: {_labels(made['labels'])}"
    tokens = made["tokens"]
    spread = ", ".join(f"{key[1:]}% {value:.0f}" for key, value in tokens.items() if key[0] == "p")
    cut = f"{tokens['cut']:,} of {tokens['sequences']:,} ({tokens['cut_share']:.1%}) cut at {max_length}"
    yield f"    tokens a sequence: mean {tokens['mean']:.1f}, {spread}, longest {tokens['longest']}; {cut}"
    of = f"of {rows} {split} examples"
    if repeated := made["duplicates"]["rows"]:
        other = made["duplicates"]["of_other_labels"]
        labelled = f"; {other} stand under different labels" if other else ""
        yield f"    {name}: {repeated} {of} repeat another's text ({_share(repeated, rows)}){labelled}"
    found = made.get("in_train")
    if found and found["examples"]:
        yield f"    {name}: {found['examples']} {of} also in train ({_share(found['examples'], rows)})"
    if found and pairs and found["sharing_a_sentence"]:
        share = _share(found["sharing_a_sentence"], rows)
        yield f"    {name}: {found['sharing_a_sentence']} {of} share a sentence with train ({share})"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}"


def _labels(made: dict[str, Any]) -> str:
    if "classes" not in made:
        low, middle, high = made["quartiles"]
        return (
            f"{made['least']:g} to {made['greatest']:g}, mean {made['mean']:.2f}, "
            f"quartiles {low:.3g}, {middle:.3g}, {high:.3g}"
        )
    counts = made["classes"]
    total = sum(counts.values())
    shown = [f"{safe(label, 20)} {count / total:.1%}" for label, count in list(counts.items())[:MAX_CLASSES]]
    if len(counts) > MAX_CLASSES:
        least, most = min(counts.values()), max(counts.values())
        shown.append(f"... ({len(counts)} in all, {least:,} to {most:,} rows each)")
    absent = [label for label, count in counts.items() if not count]
    missing = f"; no row of {safe(', '.join(absent), 100)}" if absent else ""
    return ", ".join(shown) + missing
