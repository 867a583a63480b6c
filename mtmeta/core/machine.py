"""The machine's memory, threads and devices, as a run uses them."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import re
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import nn

from mtmeta.core.errors import MachineError, OutOfMemory, PluginError, UsageError, out_of_memory
from mtmeta.core.wording import quote, safe

SMALL = 1_000_000  # parameters
# variables by which the libraries under PyTorch choose other instructions, another order of sums or fewer digits; what
# ATEN_CPU_CAPABILITY chooses stands in the name of the processor
ARITHMETIC = {
    "cpu": (
        *("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"),
        *("ONEDNN_CPU_ISA_HINTS", "DNNL_CPU_ISA_HINTS", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"),
        *("OMP_DYNAMIC", "OMP_THREAD_LIMIT"),
    ),
    "cuda": ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
}
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
CPUINFO, MEMINFO, CGROUP = Path("/proc/cpuinfo"), Path("/proc/meminfo"), Path("/sys/fs/cgroup")
# instructions for products of bf16 matrices, as CPUINFO names them; the last is Arm's
BF16 = ("amx_bf16", "avx512_bf16", "bf16")
FAST_BF16 = ("amx_bf16",)  # those with which `precision: auto` means bf16 on a CPU
SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18  # of x86_64's Linux


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread; on exit the number is as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def fitting_threads(model: nn.Module) -> Iterator[None]:
    """Use one thread for a small encoder, PyTorch's own choice for others; on exit the number is as before.

    On matrices this small a second thread saves a seventh of the time on an idle machine, and on a busy one the
    threads wait for each other: the same run then takes ten times as long.
    """
    before = torch.get_num_threads()
    if sum(parameter.numel() for parameter in model.parameters()) < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_deterministic(device: torch.device) -> None:
    """Have a GPU add in the same order every time, so that the same recipe gives the same bits. A CPU does anyway."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        # not warn_only: FlashAttention's backward then takes the quicker way, which adds in any order
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid


@contextlib.contextmanager
def memory_errors(doing: str, remedy: str) -> Iterator[None]:
    """Turn a lack of memory, the GPU's or the host's, into one line that says what was being done."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if (kind := out_of_memory(error)) is None:
            raise
        raise OutOfMemory("", f"{kind} in {doing}; {remedy}") from error


@contextlib.contextmanager
def order_errors(who: str, doing: str) -> Iterator[None]:
    """Turn PyTorch's refusal of an operator that adds in any order into one line that names `who` uses it."""
    try:
        yield
    except RuntimeError as error:
        operator, refused, _ = str(error).partition(" does not have a deterministic implementation")
        if not refused:
            raise
        rest = "which PyTorch cannot do in the same order every time; use another operator"
        raise PluginError(who, f"{doing} uses {safe(operator)}, {rest}") from error


def waiting_seconds() -> float:
    """Return for how long this thread was ready to run and had no processor, since it began; 0 where nobody knows."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):  # another system, or a kernel that does not count it
        return 0.0


def peak_memory() -> int:
    """Return the most memory this process has had, in bytes."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        # getrusage would on Linux count what the process had that started this one
        return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    peak = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peak if sys.platform == "darwin" else peak * 1024


def free_memory() -> int | None:
    """Return the bytes that processes may still take, of the machine and of our control group; None if unknown."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        free = 1024 * int(MEMINFO.read_text().partition("MemAvailable:")[2].split()[0])
        with contextlib.suppress(OSError, ValueError):  # there is no group, or it may take what there is: "max"
            most, taken = ((CGROUP / name).read_text() for name in ("memory.max", "memory.current"))
            free = min(free, int(most) - int(taken))
        return free
    return None


def free_memory_of(device: torch.device) -> int | None:
    """Return the bytes that may still be taken on a device; None if unknown. What PyTorch keeps for reuse is free."""
    if device.type != "cuda":
        return free_memory()
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept


def processor(device: torch.device) -> str:
    """Return the name of the processor: another GPU, or a CPU with other instructions, rounds sums otherwise."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def arithmetic(device: torch.device, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables of the environment that change last bits on such a device, where they are set."""
    return {name: environ[name] for name in ARITHMETIC.get(device.type, ()) if environ.get(name)}


class Heap:
    """Has glibc keep the memory a step frees for the next step; does nothing where the C library is another.

    By itself glibc returns large buffers at once, and getting them again takes up to a fifth of a step on a virtual
    machine. Kept, they leave holes, which cost some tenths of a second to return: that waits until they are a quarter.
    """

    def __init__(self) -> None:
        self._settled = 0  # resident pages after the first step since the last release
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26)):
            _libc("mallopt", option, value)

    def after_step(self) -> None:
        """Look at the resident memory, some microseconds, and release it if it has grown too much."""
        resident = _resident()
        if not self._settled:
            self._settled = resident
        elif resident > 1.25 * self._settled:
            self.release()

    def release(self) -> None:
        """Return freed heap to the system."""
        self._settled = 0
        trim_memory()


def trim_memory() -> None:
    """Return freed memory to the system: batches that differ in length leave holes, which add up over millions."""
    _libc("malloc_trim", 0)


def _libc(function: str, *values: int) -> None:
    """Call a function of the C library if it has it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            getattr(ctypes.CDLL(None), function)(*values)


def resident_bytes() -> int:
    """Return the memory that this process has at the moment; 0 where the system does not tell."""
    return _resident() * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0


def _resident() -> int:
    """Return the resident pages of this process; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0


Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@contextlib.contextmanager
def autocast(device: torch.device, precision: Precision) -> Iterator[None]:
    """Compute in `precision`, whatever `torch.autocast` the caller is in; works as a decorator too.

    PyTorch keeps the bf16 copies of weights until the outermost autocast ends, which may be a caller's around a whole
    training: each step would compute with the copies of the first. So they are forgotten here, before and after.
    """
    torch.clear_autocast_cache()
    try:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=True):
            yield
    finally:
        torch.clear_autocast_cache()


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """Leave the caller's `torch.autocast`, of any device: the recipe's precision decides, where `autocast` says so."""
    with autocast(torch.device("cpu"), "fp32"), autocast(torch.device("cuda"), "fp32"):
        yield


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """Compute as a process of our own would, whatever the caller has set: of PyTorch, for this thread or block.

    That is autocast, gradient and inference mode, default dtype and device. On exit all are as they were.
    """
    dtype = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        if torch.get_default_device().type != "cpu":  # it is asked at every operation, so only where need be
            stack.enter_context(torch.device("cpu"))
        for context in (torch.inference_mode(mode=False), torch.enable_grad(), without_autocast()):
            stack.enter_context(context)
        yield


def pick_device(name: str) -> torch.device:
    """Return the torch device for `--device`. Raises MachineError if the machine has no such device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise UsageError("--device", f"{quote(name)} is no device; use auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(index[:9] or 0) >= torch.cuda.device_count():
        message = f"this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu"
        raise MachineError(f"device {safe(name)}", message)
    return torch.device(kind, int(index)) if index and kind == "cuda" else torch.device(kind)


def pick_precision(wanted: str, device: torch.device, *, bf16_on_cpu: bool = False) -> Precision:
    """Return the precision that `training.precision` means on a device; `bf16_on_cpu` is the backbone's.

    `auto` goes by what the hardware has and never by a timing: the same machine gives the same bits.
    """
    if wanted != "auto":
        return "bf16" if wanted == "bf16" else "fp32"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    fast = bf16_on_cpu and has_onednn and any(name in FAST_BF16 for name in bf16_cpu())
    return "bf16" if fast else "fp32"


def bf16_cpu(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return those of BF16 that the processor has, Linux lets us use and no variable takes away from PyTorch."""
    has = [name for name in BF16 if name in _cpu_flags(CPUINFO)]
    # a PyTorch that is told to be one for older processors (ATEN_CPU_CAPABILITY) is taken at its word
    if platform.machine() == "x86_64" and not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return ()
    # of the two names oneDNN looks at the first that has a value
    most = (environ.get("ONEDNN_MAX_CPU_ISA") or environ.get("DNNL_MAX_CPU_ISA") or "ALL").upper()
    if most not in ("ALL", "DEFAULT"):
        words = {"amx_bf16": "AMX", "avx512_bf16": "AMX|BF16|FP16|AVX10", "bf16": ""}
        has = [name for name in has if re.search(words[name], most)]
    return tuple(name for name in has if name != "amx_bf16" or _may_use_tiles())


def bf16_instructions(device: torch.device, precision: str) -> str:
    """Return what a CPU computes bf16 by, `none` where it has nothing for it; empty for fp32 and on GPUs."""
    return " ".join(bf16_cpu()) or "none" if device.type == "cpu" and precision == "bf16" else ""


def bf16_notes(device: torch.device, precision: str) -> list[str]:
    """Return a line for the user where bf16 is computed without instructions for it."""
    line = "training.precision: bf16 is slow on this processor, which has no instructions for it; fp32 is faster"
    return [line] if bf16_instructions(device, precision) == "none" else []


@functools.cache
def _cpu_flags(cpuinfo: Path) -> list[str]:
    """Return the names of what the first processor can do; none where the system is another than Linux."""
    with contextlib.suppress(OSError):
        flags = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
        return flags[1].split() if flags else []
    return []


@functools.cache
def _may_use_tiles() -> bool:
    """Ask Linux for AMX's registers, which no process has before it asked; oneDNN asks for the same at its start."""
    with contextlib.suppress(OSError, AttributeError):
        return bool(ctypes.CDLL(None).syscall(SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0)
    return False
