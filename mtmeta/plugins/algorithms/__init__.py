"""Built-in algorithms."""

from __future__ import annotations

import mtmeta
from mtmeta.plugins.algorithms.anil import Anil
from mtmeta.plugins.algorithms.fomaml import Fomaml
from mtmeta.plugins.algorithms.individual import Individual
from mtmeta.plugins.algorithms.joint import Joint
from mtmeta.plugins.algorithms.maml import Maml
from mtmeta.plugins.algorithms.metasgd import MetaSgd
from mtmeta.plugins.algorithms.protonet import Protonet
from mtmeta.plugins.algorithms.reptile import Reptile
from mtmeta.plugins.algorithms.surgery.surgery import Surgery
from mtmeta.plugins.algorithms.surgery.weighting import Weighting


@mtmeta.hookimpl
def register_algorithms() -> list[type[mtmeta.Algorithm]]:
    return [Individual, Joint, Reptile, Fomaml, Anil, Maml, MetaSgd, Protonet, Surgery, Weighting]
