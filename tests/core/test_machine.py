"""What `training.precision: auto` means on a processor: by its instructions, and by what variables and Linux allow."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mtmeta.core import machine

CPU = torch.device("cpu")
SAPPHIRE_RAPIDS = "fpu avx avx2 avx512f avx512_bf16 amx_bf16 amx_tile amx_int8"
COOPER_LAKE = "fpu avx avx2 avx512f avx512_bf16"
HASWELL = "fpu avx avx2"
BOTH = ("amx_bf16", "avx512_bf16")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def computer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is taken for /proc/cpuinfo, on a system that hands out AMX's registers."""
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "CPUINFO", cpuinfo)
    monkeypatch.setattr(machine, "_may_use_tiles", lambda: True)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    return cpuinfo


def has(cpuinfo: Path, flags: str, label: str = "flags\t\t") -> None:
    block = f"processor\t: 0\nmodel name\t: with amx_bf16 in its name\n{label}: {flags}\nbugs\t\t: none\n\n"
    cpuinfo.write_text(block * 2)


@pytest.mark.parametrize(
    ("flags", "expected", "precision"),
    [
        (SAPPHIRE_RAPIDS, BOTH, "bf16"),
        (COOPER_LAKE, ("avx512_bf16",), "fp32"),  # no table shows that it wins
        (HASWELL, (), "fp32"),
        ("avx512f my_amx_bf16 amx_bf16x", (), "fp32"),  # whole names
    ],
)
def test_instructions_of_a_processor(flags: str, expected: tuple[str, ...], precision: str, computer: Path) -> None:
    has(computer, flags)
    assert machine.bf16_cpu() == expected
    assert machine.pick_precision("auto", CPU, bf16_on_cpu=True) == precision
    assert machine.pick_precision("auto", CPU) == "fp32"  # what a backbone gets that says nothing
    for asked in ("fp32", "bf16"):
        assert machine.pick_precision(asked, CPU, bf16_on_cpu=True) == asked
        assert machine.pick_precision(asked, CPU) == asked
    assert machine.bf16_instructions(CPU, "bf16") == (" ".join(expected) or "none")
    assert machine.bf16_instructions(CPU, "fp32") == machine.bf16_instructions(torch.device("cuda"), "bf16") == ""
    slow = ["training.precision: bf16 is slow on this processor, which has no instructions for it; fp32 is faster"]
    assert machine.bf16_notes(CPU, "bf16") == ([] if expected else slow)
    assert machine.bf16_notes(CPU, "fp32") == []


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", BOTH),
        ("ALL", BOTH),
        ("default", BOTH),
        ("AVX512_CORE_AMX", BOTH),
        ("avx10_1_512_amx_fp16", BOTH),
        ("AVX512_CORE_FP16", ("avx512_bf16",)),
        ("AVX512_CORE_BF16", ("avx512_bf16",)),
        ("AVX512_CORE_VNNI", ()),
        ("AVX512_CORE", ()),
        ("AVX2", ()),
        ("sse41", ()),
    ],
)
def test_variables_that_take_instructions_away(
    name: str, value: str, expected: tuple[str, ...], computer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has(computer, SAPPHIRE_RAPIDS)
    monkeypatch.setenv(name, value)
    assert machine.bf16_cpu() == expected
    assert machine.pick_precision("auto", CPU, bf16_on_cpu=True) == ("bf16" if expected == BOTH else "fp32")


def test_of_two_variables_the_newer_name_holds(computer: Path) -> None:
    has(computer, SAPPHIRE_RAPIDS)
    assert machine.bf16_cpu({"ONEDNN_MAX_CPU_ISA": "ALL", "DNNL_MAX_CPU_ISA": "AVX2"}) == BOTH
    assert machine.bf16_cpu({"ONEDNN_MAX_CPU_ISA": "AVX2", "DNNL_MAX_CPU_ISA": "ALL"}) == ()
    assert machine.bf16_cpu({"ONEDNN_MAX_CPU_ISA": "", "DNNL_MAX_CPU_ISA": "AVX2"}) == ()


def test_what_else_takes_them_away(computer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has(computer, SAPPHIRE_RAPIDS)
    with monkeypatch.context() as patch:
        patch.setattr(machine, "_may_use_tiles", lambda: False)
        assert machine.bf16_cpu() == ("avx512_bf16",)
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
        assert machine.bf16_cpu() == ()
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert machine.pick_precision("auto", CPU, bf16_on_cpu=True) == "fp32"
    with monkeypatch.context() as patch:
        patch.setattr(machine, "CPUINFO", computer / "is no folder")
        assert machine.bf16_cpu() == ()
    assert machine.pick_precision("auto", CPU, bf16_on_cpu=True) == "bf16"


def test_arm(computer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, so that nobody is told of none, and `auto` stays fp32: nothing was measured there."""
    has(computer, "fp asimd bf16 i8mm", "Features\t")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert machine.bf16_cpu() == ("bf16",)
    assert machine.pick_precision("auto", CPU, bf16_on_cpu=True) == "fp32"
    assert machine.bf16_notes(CPU, "bf16") == []


@pytest.mark.parametrize(
    ("variables", "left"),
    [
        ({}, BOTH),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, ("avx512_bf16",)),
        ({"ATEN_CPU_CAPABILITY": "avx2"}, ()),
        ({"ATEN_CPU_CAPABILITY": "default"}, ()),
    ],
)
def test_this_machine(variables: dict[str, str], left: tuple[str, ...]) -> None:
    """In a process of its own, which asks this Linux for the registers and whose PyTorch reads the variables."""
    code = "import torch; from mtmeta.core.machine import bf16_cpu; print(*bf16_cpu())"
    environ = {key: value for key, value in os.environ.items() if key != "ATEN_CPU_CAPABILITY"} | variables
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    flags = machine._cpu_flags(machine.CPUINFO)
    usable = "avx512f" in flags or "asimd" in flags
    allowed = (*left, "bf16") if "asimd" in flags else left
    expected = [name for name in allowed if usable and name in flags]
    if "amx_bf16" in expected and not machine._may_use_tiles():
        expected.remove("amx_bf16")
    assert done.stdout.split() == expected
