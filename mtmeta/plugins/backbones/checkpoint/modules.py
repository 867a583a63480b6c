"""Folders of sentence-transformers: where in them the encoder lies, and what they do beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mtmeta
from mtmeta.plugins.backbones.checkpoint.untrusted import MAX_CONFIG_BYTES, json_file, json_value, read_limited

MODULES = "modules.json"
PACKAGE = "sentence_transformers."
AFTER = ("Pooling", "Normalize", "Dense", "Dropout", "LayerNorm")
MEAN = {"mean", "mean_tokens"}
PROMPTS = "config_sentence_transformers.json"
LIMITS = tuple(f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "xlm-roberta"))
Encode = Callable[[list[str]], list[list[int]]]


@dataclass(frozen=True)
class Place:
    """Where an encoder lies, and what is done beside it in the folder it comes from."""

    given: Path
    folder: Path
    """With config.json, weights and tokenizer."""
    beside: list[str] = field(default_factory=list)
    """Modules and prompts that are left out, in words."""

    def notes(self, max_length: int, encode: Encode) -> Iterator[str]:
        """Yield what the user should know, given the run's `max_length` and its tokenizer."""
        if self.beside:
            mean = "a text's vector is the mean of its hidden states here"
            yield f"{self.given}: its sentence-transformers model has {', '.join(self.beside)}, left out: {mean}"
        for name in LIMITS if (self.given / MODULES).exists() else ():
            values = json_file(self.folder / name)
            limit = values.get("max_seq_length")
            if isinstance(limit, int) and limit < max_length:
                yield f"{self.folder / name}: max_seq_length is {limit}, the recipe's max_length {max_length} holds"
            if values.get("do_lower_case") is True and encode(["Ab Cd"]) != encode(["ab cd"]):
                yield f"{self.folder / name}: do_lower_case is true, its tokenizer keeps capitals, and holds"


def find_encoder(folder: Path) -> Place:
    """Find the encoder in a folder of sentence-transformers; any other folder is returned as it is.

    No module's code is run. Raises WeightsError for modules without which the encoder would be another one.
    """
    path = folder / MODULES
    if not path.exists():
        return Place(folder, folder)
    listed = json_value(read_limited(path, MAX_CONFIG_BYTES, MODULES), path)
    modules = [_module(path, one) for one in listed] if isinstance(listed, list) else []
    if not modules or modules[0][0] != "Transformer":
        first = f"'{modules[0][0]}'" if modules else "nothing"
        raise mtmeta.WeightsError(str(path), f"begins with {first}, expected 'Transformer'; it is no encoder of ours")
    beside = [text for kind, name in modules[1:] if (text := _beside(folder, kind, name))]
    if all(text.startswith("normalised") for text in beside):
        beside = []  # heads are trained on the vectors as they are, and cosine heads normalise them
    prompts = json_file(folder / PROMPTS)
    named = prompts.get("prompts")
    prompt = named.get(prompts.get("default_prompt_name")) if isinstance(named, dict) else None
    if isinstance(prompt, str) and prompt:
        beside.append(f"the prompt {mtmeta.quote(prompt)} before every text")
    return Place(folder, folder / modules[0][1] if modules[0][1] else folder, beside)


def _module(path: Path, value: Any) -> tuple[str, str]:
    """Return a module's kind and the name of its folder, empty for the root. Raises WeightsError."""
    match value:
        case {"type": str(kind), "path": str(name)}:
            pass
        case _:
            raise mtmeta.WeightsError(str(path), "has a module without type and path; fetch it again")
    if not kind.startswith(PACKAGE):
        message = f"type {mtmeta.quote(kind)} is code of the folder's own, which is never run"
        raise mtmeta.WeightsError(str(path), f"{message}; remove {MODULES} to use the encoder alone")
    if name in ("..", ".") or set(name) & set("/\\:\0") or not name.isprintable():
        raise mtmeta.WeightsError(str(path), f"path {mtmeta.quote(name)} is no folder beside it; fetch it again")
    last = kind.rpartition(".")[2]
    if last not in ("Transformer", *AFTER):
        message = f"type {mtmeta.quote(kind)} is none of Transformer, {', '.join(AFTER)}"
        raise mtmeta.WeightsError(str(path), f"{message}; remove {MODULES} to use the encoder alone")
    return last, name


def _beside(folder: Path, kind: str, name: str) -> str:
    """Return in words what a module after the encoder does that we do not; empty for the mean."""
    if kind == "Normalize":
        return f"normalised vectors ({name})"
    if kind != "Pooling":
        return f"a {kind} layer ({name})"
    values = json_file(folder / name / "config.json")
    mode = values.get("pooling_mode")
    if mode is None:
        mode = [
            key.removeprefix("pooling_mode_") for key, on in values.items() if key.startswith("pooling_") and on is True
        ]
    modes = [mode] if isinstance(mode, str) else [str(one) for one in mode] if isinstance(mode, list) else []
    if values and (not modes or set(modes) <= MEAN):
        return ""
    return f"pooling {mtmeta.quote(' and '.join(modes) or 'unknown')} ({name})"
