"""The state of optimizers by parameter name, as checkpoints keep it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["flatten", "optimizer_state", "restore_optimizer", "spare_slot", "unflatten"]


def optimizer_state(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """An optimizer's state keyed by parameter NAME, so that a new task cannot shift moments onto wrong weights.

    With a first beta of 0 the first moment is the last gradient, which no later step reads: it is left out.
    """
    spare = spare_slot(optimizer)
    found = {}
    for name, parameter in parameters.items():
        state = optimizer.state.get(parameter, {})
        slots = {key: value for key, value in state.items() if isinstance(value, Tensor) and key != spare}
        if slots:
            found[name] = slots
    return found


def spare_slot(optimizer: Optimizer) -> str | None:
    """The first moment's name in an optimizer of Adam's kind whose first beta is 0: no step reads an older one."""
    return "exp_avg" if optimizer.defaults.get("betas", (1.0,))[0] == 0.0 else None


def restore_optimizer(
    optimizer: Optimizer, parameters: Mapping[str, Tensor], state: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Put a state from `optimizer_state` back. Step counters stay where PyTorch keeps them, on the CPU if not fused."""
    for name, slots in state.items():
        parameter = parameters[name]
        restored = {
            key: value.to(parameter.device) if value.ndim or optimizer.defaults.get("fused") else value.clone()
            for key, value in slots.items()
        }
        if "exp_avg_sq" in restored and "exp_avg" not in restored:
            restored["exp_avg"] = torch.zeros_like(restored["exp_avg_sq"])
        optimizer.state[parameter] = restored


def flatten(prefix: str, state: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """{"outer|exp_avg|encoder.words.weight": tensor}: parameter names hold dots, task names hold neither | nor dots."""
    return {f"{prefix}|{slot}|{name}": tensor for name, slots in state.items() for slot, tensor in slots.items()}


def unflatten(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, dict[str, Tensor]]]:
    """What `flatten` made one of, by prefix: {"outer": {parameter name: {slot: tensor}}}."""
    nested: dict[str, dict[str, dict[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        prefix, slot, name = key.split("|", 2)
        nested.setdefault(prefix, {}).setdefault(name, {})[slot] = tensor
    return nested
