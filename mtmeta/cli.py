"""The command line: the only place that prints errors and exits."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from mtmeta.cli_fetch import fetch
from mtmeta.cli_options import ChangedData, DataRoot, Device, Json, NoPlugin, Set, warn
from mtmeta.cli_recipes import recipes
from mtmeta.cli_study import adapt, compare, report, runs
from mtmeta.core.errors import MtmetaError, PluginError, Problems, Stopped, UsageError, quote, raise_all, safe
from mtmeta.core.foreign import unforeseen, usage_error

__all__ = ["app", "main"]

app = typer.Typer(
    name="mtmeta",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        import mtmeta

        print(f"mtmeta {mtmeta.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Multi-task meta-learning: one recipe, one command, one table."""


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)],
    set_: Set = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; default runs/NAME.")] = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over in a directory that holds a run.")] = False,
    allow_changed_data: ChangedData = False,
    allow_inexact: Annotated[
        bool,
        typer.Option(
            "--allow-inexact", help="Go on with another torch, thread count, device, ... than the run began with."
        ),
    ] = False,
    no_plugin: NoPlugin = None,
    json_: Json = False,
) -> None:
    """Train a recipe, evaluate it, leave a run directory; the same command again continues it."""
    from mtmeta.core.signals import stop_on_signals

    with stop_on_signals() as stop:
        import mtmeta
        from mtmeta.core.fetch_view import FetchView
        from mtmeta.core.view import show_table

        summary = mtmeta.run(
            recipe,
            overrides=set_ or [],
            out=out,
            data_root=data_root,
            device=device,
            fresh=fresh,
            allow_changed_data=allow_changed_data,
            allow_inexact=allow_inexact,
            block=no_plugin or [],
            warn=warn,
            watcher=FetchView(),
            stop=stop,
        )
    print(json.dumps(summary)) if json_ else show_table(summary)


@app.command()
def validate(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE", help="Recipes to check.", show_default=False)],
    set_: Set = None,
    data_root: DataRoot = None,
    data: Annotated[bool, typer.Option("--data", help="Read the data files too and report on them.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="With --data: what is doubtful is an error.")] = False,
    no_plugin: NoPlugin = None,
) -> None:
    """Check recipes without training; with --data, their data files too."""
    from mtmeta.core.recipe import load_recipe
    from mtmeta.core.registry import build_registry

    registry = build_registry(block=no_plugin or [], warn=warn)
    problems: list[MtmetaError] = []
    for path in recipes:
        try:
            recipe = load_recipe(path, registry, overrides=set_ or [], data_root=data_root)
            if data:
                from mtmeta.core.fetch_view import FetchView
                from mtmeta.core.inspect_data import report
                from mtmeta.core.sources import Sources
                from mtmeta.core.wants import remedy

                sources = Sources(watcher=FetchView(), remedy=remedy(path))
                for line in report(recipe, strict=strict, warn=warn, sources=sources):
                    print(line)
        except MtmetaError as error:
            problems.append(error)
        else:
            print(f"{safe(str(path))}: ok")
    raise_all(problems)


@app.command()
def plugins(
    check: Annotated[bool, typer.Option("--check", help="Exit with 5 if a plugin is broken or in conflict.")] = False,
    no_plugin: NoPlugin = None,
    json_: Json = False,
) -> None:
    """List plugins, what each provides, and which are broken and why."""
    from mtmeta.core.describe import describe_plugins, plugin_lines
    from mtmeta.core.plugins import load_plugins
    from mtmeta.core.registry import Registry

    registry = Registry(load_plugins(block=no_plugin or [], warn=warn))  # the list itself says what is broken
    described, conflicts = describe_plugins(registry), registry.conflicts()
    print(json.dumps(described) if json_ else "\n".join(plugin_lines(described)))
    problems: list[MtmetaError] = [PluginError(str(p), f"is broken: {p.broken}") for p in registry.plugins.broken]
    if check:
        raise_all([*problems, *conflicts])


@app.command()
def show(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="task, algorithm, backbone, sampler, optimizer, section, ...")
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name in recipes.")],
    no_plugin: NoPlugin = None,
    json_: Json = False,
) -> None:
    """Explain a part: what it does, who supplies it, and its options."""
    from mtmeta.core.describe import describe_part, part_lines
    from mtmeta.core.registry import build_registry

    described = describe_part(build_registry(block=no_plugin or [], warn=warn), kind, name)
    print(json.dumps(described) if json_ else "\n".join(part_lines(described)))


@app.command(name="eval")
def eval_(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)],
    split: Annotated[str | None, typer.Option(help="dev or test; default what the recipe reports on.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    file: Annotated[
        list[str] | None, typer.Option("--file", metavar="TASK=PATH", help="Another file; repeatable.")
    ] = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    allow_changed_data: ChangedData = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Confusion or error detail under the table.")
    ] = False,
    no_plugin: NoPlugin = None,
    json_: Json = False,
) -> None:
    """Show the table of a run, for any split or file, from its best weights."""
    files = {}
    for text in file or []:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise UsageError(f"--file {quote(text)}", "expected TASK=PATH")
        files[name] = path
    if split not in (None, "dev", "test", "train"):
        raise UsageError("--split", f"must be dev, test or train, found {quote(split)}")
    import mtmeta
    from mtmeta.core.fetch_view import FetchView
    from mtmeta.core.view import show_table

    summary = mtmeta.evaluate(
        run,
        split=split,
        task=task,
        files=files,
        data_root=data_root,
        device=device,
        allow_changed_data=allow_changed_data,
        verbose=verbose,
        block=no_plugin or [],
        warn=warn,
        watcher=FetchView(),
    )
    print(json.dumps(summary)) if json_ else show_table(summary)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)],
    task: Annotated[str | None, typer.Option(help="The task; may be left out where the run has one.")] = None,
    input_: Annotated[
        str, typer.Option("--input", metavar="FILE", help="Texts, one a line, pairs by tab; or a table; - is stdin.")
    ] = "-",
    output: Annotated[str, typer.Option(metavar="FILE", help="Where predictions go; - is stdout.")] = "-",
    column: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Read a table, the text in this column; twice for pairs.")
    ] = None,
    form: Annotated[str | None, typer.Option("--format", help="csv or jsonl; default by --output, else csv.")] = None,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out rows that cannot be used, and say so.")
    ] = False,
    device: Device = "auto",
    no_plugin: NoPlugin = None,
) -> None:
    """Predict labels and probabilities for texts of a file or a pipe, in their order, as they come."""
    import mtmeta
    from mtmeta.core.predict_file import predict_file

    predictor = mtmeta.load(run, device=device, block=no_plugin or [], warn=warn)
    if task is None and len(predictor.tasks) > 1:
        raise UsageError("--task", f"is needed, the run has several tasks: {', '.join(predictor.tasks)}")
    predict_file(
        predictor,
        task or predictor.tasks[0],
        source=input_,
        target=output,
        columns=column or [],
        form=form,
        skip_bad=skip_bad_rows,
        warn=warn,
    )


app.add_typer(recipes, name="recipes")
app.command()(fetch)
app.command()(compare)
app.command()(report)
app.command()(adapt)
app.command()(runs)


def _print_lines(lines: Sequence[str]) -> None:
    if sys.stderr is not None:  # print() itself would take stdout instead
        with contextlib.suppress(OSError):  # whoever read it is gone; the exit code still counts
            print(*lines, sep="\n", file=sys.stderr, flush=True)


def _fail(error: MtmetaError) -> NoReturn:
    """Print an error and exit with its code; the one place that does."""
    _print_lines(error.lines())
    sys.exit(error.code if isinstance(error, Problems) else error.exit_code)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; MTMETA_DEBUG=1 shows tracebacks."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a C locale must not turn a letter into a traceback
    debug = os.environ.get("MTMETA_DEBUG") == "1"
    try:
        _invoke(list(sys.argv[1:] if arguments is None else arguments))
        if sys.stdout is not None:  # as it is under `>&-`
            sys.stdout.flush()
    except BrokenPipeError:
        # `mtmeta ... | head`: whoever read our output has enough; keep the interpreter from flushing into the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Stopped as stopped:
        _print_lines(stopped.lines())
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        print("error: interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        _fail(error if isinstance(error, MtmetaError) else unforeseen(error))
    sys.exit(0)


def _invoke(arguments: list[str]) -> None:
    """Parse and run, with the parser's own errors in the words of the house."""
    command = typer.main.get_command(app)
    try:
        # not command.main(), which has its own ideas of interrupts and closed pipes
        with command.make_context("mtmeta", arguments or ["--help"]) as context:
            command.invoke(context)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except Exception as error:
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        raise usage_error(error, message()) from error
