"""A table of folder shapes and backbones: `python -m tests.support.census [PART OF A NAME ...]` prints it.

Each folder is written, loaded by backbone `bert` and `hf`, and compared: ids of all probe texts, alone and in pairs,
with the folder's own tokenizer.json (or transformers' AutoTokenizer where it has none), hidden states with
transformers' AutoModel. What differs without a word is a fault.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import mtmeta
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.backbones.hf import HuggingFace
from tests.support.folder_shapes import OK, PROBES, SHAPES, Shape, names
from tests.support.parity import largest_difference, ours_of

BACKBONES: dict[str, type[mtmeta.Backbone]] = {"bert": Bert, "hf": HuggingFace}
TOLERANCE = 1e-5
LONGEST = 60  # tokens
PAIRS = [(a, b) for a, b in zip(PROBES, PROBES[3:], strict=False) if a.strip() and b.strip()]


class Different(AssertionError):
    """Ids or states that are not the reference's."""


def load(folder: Path, backbone: str) -> mtmeta.LoadedBackbone:
    kind: Any = BACKBONES[backbone]
    loaded: mtmeta.LoadedBackbone = kind(weights=str(folder), max_length=LONGEST).load(0)
    return loaded


def reference_ids(shape: Shape, folder: Path) -> list[tuple[list[int], list[int]]]:
    """Ids and token types of every probe and every pair of them, as the folder's own files have them."""
    path = folder / shape.at / "tokenizer.json"
    if shape.reference == "file":
        from tokenizers import Tokenizer

        whole = Tokenizer.from_file(str(path))
        whole.no_padding()
        whole.no_truncation()
        made = [whole.encode(text) for text in PROBES] + [whole.encode(*pair) for pair in PAIRS]
        return [(one.ids, one.type_ids) for one in made]
    hf = importlib.import_module("transformers")
    kind = getattr(hf, shape.reference.removeprefix("auto").strip() or "AutoTokenizer")
    reference = kind.from_pretrained(folder / shape.at)
    backend = reference.backend_tokenizer
    made = [backend.encode(text) for text in PROBES] + [backend.encode(*pair) for pair in PAIRS]
    return [(one.ids, one.type_ids) for one in made]


def sequences(loaded: mtmeta.LoadedBackbone) -> list[tuple[list[int], list[int]]]:
    """The same sequences as core builds them of the backbone's tokenizer, with core's token types."""
    tokenizer: Any = loaded.tokenizer
    texts = [*PROBES, *(text for pair in PAIRS for text in pair)]
    ids = tokenizer.encode(texts)
    flat, lengths = tokenizer.encode_flat(texts)
    if [number for one in ids for number in one] != flat.tolist() or list(map(len, ids)) != lengths.tolist():
        raise Different("encode and encode_flat differ")
    made = [[*tokenizer.prefix, *one, *tokenizer.suffix] for one in ids[: len(PROBES)]]
    found = [(one, [0] * len(one)) for one in made]
    for a, b in zip(ids[len(PROBES) :: 2], ids[len(PROBES) + 1 :: 2], strict=True):
        first, second = [*tokenizer.prefix, *a, *tokenizer.middle], [*b, *tokenizer.suffix]
        found.append((first + second, [0] * len(first) + [1] * len(second)))
    return found


def check_ids(made: list[tuple[list[int], list[int]]], wanted: list[tuple[list[int], list[int]]]) -> None:
    """Raise Different unless the sequences have the same ids."""
    for text, (one, _), (other, _) in zip([*PROBES, *PAIRS], made, wanted, strict=True):
        if one != other:
            raise Different(f"ids of {text!r}: {one[:20]}, expected {other[:20]}")


def check_states(
    loaded: mtmeta.LoadedBackbone,
    folder: Path,
    made: list[tuple[list[int], list[int]]],
    wanted: list[tuple[list[int], list[int]]],
) -> None:
    """Raise Different unless hidden states are AutoModel's: each sequence alone there, all in one batch here."""
    hf = importlib.import_module("transformers")
    model = hf.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    takes_types = "token_type_ids" in inspect.signature(model.forward).parameters
    typed = takes_types and getattr(model.config, "type_vocab_size", 0) > 1
    kept = [n for n, (ids, _) in enumerate(wanted) if 2 < len(ids) <= LONGEST]
    theirs = []
    with torch.inference_mode():
        for ids, types in (wanted[n] for n in kept):
            given = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
            if typed:
                given["token_type_ids"] = torch.tensor([types])
            theirs.append(model(**given).last_hidden_state[0])
        ours = ours_of(loaded.encoder.eval(), [made[n][0] for n in kept], [made[n][1] for n in kept])
    if not (difference := largest_difference(ours, theirs)) <= TOLERANCE:
        raise Different(f"hidden states differ by {difference:.3g}")


def outcome(shape: Shape, folder: Path, backbone: str, *, states: bool = True) -> tuple[str, tuple[str, ...]]:
    """What comes of a folder: `OK`, or the one line of its refusal; and the notes. Raises Different."""
    try:
        loaded = load(folder, backbone)
    except mtmeta.MtmetaError as error:
        (line,) = error.lines()
        return line, ()
    made, wanted = sequences(loaded), reference_ids(shape, folder)
    check_ids(made, wanted)
    if states:
        check_states(loaded, folder / shape.at, made, wanted)
    return OK, loaded.notes


def main() -> None:
    """Print the table in Markdown."""
    torch.set_num_threads(1)
    importlib.import_module("transformers").logging.set_verbosity_error()
    importlib.import_module("transformers").logging.disable_progress_bar()
    print("| folder | `bert` | `hf` |\n|---|---|---|")
    silent = 0
    with tempfile.TemporaryDirectory() as place:
        for number, name in enumerate(names(sys.argv[1:])):
            shape, folder = SHAPES[name], Path(place) / str(number)
            shape.write(folder)
            cells = []
            for backbone in BACKBONES:
                try:
                    line, notes = outcome(shape, folder, backbone)
                    said = ", and a warning" if notes else ""
                    cells.append(line + said if line == OK else "refused: " + line.replace(f"{folder}", "FOLDER"))
                except Different as error:
                    silent += 1
                    cells.append(f"**differs**: {error}")
            print(f"| {name} | " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |", flush=True)
    print(f"\n{len(names(sys.argv[1:]))} folders, {silent} silent differences", file=sys.stderr)
    sys.exit(bool(silent))


if __name__ == "__main__":
    main()
