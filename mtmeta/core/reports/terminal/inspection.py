"""The facts of `mtmeta validate --data`, in lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mtmeta.core.wording import safe

MAX_CLASSES = 12


def lines(facts: dict[str, Any]) -> Iterator[str]:
    """Give lines on every task and split."""
    for name, task in facts["tasks"].items():
        for split, facts_of_split in task["splits"].items():
            yield from _split(name, split, facts_of_split, facts["max_length"], task)
    for shared in facts["across"]:
        share = _share(shared["rows"], shared["of"])
        clause = f"{shared['split']} examples share a sentence with what {shared['train_of']} trains on"
        yield f"{shared['task']}: {shared['rows']} of {shared['of']} {clause} ({share})"


def _split(name: str, split: str, facts: dict[str, Any], max_length: int, task: dict[str, Any]) -> Iterator[str]:
    pairs, long = task["inputs"] != "single", task["long"]
    rows, bad = facts["rows"], facts["bad"]
    taken = " taken out of" if facts["carved"] else ""
    yield f"{name} {split}: {rows:,} rows,{taken} {safe(facts['file'], 200)}"
    if bad["rows"]:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in bad["kinds"].items())
        first = bad["first"][0]
        yield f"    bad rows: {bad['rows']:,} ({kinds}); first line {first['line']}: {safe(first['reason'], 200)}"
    else:
        yield "    bad rows: 0"
    for note in [*facts["notes"], *facts["readings"]]:
        yield f"    note: {safe(note, 400)}"
    yield f"    labels: {_labels(facts['labels'])}"
    tokens = facts["tokens"]
    spread = ", ".join(f"{key[1:]}% {value:.0f}" for key, value in tokens.items() if key[0] == "p")
    cut = f"{tokens['cut']:,} of {tokens['sequences']:,} ({tokens['cut_share']:.1%}) cut at {max_length}"
    if long:
        cut = f"{tokens['cut']:,} ({tokens['cut_share']:.1%}) cut after {long['most']} windows"
    yield f"    tokens a sequence: mean {tokens['mean']:.1f}, {spread}, longest {tokens['longest']}; {cut}"
    if parted := tokens.get("several"):
        longer, ways = (long["window"], "windows") if long else (max_length, "sequences")
        yield f"    {name}: {parted} of {rows} {split} texts are longer than {longer} and read in several {ways}"
    elif tokens["cut"] and not pairs:
        windows = f"{{window: {max_length}, stride: {max_length // 2}}}"
        yield f"    {name}: to read what is cut, set tasks.{name}.long: {windows}"
    of = f"of {rows} {split} examples"
    if repeated := facts["duplicates"]["rows"]:
        other = facts["duplicates"]["of_other_labels"]
        labelled = f"; {other} stand under different labels" if other else ""
        yield f"    {name}: {repeated} {of} repeat another's text ({_share(repeated, rows)}){labelled}"
    in_train = facts.get("in_train") or {}
    if examples := in_train.get("examples"):
        yield f"    {name}: {examples} {of} also in train ({_share(examples, rows)})"
    if pairs and (sharing := in_train.get("sharing_a_sentence")):
        yield f"    {name}: {sharing} {of} share a sentence with train ({_share(sharing, rows)})"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}"


def _labels(labels: dict[str, Any]) -> str:
    """Return the shares of classes; of numbers their range and quartiles; of several labels those of each."""
    if "outputs" in labels:
        each = labels["outputs"].items()
        return "; ".join(f"{safe(name, 20)}, {labels['rows'][name]:,} rows: {_labels(own)}" for name, own in each)
    if "sets" in labels:
        without = f", {labels['empty']:,} rows without one" if labels["empty"] else ""
        return f"{labels['mean_size']:.2f} a row{without}; {_classes(labels['sets'], labels['rows'])}"
    if "targets" in labels:
        of = (f"{safe(name, 20)} {_numbers(numbers)}" for name, numbers in labels["targets"].items())
        return "; ".join(of)
    if "different" in labels:
        first, second, *others = (f"{count:,}" for count in labels["different"])
        more = f", hard negatives {', '.join(others)}" if others else ""
        return f"none; different texts: anchors {first}, positives {second}{more}"
    if "classes" not in labels:
        return _numbers(labels)
    counts = labels["classes"]
    unseen = [f"{safe(label, 20)} {count:,}" for label, count in labels.get("unseen", {}).items()]
    outside = f"; no class of the recipe: {safe(', '.join(unseen), 100)}" if unseen else ""
    return _classes(counts, sum(counts.values())) + outside


def _numbers(numbers: dict[str, Any]) -> str:
    """Return range, mean and quartiles of numbers."""
    if not numbers["count"]:
        return "no row"
    low, middle, high = numbers["quartiles"]
    mean = f"{numbers['least']:g} to {numbers['greatest']:g}, mean {numbers['mean']:.2f}"
    return f"{mean}, quartiles {low:.3g}, {middle:.3g}, {high:.3g}"


def _classes(counts: dict[str, int], total: int) -> str:
    """Return the share of the rows that each class has."""
    shown = [f"{safe(label, 20)} {count / total:.1%}" for label, count in list(counts.items())[:MAX_CLASSES]]
    if len(counts) > MAX_CLASSES:
        least, most = min(counts.values()), max(counts.values())
        shown.append(f"... ({len(counts)} in all, {least:,} to {most:,} rows each)")
    absent = [label for label, count in counts.items() if not count]
    missing = f"; no row of {safe(', '.join(absent), 100)}" if absent else ""
    return ", ".join(shown) + missing
