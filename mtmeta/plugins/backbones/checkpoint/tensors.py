"""model.safetensors, untrusted: its header is checked before anything of a size that it claims is allocated."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import mtmeta
from mtmeta.plugins.backbones.checkpoint.names import hugging_face_names, plain_names, shapes
from mtmeta.plugins.backbones.checkpoint.untrusted import check_regular

if TYPE_CHECKING:
    from torch import Tensor

    from mtmeta.plugins.backbones.checkpoint.config import BertConfig

MAX_HEADER = 16 * 2**20  # bytes; a tensor takes about 150
SPARE = 256 * 2**20  # bytes of heads and the like that a file may hold beside the encoder
PICKLE = "pickle files can run code and are not read; save it as safetensors first"


def read_weights(path: Path, config: BertConfig) -> tuple[dict[str, Tensor], str]:
    """Read the encoder's tensors in fp32 under our names, and the SHA-256 of the file. Raises WeightsError."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not path.exists() and (others := sorted(p.name for p in path.parent.glob("*.bin"))):
        raise mtmeta.WeightsError(str(path.parent / others[0]), PICKLE)
    check_regular(path)
    size, most = path.stat().st_size, 2 * 8 * config.parameters + SPARE
    if size > most:
        message = f"is {size / 1e9:.3g} GB, the encoder of config.json needs {4 * config.parameters / 1e9:.3g} GB"
        raise mtmeta.WeightsError(str(path), f"{message}; they do not belong together")
    data = path.read_bytes()
    check_header(str(path), io.BytesIO(data))
    try:
        state = load(data)
    except SafetensorError as error:
        raise _damaged(str(path), str(error)) from error
    plain, names = plain_names(state, config.model_type), hugging_face_names(config)
    if len(plain) < len(state):
        only_names: Any = {name: name for name in state}
        used = set(plain_names(only_names, config.model_type).values())
        other = next(name for name in state if name not in used)
        raise mtmeta.WeightsError(str(path), f"tensor {mtmeta.quote(other)} is there under another name too")
    _check_tensors(str(path), plain, names, config)
    ours = {our: torch.cat([plain[name].float() for name in theirs]) for our, theirs in names.items()}
    return ours, hashlib.sha256(data).hexdigest()


def _damaged(place: str, why: str) -> mtmeta.WeightsError:
    return mtmeta.WeightsError(place, f"is damaged ({mtmeta.safe(why)}); fetch it again")


def check_header(place: str, file: BinaryIO) -> None:
    """Refuse a header that names a tensor twice: the safetensors library takes the last one. Raises WeightsError."""
    size = int.from_bytes(file.read(8), "little")
    if size > MAX_HEADER:
        raise _damaged(place, f"a header of {size} bytes, the limit is {MAX_HEADER}")

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(entries := dict(pairs)) < len(pairs):
            name = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise _damaged(place, f"its header names {mtmeta.quote(name)} twice")
        return entries

    try:
        json.loads(file.read(size), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(place, f"its header is not JSON: {error}") from error


def _check_tensors(
    place: str, state: Mapping[str, Tensor], names: Mapping[str, Sequence[str]], config: BertConfig
) -> None:
    """Raise WeightsError, in the file's own names, for tensors that are missing, of another shape, or no numbers."""
    import torch

    missing = [name for theirs in names.values() for name in theirs if name not in state]
    if missing:
        message = f"tensor '{missing[0]}' is missing, config.json asks for it{and_more(missing)}"
        raise mtmeta.WeightsError(place, message)
    wanted = shapes(config)
    bad = [name for name, shape in wanted.items() if tuple(state[name].shape) != shape]
    if bad:
        pair = f"{dimensions(state[bad[0]].shape)}, config.json needs {dimensions(wanted[bad[0]])}"
        raise mtmeta.WeightsError(place, f"tensor '{bad[0]}' is {pair}{and_more(bad)}")
    floats = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    bad = [name for name in wanted if state[name].dtype not in floats]
    if bad:
        kind = str(state[bad[0]].dtype).removeprefix("torch.")
        raise mtmeta.WeightsError(place, f"tensor '{bad[0]}' is {kind}{and_more(bad)}; save it as float32")
    bad = [name for name in wanted if not bool(torch.isfinite(state[name]).all())]
    if bad:
        raise mtmeta.WeightsError(place, f"'{bad[0]}' holds non-finite values{and_more(bad)}; fetch the file again")


def and_more(names: Sequence[object]) -> str:
    """Say how many names there are beside the first."""
    return f" (+{len(names) - 1} more)" if len(names) > 1 else ""


def dimensions(shape: Sequence[int]) -> str:
    """Write a shape as `2x3`."""
    return "x".join(map(str, shape)) or "a single number"
