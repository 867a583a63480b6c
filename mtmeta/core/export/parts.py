"""A model that is to be exported, and the files that several formats share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mtmeta.core.api.backbone import LoadedBackbone, Portable, SequenceHead
from mtmeta.core.storage.disk import write_tensors
from mtmeta.core.storage.staging import StagingFolder
from mtmeta.core.training.model import MultiTaskModel


@dataclass(frozen=True)
class Part:
    """A group of tasks that share an encoder: its model, as the run has it and as others will."""

    names: list[str]
    model: MultiTaskModel
    backbone: LoadedBackbone
    portable: Portable
    """With the adapters in it, where the tasks have some."""
    tasks: dict[str, dict[str, Any]]
    """The description of each task in heads.json; empty where no heads are exported."""
    step: int
    heads: Mapping[str, nn.Module]
    """The heads as they are exported: where a temperature was fitted, outputs are divided by it."""
    temperatures: Mapping[str, float]
    """What the run's outputs are divided by for their probabilities, of tasks that were calibrated."""
    base: Portable | None = None
    """The encoder without adapters, where these are exported beside it."""
    base_folder: str = ""


def put_encoder(draft: StagingFolder, under: str, portable: Portable) -> None:
    """Write what AutoModel and AutoTokenizer load: config, weights, tokenizer."""
    draft.write(f"{under}config.json", as_json(dict(portable.config)))
    put_tensors(draft, f"{under}model.safetensors", dict(portable.tensors))
    for name, data in portable.files.items():
        draft.write(f"{under}{name}", data)


def with_classifier(
    portable: Portable,
    layout: SequenceHead,
    architecture: str,
    labels: Sequence[str],
    own: Mapping[str, Mapping[str, Tensor]],
    **config: Any,
) -> Portable:
    """Return config and tensors of a class of transformers' models; `own` has those of its head, by their place."""
    settings = {**portable.config, "architectures": [architecture], **config}
    settings |= {"id2label": dict(enumerate(labels)), "label2id": {label: at for at, label in enumerate(labels)}}
    tensors = {layout.encoder + key: value for key, value in portable.tensors.items() if not key.startswith("pooler.")}
    for place, head in own.items():
        tensors |= {f"{place}.{key}": value.detach().float().cpu().contiguous().clone() for key, value in head.items()}
    return Portable(portable.encoder, settings, tensors, portable.files)


def put_tensors(draft: StagingFolder, name: str, tensors: dict[str, Tensor]) -> None:
    """Write tensors as safetensors."""
    draft.files[name] = write_tensors(draft.path(name), tensors, {"format": "pt"})


def as_json(value: Any) -> str:
    """Return a value as the text of a JSON file."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
