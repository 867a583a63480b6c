"""Errors of a child process as data: one line of JSON each, on a pipe that the parent opened for them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress

from mtmeta.core import errors
from mtmeta.core.errors import MachineError, MtmetaError, Problems, Stopped
from mtmeta.core.wording import safe

PIPE = "MTMETA_ERROR_PIPE"
"""Variable with the file descriptor of the pipe, for a child that is to write its errors there and not to stderr."""
MAX_LENGTH = 1000  # characters, as on stderr

KINDS: dict[str, type[MtmetaError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, MtmetaError)
}
KINDS["Stopped"] = MachineError  # to whoever did not ask for it


def send_error(error: MtmetaError | Stopped, pipe: str) -> bool:
    """Write an error, or each of several problems, to a file descriptor and close it; False if that cannot be done."""
    if not pipe.isdecimal():
        return False
    try:
        with open(int(pipe), "w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(event) + "\n" for event in events_of(error))
    except OSError:
        return False
    return True


def events_of(error: MtmetaError | Stopped) -> list[dict[str, object]]:
    """Return an error, or each of several problems, as data that `receive_errors` reads."""
    return [_event(problem) for problem in (error.problems if isinstance(error, Problems) else [error])]


def _event(error: MtmetaError | Stopped) -> dict[str, object]:
    lines = error.help if isinstance(error, MtmetaError) else ()
    return {
        "kind": next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in KINDS),
        "place": safe(error.place, MAX_LENGTH) if isinstance(error, MtmetaError) else "",
        "message": safe(error.message if isinstance(error, MtmetaError) else str(error), MAX_LENGTH),
        "help": [safe(line, MAX_LENGTH) for line in lines],
    }


def receive_errors(lines: Iterable[str]) -> Iterator[MtmetaError]:
    """Yield the errors that a child sends, as they come; a line that a kill has torn is left out."""
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):
            event = json.loads(line)
            yield KINDS[event["kind"]](event["place"], event["message"], help=event["help"])
