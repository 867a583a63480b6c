"""mtmeta-mini, the pretrained encoder inside the package: its folder and its description.

Folder `mini/` beside this file is in Hugging Face layout like any other; `python -m tools.build_mini` made it, and its
README.md is the model card.
"""

from __future__ import annotations

import json
from pathlib import Path

import mtmeta

EMBEDDED = "embedded"
FOLDER = Path(__file__).parent / "mini"
FILES = ("config.json", "model.safetensors", "tokenizer.json")


def embedded_folder() -> Path:
    """Return the folder. Raises WeightsError if the package was installed without it."""
    for name in FILES:
        if not (FOLDER / name).is_file():
            raise mtmeta.WeightsError(str(FOLDER / name), "is not there; install mtmeta again, it comes with it")
    return FOLDER


def describe_embedded() -> list[str]:
    """Return name, shape, size and card, a line each, for `mtmeta show backbone bert`; nothing is loaded."""
    try:
        folder = embedded_folder()
        config = json.loads((folder / "config.json").read_bytes())
    except (mtmeta.WeightsError, OSError, ValueError) as error:
        return [f"weights: {EMBEDDED}: cannot be used: {error}"]
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    # fp16: two bytes a parameter, and a header
    parameters = (folder / "model.safetensors").stat().st_size / 2
    layers = f"{config['num_hidden_layers']} layers of {config['hidden_size']}"
    shape = f"{layers}, {config['vocab_size']:,} pieces, {config['max_position_embeddings']} positions"
    return [
        f"weights: {EMBEDDED} is mtmeta-mini: BERT, English, uncased, pretrained; {shape}",
        f"{parameters / 1e6:.1f} million parameters, {size / 1e6:.1f} MB in the package; Apache-2.0",
        f"model card: {folder / 'README.md'}",
    ]
