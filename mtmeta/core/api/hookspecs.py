"""What can be plugged into mtmeta.

A plugin is a module (or object) behind an entry point of the group `mtmeta`. It implements any of these hooks with
`@mtmeta.hookimpl`; each takes no arguments and returns a list. A misspelt hook is an error, not silence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from mtmeta.core.api.contracts import Algorithm, Backbone, Launcher, Metric, Reporter, Sampler, Task

API_VERSION = 2  # a plugin that needs one says so with a module attribute `mtmeta_api`
API_VERSIONS = (1, API_VERSION)
"""Versions whose plugins work; 2 has all of 1, and more methods that an algorithm may have."""
ENTRY_POINT_GROUP = "mtmeta"

hookspec = pluggy.HookspecMarker("mtmeta")
hookimpl = pluggy.HookimplMarker("mtmeta")


@hookspec
def register_tasks() -> list[type[Task]]:  # type: ignore[empty-body]
    """Tasks: how data is read, what the head predicts, which loss and metrics score it."""


@hookspec
def register_algorithms() -> list[type[Algorithm]]:  # type: ignore[empty-body]
    """Algorithms: how the update direction of one step is found."""


@hookspec
def register_backbones() -> list[type[Backbone]]:  # type: ignore[empty-body]
    """Backbones: where the encoder and its tokenizer come from."""


@hookspec
def register_samplers() -> list[type[Sampler]]:  # type: ignore[empty-body]
    """Samplers: with which probability each task is drawn."""


@hookspec
def register_metrics() -> list[Metric]:  # type: ignore[empty-body]
    """Metrics: any function `(labels, predictions) -> float` with a name."""


@hookspec
def register_reporters() -> list[type[Reporter]]:  # type: ignore[empty-body]
    """Reporters: what becomes of the events of a run."""


@hookspec
def register_launchers() -> list[type[Launcher]]:  # type: ignore[empty-body]
    """Launchers: where the runs of a study run, such as a cluster."""
