"""One line of a CSV or TSV file to its fields, one line of a JSONL file to its object."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import accumulate
from typing import NoReturn

from mtmeta.core.tables.bad_rows import BadRowError
from mtmeta.core.wording import quote, safe

MAX_DEPTH = 32  # levels of JSON nesting
QUOTED = re.compile(r'"((?:[^"]++|"")*+)("?)')  # from an opening quote on; group 2 is the closing one, if any
NOT_BRACKETS = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[^\[\]{}"]++')  # of JSON: strings whole, and what stands between


def split_fields(text: str, delimiter: str) -> list[str] | None:
    """Return the fields of a line; [] if text follows a closing quote, None if the last field does not close."""
    # as csv.reader(strict=True), which has one field limit for the whole process and ends a row at a lone CR
    fields: list[str] = []
    at = 0
    while at <= len(text):
        if quoted := QUOTED.match(text, at):
            end = quoted.end()
            if not quoted[2]:
                return None
            if text[end : end + 1] not in ("", delimiter):
                return []
            fields.append(quoted[1].replace('""', '"'))
        else:
            end = text.find(delimiter, at) % (len(text) + 1)  # -1 becomes the end of the line
            fields.append(text[at:end])
        at = end + 1
    return fields


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise BadRowError("duplicate key", f"duplicate key {quote(key)}")
    return result


def _refuse(constant: str) -> NoReturn:
    raise BadRowError("not a JSON object", f"{constant} is not JSON; write a finite number")


DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=str, parse_int=str, parse_constant=_refuse)


def parse_object(text: str) -> dict[str, object]:
    """Return the object on a JSONL line; numbers keep the text they have in the file. Raises BadRowError."""
    if max(accumulate(1 if c in "[{" else -1 for c in NOT_BRACKETS.sub("", text)), default=0) > MAX_DEPTH:
        raise BadRowError("not a JSON object", f"nested deeper than {MAX_DEPTH} levels")
    try:
        value = DECODER.decode(text)
    except json.JSONDecodeError as error:
        reason = f"not JSON ({safe(error.msg)} at character {error.colno}); write one object a line"
        raise BadRowError("not a JSON object", reason) from None
    if not isinstance(value, dict):
        raise BadRowError("not a JSON object", "not a JSON object; write one object a line")
    return value
