"""Foreign code under guard: whatever a plugin's part raises or returns comes as one error that names the plugin.

The registry guards every part of another package once, when it takes it up. So core calls parts as if they were its
own, and a bug of ours stays a traceback while a plugin's is one line.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, cast

from mtmeta.core.api.contracts import Algorithm, Backbone, JobState, Launcher, Metric, Reporter, Sampler, Task
from mtmeta.core.api.objectives import Objective
from mtmeta.core.errors import MtmetaError, PluginError, out_of_memory
from mtmeta.core.registry.discovery import Plugin, called_by
from mtmeta.core.wording import exception_line, quote

KINDS: dict[str, type[Any]] = {
    "task": Task,
    "algorithm": Algorithm,
    "backbone": Backbone,
    "sampler": Sampler,
    "metric": Metric,
    "reporter": Reporter,
    "launcher": Launcher,
}


# ----------------------------------------------------------------------------------------------- whom messages name


def plugin_of(part: Any) -> Plugin | None:
    """Return the plugin that a part came from; None for one that no registry has taken up."""
    plugin = getattr(part, "mtmeta_supplier", None)
    return plugin if isinstance(plugin, Plugin) else None


def accused(part: Any) -> str:
    """Return the plugin of a part as messages name it; empty for a part of our own."""
    plugin = plugin_of(part)
    return str(plugin) if plugin is not None and plugin.foreign else ""


def supplier(part: Any) -> str:
    """Return who is to be named for a part's fault: its plugin, or the part itself where no plugin is known."""
    kind = next(kind for kind, base in KINDS.items() if isinstance(part, base))
    return str(plugin_of(part) or f"{kind} {quote(part.name)}")


def fault(part: Any, message: str) -> PluginError:
    """Make the error for what a part did wrong, in the name of its supplier."""
    return PluginError(supplier(part), message)


@dataclasses.dataclass(frozen=True, eq=False)
class Accusation:
    """Who is to be named for what is raised within, beside errors of ours."""

    plugin: Plugin
    kind: str
    name: str

    @contextmanager
    def __call__(self, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """Turn exceptions into PluginError, but for those `passing`, which are answers."""
        answers: tuple[type[BaseException], ...] = (MtmetaError, KeyboardInterrupt, GeneratorExit, *passing)
        try:
            yield
        except answers:
            raise
        except BaseException as error:  # a plugin's sys.exit() would end the run without a word
            if out_of_memory(error):
                raise  # too large a batch is no plugin's fault
            raise self.error(error) from error

    def error(self, error: BaseException) -> PluginError:
        """Return the error that names the plugin."""
        return PluginError(str(self.plugin), f"{self.kind} {quote(self.name)} raised {exception_line(error)}")


@contextmanager
def blame(part: Any, kind: str) -> Iterator[None]:
    """Turn an exception of a foreign `part` into a PluginError; a built-in's is a bug and passes through.

    For code of a part that its contract does not reach, such as the forward of a head; all else is under guard.
    """
    plugin = plugin_of(part)
    with Accusation(plugin, kind, part.name)() if plugin and plugin.foreign else nullcontext():
        yield


# ------------------------------------------------------------------------------------------------ parts under guard

# by method of an objective or a task, the exceptions that are answers and no faults; whoever calls says what they mean
_PASSING: dict[str, tuple[type[Exception], ...]] = dict.fromkeys(
    ("parse", "loss", "training_loss", "soft_loss", "texts_of"), (ValueError,)
)
_OBJECTIVE = (
    *("labelled", "width", "outputs", "classes", "parse", "show", "loss", "soft_loss", "decode", "probabilities"),
    *("tunes", "tune", "tuned", "confusion", "spans", "export", "targets", "partial", "ranks"),
    *("trains_otherwise", "training_loss", "teacher_obstacle", "outside", "takes_temperature", "within"),
)


def guard(part: type[Any], kind: str, plugin: Plugin) -> None:
    """Put all that the contract of a foreign part asks for under guard, in its class; again does no harm."""
    accuse = Accusation(plugin, kind, part.name)
    base: Any = KINDS[kind]
    for name in _contract(base):
        if name in getattr(part, "__dataclass_fields__", {}):
            continue
        value = inspect.getattr_static(part, name)
        finish = functools.partial(_FINISH.get((kind, name), _lines if name == "about" else _as_it_is), accuse)
        guarded = _guarded(value, accuse, finish, _PASSING.get(name, ()) if kind == "task" else ())
        if name == "objective" and guarded is value:
            guarded = _ConstantObjective(getattr(value, "constant", value), accuse)
        if guarded is not value:
            setattr(part, name, guarded)


def unguarded(kind: type[Any]) -> type[Any]:
    """Return the class that a guarded one stands for."""
    original: type[Any] = kind.__dict__.get("_guards", kind)
    return original


def guard_metric(metric: Metric, plugin: Plugin) -> Metric:
    """Make the same metric, whose errors name its plugin."""

    def function(labels: Any, predictions: Any, **seen: Any) -> float:
        try:
            # copies: whatever it does to them, the next metric and the next evaluation see the true ones
            others = {name: copy.copy(value) for name, value in seen.items()}
            return float(metric.function(copy.copy(labels), copy.copy(predictions), **others))
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            raise Accusation(plugin, "metric", metric.name).error(error) from error

    with suppress(Exception):  # it may be any object, with any idea of what its attributes are
        functools.update_wrapper(function, metric.function)
    function.mtmeta_supplier = plugin  # type: ignore[attr-defined]  # a Metric itself has no room for it
    return dataclasses.replace(metric, function=function)


@functools.cache
def _contract(base: Any) -> tuple[str, ...]:
    """Return the names of the methods and properties that plugins implement for a base class."""
    named = {name: value for kind in reversed(base.__mro__[:-1]) for name, value in vars(kind).items()}
    members = (types.FunctionType, property, classmethod)
    return tuple(name for name, value in named.items() if not name.startswith("_") and isinstance(value, members))


def _guarded(value: Any, accuse: Accusation, finish: Callable[[Any], Any], passing: tuple[Any, ...] = ()) -> Any:
    """Put a function, property, class or static method under guard; anything else is as good as a constant."""
    if isinstance(value, property):
        return property(_calling(value.fget, accuse, finish), value.fset, value.fdel, value.__doc__)
    if isinstance(value, functools.cached_property):
        guarded = functools.cached_property(_calling(value.func, accuse, finish))
        guarded.attrname = value.attrname
        return guarded
    if isinstance(value, classmethod | staticmethod):
        return type(value)(_calling(value.__func__, accuse, finish))
    return _calling(value, accuse, finish, passing) if isinstance(value, types.FunctionType) else value


def _calling(
    function: Any, accuse: Accusation, finish: Callable[[Any], Any], passing: tuple[type[Exception], ...] = ()
) -> Callable[..., Any]:
    """Make the function under guard; of one that is already, in the name of whoever's class it is in now."""
    function = getattr(function, "mtmeta_unguarded", function)

    @functools.wraps(function)
    def guarded(*arguments: Any, **options: Any) -> Any:
        if called_by(accuse.plugin):  # for what a plugin asks of itself it may have an `except` of its own
            return function(*arguments, **options)
        with accuse(passing=passing):
            return finish(function(*arguments, **options))

    guarded.mtmeta_unguarded = function  # type: ignore[attr-defined]
    return guarded


# ------------------------------------------------------------------- what parts return, to be used without a question


def _as_it_is(accuse: Accusation, value: Any) -> Any:
    return value


def _iterated(accuse: Accusation, values: Any) -> Iterator[Any]:
    """Guard what is raised while `values` are gone through, as a generator's code is."""
    iterator = iter(values)

    def go_through() -> Iterator[Any]:
        with accuse():
            yield from iterator

    return go_through()


def _remarks(accuse: Accusation, values: Any) -> Iterator[tuple[str, str]]:
    return _iterated(accuse, ((str(option), str(message)) for option, message in values))


def _objective(accuse: Accusation, objective: Any) -> Any:
    """Make a twin of a foreign task's objective that shares its state, with its methods under guard."""
    if not isinstance(objective, Objective):
        raise TypeError(f"objective is {objective!r}, expected a mtmeta.Objective")
    original = unguarded(type(objective))
    guarded = object.__new__(_objective_class(cast(Hashable, original), accuse))
    object.__setattr__(guarded, "__dict__", objective.__dict__)
    for name in (name for kind in original.__mro__ for name in getattr(kind, "__slots__", ())):
        if hasattr(objective, name):
            object.__setattr__(guarded, name, getattr(objective, name))
    return guarded


class _ConstantObjective:
    """An objective that is a constant of its class: itself for the plugin, under guard for us."""

    def __init__(self, constant: Any, accuse: Accusation) -> None:
        self.constant, self._accuse = constant, accuse

    def __get__(self, task: Any, owner: type[Any]) -> Any:
        if task is None or called_by(self._accuse.plugin):
            return self.constant
        with self._accuse():
            return _objective(self._accuse, self.constant)


@functools.lru_cache(maxsize=256)
def _objective_class(kind: Any, accuse: Accusation) -> type[Any]:
    keep = functools.partial(_as_it_is, accuse)
    values = {name: inspect.getattr_static(kind, name) for name in _OBJECTIVE}
    members = {name: _guarded(value, accuse, keep, _PASSING.get(name, ())) for name, value in values.items()}
    about = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), {**members, **about, "_guards": kind})


def _texts(accuse: Accusation, texts: Any) -> tuple[str, ...]:
    if not isinstance(texts, tuple | list) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"texts_of returned {texts!r}, expected a tuple of texts")
    return tuple(texts)


def _tasks_in_groups(accuse: Accusation, groups: Iterable[Sequence[str]]) -> list[list[str]]:
    return [list(group) for group in groups]


def _numbers(accuse: Accusation, numbers: Any) -> dict[str, float]:
    return {str(name): float(number) for name, number in dict(numbers).items()}


def _lines(accuse: Accusation, lines: Iterable[Any]) -> list[str]:
    return [str(line) for line in lines]


def _handle(accuse: Accusation, handle: Any) -> str:
    if not isinstance(handle, str) or not handle:
        raise TypeError(f"submit returned {handle!r}, expected a text")
    return handle


def _states(accuse: Accusation, states: Any) -> dict[str, JobState]:
    for state in dict(states).values():
        if not isinstance(state, JobState):
            raise TypeError(f"poll returned {state!r} for a job, expected a mtmeta.JobState")
    return dict(states)


class _Reporting(AbstractContextManager[Any]):
    """A reporter's context, the handler in it, and its way out, all under guard."""

    def __init__(self, accuse: Accusation, context: Any) -> None:
        self._accuse, self._context = accuse, context

    def __enter__(self) -> Callable[[Any], None]:
        with self._accuse():
            handle = self._context.__enter__()

        def guarded(event: Any) -> None:
            with self._accuse():
                handle(event)

        return guarded

    def __exit__(self, *raised: Any) -> None:
        with self._accuse():
            self._context.__exit__(*raised)  # what it returns may not hide the exception


_FINISH: dict[tuple[str, str], Callable[[Accusation, Any], Any]] = {
    ("task", "read"): _iterated,
    ("task", "sample"): _iterated,
    ("task", "check"): _remarks,
    ("task", "objective"): _objective,
    ("task", "texts_of"): _texts,
    ("algorithm", "check"): _remarks,
    ("algorithm", "groups"): _tasks_in_groups,
    ("algorithm", "parameters"): _numbers,
    ("algorithm", "parameters_of"): _numbers,
    ("sampler", "check"): _remarks,
    ("sampler", "probabilities"): _numbers,
    ("reporter", "open"): _Reporting,
    ("launcher", "submit"): _handle,
    ("launcher", "poll"): _states,
}
