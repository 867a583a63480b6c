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
    """Print what switches on completion in your shell.

    Of commands and options, recipes, runs, tasks, names of parts, and the keys that --set takes.

    \b
    Examples:
      eval "$(mtmeta completion bash)"      as a line of ~/.bashrc
      eval "$(mtmeta completion zsh)"       as a line of ~/.zshrc
      mtmeta completion fish > ~/.config/fish/completions/mtmeta.fish
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
    """Print the JSON Schema of recipes, for editors.

    By it an editor with a YAML server completes and checks keys, those of installed plugins too. With --out FILE it
    prints the line that belongs at the top of recipes beside FILE.

    \b
    Examples:
      mtmeta schema --out recipe.schema.json
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
