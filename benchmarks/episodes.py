"""Meta-learning steps on one episode: ours and those of learn2learn and higher, all from the same weights.

Every contender has the same support and query examples, head, loss, dropout and outer optimizer. The rivals train
transformers' BertModel on padded batches, the support padded to its own longest text and the query to its own.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.contenders import LR, Indices, bert_model
from benchmarks.padded import Padded, PaddedModel, masked_mean, pad
from benchmarks.parts import SEED, Parts, load_parts, make_learner
from benchmarks.workers import Remote
from mtmeta.core.api.batch import Batch
from mtmeta.core.api.optimizers import SGD, AdamW
from mtmeta.core.api.schedules import Constant
from mtmeta.core.data.packing import pack
from mtmeta.core.environment import want_huge_pages
from mtmeta.core.machine import Heap, Precision, autocast, peak_memory
from mtmeta.core.training.model import build_head
from mtmeta.plugins.algorithms.anil import Anil
from mtmeta.plugins.algorithms.fomaml import Fomaml

__all__ = ["CLOCKS", "HIGHER", "KINDS", "LEARN2LEARN", "Episode", "EpisodeWorker", "fetch_rivals"]

LEARN2LEARN, HIGHER = "learn2learn==0.2.0", "higher==0.2.1"
INNER_LR = 0.05
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Episode = Sequence[Indices]
"""Indices of support batches, then of the query."""


class Meta(Protocol):
    """One way to learn from an episode."""

    def direction(self, episode: Episode) -> float:
        """Leave the outer gradient in the parameters; returns the query loss."""

    def step(self, episode: Episode) -> None:
        """A whole outer step."""

    def model_of(self) -> nn.Module:
        """All that is trained."""


class Given:
    """A feed of one episode, as algorithms read it."""

    def __init__(self, parts: Parts, task: str, inner_steps: int) -> None:
        self.task, self._steps = task, inner_steps
        self._dataset = parts.datasets[task, "train"]
        self.next: Episode = ()

    def draw(self, count: int, *, with_replacement: bool = False) -> list[str]:
        return [self.task]

    def inner_steps(self, task: str) -> int:
        return self._steps

    def loss_weight(self, task: str) -> float:
        return 1.0

    def episode(self, task: str, support: int) -> tuple[list[Batch], Batch]:
        *batches, query = (pack(self._dataset, indices) for indices in self.next)
        assert len(batches) == support
        return batches, query


class Ours:
    """The product's own path: pack, the algorithm's backward, the recipe's AdamW."""

    def __init__(
        self, parts: Parts, task: str, steps: int, *, algorithm: str = "anil", precision: Precision = "fp32"
    ) -> None:
        self.learner = make_learner(parts, task, precision=precision)
        self.feed: Any = Given(parts, task, steps)
        inner = SGD(lr=INNER_LR)
        options = {"inner_optimizer": inner, "inner_schedule": Constant()}
        self.algorithm = Anil(inner_lr=INNER_LR) if algorithm == "anil" else Fomaml(**options)  # type: ignore[arg-type]
        self.optimizer = AdamW(lr=LR).build(self.learner.parameters.items())
        self.steps = 0

    def direction(self, episode: Episode) -> float:
        self.feed.next = episode
        self.learner.begin_step(self.steps)
        self.algorithm.backward(self.learner, self.feed)
        self.steps += 1
        return float(self.learner.losses[-1][2])

    def step(self, episode: Episode) -> None:
        self.direction(episode)
        self.optimizer.step()

    def model_of(self) -> nn.Module:
        return self.learner.model


class Rival:
    """Somebody's inner loop around transformers' BertModel; bf16 is torch.autocast around the forwards."""

    attention = "sdpa"

    def __init__(self, parts: Parts, task: str, steps: int, *, precision: Precision = "fp32") -> None:
        self.steps, self.precision = steps, precision
        self.dataset = parts.datasets[task, "train"]
        self.objective = parts.tasks[task].objective
        head = build_head(task, parts.tasks[task], parts.config.hidden_size, SEED)
        self.model = PaddedModel(bert_model(parts, self.attention), head, _pooled).train()
        self.optimizer = AdamW(lr=LR).build(self.model.named_parameters())

    @property
    def head(self) -> nn.Module:
        """The head alone."""
        return self.model.heads["task"]

    def direction(self, episode: Episode) -> float:
        support, query = ([pad(store, rows) for store in self.dataset.stores] for rows in episode)
        labels = [torch.from_numpy(self.dataset.labels[rows].astype(np.float32)) for rows in episode]
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(torch.device("cpu"), self.precision):
            loss = self.query_loss((support, labels[0]), (query, labels[1]))
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def step(self, episode: Episode) -> None:
        self.direction(episode)
        self.optimizer.step()

    def model_of(self) -> nn.Module:
        return self.model

    def vectors(self, batches: Sequence[Padded]) -> Tensor:
        """Pooled vectors of padded batches [B, V, D]."""
        return torch.stack([_pooled(self.model.encoder, batch) for batch in batches], dim=1)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The task's loss, in fp32 as ours."""
        return self.objective.loss(outputs.float(), labels)

    def query_loss(self, support: tuple[Any, Tensor], query: tuple[Any, Tensor]) -> Tensor:
        """Return the loss of the query after an inner loop on the support."""
        raise NotImplementedError


class Learn2LearnAnil(Rival):
    """As in learn2learn's own example of ANIL: vectors once, then clone and adapt of the head alone."""

    def query_loss(self, support: tuple[Any, Tensor], query: tuple[Any, Tensor]) -> Tensor:
        known, asked = self.vectors(support[0]), self.vectors(query[0])
        learner = _maml(self.head).clone()
        for _ in range(self.steps):
            learner.adapt(self.loss(learner(known), support[1]))
        return self.loss(learner(asked), query[1])


class Learn2LearnMaml(Rival):
    """MAML(model).clone() and adapt, head and encoder, with second derivatives."""

    attention = "eager"  # PyTorch's own on a CPU has no second derivative where there is no dropout

    def query_loss(self, support: tuple[Any, Tensor], query: tuple[Any, Tensor]) -> Tensor:
        learner = _maml(self.model).clone()
        for _ in range(self.steps):
            learner.adapt(self.loss(learner(support[0]), support[1]))
        return self.loss(learner(query[0]), query[1])


class HigherAnil(Rival):
    """higher.innerloop_ctx around the head alone, with vectors that are made once."""

    def query_loss(self, support: tuple[Any, Tensor], query: tuple[Any, Tensor]) -> Tensor:
        higher = importlib.import_module("higher")
        known, asked = self.vectors(support[0]), self.vectors(query[0])
        inner = torch.optim.SGD(self.head.parameters(), lr=INNER_LR)
        with higher.innerloop_ctx(self.head, inner, copy_initial_weights=False) as (head, optimizer):
            for _ in range(self.steps):
                optimizer.step(self.loss(head(known), support[1]))
            return self.loss(head(asked), query[1])


KINDS: dict[str, Callable[[Parts, str, int], Meta]] = {
    "mtmeta anil": Ours,
    "mtmeta fomaml": partial(Ours, algorithm="fomaml"),
    "learn2learn anil": Learn2LearnAnil,
    "higher anil": HigherAnil,
    "learn2learn maml": Learn2LearnMaml,
    "mtmeta anil bf16": partial(Ours, precision="bf16"),
    "learn2learn anil bf16": partial(Learn2LearnAnil, precision="bf16"),
}


def _pooled(encoder: nn.Module, batch: Padded) -> Tensor:
    output = encoder(input_ids=batch.ids, attention_mask=batch.mask.long(), token_type_ids=batch.types)
    return masked_mean(output.last_hidden_state, batch.mask)


def _maml(module: nn.Module) -> Any:
    return importlib.import_module("learn2learn.algorithms.maml").MAML(module, lr=INNER_LR)


def fetch_rivals(folder: Path) -> Path:
    """Put both libraries below a folder, of learn2learn the Python files that MAML needs; returns what to import from.

    The rest of learn2learn is compiled, and what it compiles is older than Python 3.11.
    """
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "download", LEARN2LEARN, "--no-deps", "--no-binary", ":all:", "-d", folder], check=True)
    library = folder / "library"
    subprocess.run([*pip, "install", HIGHER, "--no-deps", "--target", library], check=True)
    (archive,) = folder.glob("learn2learn-*.tar.gz")
    wanted = ("algorithms/base_learner.py", "algorithms/maml.py", "utils/__init__.py")
    with tarfile.open(archive) as packed:
        for name in wanted:
            member = f"{archive.name.removesuffix('.tar.gz')}/learn2learn/{name}"
            stream = packed.extractfile(member)
            assert stream is not None, member
            (library / "learn2learn" / name).parent.mkdir(parents=True, exist_ok=True)
            (library / "learn2learn" / name).write_bytes(stream.read())
    return library


class EpisodeWorker(Remote):
    """One contender on one task, in a process of its own."""

    def __init__(self, kind: str, weights: str, data: str, task: str, steps: int, library: str, clock: str) -> None:
        super().__init__(_serve, kind, weights, data, task, steps, library, clock)

    def step(self, episode: Episode) -> float:
        """Seconds of a whole outer step."""
        return self.ask("step", episode)

    def query_loss(self, episode: Episode) -> float:
        """The query loss after the inner loop, without dropout."""
        return self.ask("loss", episode)

    def gradient_norm(self, episode: Episode) -> float:
        """Norm of the outer gradient, without dropout."""
        return self.ask("norm", episode)

    def peak(self) -> float:
        """Peak resident memory so far, MiB: Python, PyTorch, weights and optimizer included."""
        return self.ask("peak", None)


def _serve(pipe: Any, kind: str, weights: str, data: str, task: str, steps: int, library: str, clock: str) -> None:
    if ours := kind.startswith("mtmeta"):
        want_huge_pages()  # as in every command
    with suppress(ValueError):
        sys.path.remove("")
    sys.path.append(library)
    contender = KINDS[kind](load_parts(weights, data, [task]), task, steps)
    heap = Heap() if ours else None  # as in every run
    now = CLOCKS[clock]
    pipe.send(0.0)
    while True:
        command, episode = pipe.recv()
        started = now()
        if command == "stop":
            return
        if command == "peak":
            pipe.send(peak_memory() / 2**20)
        elif command == "step":
            contender.step(episode)
            if heap is not None:
                heap.after_step()
            pipe.send(now() - started)
        else:
            pipe.send(_still(contender, command, episode))


def _still(contender: Meta, what: str, episode: Episode) -> float:
    """Query loss or gradient norm without dropout."""
    model = contender.model_of()
    model.eval()
    loss = contender.direction(episode)
    model.train()
    if what == "loss":
        return loss
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))
