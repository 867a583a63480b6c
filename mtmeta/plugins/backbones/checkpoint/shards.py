"""Weights in safetensors, in one file or in shards with an index. Every file is opened once, hashed as it is read.

The tensors are made of the very bytes that the hash is of. Headers are untrusted: they are checked before anything of a
size that they claim is allocated.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import mtmeta
from mtmeta.plugins.backbones.checkpoint.untrusted import json_object, open_regular, read_limited

if TYPE_CHECKING:
    from torch import Tensor

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_HEADER = 16 * 2**20  # bytes; a tensor takes about 150
MAX_SHARDS = 1000
CHUNK = 2**20
SPARE = 256 * 2**20  # bytes of heads and the like that files may hold beside the encoder
PICKLE = "pickle files can run code and are not read; save it as safetensors first"
FLOATS = ("float64", "float32", "float16", "bfloat16")
# of safetensors' types: PyTorch's name, and bits
TYPES = {
    "F64": ("float64", 64), "F32": ("float32", 32), "F16": ("float16", 16), "BF16": ("bfloat16", 16),
    "I64": ("int64", 64), "I32": ("int32", 32), "I16": ("int16", 16), "I8": ("int8", 8),
    "U64": ("uint64", 64), "U32": ("uint32", 32), "U16": ("uint16", 16), "U8": ("uint8", 8),
    "BOOL": ("bool", 8), "C64": ("complex64", 64), "F8_E4M3": ("float8_e4m3fn", 8), "F8_E5M2": ("float8_e5m2", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8), "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8), "F8_E8M0": ("float8_e8m0fnu", 8),
    "F6_E2M3": ("float6_e2m3", 6), "F6_E3M2": ("float6_e3m2", 6), "F4": ("float4_e2m1fn", 4),
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A tensor as a header has it."""

    name: str
    dtype: str
    """PyTorch's name of it."""
    shape: tuple[int, ...]
    size: int
    """Bytes."""


Keep = Callable[[Entry], bool]


@dataclass
class Weights:
    """What the files of a folder hold."""

    place: Path
    """The file, or the index of several."""
    identity: str = ""
    """SHA-256 of the file, or of the names and hashes of the shards."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Those that were kept."""
    entries: dict[str, Entry] = field(default_factory=dict)
    """All there are."""
    files: dict[str, Path] = field(default_factory=dict)
    """Where each of them lies."""
    notes: list[str] = field(default_factory=list)


def read_weights(folder: Path, keep: Keep, most: int, needed: int) -> Weights:
    """Read model.safetensors, or the shards that its index names; tensors that `keep` refuses are hashed alone.

    Files of more than `most` bytes together are refused; `needed` is what the encoder takes. Raises WeightsError.
    """
    whole, index = folder / WHOLE, folder / INDEX
    if whole.exists() or not index.exists():
        if not whole.exists() and (others := sorted(path.name for path in folder.glob("*.bin"))):
            raise mtmeta.WeightsError(str(folder / mtmeta.safe(others[0])), PICKLE)
        found = Weights(whole)
        with open_regular(whole) as file:
            _check_size(whole, os.fstat(file.fileno()).st_size, most, needed)
            found.identity = _read_file(whole, file, found, keep)
        return found
    found = Weights(index)
    values = json_object(read_limited(index, MAX_HEADER, "index"), index, fix="; fetch it again")
    named = read_index(index, values)
    by_file: dict[str, set[str]] = {}
    for tensor, name in named.items():
        by_file.setdefault(name, set()).add(tensor)
    hashes, size = "", 0
    for name in sorted(by_file):
        path = folder / name
        with open_regular(path) as file:
            size += os.fstat(file.fileno()).st_size
            _check_size(index, size, most, needed)
            hashes += f"{name} {_read_file(path, file, found, keep, by_file[name])}\n"
    found.identity = hashlib.sha256(hashes.encode()).hexdigest()
    stated, held = values.get("metadata"), sum(entry.size for entry in found.entries.values())
    if isinstance(stated, dict) and stated.get("total_size", held) != held:
        found.notes.append(f"{index}: total_size is {mtmeta.quote(stated['total_size'])}, its shards hold {held} bytes")
    return found


def read_index(place: Path, values: Mapping[str, Any]) -> dict[str, str]:
    """Return the file of each tensor by an index. Raises WeightsError unless it names safetensors of its own folder."""
    named = values.get("weight_map")
    if not isinstance(named, dict) or not named:
        raise mtmeta.WeightsError(str(place), "names no files of this folder; fetch it again")
    for name in (files := sorted({str(name) for name in named.values()})):
        plain = name.isprintable() and name.isascii() and not set(name) & set("/\\:") and not name.startswith(".")
        if not plain or not name.endswith(".safetensors"):
            fix = PICKLE if name.endswith(".bin") else "shards are safetensors files beside it"
            raise mtmeta.WeightsError(str(place), f"names {mtmeta.quote(name)}, which is none of its folder; {fix}")
    if len(files) > MAX_SHARDS:
        raise mtmeta.WeightsError(str(place), f"names {len(files)} files (limit {MAX_SHARDS})")
    return {tensor: str(name) for tensor, name in named.items()}


def _check_size(place: Path, size: int, most: int, needed: int) -> None:
    if size > most:
        message = f"is {size / 1e9:.3g} GB, the encoder of config.json needs {needed / 1e9:.3g} GB"
        raise mtmeta.WeightsError(str(place), f"{message}; they do not belong together")


def _read_file(path: Path, file: BinaryIO, found: Weights, keep: Keep, expected: set[str] | None = None) -> str:
    """Read a file's tensors into `found`, and return its SHA-256. `expected` are those that an index names in it."""
    import torch

    hashed = hashlib.sha256()
    entries, start = _read_header(path, file, hashed.update)
    size, stated = os.fstat(file.fileno()).st_size, start + sum(entry.size for entry in entries)
    if size != stated:
        raise damaged(path, f"size {size}, its header says {stated}")
    names = {entry.name for entry in entries}
    for name in sorted(names):
        if name in found.files:
            message = f"tensor {mtmeta.quote(name)} is in {found.files[name].name} too; fetch the folder again"
            raise mtmeta.WeightsError(str(path), message)
    if expected is not None and names != expected:
        one = min(names ^ expected)
        has = f"has tensor {mtmeta.quote(one)}, which" if one in names else f"lacks tensor {mtmeta.quote(one)}, which"
        rest = "names elsewhere or not at all" if one in names else "says is in it"
        message = f"{has} {found.place.name} {rest}{and_more(sorted(names ^ expected))}; fetch the folder again"
        raise mtmeta.WeightsError(str(path), message)
    for entry in entries:
        found.entries[entry.name], found.files[entry.name] = entry, path
        kept = keep(entry)
        data = torch.empty(entry.size if kept else min(entry.size, CHUNK), dtype=torch.uint8)
        values: Any = data.numpy()
        view, done = memoryview(values), 0
        while done < entry.size:
            part = view[done : done + CHUNK] if kept else view[: entry.size - done]
            count = file.readinto(part)  # type: ignore[attr-defined]
            if not count:
                raise damaged(path, f"{entry.size - done} bytes of {mtmeta.quote(entry.name)} are missing")
            hashed.update(part[:count])
            done += count
        if kept:
            found.tensors[entry.name] = data.view(getattr(torch, entry.dtype)).view(entry.shape)
    return hashed.hexdigest()


def damaged(path: Path, why: str) -> mtmeta.WeightsError:
    """Return the refusal of a file that is not what it was saved as."""
    return mtmeta.WeightsError(str(path), f"is damaged ({mtmeta.safe(why, 200)}); fetch it again")


def _read_header(path: Path, file: BinaryIO, hear: Callable[[bytes], None]) -> tuple[list[Entry], int]:
    """Read a header, telling `hear` its bytes; returns the tensors in the order of theirs, and where those begin.

    Raises WeightsError.
    """
    hear(start := file.read(8))
    size = int.from_bytes(start, "little")
    if size > MAX_HEADER:
        raise damaged(path, f"a header of {size} bytes, the limit is {MAX_HEADER}")

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(entries := dict(pairs)) < len(pairs):
            name = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise damaged(path, f"its header names {mtmeta.quote(name)} twice")
        return entries

    hear(text := file.read(size))
    try:
        values: Any = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"its header is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise damaged(path, "its header is no JSON object")
    found = [(_offsets(path, name, one), name, one) for name, one in values.items() if name != "__metadata__"]
    entries, end = [], 0
    for (first, last), name, one in sorted(found, key=lambda item: item[0]):
        if first != end:
            raise damaged(path, f"invalid offset {first} of {mtmeta.quote(name)}, expected {end}")
        entries.append(_entry(path, name, one, last - first))
        end = last
    return entries, 8 + size


def _offsets(path: Path, name: str, value: object) -> tuple[int, int]:
    match value:
        case {"data_offsets": [int(first), int(last)]} if 0 <= first <= last < 2**62:
            return first, last
    raise damaged(path, f"{mtmeta.quote(name)} has no offsets in its header")


def _entry(path: Path, name: str, value: Mapping[str, object], size: int) -> Entry:
    """Return a tensor whose shape and type take `size` bytes. Raises WeightsError."""
    shape, kind = value.get("shape"), value.get("dtype")
    if not isinstance(kind, str) or kind not in TYPES:
        raise damaged(path, f"{mtmeta.quote(name)} is of type {mtmeta.quote(kind)}, which there is not")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise damaged(path, f"{mtmeta.quote(name)} has no shape in its header")
    dtype, bits = TYPES[kind]
    if len(shape) > 60 or (total := math.prod(shape)) >= 2**60:
        raise damaged(path, f"the shape of {mtmeta.quote(name)} is an overflow")
    if total * bits != 8 * size:
        raise damaged(path, f"{mtmeta.quote(name)} is {dimensions(shape)} of {dtype}, and has {size} bytes")
    return Entry(name, dtype, tuple(shape), size)


def and_more(names: Sequence[object]) -> str:
    """Say how many names there are beside the first."""
    return f" (+{len(names) - 1} more)" if len(names) > 1 else ""


def dimensions(shape: Sequence[int]) -> str:
    """Write a shape as `2x3`."""
    return "x".join(map(str, shape)) or "a single number"
