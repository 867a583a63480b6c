"""The command line: the only place that prints errors and exits."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, NoReturn

import typer

from mtmeta.cli.commands.evaluate import eval_
from mtmeta.cli.commands.export import export
from mtmeta.cli.commands.fetch import fetch
from mtmeta.cli.commands.new import new
from mtmeta.cli.commands.plugins import plugins, show
from mtmeta.cli.commands.predict import predict
from mtmeta.cli.commands.recipes import recipes, schema
from mtmeta.cli.commands.run import run
from mtmeta.cli.commands.runs import report, runs
from mtmeta.cli.commands.serve import serve
from mtmeta.cli.commands.studies.adapt import adapt
from mtmeta.cli.commands.studies.cancel import cancel
from mtmeta.cli.commands.studies.compare import compare
from mtmeta.cli.commands.studies.curve import curve
from mtmeta.cli.commands.studies.teach import teach
from mtmeta.cli.commands.studies.tune import tune
from mtmeta.cli.commands.validate import validate
from mtmeta.cli.completion.answer import VARIABLE, answer
from mtmeta.cli.completion.command import completion
from mtmeta.cli.errors import explained, usage_error
from mtmeta.core.environment import check_memory
from mtmeta.core.errors import MtmetaError, Problems, Stopped
from mtmeta.core.studies.launching.attempts import Attempt, attempt_at_job
from mtmeta.core.studies.processes.error_pipe import PIPE, send_error

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


COMMANDS: tuple[Callable[..., None], ...] = (
    *(run, validate, plugins, show, eval_, predict, fetch, compare, curve, tune, teach, cancel),
    *(report, adapt, export, serve, runs, schema, completion),
)
for command in COMMANDS:
    app.command(command.__name__.rstrip("_"))(command)
app.add_typer(new, name="new")
app.add_typer(recipes, name="recipes")


def _print_lines(lines: Sequence[str]) -> None:
    if sys.stderr is not None:  # print() itself would take stdout instead
        with contextlib.suppress(OSError):  # whoever read it is gone; the exit code still counts
            print(*lines, sep="\n", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class _Report:
    """Who is told of errors beside, or in place of, the user: the parent process, the journal of a job."""

    pipe: str
    attempt: Attempt | None


def _fail(error: MtmetaError | Stopped, report: _Report, code: int | None = None) -> NoReturn:
    """Report an error, to the parent process or the user, and exit with its code; the one place that does."""
    if report.attempt is not None:
        report.attempt.errors.append(error)
    if not send_error(error, report.pipe) and not error.echoed:
        _print_lines(error.lines())
    sys.exit(code or (error.code if isinstance(error, Problems) else error.exit_code))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; MTMETA_DEBUG=1 shows tracebacks."""
    if shell := os.environ.get(VARIABLE):  # no user's command: a shell asks for proposals
        answer(typer.main.get_command(app), shell, sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a C locale must not turn a letter into a traceback
    pipe = os.environ.pop(PIPE, "")
    with contextlib.suppress(OSError, ValueError):
        os.set_inheritable(int(pipe), False)  # ours alone, not of what we start
    with attempt_at_job() as attempt:
        _run(list(sys.argv[1:] if arguments is None else arguments), _Report(pipe, attempt))


def _run(arguments: list[str], report: _Report) -> NoReturn:
    debug = os.environ.get("MTMETA_DEBUG") == "1"
    try:
        if report.attempt is not None:
            report.attempt.check()
        check_memory("numpy")
        _invoke(arguments)
        if sys.stdout is not None:  # as it is under `>&-`
            sys.stdout.flush()
    except BrokenPipeError:
        # `mtmeta ... | head`: whoever read our output has enough; keep the interpreter from flushing into the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Stopped as stopped:
        _fail(stopped, report)
    except KeyboardInterrupt:
        _fail(MtmetaError("", "interrupted; run the same command again to continue"), report, Stopped.interrupted)
    except Exception as error:
        if debug:
            raise
        _fail(explained(error), report)
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
