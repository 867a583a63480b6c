"""Encoder and task heads of a model trained by mtmeta, in plain PyTorch and transformers; mtmeta is not needed.

    from modeling import MultiTaskModel
    model = MultiTaskModel.from_folder("folder")   # config.json, model.safetensors, heads.json, heads.safetensors, ...
                                                   # or adapter_config.json, adapter_model.safetensors, for peft
    model.predict(model.tasks[0], ["A text."])     # pairs: [("A text.", "Another one.")], or a text and its choices

Shapes: `B` texts or pairs, `T` tokens of the longest, padding included, `D` hidden, `V` vectors an example (2 where
both texts of a pair are encoded apart, or a pair in both orders, one for each choice, else 1), `C` outputs of a head.
Copy and change this file as you like.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

Text = str | tuple[str, ...]


class MLPHead(nn.Module):
    """Concatenate, Linear, GELU, Linear: [B, V, D] -> [B, C]."""

    def __init__(self, hidden_size: int, outputs: int, vectors: int) -> None:
        super().__init__()
        self.dense = nn.Linear(vectors * hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, outputs)

    def forward(self, pooled: Tensor) -> Tensor:
        outputs: Tensor = self.out(functional.gelu(self.dense(pooled.flatten(1))))
        return outputs


class LinearHead(nn.Module):
    """Concatenate, Linear: [B, V, D] -> [B, C]."""

    def __init__(self, hidden_size: int, outputs: int, vectors: int) -> None:
        super().__init__()
        self.out = nn.Linear(vectors * hidden_size, outputs)

    def forward(self, pooled: Tensor) -> Tensor:
        outputs: Tensor = self.out(pooled.flatten(1))
        return outputs


class CoralHead(nn.Module):
    """Concatenate, Linear, GELU, one weight vector and a bias for each output: [B, V, D] -> [B, C]."""

    def __init__(self, hidden_size: int, outputs: int, vectors: int) -> None:
        super().__init__()
        self.dense = nn.Linear(vectors * hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, pooled: Tensor) -> Tensor:
        number: Tensor = self.out(functional.gelu(self.dense(pooled.flatten(1))))
        return number + self.bias


class ChoiceHead(nn.Module):
    """Linear, GELU, Linear to a score, of each choice by itself: [B, V, D] -> [B, V]."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, 1)

    def forward(self, pooled: Tensor) -> Tensor:
        scores: Tensor = self.out(functional.gelu(self.dense(pooled)))
        return scores[:, :, 0]


class VectorHead(nn.Module):
    """Vectors of length 1, after one Linear where there are `outputs`: [B, 2, D] -> [B, 2, C]."""

    def __init__(self, hidden_size: int, outputs: int | None) -> None:
        super().__init__()
        self.dense = nn.Identity() if outputs is None else nn.Linear(hidden_size, outputs, bias=False)

    def forward(self, pooled: Tensor) -> Tensor:
        return functional.normalize(self.dense(pooled), dim=-1)


class SequenceClassificationHead(nn.Module):
    """Linear, an activation, Linear, on the first token: [B, 1, D] -> [B, C]."""

    def __init__(self, hidden_size: int, outputs: int, activation: str) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, outputs)
        functions: dict[str, Any] = {"tanh": torch.tanh, "relu": functional.relu, "gelu": functional.gelu}
        self.activation = functions[activation]

    def forward(self, pooled: Tensor) -> Tensor:
        outputs: Tensor = self.out(self.activation(self.dense(pooled[:, 0])))
        return outputs


class CosineHead(nn.Module):
    """Scaled cosine of two vectors after one shared Linear: [B, 2, D] -> [B, 1]."""

    def __init__(self, hidden_size: int, scale: float, activation: str) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.scale, self.activation = scale, activation

    def forward(self, pooled: Tensor) -> Tensor:
        a, b = self.dense(pooled).unbind(dim=1)
        cosine = functional.cosine_similarity(a, b, dim=-1)[:, None]
        return self.scale * (functional.relu(cosine) if self.activation == "relu" else cosine)


class CosinePrototypes(nn.Module):
    """Cosines with class means, over a temperature: [B, V, D] -> [B, C]; `binary`: the second less the first [B, 1]."""

    def __init__(self, hidden_size: int, classes: int, vectors: int, temperature: float, binary: bool) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.zeros(classes, vectors * hidden_size))
        self.temperature, self.binary = temperature, binary

    def forward(self, pooled: Tensor) -> Tensor:
        vectors = functional.normalize(pooled.flatten(1), dim=1)
        cosines = vectors @ functional.normalize(self.means, dim=1).T / self.temperature
        return cosines[:, 1:] - cosines[:, :1] if self.binary else cosines


HEADS: dict[str, type[nn.Module]] = {
    "mlp": MLPHead,
    "linear": LinearHead,
    "hf": SequenceClassificationHead,
    "choice": ChoiceHead,
    "coral": CoralHead,
    "cosine": CosineHead,
    "vectors": VectorHead,
    "cosine_prototypes": CosinePrototypes,
}


class MultiTaskModel(nn.Module):
    """One encoder, and a head for each task."""

    def __init__(self, encoder: nn.Module, tokenizer: Any, description: dict[str, Any]) -> None:
        super().__init__()
        self.encoder, self.tokenizer = encoder, tokenizer
        self.max_length: int = description["max_length"]
        self.special: dict[str, list[int]] = description["special_tokens"]
        self.descriptions: dict[str, dict[str, Any]] = description["tasks"]
        self.heads = nn.Module()
        for name, task in self.descriptions.items():
            options = dict(task["head"])
            kind = HEADS[options.pop("kind")]
            self.heads._modules[name] = kind(description["hidden_size"], **options)  # takes any name, unlike ModuleDict

    @classmethod
    def from_folder(cls, folder: str | Path) -> MultiTaskModel:
        """Load what `mtmeta export`, of format transformers or peft, left in a folder, ready to predict."""
        folder = base = Path(folder)
        adapted = (folder / "adapter_config.json").exists()
        if adapted:
            config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
            base = folder / config["base_model_name_or_path"]  # the encoder that the adapters were trained beside
        encoder: Any = AutoModel.from_pretrained(base)
        tokenizer = AutoTokenizer.from_pretrained(base)
        if adapted:
            from peft import PeftModel

            encoder = PeftModel.from_pretrained(encoder, folder)
        model = cls(encoder, tokenizer, json.loads((folder / "heads.json").read_text(encoding="utf-8")))
        model.heads.load_state_dict(load_file(folder / "heads.safetensors"))
        return model.eval()

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(self.descriptions)

    def forward(self, task: str, texts: Sequence[Text]) -> Tensor:
        """Return the raw outputs of a task's head [B, C] (logits, or the one number) for texts or pairs of texts.

        Of a task that finds texts which belong together, the vectors of both [B, 2, C].
        """
        pooled = torch.stack(
            [self._pool(task, ids, types) for ids, types in self._sequences(task, texts)], dim=1
        )  # [B, V, D]
        head: Any = self.heads._modules[task]
        description = self.descriptions[task]
        outputs: Tensor
        if description.get("orders") == "both":  # the mean of what the head says of (a, b) and of (b, a)
            apart = description["inputs"] == "separate"
            given, swapped = (pooled, pooled.flip(1)) if apart else (pooled[:, :1], pooled[:, 1:])
            outputs = (head(given) + head(swapped)) / 2
        else:
            outputs = head(pooled)
        return outputs

    @torch.inference_mode()
    def predict(self, task: str, texts: Sequence[Text], batch_size: int = 32) -> list[dict[str, Any]]:
        """Predict of each text its class, the probability of it and of all classes; or, of a regression, its number.

        Of a task with any number of labels a text, these, and the probability of each; of one with several numbers a
        text, each of them by name; of one that finds texts which belong together, the cosine of two.
        """
        predictions: list[dict[str, Any]] = []
        description = self.descriptions[task]
        for start in range(0, len(texts), batch_size):
            outputs = self(task, texts[start : start + batch_size]).float()
            if description["objective"] == "regression":
                numbers = outputs[:, 0].clamp(description["low"], description["high"])
                predictions += [{"score": value} for value in numbers.tolist()]
                continue
            if description["objective"] == "cosine":  # of the two texts' vectors
                predictions += [{"score": value} for value in (outputs[:, 0] * outputs[:, 1]).sum(dim=-1).tolist()]
                continue
            labels = description["labels"]
            if description["objective"] == "targets":  # several numbers, each within its bounds
                numbers = outputs.clamp(outputs.new_tensor(description["low"]), outputs.new_tensor(description["high"]))
                predictions += [{"scores": dict(zip(labels, row, strict=True))} for row in numbers.tolist()]
                continue
            if description["objective"] == "multi_label":  # a label whose logit is above its own threshold
                above = outputs > outputs.new_tensor(description["thresholds"])
                for has, row in zip(above.tolist(), outputs.sigmoid().tolist(), strict=True):
                    kept = [label for label, one in zip(labels, has, strict=True) if one]
                    predictions.append({"labels": kept, "probabilities": dict(zip(labels, row, strict=True))})
                continue
            if description["objective"] == "binary":  # one logit, of the second class
                outputs = outputs[:, 0]
                probabilities = torch.stack([(-outputs).sigmoid(), outputs.sigmoid()], dim=1)
                classes = (outputs > 0).long()
            elif description["objective"] == "ordinal":  # of each class but the last, whether it is above it
                classes, probabilities = (outputs > 0).sum(dim=1), _in_order(outputs)
            else:
                probabilities, classes = outputs.softmax(dim=-1), outputs.argmax(dim=-1)
            for number, row in zip(classes.tolist(), probabilities.tolist(), strict=True):
                by_label = dict(zip(labels, row, strict=True))
                predictions.append({"label": labels[number], "score": row[number], "probabilities": by_label})
        return predictions

    def _pool(self, task: str, ids: list[list[int]], types: list[list[int]]) -> Tensor:
        """Return the mean of the hidden states of each sequence's tokens, or that of the first: [B, D]."""
        lengths = [len(row) for row in ids]
        width = max(lengths)

        def padded(rows: list[list[int]], filler: int) -> Tensor:
            filled = [row + [filler] * (width - len(row)) for row in rows]
            return torch.tensor(filled, device=self.encoder.device)  # type: ignore[arg-type]

        mask = padded([[1] * length for length in lengths], 0)
        inputs = {"input_ids": padded(ids, self.tokenizer.pad_token_id), "attention_mask": mask}
        if "token_type_ids" in self.tokenizer.model_input_names:
            inputs["token_type_ids"] = padded(types, 0)
        hidden: Tensor = self.encoder(**inputs).last_hidden_state  # [B, T, D]
        if self.descriptions[task]["pooling"] == "first":
            return hidden[:, 0]
        weights = mask[:, :, None].to(hidden.dtype)
        pooled: Tensor = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        return pooled

    def _sequences(self, task: str, texts: Sequence[Text]) -> Iterator[tuple[list[list[int]], list[list[int]]]]:
        """Give token ids and segments of the texts, cut to `max_length`; twice where a pair has two sequences, and once
        for each choice of a question."""
        prefix, middle, suffix = (self.special[name] for name in ("prefix", "middle", "suffix"))
        inputs, room = self.descriptions[task]["inputs"], self.max_length - len(prefix) - len(suffix)
        both = self.descriptions[task].get("orders") == "both"
        if inputs in ("cross", "choices"):
            room -= len(middle)
            columns = [self._ids([text[i] for text in texts]) for i in range(len(texts[0]))]
            sides = [(columns[0], other) for other in columns[1:]] + [(columns[1], columns[0])] * both
            for firsts, seconds in sides:
                ids, types = [], []
                for a, b in zip(firsts, seconds, strict=True):
                    kept = min(len(b), max(room // 2, room - len(a)))  # the longer text is cut first
                    first, second = [*prefix, *a[: room - kept], *middle], [*b[:kept], *suffix]
                    ids.append(first + second)
                    types.append([0] * len(first) + [1] * len(second))
                yield ids, types
            return
        apart = [list(texts)] if inputs == "single" else [[text[i] for text in texts] for i in range(2)]
        for column in apart:
            ids = [[*prefix, *row[:room], *suffix] for row in self._ids(column)]
            yield ids, [[0] * len(row) for row in ids]

    def _ids(self, texts: Sequence[Any]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return ids


def _in_order(outputs: Tensor) -> Tensor:
    """Return probabilities [B, K] of classes in order, of the logits [B, K - 1] of being above each but the last."""
    above = outputs.sigmoid()
    whole = torch.cat([torch.ones_like(above[:, :1]), above, torch.zeros_like(above[:, :1])], dim=1)
    chances = (whole[:, :-1] - whole[:, 1:]).clamp(min=0)  # of logits out of order it would be negative
    return chances / chances.sum(dim=1, keepdim=True)
