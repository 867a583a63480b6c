"""Build a small encoder out of a larger one: text in, weights out.

    python -m tools.build_mini --teacher MINILM --text wiki.txt.gz books.txt.gz --tables sst-train.csv ... \
        --held-out sst-dev.csv ... --out FOLDER

The package's own, mtmeta/plugins/backbones/mini/, comes of sentence-transformers/all-MiniLM-L6-v2 by the defaults;
its README.md has the text, the figures and the licence. Any BERT folder in Hugging Face layout will do as a teacher,
any language as text.

1. Text. Sentences of plain files, one a line, and of the text columns of tables, each once. Sentences of a
   held-out table, compared by their words alone, are left out, counted, and looked for once more.
2. Vocabulary. The teacher's, pruned to --vocabulary pieces: those that batches of this text meet most
   (`tools.vocabulary`).
3. Student. The teacher's embeddings of those pieces and its layers --layers, from 0, each with --intermediate neurons.
4. Distillation (`tools.distil`) until --tokens tokens were seen: AdamW, a warm-up over 2% of them, then a linear decay.

Everything follows from --seed. `progress.safetensors` in --out is replaced every --save-every seconds: the same command
goes on from there, to the same weights as without a stop on the same kind of machine. At the end config.json,
tokenizer.json and model.safetensors (fp16) are written beside it.
"""

from __future__ import annotations

import json
import time
from argparse import ArgumentParser, Namespace
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from mtmeta.core.api.batch import Packed
from mtmeta.core.machine import Heap
from mtmeta.core.storage.disk import write_file
from mtmeta.core.training.state import optimizer_state, restore_optimizer
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.backbones.checkpoint.config import BertConfig
from mtmeta.plugins.backbones.checkpoint.names import hugging_face_names
from mtmeta.plugins.backbones.encoder.encoder import Encoder
from mtmeta.plugins.backbones.tokenizers.wordpiece import WordPiece
from tools.corpus import Corpus, read_corpus
from tools.distil import MAX_LENGTH, WEIGHTS, Encoded, batches, encode, losses, make_student
from tools.vocabulary import count_pieces, prune

PROGRESS = "progress.safetensors"
WARM_UP = 0.02
CHECK = 512
"""Sentences of each kind of text that are kept to measure on."""


class Build:
    """A student under way."""

    def __init__(self, options: Namespace) -> None:
        self.options = options
        self.device = torch.device(options.device)
        folder = options.teacher
        self.teacher = _encoder(folder)
        tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")

        corpus = read_corpus(options.text, options.tables, options.held_out)
        texts = corpus.plain + corpus.tables
        print(
            f"text: {len(corpus.plain):,} sentences of plain text, {len(corpus.tables):,} of tables; "
            f"{corpus.held_out:,} held out: {corpus.dropped:,} met and left out, 0 in the text"
        )
        read = WordPiece.from_json(tokenizer, str(folder))
        self.tokenizer, pieces = prune(tokenizer, self._frequencies(read, corpus), options.vocabulary)
        write = WordPiece.from_json(self.tokenizer, "student")
        self.given, self.wanted = (
            encode(texts, t, continuing(j)) for t, j in ((write, self.tokenizer), (read, tokenizer))
        )
        self.groups, self.checks = self._split(len(corpus.plain))

        self.layers: list[int] = options.layers
        self.student = make_student(self.teacher, self.layers, options.intermediate, pieces)
        self.config = self.student.config
        self.teacher.eval().to(self.device)
        # it learns all the same, without dropout: a target is best met without noise
        self.student.eval().to(self.device)
        self.parameters = dict(self.student.named_parameters())
        decayed = [p for p in self.parameters.values() if p.ndim >= 2]
        others = [p for p in self.parameters.values() if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
            lr=options.lr,
            fused=True,
        )
        self.step, self.tokens, self.seconds = 0, 0, 0.0

    def _frequencies(self, tokenizer: WordPiece, corpus: Corpus) -> NDArray[np.float64]:
        """Count how often each piece is met when batches draw from the two kinds of text as --table-share says."""
        frequencies = np.zeros(tokenizer.size)
        share = self.options.table_share
        for texts, part in ((corpus.plain, 1 - share), (corpus.tables, share)):
            counts = count_pieces(tokenizer, texts)
            frequencies += part * counts / max(1, counts.sum())
        return frequencies

    def _split(self, plain: int) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
        """Split off the sentences to learn from, plain ones and those of tables, and some of both to measure on."""
        lengths = np.maximum(self.given.tokens.lengths, self.wanted.tokens.lengths)
        fits = (lengths <= MAX_LENGTH) & (lengths > 3)
        print(f"{int((~fits).sum()):,} sentences of one piece or of more than {MAX_LENGTH} tokens are left out")
        groups = [np.flatnonzero(fits[:plain]), plain + np.flatnonzero(fits[plain:])]
        groups = [group for group in groups if len(group)]
        spread = [np.linspace(0, len(group) - 1, min(CHECK, len(group) // 10), dtype=np.int64) for group in groups]
        checks = np.concatenate([group[at] for group, at in zip(groups, spread, strict=True)])
        return [np.delete(group, at) for group, at in zip(groups, spread, strict=True)], checks

    def run(self) -> None:
        """Distil to the end, saving now and then, and write the folder."""
        options = self.options
        options.out.mkdir(parents=True, exist_ok=True)
        self._resume()
        counts = [options.batch]
        if len(self.groups) > 1:
            from_tables = round(options.batch * options.table_share)
            counts = [options.batch - from_tables, from_tables]
        drawn, heap = batches(self.groups, counts, options.seed), Heap()
        for _ in range(self.step):
            next(drawn)
        begun = saved = shown = time.monotonic()
        before = self.seconds
        while self.tokens < options.tokens:
            terms = self._learn(next(drawn))
            heap.after_step()
            now = time.monotonic()
            self.seconds = before + now - begun
            if now - shown >= options.show_every:
                shown = now
                parts = "  ".join(f"{name} {float(value):.4f}" for name, value in terms.items())
                rate = self.tokens / self.seconds
                print(f"step {self.step}  {self.tokens / 1e6:.2f}M tokens  {rate:,.0f}/s  {parts}", flush=True)
            if now - saved >= options.save_every:
                saved = now
                self._save()
        self._save()
        self._write()
        parts = "  ".join(f"{name} {value:.4f}" for name, value in self.check().items())
        seen = f"{self.step} steps, {self.tokens:,} tokens, {self.seconds:.0f} s"
        print(f"{seen}; on sentences not learned from: {parts}")

    def _learn(self, indices: NDArray[np.int64]) -> dict[str, Tensor]:
        """Make one step on the sentences `indices`."""
        share = self.tokens / self.options.tokens
        rate = self.options.lr * min(share / WARM_UP + 1e-3, (1 - share) / (1 - WARM_UP))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        given = self._on_device(self.given, indices)
        with self._precision():
            terms = losses(self.student, self.teacher, self.layers, given, self._on_device(self.wanted, indices))
        self.optimizer.zero_grad()
        torch.stack([WEIGHTS[name] * value for name, value in terms.items()]).sum().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.step += 1
        self.tokens += len(given[1])
        return {name: value.detach() for name, value in terms.items()}

    @torch.no_grad()
    def check(self) -> dict[str, float]:
        """Compute the parts of the loss on the sentences kept for it."""
        sums: dict[str, float] = dict.fromkeys(WEIGHTS, 0.0)
        parts = np.array_split(self.checks, max(1, len(self.checks) // self.options.batch))
        for part in parts:
            sides = (self._on_device(side, part) for side in (self.given, self.wanted))
            with self._precision():
                terms = losses(self.student, self.teacher, self.layers, *sides)
            for name, value in terms.items():
                sums[name] += float(value) / len(parts)
        return sums

    def _on_device(self, side: Encoded, indices: NDArray[np.int64]) -> tuple[Packed, Tensor]:
        packed, words = side.chosen(indices)
        return packed.to(self.device), words.to(self.device)

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast("cuda", dtype=torch.bfloat16) if self.device.type == "cuda" else nullcontext()

    # -- files

    def _save(self) -> None:
        tensors = {f"student.{name}": p.detach() for name, p in self.parameters.items()}
        for name, slots in optimizer_state(self.optimizer, self.parameters).items():
            tensors |= {f"optimizer.{slot}.{name}": tensor for slot, tensor in slots.items()}
        numbers = {"step": self.step, "tokens": self.tokens, "seconds": self.seconds, "build": self._identity()}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        write_file(self.options.out / PROGRESS, save(tensors, {"state": json.dumps(numbers)}))

    def _resume(self) -> None:
        path = self.options.out / PROGRESS
        if not path.exists():
            return
        slots: dict[str, dict[str, Tensor]] = {}
        with safe_open(path, "pt") as file, torch.no_grad():
            numbers = json.loads(file.metadata()["state"])
            if numbers["build"] != self._identity():
                raise SystemExit(f"{path} is of another build; give another --out, or remove it")
            for key in file.keys():
                kind, name = key.split(".", 1)
                if kind == "student":
                    self.parameters[name].copy_(file.get_tensor(key))
                else:
                    slot, name = name.split(".", 1)
                    slots.setdefault(name, {})[slot] = file.get_tensor(key)
        restore_optimizer(self.optimizer, self.parameters, slots)
        self.step, self.tokens, self.seconds = numbers["step"], numbers["tokens"], numbers["seconds"]
        print(f"going on from step {self.step}")

    def _identity(self) -> dict[str, Any]:
        """Return the numbers that a build must have in common with the one it goes on with."""
        o = self.options
        given = {name: getattr(o, name) for name in ("seed", "tokens", "batch", "table_share", "lr", "layers")}
        return given | asdict(self.config) | {"sentences": [len(group) for group in self.groups]}

    def _write(self) -> None:
        out: Path = self.options.out
        state: dict[str, Tensor] = {}
        for ours, theirs in hugging_face_names(self.config).items():
            parts = self.parameters[ours].detach().cpu().half().chunk(len(theirs))
            state |= {name: part.contiguous() for name, part in zip(theirs, parts, strict=True)}
        write_file(out / "model.safetensors", save(state, {"format": "pt"}))
        write_file(out / "config.json", _config_json(self.config))
        write_file(out / "tokenizer.json", self.tokenizer)


def _encoder(folder: Path) -> Encoder:
    encoder = Bert(weights=str(folder)).load(0).encoder
    assert isinstance(encoder, Encoder)
    return encoder


def continuing(tokenizer: str) -> NDArray[np.bool_]:
    """Return for each piece of a tokenizer.json whether it goes on with a word."""
    model = json.loads(tokenizer)["model"]
    prefix = model["continuing_subword_prefix"]
    continues = np.zeros(max(model["vocab"].values()) + 1, dtype=bool)
    for piece, number in model["vocab"].items():
        continues[number] = piece.startswith(prefix) and piece != prefix
    return continues


def _config_json(config: BertConfig) -> str:
    known = {"architectures": ["BertModel"], "model_type": "bert", "position_embedding_type": "absolute"}
    return json.dumps(known | {"pad_token_id": 0} | asdict(config), indent=2) + "\n"


def _arguments() -> Namespace:
    parser = ArgumentParser(prog="python -m tools.build_mini", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--teacher", type=Path, required=True, help="folder with config.json, tokenizer.json, model.safetensors")
    add("--text", type=Path, nargs="+", default=[], help="text files, one sentence a line; .gz will do")
    add("--tables", type=Path, nargs="+", default=[], help="tables with columns sentence, sentence1, sentence2 or text")
    add("--held-out", type=Path, nargs="+", default=[], help="tables none of whose sentences may be learned from")
    add("--out", type=Path, required=True, help="folder to write")
    add("--layers", type=_numbers, default=[0, 3, 5], help="the teacher's layers to keep, from 0 (default: 0,3,5)")
    add("--intermediate", type=int, default=1536, help="neurons of a feed-forward part (default: %(default)s)")
    add("--vocabulary", type=int, default=11_500, help="pieces to keep (default: %(default)s)")
    add("--tokens", type=lambda text: int(float(text)), default=10_000_000, help="tokens to see (default: %(default)s)")
    add("--batch", type=int, default=64, help="sentences in a batch (default: %(default)s)")
    add("--table-share", type=float, default=0.5, help="share of a batch that comes of tables (default: %(default)s)")
    add("--lr", type=float, default=6e-4, help="highest learning rate (default: %(default)s)")
    add("--seed", type=int, default=0)
    add("--device", default="cpu", help="cpu or cuda; on cuda in bf16 (default: %(default)s)")
    add("--save-every", type=float, default=120, help="seconds (default: %(default)s)")
    add("--show-every", type=float, default=30, help="seconds (default: %(default)s)")
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Build as the command line says."""
    options = _arguments()
    torch.manual_seed(options.seed)
    Build(options).run()


if __name__ == "__main__":
    main()
