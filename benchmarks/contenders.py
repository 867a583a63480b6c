"""Whole training steps: ours and those of the libraries people would use instead, all from the same weights.

Every contender collates the same tokenized data, has our head and loss, dropout as config.json says, and
torch.optim.AdamW(fused=True) with the same options. They differ in the encoder's code and in how batches are laid out;
and `workers` has ours keep memory, as a run does.
"""

from __future__ import annotations

import copy
import importlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.padded import Padded, PaddedModel, masked_mean, pad, padded_forward
from benchmarks.parts import SEED, Parts, make_learner
from mtmeta.core.api.optimizers import AdamW
from mtmeta.core.data.dataset import Dataset
from mtmeta.core.data.packing import pack
from mtmeta.core.machine import Precision, autocast
from mtmeta.core.training.evaluation import predict
from mtmeta.core.training.model import build_head
from mtmeta.plugins.backbones.checkpoint.config import config_json
from mtmeta.plugins.backbones.checkpoint.names import hugging_face_names

__all__ = [
    "Contender",
    "Mtmeta",
    "Rival",
    "grouped_batches",
    "mtmeta_padded",
    "random_batches",
    "sentence_transformers",
    "tokens_of",
    "transformers",
]

Indices = NDArray[np.int64]
LR = 1e-5
BATCH_TOKENS = 8192  # evaluation.batch_tokens of a recipe


class Contender(Protocol):
    """One way to train a task."""

    def step(self, indices: Indices) -> float:
        """A whole training step on these examples; returns the loss."""

    def evaluate(self, dataset: Dataset) -> NDArray[np.float64]:
        """Predictions in file order."""


class Mtmeta:
    """The product's own path: pack, Learner.gradient, the recipe's AdamW."""

    def __init__(self, parts: Parts, task: str, precision: Precision = "fp32") -> None:
        self.task = task
        self.precision = precision
        self.dataset = parts.datasets[task, "train"]
        self.learner = make_learner(parts, task, precision=precision)
        self.optimizer = AdamW(lr=LR).build(self.learner.parameters.items())
        self.steps = 0

    def step(self, indices: Indices) -> float:
        batch = pack(self.dataset, indices)
        self.learner.begin_step(self.steps)
        loss = self.learner.gradient(batch)
        self.optimizer.step()
        self.steps += 1
        return float(loss)

    def evaluate(self, dataset: Dataset) -> NDArray[np.float64]:
        return predict(self.learner.model, dataset, batch_tokens=BATCH_TOKENS, precision=self.precision).values


class Rival:
    """The textbook loop on padded batches around somebody's encoder; bf16 is torch.autocast around the forward."""

    def __init__(
        self,
        parts: Parts,
        task: str,
        encoder: nn.Module,
        pooled: Callable[[nn.Module, Padded], Tensor],
        precision: Precision = "fp32",
    ) -> None:
        self.precision = precision
        self.dataset = parts.datasets[task, "train"]
        self.objective = parts.tasks[task].objective
        head = build_head(task, parts.tasks[task], parts.config.hidden_size, SEED)
        self.model = PaddedModel(encoder, head, pooled).train()
        self.optimizer = AdamW(lr=LR).build(self.model.named_parameters())

    def step(self, indices: Indices) -> float:
        batches = [pad(store, indices) for store in self.dataset.stores]
        labels = torch.from_numpy(self.dataset.labels[indices].astype(np.float32))
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.objective.loss(self._outputs(batches), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return float(loss.detach())

    def evaluate(self, dataset: Dataset, batch_size: int = 128) -> NDArray[np.float64]:
        self.model.eval()
        predictions = []
        with torch.inference_mode():
            for start in range(0, len(dataset), batch_size):
                indices = np.arange(start, min(start + batch_size, len(dataset)))
                outputs = self._outputs([pad(store, indices) for store in dataset.stores])
                predictions.append(self.objective.decode(outputs).double().numpy())
        self.model.train()
        return np.concatenate(predictions)

    def _outputs(self, batches: Sequence[Padded]) -> Tensor:
        with autocast(torch.device("cpu"), self.precision):
            outputs: Tensor = self.model(batches)
        return outputs.float()


def mtmeta_padded(parts: Parts, task: str) -> Rival:
    """Our encoder's modules on padded batches."""

    def pooled(encoder: nn.Module, batch: Padded) -> Tensor:
        return masked_mean(padded_forward(encoder, batch), batch.mask)  # type: ignore[arg-type]

    return Rival(parts, task, copy.deepcopy(parts.encoder), pooled)


def transformers(parts: Parts, task: str, attention: str = "sdpa", precision: Precision = "fp32") -> Rival:
    """transformers' BertModel with attn_implementation "sdpa" or "eager", and masked mean pooling."""

    def pooled(encoder: nn.Module, batch: Padded) -> Tensor:
        output = encoder(input_ids=batch.ids, attention_mask=batch.mask.long(), token_type_ids=batch.types)
        return masked_mean(output.last_hidden_state, batch.mask)

    return Rival(parts, task, bert_model(parts, attention), pooled, precision)


def sentence_transformers(parts: Parts, task: str) -> Rival:
    """sentence-transformers' modules Transformer and Pooling, as its own trainer calls them, one column at a time."""
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    with tempfile.TemporaryDirectory() as folder:
        bert_model(parts).save_pretrained(folder)
        (Path(folder) / "tokenizer.json").write_bytes(parts.files["tokenizer.json"])
        (Path(folder) / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
        first: nn.Module = Transformer(folder, model_kwargs={"attn_implementation": "sdpa"})
    encoder = nn.Sequential(first, Pooling(parts.config.hidden_size, "mean"))

    def pooled(encoder: nn.Module, batch: Padded) -> Tensor:
        features = {"input_ids": batch.ids, "attention_mask": batch.mask.long(), "token_type_ids": batch.types}
        vectors: Tensor = encoder(features)["sentence_embedding"]
        return vectors

    return Rival(parts, task, encoder, pooled)


def bert_model(parts: Parts, attention: str = "sdpa") -> Any:
    """transformers' BertModel with the weights of our encoder."""
    hf = importlib.import_module("transformers")
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    config = hf.AutoConfig.for_model(**json.loads(config_json(parts.config)), attn_implementation=attention)
    model = hf.AutoModel.from_config(config, add_pooling_layer=False)
    ours = parts.encoder.state_dict()
    state: dict[str, Tensor] = {}
    for name, theirs in hugging_face_names(parts.config).items():
        state |= dict(zip(theirs, (part.clone() for part in ours[name].chunk(len(theirs))), strict=True))
    model.load_state_dict(state)
    return model


def grouped_batches(dataset: Dataset, batch_size: int) -> Iterator[Indices]:
    """Batches of transformers' LengthGroupedSampler: sorted by length within 50 batches (fewer in small data).

    The batches come in random order, so that a few rounds see the whole range of lengths; short ones are left out.
    """
    group = importlib.import_module("transformers.trainer_pt_utils").get_length_grouped_indices
    lengths = np.sum([store.lengths for store in dataset.stores], axis=0).tolist()
    generator = torch.Generator().manual_seed(SEED)
    while True:
        order = np.array(group(lengths, batch_size, generator=generator))
        batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        whole = [batch for batch in batches if len(batch) == batch_size] or batches
        for at in torch.randperm(len(whole), generator=generator).tolist():
            yield whole[at]


def random_batches(dataset: Dataset, batch_size: int) -> Iterator[Indices]:
    """Batches in random order, epoch after epoch; what is left over at the end of one is left out."""
    generator = np.random.default_rng(SEED)
    while True:
        order = generator.permutation(len(dataset))
        for start in range(0, max(1, len(order) - batch_size + 1), batch_size):
            yield order[start : start + batch_size]


def tokens_of(dataset: Dataset, indices: Indices) -> int:
    """Real tokens of these examples, special ones included."""
    return sum(int(np.sum(store.offsets[indices + 1] - store.offsets[indices])) for store in dataset.stores)
