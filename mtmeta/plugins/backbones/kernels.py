"""`kernels.c`, compiled by this machine's C compiler at first use and called on tensors.

The compiler is $CC or `cc`; the library it makes is kept in `$MTMETA_CACHE/kernels-...` (as other caches: by default
`~/.cache/mtmeta`), named by a hash of source, compiler and processor. There is none without a compiler, on a system
whose compiler lacks what the source asks for, and with MTMETA_KERNELS=off: then `load` returns None and the encoder
goes by PyTorch's own operators. OpenMP is taken from the library that PyTorch has loaded, so both share one set of
threads.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["Kernels", "Noise", "load"]

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fopenmp", "-fno-math-errno", "-fPIC", "-c")
TIMEOUT = 120  # seconds
LEVELS = 2**16
WIDEST = 2**15  # floats of a row that a kernel keeps on its stack
MULTIPLE = 8  # what every width must be divisible by
BLOCK = 64  # rows, as in kernels.c


class _CNoise(ctypes.Structure):
    _fields_ = [("seed", ctypes.c_uint64), ("dropped", ctypes.c_uint32), ("scale", ctypes.c_float)]  # noqa: RUF012


NO_NOISE = _CNoise(0, 0, 1.0)


class Noise:
    """The random bits of one forward pass, seeded by PyTorch's own generator, for dropout with probability `p`.

    `p` is rounded to a multiple of 2^-16, and what is kept is scaled by the probability used, so expectations are
    exact.
    """

    def __init__(self, p: float) -> None:
        self.dropped = min(LEVELS - 1, round(p * LEVELS))
        self.scale = LEVELS / (LEVELS - self.dropped)
        """What kept elements are multiplied by."""
        self._seed = int(torch.randint(2**62, ()))
        self._drawn = 0

    def draw(self) -> _CNoise:
        """Bits that nobody else gets, of which every call with the result makes the same mask."""
        self._drawn += 1
        return _CNoise(self._seed + self._drawn, self.dropped, self.scale)


class Kernels:
    """The functions of kernels.c on contiguous fp32 tensors of the CPU. Shapes as there."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.attention_room.restype = ctypes.c_long

    def norm(
        self, x: Tensor, bias: Tensor, residual: Tensor, gain: Tensor, shift: Tensor, eps: float, noise: _CNoise
    ) -> tuple[Tensor, Tensor]:
        """LayerNorm(residual + dropout(x + bias)) and [S], 1 / deviation; x becomes the rows before gain and shift."""
        y, rstd = torch.empty_like(x), x.new_empty(len(x))
        self._call("norm_forward", *x.shape, x, bias, residual, gain, shift, ctypes.c_float(eps), noise, y, x, rstd)
        return y, rstd

    def norm_(
        self, x: Tensor, bias: Tensor, residual: Tensor, gain: Tensor, shift: Tensor, eps: float, noise: _CNoise
    ) -> Tensor:
        """The same in place, without what a backward pass needs."""
        self._call("norm_forward", *x.shape, x, bias, residual, gain, shift, ctypes.c_float(eps), noise, x, None, None)
        return x

    def norm_backward(
        self, grad: Tensor, unit: Tensor, rstd: Tensor, gain: Tensor, noise: _CNoise
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of residual and x (one tensor without dropout), and [3, D] of gain, shift and bias."""
        d_residual = torch.empty_like(grad)
        dx = torch.empty_like(grad) if noise.dropped else d_residual
        sums = grad.new_empty(_blocks(grad), 3, grad.shape[1])
        self._call("norm_backward", *grad.shape, grad, unit, rstd, gain, noise, d_residual, dx, sums)
        return d_residual, dx, sums.sum(0)

    def gelu(self, x: Tensor, bias: Tensor, *, in_place: bool) -> Tensor:
        """gelu(x + bias)."""
        y = x if in_place else torch.empty_like(x)
        self._call("gelu_forward", *x.shape, x, bias, y)
        return y

    def gelu_backward_(self, grad: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        """Turns the gradient of the result into that of x, in place; returns [I], that of bias."""
        sums = grad.new_empty(_blocks(grad), grad.shape[1])
        self._call("gelu_backward", *grad.shape, grad, x, bias, sums)
        return sums.sum(0)

    def attention(
        self, qkv: Tensor, bias: Tensor, offsets: Tensor, longest: int, heads: int, noise: _CNoise
    ) -> tuple[Tensor, Tensor]:
        """[S, 3 D] -> [S, D], and [S, H], the log of each query's sum; `offsets` [n + 1], int64."""
        d = qkv.shape[1] // 3 // heads
        mixed, lse = qkv.new_empty(len(qkv), heads * d), qkv.new_empty(len(qkv), heads)
        shape = len(offsets) - 1, offsets, heads, d
        self._call("attention_forward", *shape, qkv, bias, noise, mixed, lse, *self._room(longest, d))
        return mixed, lse

    def attention_backward(
        self,
        qkv: Tensor,
        bias: Tensor,
        offsets: Tensor,
        longest: int,
        noise: _CNoise,
        mixed: Tensor,
        lse: Tensor,
        d_mixed: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Gradients of qkv and bias."""
        n, heads = len(offsets) - 1, lse.shape[1]
        d = mixed.shape[1] // heads
        d_qkv, sums = torch.empty_like(qkv), qkv.new_empty(n, qkv.shape[1])
        given = qkv, bias, noise, mixed, lse, d_mixed, d_qkv, sums
        self._call("attention_backward", n, offsets, heads, d, *given, *self._room(longest, d))
        return d_qkv, sums.sum(0)

    def _room(self, longest: int, d: int) -> tuple[Tensor, int]:
        each = int(self._library.attention_room(ctypes.c_long(longest), ctypes.c_long(d)))
        return torch.empty(each * torch.get_num_threads()), each

    def _call(self, function: str, *arguments: object) -> None:
        """Call a function with pointers for tensors, longs for integers, and the number of threads last."""
        made = [
            ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else ctypes.c_long(a) if isinstance(a, int) else a
            for a in arguments
        ]
        getattr(self._library, function)(*made, ctypes.c_int(torch.get_num_threads()))


def _blocks(x: Tensor) -> int:
    return -(-len(x) // BLOCK)


@functools.cache
def load() -> Kernels | None:
    """The kernels, compiled if they are not yet; None where they cannot be had."""
    if os.environ.get("MTMETA_KERNELS", "on").lower() in ("off", "0"):
        return None
    try:
        compiler = _compiler()
        name = f"kernels-{_key(compiler)}"
        kept = _cache() / name / "kernels.so"
        if not _ours(kept):
            return _build_and_load(compiler, kept.parent)
        return Kernels(ctypes.CDLL(str(kept)))
    except (OSError, subprocess.SubprocessError):
        return None


def _compiler() -> list[str]:
    """The command; raises OSError if there is none."""
    words = shlex.split(os.environ.get("CC") or "cc")
    found = shutil.which(words[0]) if words else None
    if found is None:
        raise FileNotFoundError("no C compiler")
    return [found, *words[1:]]


def _key(compiler: list[str]) -> str:
    """Changes with the source, the flags, the compiler and the processor that -march=native means."""
    stamp = os.stat(compiler[0])
    parts = [SOURCE.read_bytes(), repr((FLAGS, compiler, stamp.st_size, stamp.st_mtime_ns, platform.uname())).encode()]
    with suppress(OSError):  # Linux
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        parts += sorted({line.encode() for line in lines if line.startswith(("flags", "Features", "model"))})
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _cache() -> Path:
    named = os.environ.get("MTMETA_CACHE")
    if named and named != "off":
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mtmeta"


def _ours(library: Path) -> bool:
    """Whether it is there, and nobody else could have put or changed it."""
    for path in (library, library.parent):
        try:
            found = path.lstat()
        except OSError:
            return False
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022 or stat.S_ISLNK(found.st_mode):
            return False
    return True


def _build_and_load(compiler: list[str], folder: Path) -> Kernels:
    """Compile in a folder of our own, load, and keep the folder for the next time if that can be done."""
    with suppress(OSError):
        folder.parent.mkdir(parents=True, exist_ok=True)
    where = folder.parent if os.access(folder.parent, os.W_OK) else None
    scratch = Path(tempfile.mkdtemp(prefix=".mtmeta-", dir=where))  # mode 0700
    try:
        made, library = scratch / "kernels.o", scratch / "kernels.so"
        # linked without -fopenmp: its functions are found in the library that PyTorch has loaded
        for command in (
            [*compiler, *FLAGS, str(SOURCE), "-o", str(made)],
            [*compiler, "-shared", str(made), "-o", str(library), "-lm"],
        ):
            subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL)
        made.unlink()
        library.chmod(0o700)
        kernels = Kernels(ctypes.CDLL(str(library)))
        if where is not None and os.environ.get("MTMETA_CACHE") != "off":
            with suppress(OSError):  # another process was faster
                scratch.rename(folder)
        return kernels
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
