"""`mtmeta completion`: the script that switches completion on in a shell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SHELLS = ("bash", "zsh", "fish")
FOLDER = Path(__file__).parent  # of completion.SHELL: the shell's function, which asks `mtmeta` itself (answer.py)


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
    from mtmeta.core.errors import UsageError
    from mtmeta.core.wording import choose, quote

    if shell not in SHELLS:
        raise UsageError("SHELL", f"no completion for {quote(shell)}{choose(shell, SHELLS)}")
    print((FOLDER / f"completion.{shell}").read_text(encoding="utf-8"), end="")
