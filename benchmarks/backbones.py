"""Backbone `bert` against backbone `hf` on the same weights, by mtmeta's own training step and evaluation.

    python -m benchmarks.backbones --data DATA [--family roberta] [--weights FOLDER] [--seconds 240] [--json]

The weights are random values in MiniLM's shape (6 layers of 384) under a byte-level BPE learned from the training
texts, as RoBERTa's, or a folder. Both train the same batches, step by step in turn in one process, dropout on; the
ratio of each pair of steps counts. Evaluation is of --rows dev examples.
"""

from __future__ import annotations

import json
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

import mtmeta
from benchmarks.contenders import Mtmeta
from benchmarks.parts import SEED, TASKS, Parts, first_rows, load_dataset, make_task
from benchmarks.stats import machine, ratios, spread
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.backbones.checkpoint.config import ROBERTA as FAMILIES
from mtmeta.plugins.backbones.checkpoint.config import BertConfig, config_json
from mtmeta.plugins.backbones.checkpoint.names import hugging_face_names
from mtmeta.plugins.backbones.encoder.encoder import Encoder
from mtmeta.plugins.backbones.hf import HuggingFace

__all__ = ["main", "write_folder"]

SHAPES: dict[str, dict[str, Any]] = {
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "small": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
}
VOCABULARY = 30_000
ROBERTA_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def write_folder(folder: Path, family: str, shape: str, data: str) -> None:
    """Random values in Hugging Face layout, and a tokenizer learned from the training texts of `data`."""
    from tokenizers import ByteLevelBPETokenizer, processors

    texts: list[str] = []
    for name in TASKS:
        task = make_task(name, data)
        root = Path() if data == "sample" else Path(data)
        read = task.sample("train") if data == "sample" else task.read(mtmeta.DataFile(root / str(task.train)))
        texts += [text for example in read for text in (example.text, example.pair) if text]
    tokenizer = ByteLevelBPETokenizer()
    special = list(ROBERTA_TOKENS)
    tokenizer.train_from_iterator(texts, vocab_size=VOCABULARY, show_progress=False, special_tokens=special)
    sep, cls = (special.index(token) for token in ("</s>", "<s>"))
    tokenizer._tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", sep), ("<s>", cls), add_prefix_space=False
    )
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        model_type=family,
        pad_token_id=special.index("<pad>"),
        **SHAPES[shape],
    )
    encoder = Encoder(config)
    encoder.initialise(SEED)
    whole = encoder.state_dict()
    state: dict[str, Tensor] = {}
    for ours, theirs in hugging_face_names(config).items():
        state |= {name: part.contiguous() for name, part in zip(theirs, whole[ours].chunk(len(theirs)), strict=True)}
    (folder / "config.json").write_text(config_json(config), encoding="utf-8")
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def load_sides(folder: str, names: Sequence[str], data: str) -> dict[str, Parts]:
    """The parts of both backbones."""
    tasks = {name: make_task(name, data) for name in names}
    sides: dict[str, Parts] = {}
    for kind in (Bert, HuggingFace):
        backbone = kind(weights=folder, max_length=128).load(SEED)
        datasets = {
            (name, split): load_dataset(name, task, split, data, backbone)
            for name, task in tasks.items()
            for split in ("train", "dev")
        }
        encoder: Any = backbone.encoder
        config: Any = getattr(encoder, "config", None)
        sides[kind.name] = Parts(encoder, config, dict(backbone.files), tasks, datasets)
    return sides


def compare(sides: dict[str, Parts], task: str, options: Namespace, seconds: float) -> dict[str, Any]:
    """Examples/s of both in training and evaluation, and the ratio of `bert` to `hf`."""
    field = {name: Mtmeta(parts, task) for name, parts in sides.items()}
    size, batch = len(field["bert"].dataset), options.batch
    rates: dict[str, list[float]] = {name: [] for name in field}
    dev = {name: first_rows(parts.datasets[task, "dev"], options.rows) for name, parts in sides.items()}
    scored: dict[str, list[float]] = {name: [] for name in field}
    started, number = time.perf_counter(), 0
    while number < 3 or time.perf_counter() - started < seconds:
        indices = np.random.default_rng(number).permutation(size)[:batch]
        for name, contender in field.items():
            begun = time.perf_counter()
            contender.step(indices)
            rates[name].append(len(indices) / (time.perf_counter() - begun))
            if number % 4 == 0:
                begun = time.perf_counter()
                contender.evaluate(dev[name])
                scored[name].append(len(dev[name]) / (time.perf_counter() - begun))
        number += 1
    results: dict[str, Any] = {"steps": number - 1}
    for kind, by_backbone in (("training", rates), ("evaluation", scored)):
        kept = {name: values[1:] or values for name, values in by_backbone.items()}  # the first warms up
        per_second = {name: round(spread(values).median, 1) for name, values in kept.items()}
        results[kind] = per_second | ratios(kept["bert"], kept["hf"]).json("ratio")
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then print one line a task or one JSON document."""
    parser = ArgumentParser(prog="python -m benchmarks.backbones", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", default="sample", help="folder of sst-train.csv and so on, or `sample`")
    parser.add_argument("--tasks", default="sst,para,sts", help="comma-separated (default: %(default)s)")
    parser.add_argument("--family", choices=FAMILIES, default="roberta", help="(default: %(default)s)")
    parser.add_argument("--shape", choices=list(SHAPES), default="minilm", help="(default: %(default)s)")
    parser.add_argument("--weights", help="a folder that both read, in place of random values")
    parser.add_argument("--batch", type=int, default=128, help="examples in a batch (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=512, help="dev examples to evaluate (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=240, help="for all tasks together (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args(arguments)
    names = options.tasks.split(",")
    results: dict[str, Any] = {"machine": machine(), "family": options.family, "shape": options.shape}
    with nullcontext(options.weights) if options.weights else tempfile.TemporaryDirectory() as folder:
        if not options.weights:
            write_folder(Path(folder), options.family, options.shape, options.data)
        sides = load_sides(folder, names, options.data)
    results["tasks"] = {name: compare(sides, name, options, options.seconds / len(names)) for name in names}
    if options.json:
        print(json.dumps(results, indent=2))
        return
    for name, figures in results["tasks"].items():
        for kind in ("training", "evaluation"):
            each = figures[kind]
            low, high = each["ratio_quartiles"]
            rates = f"{figures['steps']} steps: bert {each['bert']}, hf {each['hf']} examples/s"
            print(f"{name}, {kind}, {rates}; bert is {each['ratio']:.2f} [{low:.2f}, {high:.2f}] times as fast")


if __name__ == "__main__":
    main()
