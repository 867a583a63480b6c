"""Files of run directories: written with their size and SHA-256, and what the disk refuses in one line."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtmeta.core.errors import MachineError
from mtmeta.core.storage.atomic import atomic_file, make_folder
from mtmeta.core.storage.reading import open_regular
from mtmeta.core.wording import byte_text, safe

if TYPE_CHECKING:
    from torch import Tensor

Fingerprint = dict[str, Any]
"""`{"size": bytes, "sha256": hex}` of a file."""
SPARE = 2**16  # bytes for the names in safetensors headers, JSON and directories
BUFFER = 2**20
DTYPES = {"torch.bfloat16": "BF16", "torch.uint8": "U8", "torch.bool": "BOOL"}
DTYPES |= {f"torch.float{bits}": f"F{bits}" for bits in (16, 32, 64)}
DTYPES |= {f"torch.int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)}


def write_file(path: Path, data: bytes | str) -> None:
    """Replace a file as a whole: readers see the old or the new one, never half. Raises MachineError."""
    with disk_errors(path):
        make_folder(path.parent)
        with atomic_file(path) as file:
            file.write(data.encode() if isinstance(data, str) else data)


def write_synced(path: Path, data: bytes) -> Fingerprint:
    """Write a file and flush it to disk; returns the fingerprint of `data`, not of the file."""
    return _write(path, lambda put: put(data))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> Fingerprint:
    """Write a safetensors file, tensor by tensor, flushed to disk; `about` is its metadata.

    The library's own writer makes the same bytes, but files that only their owner may read; it hides the system's
    reason for a failure, and gives no hash of what it wrote, so that a bit that flips on the way would pass.
    """
    import torch  # here, so that whoever only reads a run directory does without

    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {"__metadata__": dict(about)} if about else {}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[str(tensor.dtype)], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)

    def fill(put: Callable[[Any], None]) -> None:
        put(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            put(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)

    return _write(path, fill)


def _write(path: Path, fill: Callable[[Callable[[Any], None]], None]) -> Fingerprint:
    digest, size = hashlib.sha256(), 0
    with open(path, "wb", buffering=BUFFER) as file:

        def put(data: Any) -> None:
            nonlocal size
            file.write(data)
            digest.update(data)
            size += len(data)

        fill(put)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # so that whoever reads it next is told by the disk what lies there
            with contextlib.suppress(OSError):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return {"size": size, "sha256": digest.hexdigest()}


def fingerprint(path: Path, *, links: bool = False) -> Fingerprint:
    """Return size and SHA-256 of a regular file, streamed; of a symbolic link only where `links` says so."""
    with open_regular(path, links=links) as file:
        return {"size": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def check_space(folder: Path, needed: int, newest: Callable[[], str]) -> None:
    """Raise MachineError unless `needed` bytes fit on the disk of `folder`; `newest` names the newest checkpoint."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        space = os.statvfs(place)
    except OSError:
        return  # what writes next is told why
    free = space.f_bavail * space.f_frsize
    if space.f_blocks and free < needed + SPARE:  # some network drives say nothing
        message = f"{byte_text(needed + SPARE, 'kB')} needed for the next checkpoint, {byte_text(free, 'kB')} free"
        raise MachineError(f"{folder}/", f"{message}; newest good: {newest() or 'none'}")


@contextlib.contextmanager
def disk_errors(
    path: Path, message: str = "cannot be written", newest: Callable[[], str] | None = None
) -> Iterator[None]:
    """Turn the system's refusal into one line; `newest` names the newest checkpoint, if there is one."""
    try:
        yield
    except BrokenPipeError:
        raise  # that is no disk
    except OSError as error:
        good = newest() if newest else ""
        intact = f"{good} is intact" if good else "nothing older was touched"
        raise MachineError(str(path), f"{message}: {safe(error.strerror or str(error))}; {intact}") from error
