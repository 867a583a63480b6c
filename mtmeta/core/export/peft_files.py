"""Adapters of a task as the files of peft: adapter_config.json and adapter_model.safetensors.

Where the encoder has one matrix that is several in the layout of other libraries (queries, keys, values), B is cut into
as many groups of rows and each has a copy of A: (W + s B A) by rows is W_i + s B_i A. Norms travel whole, as modules to
save. Shapes: W [out, in], A [rank, in], B [out, rank].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtmeta.core.api.backbone import Portable
from mtmeta.core.errors import MachineError, PluginError
from mtmeta.core.methods.adapters import Adapters
from mtmeta.core.wording import quote

PREFIX = "base_model.model."  # of every name in the file
LIMIT = 1e-6  # of sums that are formed one group of rows after the other, in units of the largest where that is above 1


@dataclass(frozen=True)
class PeftFiles:
    """Contents of the two files; the config does not name the encoder yet."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]


@torch.no_grad()
def peft_files(adapters: Adapters, task: str, base: Portable) -> PeftFiles:
    """Return the files of a task's adapters beside the encoder `base`, which is without them.

    Modules are named whole: peft takes `output.dense` for attention.output.dense as well. Raises PluginError where the
    backbone does not say how its tensors are named.
    """
    tensors: dict[str, Tensor] = {}
    targets: list[str] = []
    saved: dict[str, None] = {}
    for ours in adapters.matrices:
        a, b = adapters.pair(task, ours)
        theirs = _names(base, ours)
        for name, rows in zip(theirs, b.chunk(len(theirs)), strict=True):
            module = name.removesuffix(".weight")
            targets.append(module)
            tensors[f"{PREFIX}{module}.lora_A.weight"] = _whole(a)
            tensors[f"{PREFIX}{module}.lora_B.weight"] = _whole(rows)
    for ours in adapters.norms:
        (name,) = _names(base, ours)
        module = name.rpartition(".")[0]
        if module not in saved:
            saved[module] = None
            of_module = {n: t for n, t in base.tensors.items() if n.rpartition(".")[0] == module}
            tensors |= {PREFIX + n: _whole(t) for n, t in of_module.items()}
        tensors[PREFIX + name] = _whole(adapters.norm(task, ours))
    return PeftFiles(_config(adapters, targets, list(saved)), tensors)


def _names(base: Portable, ours: str) -> list[str]:
    if not (names := list(base.names.get(ours, ()))):
        message = f"does not say under which name {quote(ours)} is exported (Portable.names); use --format transformers"
        raise PluginError("backbone", message)
    return names


def _whole(tensor: Tensor) -> Tensor:
    """Copy a tensor: safetensors takes none that shares its memory with another."""
    return tensor.detach().float().cpu().contiguous().clone()


def _config(adapters: Adapters, targets: list[str], saved: list[str]) -> dict[str, Any]:
    options = adapters.options
    alpha = int(options.alpha) if float(options.alpha).is_integer() else options.alpha
    return {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "r": options.rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "target_modules": targets,
        "modules_to_save": saved or None,
        "inference_mode": True,
    }


def check_sums(files: PeftFiles, base: Portable, merged: Portable) -> None:
    """Raise MachineError unless the files make of `base` the tensors of `merged`, by the rule of peft."""
    scale = files.config["lora_alpha"] / files.config["r"]
    sums: dict[str, Tensor] = dict(base.tensors)
    for module in files.config["target_modules"]:
        a, b = (files.tensors[f"{PREFIX}{module}.lora_{kind}.weight"] for kind in "AB")
        sums[f"{module}.weight"] = base.tensors[f"{module}.weight"] + scale * (b @ a)
    sums |= _saved(files, base)
    for name, wanted in merged.tensors.items():
        if not wanted.isfinite().all():
            continue  # the outputs tell
        error = float((sums[name] - wanted).abs().max()) / max(1.0, float(wanted.abs().max()))
        if not error <= LIMIT:
            message = f"{quote(name)} with the adapters written is {error:.2g} from that of the run"
            raise MachineError("--format peft", f"{message}; nothing was kept, use --format transformers")


def _saved(files: PeftFiles, base: Portable) -> Mapping[str, Tensor]:
    names = (name.removeprefix(PREFIX) for name in files.tensors)
    return {name: files.tensors[PREFIX + name] for name in names if name in base.tensors}
