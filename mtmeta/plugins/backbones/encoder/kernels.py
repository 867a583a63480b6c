"""The functions of `csrc/`, compiled by this machine's C compiler at first use, on tensors.

The compiler is $CC or `cc`, found in the absolute folders of PATH. The library it makes is kept in `kernels-...` under
MTMETA_CACHE (by default `~/.cache/mtmeta`), named by a hash of source, compiler and processor, in a folder that only
its user may write to. It is opened once: the file that was hashed is the one that is loaded.
Without a compiler, where it cannot compile the source, and with MTMETA_KERNELS=off `load` returns None, and the
encoder goes by PyTorch's own operators. OpenMP is found in the library that PyTorch has loaded: one set of threads.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import secrets
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from mtmeta import cache_folder, staged_folder, why_unsafe
from mtmeta.plugins.backbones.encoder.fused import Noise

SOURCES = Path(__file__).with_name("csrc")
LIBRARY, HASH, DIGITS = "kernels.so", "kernels.sha256", 64
# neither through a link nor waiting for a pipe
OPEN = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
TIMEOUT = 120  # seconds
WIDEST = 2**15  # floats of a row that a kernel keeps on its stack
BLOCK = 64  # rows whose sums and random bits belong together
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fopenmp", "-fno-math-errno", "-fPIC", "-g0", f"-DBLOCK={BLOCK}", "-c")

AnyKernels = TypeVar("AnyKernels", bound="Kernels")


class Mask(ctypes.Structure):
    """The struct Noise of vector.h: a seed, how many of 65,536 values drop an element, and the factor of the rest."""

    _fields_ = [("seed", ctypes.c_uint64), ("dropped", ctypes.c_uint32), ("scale", ctypes.c_float)]


NO_MASK = Mask(0, 0, 1.0)


def mask(noise: Noise | None) -> Mask:
    """Draw a seed that nobody else gets; every call with the result makes the same mask."""
    return NO_MASK if noise is None else Mask(noise.seed(), noise.dropped, noise.scale)


class Kernels:
    """The functions of csrc/ on contiguous fp32 tensors of the CPU. Shapes as there."""

    name: ClassVar[str] = "fp32"
    suffix: ClassVar[str] = ""
    """Ends the names of the functions that every kind has."""
    room: ClassVar[torch.dtype] = torch.float32
    """What the memory that attention needs is counted in."""
    files: ClassVar[tuple[str, ...]] = ("vector.h", "gelu.h", "attention.c", "rows.c")
    """What the library is made of, in csrc/."""
    functions: ClassVar[tuple[str, ...]] = (
        *("norm_forward", "norm_backward", "gelu_forward", "gelu_backward"),
        *("attention_forward", "attention_backward", "attention_room"),
    )
    multiple: ClassVar[int] = 8
    """Divides every width."""
    types: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.int64)

    def __init__(self, path: Path, digest: str = "") -> None:
        """Load a library, whose SHA-256 must be `digest` if that is given. Raises OSError or ValueError."""
        handle = os.open(path, OPEN)
        try:
            self.digest = _digest(handle)
            if digest not in ("", self.digest):
                raise ValueError("it is not what was compiled")
        except (OSError, ValueError):
            os.close(handle)
            raise
        self.identity = self.digest[:16]
        """Equal code on equal numbers gives equal bits; another compiler or processor makes other code."""
        # on Linux; elsewhere the folder's mode keeps others away. The descriptor stays open: the loader knows libraries
        # by name, and would take the next one on this number for this one
        opened = f"/proc/self/fd/{handle}"
        self.library = ctypes.CDLL(opened if os.path.exists(opened) else str(path))
        for name in self.functions:
            getattr(self.library, name)  # AttributeError here, not in the first step
            getattr(self.library, name).restype = ctypes.c_long  # of those that return something

    def norm(
        self, x: Tensor, bias: Tensor, residual: Tensor, gain: Tensor, shift: Tensor, eps: float, noise: Mask
    ) -> tuple[Tensor, Tensor]:
        """Compute LayerNorm(residual + dropout(x + bias)) and 1 / deviation [S]; x becomes the normalised rows."""
        y, rstd = torch.empty_like(x), fp32(len(x))
        given = x, bias, residual, gain, shift, ctypes.c_float(eps), noise
        self.call(f"norm_forward{self.suffix}", *x.shape, *given, y, x, rstd)
        return y, rstd

    def norm_(
        self, x: Tensor, bias: Tensor, residual: Tensor, gain: Tensor, shift: Tensor, eps: float, noise: Mask
    ) -> Tensor:
        """Compute the same in place, for no backward pass."""
        given = x, bias, residual, gain, shift, ctypes.c_float(eps), noise
        self.call(f"norm_forward{self.suffix}", *x.shape, *given, x, None, None)
        return x

    def norm_backward(
        self, grad: Tensor, unit: Tensor, rstd: Tensor, gain: Tensor, noise: Mask
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the gradients of residual and x (one tensor without dropout), and [3, D] of gain, shift and bias."""
        d_residual = torch.empty_like(grad)
        dx = torch.empty_like(grad) if noise.dropped else d_residual
        sums = fp32(blocks(grad), 3, grad.shape[1])
        self.call(f"norm_backward{self.suffix}", *grad.shape, grad, unit, rstd, gain, noise, d_residual, dx, sums)
        return d_residual, dx, sums.sum(0)

    def gelu(self, x: Tensor, bias: Tensor, *, in_place: bool) -> Tensor:
        """Compute gelu(x + bias)."""
        y = x if in_place else torch.empty_like(x)
        self.call(f"gelu_forward{self.suffix}", *x.shape, x, bias, y)
        return y

    def gelu_backward_(self, grad: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        """Turn the gradient of the result into that of x, in place; returns that of bias [I]."""
        sums = fp32(blocks(grad), grad.shape[1])
        self.call(f"gelu_backward{self.suffix}", *grad.shape, grad, x, bias, sums)
        return sums.sum(0)

    def attention(
        self, qkv: Tensor, bias: Tensor, offsets: Tensor, longest: int, heads: int, noise: Mask
    ) -> tuple[Tensor, Tensor]:
        """Attend within each sequence, [S, 3 D] -> [S, D], and return the log of each query's sum [S, H].

        `offsets` [n + 1], int64, say where the sequences begin.
        """
        d = qkv.shape[1] // 3 // heads
        mixed, lse = qkv.new_empty(len(qkv), heads * d), fp32(len(qkv), heads)
        shape = len(offsets) - 1, offsets, heads, d
        self.call(f"attention_forward{self.suffix}", *shape, qkv, bias, noise, mixed, lse, *self._room(longest, d))
        return mixed, lse

    def attention_backward(
        self,
        qkv: Tensor,
        bias: Tensor,
        offsets: Tensor,
        longest: int,
        noise: Mask,
        mixed: Tensor,
        lse: Tensor,
        d_mixed: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Compute the gradients of qkv and bias."""
        n, heads = len(offsets) - 1, lse.shape[1]
        d = mixed.shape[1] // heads
        d_qkv, sums = torch.empty_like(qkv), fp32(n, qkv.shape[1])
        given = qkv, bias, noise, mixed, lse, d_mixed, d_qkv, sums
        self.call(f"attention_backward{self.suffix}", n, offsets, heads, d, *given, *self._room(longest, d))
        return d_qkv, sums.sum(0)

    def _room(self, longest: int, d: int) -> tuple[Tensor, int]:
        size = getattr(self.library, f"attention_room{self.suffix}")
        each = int(size(ctypes.c_long(longest), ctypes.c_long(d)))
        return torch.empty(each * torch.get_num_threads(), dtype=self.room), each

    def call(self, function: str, *arguments: object) -> None:
        """Call a function with pointers for tensors, longs for integers, and the number of threads last."""
        longs = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
        passed = [self._pointer(a) if isinstance(a, Tensor) else a for a in longs]
        getattr(self.library, function)(*passed, ctypes.c_int(torch.get_num_threads()))

    def _pointer(self, tensor: Tensor) -> ctypes.c_void_p:
        if tensor.dtype not in self.types or not tensor.is_contiguous() or tensor.device.type != "cpu":
            message = f"kernels take contiguous {self.name} tensors of the CPU, not {tensor.dtype} on {tensor.device}"
            raise ValueError(message)
        return ctypes.c_void_p(tensor.data_ptr())

    @classmethod
    def fits(cls, hidden: int, heads: int, intermediate: int) -> bool:
        """Return whether the kernels take layers of these widths."""
        m = cls.multiple
        return not (hidden % heads or (hidden // heads) % m or intermediate % m) and hidden <= WIDEST


def fp32(*shape: int) -> Tensor:
    """Return an array that is not filled, fp32 whatever the type of the others."""
    return torch.empty(shape, dtype=torch.float32)


def blocks(x: Tensor) -> int:
    """Return the number of blocks of rows that have sums of their own."""
    return -(-len(x) // BLOCK)


@functools.cache
def load(kind: type[Kernels] = Kernels) -> Kernels | None:
    """Load the kernels of a kind, compiled if they are not yet; None where they cannot be had."""
    if os.environ.get("MTMETA_KERNELS") == "off" or not hasattr(os, "getuid"):
        return None
    try:
        compiler = _compiler()
        cache = cache_folder()
        folder = cache / f"kernels-{_key(kind, compiler)}" if cache and _is_usable(cache) else None
        return (folder and _kept(kind, folder)) or _build(kind, compiler, folder)
    except (OSError, RuntimeError, ValueError, AttributeError, subprocess.SubprocessError):
        return None  # no compiler or home, a CC that is no command, a library without our functions


def _compiler() -> list[str]:
    """Find the command. Raises OSError if there is none."""
    words = shlex.split(os.environ.get("CC") or "cc")
    # never a `cc` of the current folder, which may be a stranger's, through an empty or relative entry of PATH
    folders = [folder for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if os.path.isabs(folder)]
    program = shutil.which(words[0], path=os.pathsep.join(folders)) if words and folders else None
    if program is None:
        raise FileNotFoundError("no C compiler")
    return [program, *words[1:]]


def _key(kind: type[Kernels], compiler: list[str]) -> str:
    """Hash the sources, the flags, the compiler and the processor that -march=native means."""
    stamp = os.stat(compiler[0])
    parts = [(SOURCES / name).read_bytes() for name in kind.files]
    parts.append(repr((FLAGS, compiler, stamp.st_size, stamp.st_mtime_ns, platform.machine())).encode())
    with suppress(OSError):  # Linux
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
        parts += sorted({line for line in lines if line.startswith((b"flags", b"Features", b"model"))})
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _is_closed(status: os.stat_result, is_kind: Callable[[int], bool]) -> bool:
    """Return whether a file or folder is the user's own, and nobody else may write to it."""
    return is_kind(status.st_mode) and status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o022


def _is_usable(root: Path) -> bool:
    """Return whether the folder of the cache is not there yet, or is such that nobody can change what is ours in it."""
    try:
        status = root.stat()
    except OSError:
        return True
    return stat.S_ISDIR(status.st_mode) and not why_unsafe(status)


def _digest(handle: int) -> str:
    """Return the SHA-256 of an open file. Raises ValueError if it is none, or others may write to it."""
    if not _is_closed(os.fstat(handle), stat.S_ISREG):
        raise ValueError("it is no file, or others may write to it")
    with open(handle, "rb", closefd=False) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _kept(kind: type[AnyKernels], folder: Path) -> AnyKernels | None:
    """Load the library of an earlier time; None unless it is there, unchanged, and writable for nobody else."""
    try:
        if not _is_closed(folder.lstat(), stat.S_ISDIR):
            return None
        handle = os.open(folder / HASH, OPEN)
        with open(handle, encoding="ascii") as file:
            if not _is_closed(os.fstat(handle), stat.S_ISREG):
                return None
            digest, _, name = file.read(1000).partition(" ")
        return kind(folder / LIBRARY, digest) if len(digest) == DIGITS and name == folder.name else None
    except (OSError, ValueError, AttributeError):
        return None


def _build(kind: type[AnyKernels], compiler: list[str], folder: Path | None) -> AnyKernels:
    """Compile and load; keep the result in `folder` for the next time if that can be done."""
    if folder is not None:
        scratch = folder.with_name(f".mtmeta-{secrets.token_hex(8)}.tmp")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # where another process was faster, its library stays
            replace = lambda: _kept(kind, folder) is None  # noqa: E731
            with staged_folder(folder, scratch, replace=replace, mode=0o700, durable=False):
                return _compile(kind, compiler, scratch, folder.name)
        except (OSError, ValueError, subprocess.SubprocessError):
            pass  # no place to write to, or to load code from; a temporary one may be
    with tempfile.TemporaryDirectory(prefix="mtmeta-") as temporary:
        return _compile(kind, compiler, Path(temporary), "")


def _compile(kind: type[AnyKernels], compiler: list[str], folder: Path, name: str) -> AnyKernels:
    """Make a library and, beside it, a file that holds its SHA-256 and the `name` of the folder that it belongs to."""
    objects = [folder / f"{Path(source).stem}.o" for source in kind.files if source.endswith(".c")]
    for path in objects:
        _run(*compiler, *FLAGS, str(SOURCES / f"{path.stem}.c"), "-o", str(path))
    # linked without -fopenmp: its functions are found in the library that PyTorch has loaded
    _run(*compiler, "-shared", *map(str, objects), "-o", str(folder / LIBRARY), "-lm")
    for path in objects:
        path.unlink()
    (folder / LIBRARY).chmod(0o700)
    loaded = kind(folder / LIBRARY)
    with open(folder / HASH, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(f"{loaded.digest} {name}")
    return loaded


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL)
