"""The paper's Reptile run on one GPU, end to end: time, examples/s, model FLOPs utilisation, and a profile.

    python -m benchmarks.gpu --data DATA [--weights FOLDER] [--steps 400] [--device cuda] [--json]

recipes/paper/reptile.yaml is run as `mtmeta run` runs it: 400 meta-iterations of 4, 4 and 8 inner steps on batches of
128, evaluation and a checkpoint every 20, bf16 autocast. The encoder has the shape of bert-base-uncased and random
weights; the text is real. `--weights` may name a BERT folder whose tokenizer is used (bert-base-uncased's or
MiniLM's); without it a WordPiece vocabulary of the same size is learned from the training files.

MFU = FLOPs the model needs over peak FLOPs of the time: 6 x real tokens x weights of the layers' matrices, and 12 x D x
T^2 a sequence and layer for the attention products; embeddings, heads, optimizer not counted. Its time is that of the
meta-iterations, snapshots and outer steps included, evaluation and checkpoints not; those stand beside it.
"""

from __future__ import annotations

import json
import tempfile
import time
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import save_file

import mtmeta
from benchmarks.parts import SEED, TASKS, add_arguments, make_task
from benchmarks.stats import layer_weights, machine
from mtmeta.core.api.batch import Batch
from mtmeta.core.training.learner import Excursion, Learner
from mtmeta.core.training.trainer import Trainer
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.backbones.checkpoint.config import BertConfig
from mtmeta.plugins.backbones.checkpoint.names import hugging_face_names
from mtmeta.plugins.backbones.encoder.encoder import Encoder

__all__ = ["main", "training_flops"]

VOCABULARY = 30522
SHAPES = {
    "bert-base": BertConfig(VOCABULARY, 768, 12, 12, 3072),
    "small": BertConfig(VOCABULARY, 64, 2, 2, 128),  # to try the command without a GPU
}
PEAKS = {"H200": 989e12, "H100": 989e12, "H20": 148e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12}
"""Dense bf16 FLOP/s by the makers' data sheets."""
RECIPE = Path(__file__).parent.parent / "recipes" / "paper" / "reptile.yaml"


def training_flops(config: BertConfig, lengths: np.ndarray[Any, Any]) -> float:
    """FLOPs of forward and backward over sequences of these lengths (Chowdhery et al. 2022, appendix B)."""
    tokens, squares = float(lengths.sum()), float((lengths.astype(np.float64) ** 2).sum())
    return 6.0 * tokens * layer_weights(config) + 12.0 * config.hidden_size * squares * config.num_hidden_layers


class Meter:
    """Counts the training examples, and the time of the loop's parts, each ended by waiting for the device."""

    def __init__(self, device: torch.device) -> None:
        self.lengths: list[np.ndarray[Any, Any]] = []
        self.examples = 0
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._device = device

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the work of every run within the context."""
        gradient = Learner.gradient
        parts = {"meta_iterations": "_one_step", "evaluation": "_evaluate", "checkpoints": "_save"}

        def counted(learner: Learner, batch: Batch, scale: float = 1.0) -> torch.Tensor:
            self.lengths += [chunk.packed.lengths.numpy() for chunk in batch.chunks]
            self.examples += len(batch)
            return gradient(learner, batch, scale)

        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(Learner, "gradient", counted))
            for part, name in parts.items():
                stack.enter_context(mock.patch.object(Trainer, name, self._timed(part, getattr(Trainer, name))))
            yield

    def _timed(self, part: str, call: Callable[[Trainer], None]) -> Callable[[Trainer], None]:
        def timed(trainer: Trainer) -> None:
            started = time.perf_counter()
            call(trainer)
            if self._device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds[part] += time.perf_counter() - started

        return timed


def write_backbone(folder: Path, data: str, weights: str, shape: BertConfig) -> BertConfig:
    """A folder in Hugging Face layout: random weights of `shape`, a tokenizer that fits the text."""
    source = Path(weights) / "tokenizer.json"
    if source.is_file():
        tokenizer = source.read_text(encoding="utf-8")
    else:
        tokenizer = _learn_vocabulary(data)
    size = len(json.loads(tokenizer)["model"]["vocab"])
    config = replace(shape, vocab_size=max(size, VOCABULARY))
    encoder = Encoder(config)
    encoder.initialise(SEED)
    state: dict[str, torch.Tensor] = {}
    for ours, theirs in hugging_face_names(config).items():
        parts = encoder.state_dict()[ours].chunk(len(theirs))
        state |= {name: part.contiguous() for name, part in zip(theirs, parts, strict=True)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **asdict(config)}))
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    save_file(state, folder / "model.safetensors")
    return config


def _learn_vocabulary(data: str) -> str:
    """A WordPiece tokenizer learned from the training texts, its vocabulary as large as bert-base-uncased's."""
    from tokenizers import BertWordPieceTokenizer

    texts: list[str] = []
    for name in TASKS:
        task = make_task(name, data)
        root = Path() if data == "sample" else Path(data)
        read = task.sample("train") if data == "sample" else task.read(mtmeta.DataFile(root / str(task.train)))
        texts += [text for example in read for text in (example.text, example.pair) if text]
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator(texts, vocab_size=VOCABULARY, show_progress=False)
    text: str = tokenizer.to_str()
    return text


def measure(options: Any, out: Path) -> dict[str, Any]:
    """Run the recipe and count."""
    device = torch.device(options.device)
    weights = out / "backbone"
    config = write_backbone(weights, options.data, options.weights, SHAPES[options.shape])
    overrides = [f"backbone.weights={weights}", f"training.steps={options.steps}", "reporters=[jsonl]"]
    overrides += [f"evaluation.every={options.every}", f"checkpoint.every={options.every}"]
    for name in TASKS:
        for split in ("train", "dev"):
            file = "sample" if options.data == "sample" else f"{name}-{split}.csv"
            overrides.append(f"tasks.{name}.{split}={file}")
        overrides.append(f"tasks.{name}.batch_size={options.batch}")
    root = "." if options.data == "sample" else options.data
    started = time.perf_counter()
    meter = Meter(device)
    with meter.counting():
        summary = mtmeta.run(RECIPE, overrides=overrides, out=out / "run", data_root=root, device=options.device)
    end_to_end = time.perf_counter() - started
    flops = training_flops(config, np.concatenate(meter.lengths))
    peak = options.peak or next((value for key, value in PEAKS.items() if key in _name(device)), None)
    training = meter.seconds["meta_iterations"]
    return {
        "machine": machine() | {"device": _name(device)},
        "precision": "bf16" if device.type == "cuda" else "fp32",
        "meta_iterations": options.steps,
        "end_to_end_seconds": round(end_to_end, 2),
        **{f"{key}_seconds": round(value, 2) for key, value in meter.seconds.items()},
        "train_examples": meter.examples,
        "train_tokens": int(sum(int(lengths.sum()) for lengths in meter.lengths)),
        "train_examples_per_s": round(meter.examples / training, 1),
        "train_petaflop": round(flops / 1e15, 4),
        "train_teraflops": round(flops / training / 1e12, 2),
        "mfu": round(flops / training / peak, 4) if peak else None,
        "peak_teraflops": peak / 1e12 if peak else None,
        "peak_device_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2)
        if device.type == "cuda"
        else None,
        "scores": {name: task["value"] for name, task in summary["tasks"].items()},
    }


def _peak_memory(device: torch.device) -> float | None:
    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if device.type == "cuda" else None


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def profile(options: Any, out: Path, rows: int = 25) -> str:
    """Operators of one inner loop of four steps on sst, after a warm-up, by time on the device."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    from benchmarks.parts import load_dataset
    from mtmeta.core.api.optimizers import AdamW
    from mtmeta.core.api.schedules import Step
    from mtmeta.core.data.feed import Feed
    from mtmeta.core.training.model import MultiTaskModel
    from mtmeta.plugins.samplers import Uniform

    device = torch.device(options.device)
    backbone = Bert(weights=str(out / "backbone"), max_length=128).load(SEED)
    task = make_task("sst", options.data, batch_size=options.batch)
    tasks = {"sst": task}
    data = {"sst": load_dataset("sst", task, "train", options.data, backbone)}
    feed = Feed(tasks, data, Uniform(), seed=SEED, pin=device.type == "cuda")
    model = MultiTaskModel(backbone.encoder, tasks, SEED).to(device).train()
    precision: Any = "bf16" if device.type == "cuda" else "fp32"
    learner = Learner(model, seed=SEED, steps=8, precision=precision, check_each_loss=False)

    def loop(inner: Excursion) -> None:
        for _ in range(4):
            inner.step(feed.batch("sst"))

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    learner.begin_step(0)
    with learner.excursion("sst", AdamW(lr=1e-5), Step()) as inner:
        loop(inner)
    with profiler(activities=activities) as profiled, learner.excursion("sst", AdamW(lr=1e-5), Step()) as inner:
        loop(inner)
        if device.type == "cuda":
            torch.cuda.synchronize()
    by = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return str(profiled.key_averages().table(sort_by=by, row_limit=rows, max_name_column_width=60))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print one JSON document, and without --json the profile after it."""
    parser = ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").partition("\n")[0])
    add_arguments(parser)
    parser.add_argument("--steps", type=int, default=400, help="meta-iterations (default: %(default)s, the paper's)")
    parser.add_argument("--every", type=int, default=20, help="evaluation and checkpoint (default: %(default)s)")
    parser.add_argument("--device", default="cuda", help="torch device (default: %(default)s)")
    parser.add_argument("--shape", default="bert-base", choices=SHAPES, help="size of the encoder")
    parser.add_argument("--peak", type=float, help="peak FLOP/s in bf16, for MFU (default: by the device's name)")
    parser.add_argument("--out", help="where run and weights go (default: a temporary folder)")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout, without the profile")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="mtmeta-gpu-") as scratch:
        out = Path(options.out or scratch)
        print(json.dumps(measure(options, out), indent=2, allow_nan=False))
        if not options.json:
            print(profile(options, out))


if __name__ == "__main__":
    main()
