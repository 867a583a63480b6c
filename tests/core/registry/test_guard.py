"""Parts of other packages under guard: what they raise, at once or later, names their plugin; ours passes through."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import mtmeta
from mtmeta.core.registry import discovery
from mtmeta.core.registry.discovery import Plugin, Plugins
from mtmeta.core.registry.guard import accused, fault, guard_metric, plugin_of, unguarded
from mtmeta.core.registry.registry import Registry

SAMPLE = [mtmeta.Example("a", label="0")]


class Stumbling(mtmeta.Classification):
    """Of two classes, and wrong in every method that is called."""

    def show(self, prediction: float) -> str:
        raise LookupError("nothing to show")

    def parse(self, label: object) -> int:
        raise ValueError(f"not {label}")


def task(name: str, **members: Any) -> type[mtmeta.Task]:
    members = {"objective": mtmeta.Binary(), "metrics": ("accuracy",), **members}
    return type("Made", (mtmeta.Task,), {"name": name, "__annotations__": {}, **members})


def registered(part: type[Any], kind: str = "task", distribution: str = "mtmeta-p") -> Any:
    """The part as a registry hands it out."""
    hook = {
        "task": "tasks",
        "algorithm": "algorithms",
        "reporter": "reporters",
        "sampler": "samplers",
        "launcher": "launchers",
    }[kind]
    plugin = Plugin("p", "0.3", distribution, parts={hook: [part]})
    registry = Registry(Plugins([plugin]))
    assert plugin.broken is None
    return registry.get(kind, part.name, "here")


def raised(call: Callable[[], Any]) -> str:
    with pytest.raises(mtmeta.PluginError) as caught:
        call()
    return str(caught.value)


def boom(*_: Any) -> Any:
    raise RuntimeError("boom")


def late(*_: Any) -> Iterator[Any]:
    yield SAMPLE[0]
    raise RuntimeError("boom")


@pytest.mark.parametrize(
    ("members", "call"),
    [
        ({"build_head": boom}, lambda part: part.build_head(8)),
        ({"sample": late}, lambda part: list(part.sample("train"))),
        ({"read": late}, lambda part: list(part.read(None))),
        ({"check": late}, lambda part: list(part.check())),
        ({"columns": property(boom)}, lambda part: part.columns),
        ({"about": classmethod(boom)}, lambda part: part.about()),
        ({"objective": property(boom)}, lambda part: part.objective),
    ],
    ids=["method", "iterator", "file", "checks", "property", "class method", "objective"],
)
def test_what_is_raised_names_the_plugin(members: dict[str, Any], call: Callable[[Any], Any]) -> None:
    part = registered(task("mine", **members))(train="a.tsv")
    assert raised(lambda: call(part)) == "plugin 'mtmeta-p' 0.3: task 'mine' raised RuntimeError: boom" or (
        "check" in members and "raised TypeError" in raised(lambda: call(part))  # an example is no (option, message)
    )


def test_ours_are_not_guarded() -> None:
    """Theirs would be, ours stay the functions they are: a bug of ours is a traceback."""
    part = registered(task("ours", build_head=boom), distribution="mtmeta")(train="a.tsv")
    with pytest.raises(RuntimeError, match="boom"):
        part.build_head(8)
    assert accused(part) == ""
    assert str(fault(part, "is odd")) == f"{plugin_of(part)}: is odd"


def test_errors_of_ours_pass_through() -> None:
    def refuse(self: Any, split: str) -> Iterable[mtmeta.Example]:
        raise mtmeta.DataError("a.tsv", "has no rows")

    with pytest.raises(mtmeta.DataError, match="has no rows"):
        registered(task("strict", sample=refuse))(train="a.tsv").sample("train")


def test_the_objective_is_the_same_but_guarded() -> None:
    mine = Stumbling(labels=("no", "yes"))
    part = registered(task("mine", objective=mine))(train="a.tsv")
    objective = part.objective
    assert isinstance(objective, Stumbling) and unguarded(type(objective)) is Stumbling
    assert repr(objective) == repr(mine) and objective == part.objective
    assert objective.classes == ("no", "yes")
    assert "task 'mine' raised LookupError: nothing to show" in raised(lambda: objective.show(1.0))
    with pytest.raises(ValueError, match="not maybe"):  # an answer, not a fault
        objective.parse("maybe")
    with pytest.raises(LookupError):
        mine.show(1.0)  # the plugin's own is as it was


def test_an_objective_that_is_none() -> None:
    part = registered(task("mine", objective=3))(train="a.tsv")
    assert raised(lambda: part.objective).endswith("raised TypeError: objective is 3, expected a mtmeta.Objective")


def test_twice_and_by_two_plugins() -> None:
    """A class that a second plugin extends names the second; one that is registered again is guarded once."""
    first = registered(registered(task("first", build_head=boom)))
    assert str(first(train="a").build_head.__wrapped__) == str(boom)
    second = registered(type("Second", (first,), {"name": "second", "__annotations__": {}}), distribution="mtmeta-q")
    assert raised(lambda: second(train="a").build_head(8)).startswith("plugin 'mtmeta-q' 0.3: task 'second' raised ")
    assert raised(lambda: first(train="a").build_head(8)).startswith("plugin 'mtmeta-p' 0.3: task 'first' raised ")
    assert dataclasses.replace(second(train="a"), dev="b").dev == "b"


def test_parts_say_in_their_own_types_what_core_may_rely_on() -> None:
    class Odd(mtmeta.Sampler):
        name = "odd"

        def probabilities(self, sizes: Any, draw: Any) -> Any:
            return {"a": "0.5", "b": "much"} if draw.index else {"a": "0.5"}

    sampler = registered(Odd, "sampler")()
    assert sampler.probabilities({}, mtmeta.Draw(0, 1)) == {"a": 0.5}
    message = raised(lambda: sampler.probabilities({}, mtmeta.Draw(1, 1)))
    assert (
        message == "plugin 'mtmeta-p' 0.3: sampler 'odd' raised ValueError: could not convert string to float: 'much'"
    )


def test_reporters_on_the_way_in_and_out_and_between(tmp_path: Path) -> None:
    class Reporter(mtmeta.Reporter):
        name = "odd"

        @contextlib.contextmanager
        def open(self, folder: Path) -> Iterator[Callable[[Any], None]]:
            if folder != tmp_path:
                raise RuntimeError("no way in")
            yield boom
            raise RuntimeError("no way out")

    reporter = registered(Reporter, "reporter")()
    assert raised(reporter.open(tmp_path / "x").__enter__).endswith("reporter 'odd' raised RuntimeError: no way in")
    context = reporter.open(tmp_path)
    handle = context.__enter__()
    assert raised(lambda: handle(None)).endswith("reporter 'odd' raised RuntimeError: boom")
    assert raised(lambda: context.__exit__(None, None, None)).endswith("raised RuntimeError: no way out")


def test_a_launcher_is_guarded_and_what_it_returns_is_looked_at() -> None:
    class Odd(mtmeta.Launcher):
        name = "odd"

        def submit(self, job: mtmeta.Job) -> Any:
            return 17

        def poll(self, handles: Sequence[str]) -> Any:
            if not handles:
                raise mtmeta.MachineError("odd", "gives no answer")
            return dict.fromkeys(handles, "running")

        def cancel(self, handle: str) -> None:
            raise RuntimeError("boom")

    launcher = registered(Odd, "launcher")()
    job = mtmeta.Job("a", ("true",), {}, Path(), Path())
    assert raised(lambda: launcher.submit(job)).endswith("TypeError: submit returned 17, expected a text")
    expected = "launcher 'odd' raised TypeError: poll returned 'running' for a job, expected a mtmeta.JobState"
    assert raised(lambda: launcher.poll(["1"])).endswith(expected)
    assert raised(lambda: launcher.cancel("1")).endswith("launcher 'odd' raised RuntimeError: boom")
    with pytest.raises(mtmeta.MachineError, match="gives no answer"):  # which is an answer
        launcher.poll([])


def test_a_plugin_may_catch_what_its_own_methods_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of itself, of its base and of its objective it sees what stands there; what gets out of it names it."""

    class Base(mtmeta.Task):
        name = "base"
        metrics = ("accuracy",)
        objective = mtmeta.Classification(labels=2)

        def sample(self, split: str) -> Iterable[mtmeta.Example]:
            yield SAMPLE[0]
            raise LookupError("no more")

    class Careful(Base):
        name = "careful"

        def sample(self, split: str) -> Iterable[mtmeta.Example]:
            assert self.objective == mtmeta.Classification(labels=2) and self.objective is Base.objective
            with contextlib.suppress(LookupError):
                yield from super().sample(split)

    base, careful = registered(Base), registered(Careful)
    monkeypatch.setitem(discovery._MODULES, __name__.partition(".")[0], "plugin 'mtmeta-p' 0.3")
    drawn = list(careful(train="a").sample("train"))
    monkeypatch.undo()
    assert drawn == SAMPLE
    assert raised(lambda: list(base(train="a").sample("train"))).endswith("task 'base' raised LookupError: no more")


def test_an_objective_that_counts_goes_on_counting() -> None:
    class Counting(mtmeta.Binary):
        calls = 0

        def parse(self, label: object) -> int:
            object.__setattr__(self, "calls", self.calls + 1)
            return self.calls

    part = registered(task("mine", objective=Counting()))(train="a")
    assert [part.objective.parse("x") for _ in range(3)] == [1, 2, 3]


def test_a_metric_names_its_plugin_whatever_it_raises() -> None:
    def refuse(labels: Any, predictions: Any) -> float:
        raise mtmeta.DataError("here", "no")

    metric = guard_metric(mtmeta.Metric("odd", refuse), Plugin("p", "0.3", "mtmeta-p"))
    message = "plugin 'mtmeta-p' 0.3: metric 'odd' raised DataError: here: no"
    assert raised(lambda: metric([], [])) == message


@pytest.mark.parametrize("how", ["post_init", "default"])
def test_a_part_that_cannot_be_made_breaks_its_plugin(how: str) -> None:
    def leave(*_: Any) -> Any:
        raise SystemExit(0)

    class Odd(mtmeta.Sampler):
        name = "odd"
        if how == "post_init":
            __post_init__ = leave
        else:
            pace: int = dataclasses.field(default_factory=leave)

    plugin = Plugin("p", "0.3", "mtmeta-p", parts={"samplers": [Odd]})
    Registry(Plugins([plugin]))
    assert plugin.broken == "register_samplers holds a part that cannot be used: SystemExit: 0"


def test_a_row_that_a_task_cannot_use_is_no_fault_of_its_plugin() -> None:
    def texts_of(self: mtmeta.Task, row: dict[str, Any]) -> Any:
        if row["given"] is None:
            raise ValueError("nothing is given")
        return row["given"] if isinstance(row["given"], list) else row["none"]

    part = registered(task("rows", texts_of=texts_of))(train="t")
    assert part.texts_of({"given": ["a", "b"]}) == ("a", "b")
    with pytest.raises(ValueError, match=r"^nothing is given$"):
        part.texts_of({"given": None})
    assert "task 'rows' raised KeyError: 'none'" in raised(lambda: part.texts_of({"given": 1}))
    assert "raised TypeError: texts_of returned [1], expected a tuple of texts" in raised(
        lambda: part.texts_of({"given": [1]})
    )
