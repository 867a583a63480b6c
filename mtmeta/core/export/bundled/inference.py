"""ONNX graphs of a model trained by mtmeta, run by onnxruntime; neither mtmeta nor PyTorch is needed.

    from inference import OnnxModel
    model = OnnxModel("folder")                    # labels.json, tokenizer.json, TASK.onnx
    model.predict(model.tasks[0], ["A text."])     # pairs: [("A text.", "Another one.")], or a text and its choices

Shapes: `B` texts or pairs, `T` tokens of the longest, padding included. Copy and change this file as you like.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

Text = str | tuple[str, ...]
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class OnnxModel:
    """A graph for each task, loaded when it is first asked for."""

    def __init__(self, folder: str | Path, **session_options: Any) -> None:
        self.folder = Path(folder)
        description = json.loads((self.folder / "labels.json").read_text(encoding="utf-8"))
        self.max_length: int = description["max_length"]
        self.special: dict[str, list[int]] = description["special_tokens"]
        self.descriptions: dict[str, dict[str, Any]] = description["tasks"]
        self.tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        self.session_options = session_options or {"providers": ["CPUExecutionProvider"]}
        self.sessions: dict[str, onnxruntime.InferenceSession] = {}

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(self.descriptions)

    def run(self, task: str, texts: Sequence[Text]) -> list[Any]:
        """Run the graph of a task: logits [B, C], and probabilities [B, K] or, of a regression, numbers [B]; of a task
        that finds texts which belong together, vectors [B, 2, C] and cosines [B].

        Where one of several choices is right, the graph scores a question with one choice, and is run for each.
        """
        if task not in self.sessions:
            file = self.folder / self.descriptions[task]["file"]
            self.sessions[task] = onnxruntime.InferenceSession(file, **self.session_options)
        session = self.sessions[task]
        if self.descriptions[task]["inputs"] != "choices":
            return list(session.run(None, self.inputs(task, texts)))
        scores = [session.run(None, _padded(*sequences))[0] for sequences in self._sequences(task, texts)]
        logits = np.concatenate(scores, axis=1)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return [logits, powers / powers.sum(axis=1, keepdims=True)]

    def predict(self, task: str, texts: Sequence[Text], batch_size: int = 32) -> list[dict[str, Any]]:
        """Predict of each text its class, the probability of it and of all classes; or, of a regression, its number.

        Of a task with any number of labels a text, these, and the probability of each; of one with several numbers a
        text, each of them by name; of one that finds texts which belong together, the cosine of two.
        """
        predictions: list[dict[str, Any]] = []
        description = self.descriptions[task]
        for start in range(0, len(texts), batch_size):
            logits, answers = self.run(task, texts[start : start + batch_size])
            if description["objective"] in ("regression", "cosine"):
                predictions += [{"score": value} for value in answers.tolist()]
                continue
            labels = description["labels"]
            if description["objective"] == "targets":  # several numbers
                predictions += [{"scores": dict(zip(labels, row, strict=True))} for row in answers.tolist()]
                continue
            if description["objective"] == "multi_label":  # a label whose logit is above its own threshold
                above = logits > np.array(description["thresholds"], dtype=np.float32)
                for has, row in zip(above.tolist(), answers.tolist(), strict=True):
                    kept = [label for label, one in zip(labels, has, strict=True) if one]
                    predictions.append({"labels": kept, "probabilities": dict(zip(labels, row, strict=True))})
                continue
            classes = logits.argmax(axis=1)
            if description["objective"] in ("binary", "ordinal"):  # the last class has no logit, in order or of two
                classes = (logits > 0).sum(axis=1)
            for number, row in zip(classes.tolist(), answers.tolist(), strict=True):
                by_label = dict(zip(labels, row, strict=True))
                predictions.append({"label": labels[number], "score": row[number], "probabilities": by_label})
        return predictions

    def inputs(self, task: str, texts: Sequence[Text]) -> dict[str, Any]:
        """Return the graph's inputs by name, int64 [B, T]: cut to `max_length`, filled up with zeros."""
        inputs: dict[str, Any] = {}
        for suffix, (ids, types) in zip(("", "_2"), self._sequences(task, texts), strict=False):
            inputs |= _padded(ids, types, suffix)
        return inputs

    def _sequences(self, task: str, texts: Sequence[Text]) -> Iterator[tuple[list[list[int]], list[list[int]]]]:
        """Give token ids and segments of the texts; twice where a pair has two sequences, and once
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
        return [row.ids for row in self.tokenizer.encode_batch(texts, add_special_tokens=False)]


def _padded(ids: list[list[int]], types: list[list[int]], suffix: str = "") -> dict[str, Any]:
    """Return sequences as the inputs of a graph by name, filled up with zeros."""
    ones = [[1] * len(row) for row in ids]
    width = max(map(len, ids))
    return {
        name + suffix: np.array([row + [0] * (width - len(row)) for row in rows], dtype=np.int64)
        for name, rows in zip(INPUTS, (ids, ones, types), strict=True)
    }
