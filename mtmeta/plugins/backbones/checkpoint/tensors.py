"""The tensors of our own encoder, from a folder's weights: all there, of the right shape, and finite numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mtmeta
from mtmeta.plugins.backbones.checkpoint.names import hugging_face_names, plain_names, shapes
from mtmeta.plugins.backbones.checkpoint.shards import FLOATS, SPARE, Weights, and_more, dimensions, read_weights

if TYPE_CHECKING:
    from torch import Tensor

    from mtmeta.plugins.backbones.checkpoint.config import BertConfig

IN_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")


def read_tensors(folder: Path, config: BertConfig, *, strict: bool) -> tuple[dict[str, Tensor], Weights]:
    """Read the encoder's tensors in fp32 under our names, and tell of the files they lie in. Raises WeightsError.

    `strict`: no layer may have tensors of other names, as those of an architecture of the folder's own have.
    """
    import torch

    names = hugging_face_names(config)
    wanted = {name for theirs in names.values() for name in theirs}

    def plain(name: str) -> str:
        one: Any = {name: name}
        return next(iter(plain_names(one, config.model_type)))

    weights = read_weights(
        folder,
        lambda entry: entry.dtype in FLOATS and plain(entry.name) in wanted,
        most=2 * 8 * config.parameters + SPARE,
        needed=4 * config.parameters,
    )
    theirs: dict[str, str] = {}  # names in the file, by plain ones
    for name in weights.entries:
        if (other := theirs.setdefault(plain(name), name)) != name:
            message = f"tensor {mtmeta.quote(other)} is there under another name too ({mtmeta.quote(name)})"
            raise mtmeta.WeightsError(str(weights.files[other]), message)
    _check_entries(weights, theirs, config)
    if strict:
        refuse_foreign(weights, [name for key, name in theirs.items() if key not in wanted], config.num_hidden_layers)
    state = {key: weights.tensors.pop(name) for key, name in theirs.items() if key in wanted}
    bad = [name for name in shapes(config) if not bool(torch.isfinite(state[name]).all())]
    if bad:
        message = f"'{bad[0]}' holds non-finite values{and_more(bad)}; fetch the file again"
        raise mtmeta.WeightsError(str(weights.files[theirs[bad[0]]]), message)
    return {our: torch.cat([state.pop(name).float() for name in parts]) for our, parts in names.items()}, weights


def refuse_foreign(weights: Weights, unused: Sequence[str], layers: int) -> None:
    """Raise WeightsError for an unused tensor of one of the first `layers` layers: the architecture is another one."""
    foreign = [name for name in unused if (found := IN_LAYER.search(name)) and int(found[1]) < layers]
    if foreign:
        message = f"tensor {mtmeta.quote(foreign[0])} is of the architecture that 'auto_map' names{and_more(foreign)}"
        raise mtmeta.WeightsError(str(weights.place), f"{message}; its code is never run, use another encoder")


def not_a_float(weights: Weights, names: Sequence[str]) -> mtmeta.WeightsError:
    """Return the refusal of tensors of a type that we do not compute with, the first of `names` told."""
    entry = weights.entries[names[0]]
    message = f"tensor {mtmeta.quote(entry.name)} is {entry.dtype}{and_more(names)}; save it as float32"
    return mtmeta.WeightsError(str(weights.files[entry.name]), message)


def _check_entries(weights: Weights, theirs: Mapping[str, str], config: BertConfig) -> None:
    """Raise WeightsError, in the file's own names, for tensors that are missing, of another shape, or no floats."""
    wanted = shapes(config)
    missing = [name for name in wanted if name not in theirs]
    if missing:
        message = f"tensor '{missing[0]}' is missing, config.json asks for it{and_more(missing)}"
        raise mtmeta.WeightsError(str(weights.place), message)
    found = {name: weights.entries[theirs[name]] for name in wanted}
    bad = [name for name, shape in wanted.items() if found[name].shape != shape]
    if bad:
        pair = f"{dimensions(found[bad[0]].shape)}, config.json needs {dimensions(wanted[bad[0]])}"
        raise mtmeta.WeightsError(str(weights.files[theirs[bad[0]]]), f"tensor '{bad[0]}' is {pair}{and_more(bad)}")
    bad = [theirs[name] for name in wanted if found[name].dtype not in FLOATS]
    if bad:
        raise not_a_float(weights, bad)
