"""config.json as a whole: that no key of it, at any depth, chooses files, code, kernels or number formats for us."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mtmeta
from mtmeta.plugins.backbones.checkpoint.untrusted import MAX_CONFIG_BYTES, json_object, read_limited

FILES = "names other files, of which none is read"
KERNELS = "asks for other kernels, which are never fetched"
QUANTISED = "asks for quantised weights, which are not read"
# what transformers, or a library it calls, would follow; others are numbers and labels
REFUSED = {
    "quantization_config": QUANTISED,
    "compression_config": QUANTISED,
    "transformers_weights": FILES,
    "configuration_files": FILES,
    "extra_files": FILES,
    "extra_config_files": FILES,
    "gguf_file": FILES,
    "base_model_name_or_path": FILES,
    "adapter_kwargs": FILES,
    "peft_config": FILES,
    "backbone": FILES,
    "use_timm_backbone": FILES,
    "use_pretrained_backbone": FILES,
    "timm_model_name": FILES,
    "attn_implementation": KERNELS,
    "experts_implementation": KERNELS,
    "use_kernels": KERNELS,
    "kernel_config": KERNELS,
    "fusion_config": KERNELS,
    "distributed_config": KERNELS,
}
PLAIN = ("eager", "sdpa")  # PyTorch's own attention
CODE = ("auto_map", "custom_pipelines")
ADAPTER = "adapter_config.json"
# of the output, which is ours to choose, and labels of where the file was once
DROPPED = ("return_dict", "use_return_dict", "output_attentions", "output_hidden_states", "torchscript")
LABELS = ("_name_or_path", "name_or_path")


@dataclass(frozen=True)
class Settings:
    """The values of a config.json that are safe to follow."""

    path: Path
    data: bytes
    """The file as it stands."""
    values: dict[str, Any]
    """Without what names code, and without what other libraries would follow."""
    code: bool
    """Whether it names code of its own beside the architecture."""

    @property
    def notes(self) -> list[str]:
        """What the user should know of the keys that are not followed."""
        kind = mtmeta.quote(self.values.get("model_type", "bert"))
        text = f"{self.path}: 'auto_map' names code of the folder's own, which is never run; taken as plain {kind}"
        return [text] if self.code else []


def read_settings(folder: Path) -> Settings:
    """Read config.json once. Raises WeightsError for what is no object, or names what we do not follow."""
    path = folder / "config.json"
    if (folder / ADAPTER).exists() or (folder / ADAPTER).is_symlink():
        message = "an adapter is not applied; merge it into the weights it was trained on, and remove this file"
        raise mtmeta.WeightsError(str(folder / ADAPTER), message)
    data = read_limited(path, MAX_CONFIG_BYTES, "config.json")
    values = json_object(data, path, fix="; fetch it again")
    try:
        return Settings(path, data, _followed(values, path), "auto_map" in values)
    except RecursionError:
        raise mtmeta.WeightsError(str(path), "is nested too deep for a config.json; fetch it again") from None


def _followed(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return `values` without what is not followed, down to the last level. Raises WeightsError."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        if key in (*CODE, *DROPPED, *LABELS):
            continue
        name = key.removeprefix("_").removesuffix("_internal")
        if name in REFUSED and not (name.endswith("_implementation") and value in PLAIN):
            if value is None or value is False or value in ("", {}, []):
                continue
            message = f"'{key}' {REFUSED[name]} (found {mtmeta.quote(value)}); remove the key if the model is whole"
            raise mtmeta.WeightsError(str(path), message)
        kept[key] = _deep(value, path)
    return kept


def _deep(value: Any, path: Path) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"__float__"} and isinstance(value["__float__"], int | float):  # how transformers writes inf
            return float(value["__float__"])
        return _followed(value, path)
    return [_deep(one, path) for one in value] if isinstance(value, list) else value
