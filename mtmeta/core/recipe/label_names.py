"""Files that name labels: `labels: emotions.txt` of a task, where the data files have numbers or codes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from mtmeta.core.storage.reading import LIMITS, open_regular, parse_json, why
from mtmeta.core.wording import quote

MOST = 100_000


def read_label_names(path: Path) -> dict[str, str]:
    """Return the name of each label that a file gives, in its order.

    A JSON file holds an object, {"0": "sadness"}, or a list, whose names are those of 0, 1 and so on. Any other is
    text: a label and its name with a tab between on each line, or one name a line for 0, 1 and so on. Raises
    ValueError, of one line, for a file that cannot be read or says nothing of the kind.
    """
    try:
        with open_regular(path, LIMITS["labels"]) as file:
            data = file.read()
        found = _of_json(data) if path.suffix.lower() == ".json" else _of_lines(data.decode("utf-8-sig"))
    except FileNotFoundError:
        raise ValueError("no such file") from None
    except OSError as error:
        raise ValueError(why(error)) from None
    except UnicodeDecodeError:
        raise ValueError("is no UTF-8") from None
    twice = [label for label, count in Counter(label for label, _ in found).items() if count > 1]
    if twice:
        raise ValueError(f"names label {quote(twice[0])} twice")
    if not 2 <= len(found) <= MOST:
        raise ValueError(f"names {len(found)} labels, expected from 2 to {MOST:,}")
    return dict(found)


def _of_json(data: bytes) -> list[tuple[str, str]]:
    try:
        value: Any = parse_json(data)
    except ValueError:
        raise ValueError("is no JSON") from None
    if isinstance(value, list):
        value = dict(enumerate(value))
    pairs = list(value.items()) if isinstance(value, dict) else []
    if not pairs or not all(isinstance(name, str) and name.strip() for _, name in pairs):
        raise ValueError('holds no names; write {"0": "sadness", "1": "joy"} or ["sadness", "joy"]')
    return [(str(label), name) for label, name in pairs]


def _of_lines(text: str) -> list[tuple[str, str]]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    parts = [line.split("\t") for line in lines]
    if any(len(part) != len(parts[0]) or len(part) > 2 for part in parts):
        raise ValueError("holds lines with and without a tab; write LABEL, tab, NAME on each, or one name a line")
    if parts and len(parts[0]) == 2:
        return [(label.strip(), name.strip()) for label, name in parts]
    return [(str(number), line) for number, line in enumerate(lines)]
