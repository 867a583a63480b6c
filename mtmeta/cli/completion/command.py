"""`mtmeta completion`: the script that switches completion on in a shell."""

from __future__ import annotations

from typing import Annotated

import typer


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
    from mtmeta.cli.completion.scripts import SCRIPTS
    from mtmeta.core.errors import UsageError
    from mtmeta.core.wording import choose, quote

    if shell not in SCRIPTS:
        raise UsageError("SHELL", f"no completion for {quote(shell)}{choose(shell, SCRIPTS)}")
    print(SCRIPTS[shell], end="")
