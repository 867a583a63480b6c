"""Errors that are not ours, in our words: the parser's, the system's, and bugs."""

from __future__ import annotations

import errno
from typing import Any

from mtmeta.core.environment import has_memory_limit
from mtmeta.core.errors import (
    MachineError,
    MtmetaError,
    OutOfMemory,
    PluginError,
    UsageError,
    WeightsError,
    out_of_memory,
    out_of_threads,
)
from mtmeta.core.registry.discovery import culprit
from mtmeta.core.wording import choose, did_you_mean, exception_line, quote, safe


def usage_error(error: Any, message: str) -> UsageError:
    """Turn a parser error, whose own text is `message`, into a UsageError: `place: what is wrong; one fix`."""
    path = error.ctx.command_path if error.ctx else "mtmeta"
    if type(error).__name__ == "NoSuchOption":
        known = [option for parameter in error.ctx.command.params for option in parameter.opts]
        hint = did_you_mean(error.option_name, known) or f"; see {path} --help"
        return UsageError(safe(error.option_name), f"no such option{hint}")
    if message.startswith("No such command"):
        token = message.removeprefix("No such command ").partition(". Did you mean ")[0].rstrip(".")
        given = token[1:-1]  # it stands there as Python's repr
        return UsageError("", f"no such command {quote(given)}{choose(given, error.ctx.command.commands)}")
    return UsageError(path, safe(message[0].lower() + message[1:].rstrip("."), 300) + f"; see {path} --help")


def explained(error: Exception) -> MtmetaError:
    """Return an error as the user is to see it: ours as it is, but for a name too long, which is no machine's fault."""
    cause = error.__cause__ if isinstance(error, MachineError) else error
    if isinstance(cause, OSError) and cause.errno == errno.ENAMETOOLONG:
        place = error.place if isinstance(error, MachineError) else str(cause.filename or "system")
        return UsageError(place, f"a name of {len(place)} characters is too long for this system; give a shorter one")
    lack = cause.__cause__ if isinstance(cause, WeightsError) else None  # what a library met while it loaded them
    while lack is not None and not out_of_memory(lack):
        lack = lack.__cause__
    if isinstance(lack, Exception):
        return unforeseen(lack)
    return error if isinstance(error, MtmetaError) else unforeseen(error)


def unforeseen(error: Exception) -> MtmetaError:
    """Turn an exception that is none of ours into one: the machine's fault, a plugin's, or a bug."""
    broken = isinstance(error, SystemError) and has_memory_limit()  # as Python says where C code hit the limit
    if kind := "out of memory" if broken else out_of_memory(error):
        what = f" in loading {safe(error.name or 'a library')}" if isinstance(error, ImportError) else ""
        fix = "close other programs" if what else "lower batch_size or max_length"
        fix += ", or raise the limit of this process (ulimit -v)" if has_memory_limit() else ""
        return OutOfMemory("", f"{kind}{what}; {fix}")
    if out_of_threads(error):
        return MachineError("this process", "can start no more threads or processes; raise its limit (ulimit -u)")
    if isinstance(error, OSError):
        place = safe(str(error.filename)) if error.filename else "system"
        return MachineError(place, f"{safe(error.strerror or str(error))}; check the disk and its permissions")
    if plugin := culprit(error):
        return PluginError(plugin, f"raised {exception_line(error)}")
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("mtmeta"):
        return MachineError("", f"this command needs the package {quote(error.name)}; pip install mtmeta again")
    text = safe(f"bug in mtmeta: {type(error).__name__}: {error}", 500)
    return MtmetaError("", f"{text}; run again with MTMETA_DEBUG=1 and report the traceback")
