"""The state of a learner in training as checkpoints keep it: optimizers by parameter name, and counters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from torch.optim import Optimizer

from mtmeta.core.errors import CheckpointError
from mtmeta.core.storage.disk import BEST, LINK
from mtmeta.core.wording import first_fault, safe


def optimizer_state(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return an optimizer's state keyed by parameter NAME, so that a new task cannot shift moments onto wrong weights.

    With a first beta of 0 the first moment is the last gradient, which no later step reads: it is left out.
    """
    spare = spare_slot(optimizer)
    by_name = {}
    for name, parameter in parameters.items():
        state = optimizer.state.get(parameter, {})
        slots = {key: value for key, value in state.items() if isinstance(value, Tensor) and key != spare}
        if slots:
            by_name[name] = slots
    return by_name


def spare_slot(optimizer: Optimizer) -> str | None:
    """Return the first moment's name in an optimizer like Adam whose first beta is 0: no step reads an older one."""
    return "exp_avg" if optimizer.defaults.get("betas", (1.0,))[0] == 0.0 else None


def restore_optimizer(
    optimizer: Optimizer, parameters: Mapping[str, Tensor], state: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Put a state from `optimizer_state` back; step counters where PyTorch keeps them, on the CPU if not fused."""
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
    """Undo `flatten`; by prefix: {"outer": {parameter name: {slot: tensor}}}."""
    nested: dict[str, dict[str, dict[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        prefix, slot, name = key.split("|", 2)
        nested.setdefault(prefix, {}).setdefault(name, {})[slot] = tensor
    return nested


def check_fit(parameters: Mapping[str, Tensor], saved: Mapping[str, Tensor], place: str) -> None:
    """Raise CheckpointError, naming `place`, unless saved tensors have the names and shapes of the parameters."""
    needed = {name: list(parameter.shape) for name, parameter in parameters.items()}
    given = {name: list(tensor.shape) for name, tensor in saved.items()}
    wrong = [name for name in dict.fromkeys([*needed, *given]) if needed.get(name) != given.get(name)]
    if wrong:
        name, more = wrong[0], f" (+{len(wrong) - 1} more)" if len(wrong) > 1 else ""
        message = f"tensor '{safe(name)}' is {_shape(given.get(name))}, model needs {_shape(needed.get(name))}{more}"
        raise CheckpointError(place, f"{message}; --fresh starts over")


def _shape(shape: list[int] | None) -> str:
    return "absent" if shape is None else "x".join(map(str, shape)) or "one number"


# ----------------------------------------------------------------------------------------------------- state.json

Count = Annotated[int, Field(ge=0, le=2**53)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Plateau(_Strict):
    best: Finite
    waited: Count
    factor: Finite


class _Stop(_Strict):
    best: Finite | None
    waited: Count


class _Stream(_Strict):
    epoch: Count
    offset: Count
    batches: Count
    examples: Count
    draws: Count
    planned: Finite
    episodes: Count = 0  # not in checkpoints of earlier versions


class Saved(_Strict):
    """The counters of a learner in training; `Trainer` says what each one counts."""

    step: Count
    seconds: Finite
    skipped: Count
    bests: dict[str, Finite]
    links: dict[Annotated[str, Field(pattern=f"^{LINK}$")], Annotated[str, Field(pattern=f"^{BEST}$")]]
    plateau: _Plateau | None
    examples: Count
    episodes: dict[str, Count]
    feed: dict[str, _Stream]
    warned: list[str]
    stop: _Stop | None = None  # as above


def read_state(state: Any) -> Saved:
    """Return the state as it was saved. Raises ValueError, of one line, if it is no such state."""
    try:
        return Saved.model_validate_json(json.dumps(state))
    except ValidationError as error:
        raise ValueError(first_fault(error.errors())) from error
