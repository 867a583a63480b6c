"""What makes a shell and an editor comfortable: completion, and the JSON Schema of recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtmeta.cli_options import NoPlugin, warn

__all__ = ["completion", "schema"]


def completion(
    shell: Annotated[str, typer.Argument(metavar="SHELL", help="bash, zsh or fish.", show_default=False)],
) -> None:
    """Print what switches on completion of commands, options, recipes, runs, tasks and keys in your shell.

    bash: eval "$(mtmeta completion bash)" in ~/.bashrc

    zsh: eval "$(mtmeta completion zsh)" in ~/.zshrc

    fish: mtmeta completion fish > ~/.config/fish/completions/mtmeta.fish
    """
    from mtmeta.cli_scripts import SCRIPTS
    from mtmeta.core.errors import UsageError, choose, quote

    if shell not in SCRIPTS:
        raise UsageError("SHELL", f"no completion for {quote(shell)}{choose(shell, SCRIPTS)}")
    print(SCRIPTS[shell], end="")


def schema(
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it here; default: print it.")] = None,
    no_plugin: NoPlugin = None,
) -> None:
    """Print the JSON Schema of recipes, by which editors complete and check keys, with those of installed plugins.

    With --out FILE, prints the line that belongs at the top of recipes beside FILE.

    Example: mtmeta schema --out recipe.schema.json
    """
    from mtmeta.core.disk import write_file
    from mtmeta.core.errors import UsageError
    from mtmeta.core.registry import build_registry
    from mtmeta.core.schema import schema_text
    from mtmeta.core.shipped import SCHEMA_LINE

    if out is not None and out.is_dir():
        raise UsageError(str(out), "is a directory; name a file")
    text = schema_text(build_registry(block=no_plugin or [], warn=warn))
    if out is None:
        print(text, end="")
        return
    write_file(out, text)
    print(f"{SCHEMA_LINE}{out.name}")
