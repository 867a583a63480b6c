"""Events to reporters, none of which may cost the training: one that fails is left out, unless it is essential."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from mtmeta.core.blame import accused, blame
from mtmeta.core.contracts import Reporter
from mtmeta.core.disk import disk_errors
from mtmeta.core.errors import MtmetaError
from mtmeta.core.events import Event
from mtmeta.core.foreign import told

__all__ = ["open_reporters", "require_reporters"]


def require_reporters(reporters: Sequence[Reporter]) -> None:
    """Raise MachineError where a reporter lacks a package, as long as that costs nothing."""
    for reporter in reporters:
        with blame(reporter, "reporter"):
            reporter.require()


def open_reporters(
    stack: ExitStack,
    reporters: Sequence[Reporter],
    folder: Path,
    *,
    newest: Callable[[], str],
    warn: Callable[[str], None],
) -> Callable[[Event], None]:
    """Open every reporter until `stack` closes; returns what hands an event to each.

    One that cannot be opened ends the run, which has not begun. One that fails later is left out from there on.
    `newest` names the newest checkpoint, for messages about the disk.
    """
    handlers: dict[int, tuple[Reporter, Callable[[Event], None]]] = {}

    @contextmanager
    def excused(number: int, reporter: Reporter) -> Iterator[None]:
        what = f"reporter '{reporter.name}' cannot write"
        try:
            with disk_errors(folder, what, newest), blame(reporter, "reporter"):
                yield
        except Exception as error:
            # a closed pipe is one for the console: whoever read what it says has seen enough
            if reporter.essential or (isinstance(error, BrokenPipeError) and not accused(reporter)):
                raise
            handlers.pop(number, None)
            text = str(error) if isinstance(error, MtmetaError) else f"reporter '{reporter.name}' raised {told(error)}"
            with suppress(OSError):  # stderr may be what is gone
                warn(f"{text}; the run goes on without this reporter")

    for number, reporter in enumerate(reporters):
        with disk_errors(folder, newest=newest), blame(reporter, "reporter"):
            context = reporter.open(folder)
            handle = context.__enter__()
        handlers[number] = (reporter, handle)

        def close(
            *raised: object, number: int = number, reporter: Reporter = reporter, context: object = context
        ) -> None:
            with excused(number, reporter):
                context.__exit__(*raised)  # type: ignore[attr-defined]  # what it returns may not hide the exception

        stack.push(close)

    def emit(event: Event) -> None:
        for number, (reporter, handle) in list(handlers.items()):
            with excused(number, reporter):
                handle(event)

    return emit
