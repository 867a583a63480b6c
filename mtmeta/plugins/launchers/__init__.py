"""Where the runs of a study run: this machine, or a cluster with SLURM."""

from __future__ import annotations

import mtmeta
from mtmeta.plugins.launchers.local import Local
from mtmeta.plugins.launchers.slurm import Slurm


@mtmeta.hookimpl
def register_launchers() -> list[type[mtmeta.Launcher]]:
    return [Local, Slurm]
