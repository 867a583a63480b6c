"""`mtmeta plugins`, the installed plugins; `mtmeta show`, the help of a part that recipes may name."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from mtmeta.cli.options import Json, NoPlugin, warn
from mtmeta.core.errors import MtmetaError, PluginError, raise_all


def plugins(
    check: Annotated[
        bool,
        typer.Option("--check", help="Exit with 5 if a plugin is broken or in conflict; name those that load torch."),
    ] = False,
    no_plugin: NoPlugin = None,
    json_: Json = False,
) -> None:
    """List plugins: what each provides, and what is broken.

    \b
    Examples:
      mtmeta plugins --check
    """
    from mtmeta.core.recipe.part_help import describe_plugins, plugin_lines
    from mtmeta.core.registry.discovery import load_plugins
    from mtmeta.core.registry.registry import Registry

    registry = Registry(load_plugins(block=no_plugin or [], warn=warn))  # the list itself names broken ones
    described, conflicts = describe_plugins(registry), registry.conflicts()
    print(json.dumps(described) if json_ else "\n".join(plugin_lines(described)))
    problems: list[MtmetaError] = [PluginError(str(p), f"is broken: {p.broken}") for p in registry.plugins.broken]
    if check:
        for plugin in (one for one in registry.plugins.all if one.loads_torch):
            fix = "import it in the functions that use it, as the plugin guide shows"
            warn(
                f"{plugin} imports torch when it is loaded, which slows validate, show and completion by seconds; {fix}"
            )
        raise_all([*problems, *conflicts])


def show(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="What kind of part, see above.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name in recipes.")],
    no_plugin: NoPlugin = None,
    json_: Json = False,
) -> None:
    """Explain a part of recipes: what it does, and its options.

    KIND is task, algorithm, backbone, sampler, metric, reporter, launcher, optimizer, schedule, or section (of a
    recipe: data, training, budget, evaluation, checkpoint). `mtmeta plugins` lists the names.

    \b
    Examples:
      mtmeta show algorithm reptile
      mtmeta show section evaluation
    """
    from mtmeta.core.recipe.part_help import describe_part, part_lines
    from mtmeta.core.registry.registry import build_registry

    described = describe_part(build_registry(block=no_plugin or [], warn=warn), kind, name)
    print(json.dumps(described) if json_ else "\n".join(part_lines(described)))
