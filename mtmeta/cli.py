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

from mtmeta.cli_complete import VARIABLE, answer
from mtmeta.cli_export import export
from mtmeta.cli_fetch import fetch
from mtmeta.cli_new import new
from mtmeta.cli_options import ChangedData, DataRoot, Device, Json, NoPlugin, warn
from mtmeta.cli_parts import plugins, show
from mtmeta.cli_recipes import recipes
from mtmeta.cli_run import run
from mtmeta.cli_shell import completion, schema
from mtmeta.cli_study import adapt, compare, report, runs
from mtmeta.cli_validate import validate
from mtmeta.core.errors import MtmetaError, Problems, Stopped, UsageError, quote
from mtmeta.core.foreign import unforeseen, usage_error

__all__ = ["app", "main"]

app = typer.Typer(
    name="mtmeta",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
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
    """Multi-task meta-learning for BERT-family encoders: one recipe, one command, one table.

    \b
    To begin:
      mtmeta recipes                                    what there is to run
      mtmeta run reptile_three_task                     train and evaluate it: a minute
      mtmeta recipes copy reptile_three_task my.yaml    copy it, to edit it

    Exit codes: 0 ok, 1 bug, 2 command line or recipe, 3 data, 4 checkpoint or weights, 5 plugin, 6 machine, 7 training
    diverged, 75 stopped by SIGTERM, 130 by Ctrl-C; after the last two the same command goes on.
    """


app.command()(run)


app.command()(validate)


app.command()(plugins)
app.command()(show)


@app.command(name="eval")
def eval_(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, such as runs/NAME.", show_default=False)],
    split: Annotated[
        str | None, typer.Option(metavar="SPLIT", help="dev, test or train; default what the recipe reports on.")
    ] = None,
    task: Annotated[str | None, typer.Option(metavar="NAME", help="Only this task.")] = None,
    file: Annotated[
        list[str] | None,
        typer.Option("--file", metavar="TASK=PATH", help="Score another file as this task; repeatable."),
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
    """Score the best weights of a run on any split or file.

    \b
    Examples:
      mtmeta eval runs/reptile_three_task --split test
      mtmeta eval runs/reptile_three_task --file sst=more.csv --verbose
    """
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
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, such as runs/NAME.", show_default=False)],
    task: Annotated[
        str | None, typer.Option(metavar="NAME", help="The task; may be left out where the run has one.")
    ] = None,
    input_: Annotated[
        str, typer.Option("--input", metavar="FILE", help="Texts, one a line, pairs by tab; or a table; - is stdin.")
    ] = "-",
    output: Annotated[str, typer.Option(metavar="FILE", help="Where predictions go; - is stdout.")] = "-",
    column: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Read a table, the text in this column; twice for pairs.")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", metavar="FORM", help="csv or jsonl; default by --output, else csv.")
    ] = None,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out rows that cannot be used, and say so.")
    ] = False,
    device: Device = "auto",
    no_plugin: NoPlugin = None,
) -> None:
    """Predict labels and probabilities for texts of a file or pipe.

    They come in the order of the texts, as the texts come; a table (.csv, .tsv, .jsonl) has the columns of the task.

    \b
    Examples:
      mtmeta predict runs/reptile_three_task --task sst --input reviews.txt
      cat reviews.txt | mtmeta predict runs/reptile_three_task --task sst
    """
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


app.add_typer(new, name="new")
app.add_typer(recipes, name="recipes")
app.command()(fetch)
app.command()(compare)
app.command()(report)
app.command()(adapt)
app.command()(export)
app.command()(runs)
app.command()(schema)
app.command()(completion)


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
    if shell := os.environ.get(VARIABLE):  # no user's command: a shell asks what may follow
        answer(typer.main.get_command(app), shell, sys.argv[1:] if arguments is None else arguments)
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
        if type(error).__name__ == "NoArgsIsHelpError":  # a group of commands by itself: that is its help
            print(message())
            return
        raise usage_error(error, message()) from error
