"""Built-in algorithms."""

from __future__ import annotations

import mtmeta
from mtmeta.plugins.algorithms.fomaml import Fomaml
from mtmeta.plugins.algorithms.individual import Individual
from mtmeta.plugins.algorithms.joint import Joint
from mtmeta.plugins.algorithms.reptile import Reptile
from mtmeta.plugins.algorithms.surgery.surgery import Surgery
from mtmeta.plugins.algorithms.surgery.weighting import Weighting


@mtmeta.hookimpl
def register_algorithms() -> list[type[mtmeta.Algorithm]]:
    return [Individual, Joint, Reptile, Fomaml, Surgery, Weighting]
