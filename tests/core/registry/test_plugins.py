"""Loading plugins, the registry, and who may import whom."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import json
import os
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import mtmeta
from mtmeta.core.api import hookspecs
from mtmeta.core.registry import discovery as loading
from mtmeta.core.registry.discovery import DEFAULT_PLUGINS, Plugin, Plugins, load_plugins
from mtmeta.core.registry.guard import KINDS, blame
from mtmeta.core.registry.registry import Registry, build_registry
from tests.support.commands import command as run_command
from tests.support.paths import ROOT

Install = Callable[..., None]
distributions = importlib.metadata.distributions


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install(name=module text)` makes an importable package of each, with metadata; nothing else is installed."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: distributions(path=[str(tmp_path)]))
    monkeypatch.delenv("MTMETA_PLUGINS", raising=False)
    modules: list[str] = []

    def put(**packages: str) -> None:
        for name, text in packages.items():
            modules.append(name)
            (tmp_path / f"{name}.py").write_text(dedent(text))
            info = tmp_path / f"{name}-0.3.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: mtmeta-{name}\nVersion: 0.3\n")
            (info / "entry_points.txt").write_text(f"[mtmeta]\n{name} = {name}\n")
        importlib.invalidate_caches()

    yield put
    for name in modules:
        sys.modules.pop(name, None)


def third_party(plugins: Plugins) -> list[Plugin]:
    return [plugin for plugin in plugins.all if plugin.distribution != "mtmeta"]


def reason(plugins: Plugins) -> str | None:
    """Why the only third-party plugin is broken."""
    (plugin,) = third_party(plugins)
    Registry(plugins)  # some faults show when the parts are looked at
    return plugin.broken


# --- hooks

# an implementation of every hook: the name that must appear in the registry, and the text that makes it
IMPLEMENTED = {
    "register_tasks": ("class Part(mtmeta.Task):", "Part"),
    "register_algorithms": ("class Part(mtmeta.Algorithm):", "Part"),
    "register_backbones": ("class Part(mtmeta.Backbone):", "Part"),
    "register_samplers": ("class Part(mtmeta.Sampler):", "Part"),
    "register_metrics": ("class Unused:", "mtmeta.Metric('a-part', lambda labels, predictions: 0.5)"),
    "register_reporters": ("class Part(mtmeta.Reporter):", "Part"),
    "register_launchers": ("class Part(mtmeta.Launcher):", "Part"),
}


def specified() -> dict[str, Any]:
    return {name: spec for name, spec in vars(hookspecs).items() if hasattr(spec, "mtmeta_spec")}


def test_every_hook_is_known_to_loader_and_registry() -> None:
    assert list(specified()) == list(loading.HOOK_NAMES) == list(IMPLEMENTED)
    assert [f"register_{kind}s" for kind in KINDS] == list(IMPLEMENTED)


@pytest.mark.parametrize("hook", sorted(IMPLEMENTED))
def test_a_hook_is_documented_and_heard(hook: str, install: Install) -> None:
    spec = specified()[hook]
    assert inspect.getdoc(spec), f"{hook} has no documentation"
    assert not inspect.signature(spec).parameters
    assert str(inspect.signature(spec).return_annotation).startswith("list[")
    opening, part = IMPLEMENTED[hook]
    install(
        alone=f"""
        import mtmeta

        {opening}
            name = "a-part"

        @mtmeta.hookimpl
        def {hook}():
            return [{part}]
        """
    )
    registry = build_registry()
    assert not registry.plugins.broken
    kind = hook.removeprefix("register_").removesuffix("s")
    assert "a-part" in registry.names(kind)
    assert registry.get(kind, "a-part", "").name == "a-part"
    (supplied,) = registry.suppliers(kind, "a-part")
    assert str(supplied.plugin) == "plugin 'mtmeta-alone' 0.3"


def test_built_ins_enter_by_the_same_door(install: Install) -> None:
    plugins = load_plugins()
    assert [f"mtmeta.plugins.{plugin.name}" for plugin in plugins.all] == list(DEFAULT_PLUGINS)
    registry = Registry(plugins)
    assert not plugins.broken and not registry.conflicts()
    for plugin in plugins.all:
        module = importlib.import_module(f"mtmeta.plugins.{plugin.name}")
        assert any(hasattr(value, "mtmeta_impl") for value in vars(module).values())
    assert all(registry.names(kind) for kind in KINDS)


# --- plugins that are broken

HOOK = "@mtmeta.hookimpl\ndef register_tasks({}):\n    return {}\n"
TASK = "class Part(mtmeta.Task):\n    name = 'part'\n    {}\n"


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("raise RuntimeError", "RuntimeError"),
        ("raise RuntimeError('two\\nlines')", r"RuntimeError: two\nlines"),
        ("raise RuntimeError('x' * 999)", "RuntimeError: " + "x" * 183 + "..."),
        ("class Panic(BaseException): pass\nraise Panic('rust')", "Panic: rust"),
        ("class Mute(Exception):\n    def __str__(self): raise ValueError\nraise Mute", "Mute"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("mtmeta_api = 3", "needs mtmeta API 3, this is 2"),
        ("mtmeta_api = 'two\\n'", r"needs mtmeta API 'two\n', this is 2"),
        ("", f"implements no hook; one of {', '.join(IMPLEMENTED)} is needed"),
        ("def register_tasks(): return []", "register_tasks lacks @mtmeta.hookimpl"),
        (HOOK.format("recip", "[]"), "hook register_tasks takes no argument 'recip'"),
        (HOOK.format("", "None"), "register_tasks returned NoneType, expected a list"),
        (HOOK.format("", "1 / 0"), "ZeroDivisionError: division by zero"),
        (HOOK.format("", "(x for x in 'ab')"), "register_tasks returned generator, expected a list"),
        (HOOK.format("", "[3]"), "register_tasks holds 3, expected a subclass of mtmeta.Task"),
        (
            HOOK.format("", "[mtmeta.Reporter]"),
            "register_tasks holds <class 'mtmeta.core.api.contracts.Reporter'>, expected a subclass of mtmeta.Task",
        ),
        (HOOK.format("", "[mtmeta.Task]"), "Task has no name"),
        (TASK.format("name = ''") + HOOK.format("", "[Part]"), "Part has no name"),
        (
            TASK.format("metrics = 'accuracy'") + HOOK.format("", "[Part]"),
            "task 'part': metrics is 'accuracy', expected a tuple of at least one name",
        ),
        (
            TASK.format("metrics = ()") + HOOK.format("", "[Part]"),
            "task 'part': metrics is (), expected a tuple of at least one name",
        ),
        (
            TASK.format("inputs = 'both'") + HOOK.format("", "[Part]"),
            "task 'part': inputs is 'both', expected one of single, separate, cross, choices",
        ),
        (
            TASK.format("option: 'Nowhere' = None") + HOOK.format("", "[Part]"),
            "register_tasks holds a part that cannot be used: NameError: name 'Nowhere' is not defined",
        ),
        (
            HOOK.format("", "[]").replace("tasks", "metrics").replace("[]", "[len]"),
            "register_metrics holds <built-in function len>, expected a mtmeta.Metric",
        ),
        (
            HOOK.format("", "[]").replace("tasks", "metrics").replace("[]", "[mtmeta.Metric('', len)]"),
            "register_metrics holds Metric(name='', function=<built-in function len>, greater_is_better=True, "
            "needs='any'), expected a name and a function",
        ),
    ],
)
def test_broken_with_its_reason(module: str, expected: str, install: Install) -> None:
    install(broken="import mtmeta\n" + module)
    assert reason(load_plugins()) == expected


def test_a_misspelt_hook_is_an_error_and_leaves_nothing_behind(install: Install) -> None:
    text = "class Part(mtmeta.Task):\n    name = 'part'\n" + HOOK.format("", "[Part]")
    misspelt = HOOK.format("", "[]").replace("register_tasks", "register_sampler")
    install(broken="import mtmeta\n" + text + misspelt, next_one="import mtmeta\n" + HOOK.format("", "[]"))
    registry = build_registry()
    broken, good = third_party(registry.plugins)
    assert broken.broken == "unknown hook 'register_sampler'; did you mean 'register_samplers'?"
    assert good.broken is None
    assert "part" not in registry.names("task")


def test_one_broken_part_sets_the_whole_plugin_apart(install: Install) -> None:
    text = "class Part(mtmeta.Task):\n    name = 'part'\n" + HOOK.format("", "[Part, int]")
    install(broken="import mtmeta\n" + text)
    registry = build_registry()
    assert "part" not in registry.names("task")
    assert [plugin.parts for plugin in registry.plugins.broken] == [{}]


def test_ctrl_c_while_loading_is_ctrl_c(install: Install) -> None:
    install(interrupted="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_plugins()


def test_what_a_plugin_prints_stays_off_stdout(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(loud="import mtmeta\nprint('import')\n" + HOOK.format("", "[print('hook')][:0]"))
    assert reason(load_plugins()) is None
    assert capsys.readouterr() == ("", "import\nhook\n")


def test_the_same_module_twice(install: Install, tmp_path: Path) -> None:
    install(first="import mtmeta\n" + HOOK.format("", "[]"))
    (tmp_path / "first-0.3.dist-info" / "entry_points.txt").write_text("[mtmeta]\na = first\nb = first\n")
    found = third_party(load_plugins())
    assert [(p.name, p.broken) for p in found] == [
        ("a", None),
        ("b", "the same object is registered by another plugin"),
    ]


def test_an_object_can_be_a_plugin(install: Install, tmp_path: Path) -> None:
    install(
        made="""
        import mtmeta

        class Part(mtmeta.Sampler):
            name = "part"

        class Made:
            @mtmeta.hookimpl
            def register_samplers(self):
                return (Part,)

        made = Made()
        """
    )
    (tmp_path / "made-0.3.dist-info" / "entry_points.txt").write_text("[mtmeta]\nmade = made:made\n")
    assert "part" in build_registry().names("sampler")


def test_damaged_metadata_is_a_warning(install: Install, tmp_path: Path) -> None:
    install(good="import mtmeta\n" + HOOK.format("", "[]"), damaged="", alien="")
    (tmp_path / "damaged-0.3.dist-info" / "entry_points.txt").write_text("[mtmeta]\ndamaged\n")
    (tmp_path / "alien-0.3.dist-info" / "entry_points.txt").write_text("[console_scripts]\ndamaged\n")
    warnings: list[str] = []
    assert [plugin.name for plugin in third_party(load_plugins(warn=warnings.append))] == ["good"]
    (warning,) = warnings
    assert warning.startswith("a plugin's entry_points.txt cannot be read: ")


def test_seen_twice_on_the_path_loaded_once(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(twice="import mtmeta\n" + HOOK.format("", "[]"))
    path = [str(tmp_path)]
    monkeypatch.setattr(
        importlib.metadata, "distributions", lambda: [*distributions(path=path), *distributions(path=path)]
    )
    assert [plugin.name for plugin in third_party(load_plugins())] == ["twice"]


def test_a_slow_import_is_named_while_it_lasts(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    module = types.ModuleType("gate_of_the_test")
    module.__dict__["gate"] = gate
    monkeypatch.setitem(sys.modules, "gate_of_the_test", module)
    monkeypatch.setattr(loading, "SLOW_IMPORT_SECONDS", 0.01)
    install(slow="import gate_of_the_test, mtmeta\nassert gate_of_the_test.gate.wait(60)\n" + HOOK.format("", "[]"))
    warnings: list[str] = []

    def warn(text: str) -> None:
        warnings.append(text)
        if "mtmeta-slow" in text:
            gate.set()

    assert reason(load_plugins(warn=warn)) is None
    expected = "plugin 'mtmeta-slow' 0.3 has been importing for 0.01 seconds; --no-plugin slow leaves it out"
    assert expected in warnings


# --- choosing plugins


@pytest.mark.parametrize(
    ("environ", "block", "expected"),
    [
        ({}, [], ["a", "b", "c"]),
        ({"MTMETA_PLUGINS": " "}, [], ["a", "b", "c"]),
        ({"MTMETA_PLUGINS": "none"}, [], []),
        ({"MTMETA_PLUGINS": "b"}, [], ["b"]),
        ({"MTMETA_PLUGINS": "mtmeta-c, a,"}, [], ["a", "c"]),
        ({"MTMETA_PLUGINS": "a,b"}, ["mtmeta-a"], ["b"]),
        ({}, ["a", "mtmeta-b"], ["c"]),
    ],
)
def test_allowed_and_blocked(
    environ: Mapping[str, str], block: Sequence[str], expected: list[str], install: Install
) -> None:
    install(**{name: "import mtmeta\n" + HOOK.format("", "[]") for name in "cab"})
    assert [plugin.name for plugin in third_party(load_plugins(block=block, environ=environ))] == expected


@pytest.mark.parametrize(
    ("environ", "block", "expected"),
    [
        ({"MTMETA_PLUGINS": "fo"}, [], "MTMETA_PLUGINS: no plugin 'fo'; did you mean 'foo'?"),
        ({"MTMETA_PLUGINS": "none,foo"}, [], "MTMETA_PLUGINS: no plugin 'none'"),
        ({}, ["mtmeta_foo"], "--no-plugin: no plugin 'mtmeta_foo'; did you mean 'mtmeta-foo'?"),
        ({}, ["tasks"], "--no-plugin: no plugin 'tasks'"),
    ],
)
def test_choosing_what_is_not_there(
    environ: Mapping[str, str], block: Sequence[str], expected: str, install: Install
) -> None:
    install(foo="import mtmeta\n" + HOOK.format("", "[]"))
    with pytest.raises(mtmeta.PluginError) as caught:
        load_plugins(block=block, environ=environ)
    assert str(caught.value) == expected


def test_a_left_out_plugin_is_not_imported(install: Install) -> None:
    install(left_out="raise AssertionError('imported')")
    assert third_party(load_plugins(block=["left_out"])) == []
    assert "left_out" not in sys.modules


# --- the registry


@dataclass(frozen=True)
class Swap(mtmeta.Algorithm):
    """An algorithm for these tests."""

    name = "swap"


def supplied(*packages: tuple[str, Sequence[Any]], broken: Sequence[str] = ()) -> Registry:
    """A registry of plugins with algorithms, and of broken ones."""
    found = [Plugin(name, "1.0", name, parts={"algorithms": list(parts)}) for name, parts in packages]
    return Registry(Plugins(found + [Plugin(name, "1.0", name, broken="ImportError: x") for name in broken]))


def test_unknown_names() -> None:
    registry = supplied(("p", [Swap]))
    with pytest.raises(mtmeta.RecipeError) as near:
        registry.get("algorithm", "swop", "r.yaml:1:1")
    expected = "r.yaml:1:1: unknown algorithm 'swop'; did you mean 'swap'? (installed: swap)"
    assert (str(near.value), near.value.help) == (expected, ())
    with pytest.raises(mtmeta.RecipeError) as far:
        registry.get("algorithm", "zzz", "r.yaml:1:1")
    assert str(far.value) == "r.yaml:1:1: unknown algorithm 'zzz'; (installed: swap)"


def test_an_unknown_name_while_plugins_are_broken() -> None:
    registry = supplied(("p", [Swap]), broken=["q"])
    help_line = "plugin 'q' 1.0 is broken: ImportError: x"
    with pytest.raises(mtmeta.PluginError) as far:
        registry.get("algorithm", "zzz", "")
    assert far.value.help == (help_line,)
    with pytest.raises(mtmeta.RecipeError) as near:  # a slip of the pen, but who knows
        registry.get("algorithm", "swop", "")
    assert near.value.help == (help_line,)


def test_conflicts() -> None:
    class Other(mtmeta.Algorithm):
        name = "swap"

    registry = supplied(("a", [Swap]), ("b", [Other]))
    expected = "algorithm 'swap' is provided by both 'a' and 'b'; block one with MTMETA_PLUGINS or --no-plugin"
    assert [str(conflict) for conflict in registry.conflicts()] == [expected]
    with pytest.raises(mtmeta.PluginError) as caught:
        registry.get("algorithm", "swap", "r.yaml:1:1")
    assert str(caught.value) == expected
    twice = supplied(("a", [Swap, Other]))
    assert "is provided twice by 'a'" in str(twice.conflicts()[0])


def test_a_subclass_need_not_say_dataclass() -> None:
    class Bare(mtmeta.Algorithm):
        name = "bare"
        strength: mtmeta.PositiveInt = 3
        """How strongly."""

    part = supplied(("p", [Bare])).get("algorithm", "bare", "")
    assert part(strength=4) == part(strength=4) != part()
    with pytest.raises(AttributeError):
        part().strength = 5


def metric_registry(distribution: str, function: Callable[[Any, Any], float]) -> Any:
    found = Plugin("p", "1.0", distribution, parts={"metrics": [mtmeta.Metric("m", function)]})
    return Registry(Plugins([found])).get("metric", "m", "")


@pytest.mark.parametrize("error", [ZeroDivisionError("no"), SystemExit("no")])
def test_a_metric_that_raises_names_its_plugin(error: BaseException) -> None:
    def metric(labels: Any, predictions: Any) -> float:
        """Raises."""
        raise error

    expected = f"plugin 'mtmeta-p' 1.0: metric 'm' raised {type(error).__name__}: no"
    made = metric_registry("mtmeta-p", metric)
    with pytest.raises(mtmeta.PluginError, match=expected):
        made([1], [1])
    assert made.function.__doc__ == "Raises."
    with pytest.raises(type(error)):  # our own metrics' errors are bugs
        metric_registry("mtmeta", metric)([1], [1])


def test_a_metric_that_returns_no_number_names_its_plugin() -> None:
    with pytest.raises(mtmeta.PluginError, match="metric 'm' raised TypeError"):
        metric_registry("mtmeta-p", lambda labels, predictions: None)([1], [1])  # type: ignore[arg-type,return-value]
    assert metric_registry("mtmeta-p", lambda labels, predictions: 1)([1], [1]) == 1.0


class Part:
    name = "part"
    mtmeta_supplier = Plugin("p", "1.0", "mtmeta-p")


class Own:
    name = "own"
    mtmeta_supplier = Plugin("p", "1.0", "mtmeta")


def test_blame() -> None:
    with pytest.raises(mtmeta.PluginError) as caught, blame(Part(), "task"):
        raise ValueError("two\nlines")
    assert str(caught.value) == r"plugin 'mtmeta-p' 1.0: task 'part' raised ValueError: two\nlines"
    with pytest.raises(mtmeta.PluginError, match=r"task 'part' raised SystemExit$"), blame(Part(), "task"):
        sys.exit()
    with pytest.raises(mtmeta.DataError), blame(Part(), "task"):
        raise mtmeta.DataError("a.csv", "is empty")
    with pytest.raises(KeyboardInterrupt), blame(Part(), "task"):
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="ours"), blame(Own(), "task"):
        raise ValueError("ours")
    with pytest.raises(ValueError, match="unknown"), blame(object(), "task"):
        raise ValueError("unknown")


# --- who may import whom


def imports(tree: ast.AST) -> Iterator[str]:
    """Every imported name in full: `a.b` for `import a.b`, `a.b.c` for `from a.b import c`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def attributes(tree: ast.AST, name: str) -> list[str]:
    """Every X in `name.X`."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    return [node.attr for node in found if isinstance(node.value, ast.Name) and node.value.id == name]


def inside(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def reaches_plugins(tree: ast.AST) -> list[str]:
    """Imports of mtmeta.plugins, and its modules named as text."""
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return [name for name in (*imports(tree), *texts) if inside(name, "mtmeta.plugins")]


def private_uses(tree: ast.AST, *allowed: str) -> list[str]:
    """What of mtmeta is used although it is not public."""
    names = [name for name in imports(tree) if inside(name, "mtmeta") and not inside(name, *allowed)]
    found = [name for name in names if name != "mtmeta" and name.removeprefix("mtmeta.") not in mtmeta.__all__]
    return found + [f"mtmeta.{name}" for name in attributes(tree, "mtmeta") if name not in mtmeta.__all__]


def dangers(tree: ast.AST) -> list[str]:
    """Ways to run what is in a file, and the package typer no longer brings."""
    modules = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "click")
    found = [name for name in imports(tree) if inside(name, *modules, "torch.load")]
    calls = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    found += [name for name in calls if name in ("eval", "exec", "compile", "__import__")]
    return found + [f"torch.{name}" for name in attributes(tree, "torch") if name in ("load", "jit", "hub")]


def trees(folder: str) -> dict[str, ast.Module]:
    found = {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in sorted((ROOT / folder).rglob("*.py"))}
    assert found, f"no modules in {folder}"
    return found


def test_the_checks_below_can_fail() -> None:
    tree = ast.parse(
        dedent("""
        import pickle
        import mtmeta.core.data.loading
        from torch import load
        from mtmeta.plugins.tasks import sst
        from mtmeta import sample, hookimpl, strict
        part = importlib.import_module("mtmeta.plugins.metrics")
        mtmeta.Task, mtmeta.cli, torch.load("x"), eval("1"), model.eval()
        """)
    )
    assert reaches_plugins(tree) == ["mtmeta.plugins.tasks.sst", "mtmeta.plugins.metrics"]
    expected = ["mtmeta.core.data.loading", "mtmeta.plugins.tasks.sst", "mtmeta.strict", "mtmeta.cli"]
    assert private_uses(tree, "mtmeta.sample") == expected
    assert dangers(tree) == ["pickle", "torch.load", "eval", "torch.load"]


def test_core_knows_plugins_only_as_strings() -> None:
    reached = {file: reaches_plugins(tree) for file, tree in trees("mtmeta").items() if "/plugins/" not in file}
    assert {file: names for file, names in reached.items() if names} == {
        "mtmeta/core/registry/discovery.py": list(DEFAULT_PLUGINS),
        "mtmeta/__init__.py": ["mtmeta.plugins.algorithms."],  # public names, loaded when they are asked for
    }


def test_built_in_plugins_use_only_what_is_public() -> None:
    used = {f: private_uses(tree, "mtmeta.sample", "mtmeta.plugins") for f, tree in trees("mtmeta/plugins").items()}
    assert {file: names for file, names in used.items() if names} == {}


def test_examples_use_only_what_is_public() -> None:
    found = trees("examples")
    used = {f: private_uses(tree, *["mtmeta.testing"] * ("/tests/" in f)) for f, tree in found.items()}
    assert {file: names for file, names in used.items() if names} == {}
    assert {Path(file).parts[1] for file in found} == {
        f"mtmeta-{name}" for name in ("background", "cola", "gradnorm", "mlflow", "pcgrad", "wandb")
    }


def test_nothing_runs_what_is_in_a_file() -> None:
    found = {file: dangers(tree) for file, tree in trees("mtmeta").items()}
    assert {file: names for file, names in found.items() if names} == {}


# --- the public names


def test_public_names() -> None:
    assert mtmeta.__all__ == sorted(mtmeta.__all__, key=lambda name: (not name.isupper(), name))  # as ruff sorts them
    assert len(set(mtmeta.__all__)) == len(mtmeta.__all__)
    missing = [name for name in mtmeta.__all__ if not hasattr(mtmeta, name)]
    assert not missing
    with pytest.raises(AttributeError, match="module 'mtmeta' has no attribute 'Nothing'"):
        mtmeta.Nothing  # noqa: B018


def test_light_commands_do_not_import_torch(tmp_path: Path) -> None:
    recipe = ROOT / "recipes" / "reptile_three_task.yaml"
    commands = {
        "--help": ["--help"],
        "validate": ["validate", str(recipe)],
        "plugins": ["plugins"],
        "show": ["show", "algorithm", "reptile"],
        "completion": ["completion", "bash"],
        "schema": ["schema"],
        "show hf": ["show", "backbone", "hf"],
    }
    script = """
    import json, sys
    import mtmeta, mtmeta.testing
    heavy = ("torch", "sklearn", "scipy", "transformers")
    found = {"import": [0, [name for name in heavy if name in sys.modules]]}
    from mtmeta.cli import main
    for name, arguments in json.loads(sys.argv[1]).items():
        try:
            main(arguments)
        except SystemExit as end:
            found[name] = [end.code, [name for name in heavy if name in sys.modules]]
    open(sys.argv[2], "w").write(json.dumps(found))
    """
    out = tmp_path / "found.json"
    environ = os.environ | {"MTMETA_PLUGINS": "none"}
    command = [sys.executable, "-c", dedent(script), json.dumps(commands), str(out)]
    subprocess.run(command, check=True, capture_output=True, env=environ)
    assert json.loads(out.read_text()) == {name: [0, []] for name in ("import", *commands)}


LIGHT = """
import mtmeta


class Mine(mtmeta.Task):
    name = "mine"
    objective = mtmeta.Classification(labels=2)
    metrics = ("accuracy",)

    def read(self, file):
        return ()

    def build_head(self, hidden_size):
        import torch

        return torch.nn.Linear(hidden_size, 2)


@mtmeta.hookimpl
def register_tasks():
    return [Mine]
"""


@pytest.mark.parametrize("heavy", [False, True])
def test_torch_is_loaded_only_where_a_plugin_needs_it(heavy: bool, tmp_path: Path) -> None:
    """A plugin as the guide writes it slows no command; one that imports torch at its top is named by --check."""
    about = tmp_path / "mtmeta_mine-0.3.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mtmeta-mine\nVersion: 0.3\n")
    (about / "entry_points.txt").write_text("[mtmeta]\nmine = mine_of_the_test\n")
    (tmp_path / "mine_of_the_test.py").write_text("import torch\n" * heavy + LIGHT)
    (tmp_path / "torch.py").write_text("open('loaded', 'a').write('x')\n")  # stands for the seconds
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    for command in (["--help"], ["runs", "."], ["validate", "reptile_three_task"], ["plugins", "--check"]):
        told = run_command(*command, cwd=tmp_path, env={"PYTHONPATH": path})
        assert told.code == 0, told.err
        loads = heavy and command[0] in ("validate", "plugins")
        assert (tmp_path / "loaded").exists() == loads, command
        (tmp_path / "loaded").unlink(missing_ok=True)
    assert ("plugin 'mtmeta-mine' 0.3 imports torch when it is loaded" in told.err) == heavy
