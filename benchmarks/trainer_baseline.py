"""The tasks of recipes/five with the Trainer of transformers: same weights, data, examples, batches and learning rates.

    pip install torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 scikit-learn seqeval scipy
    python -m benchmarks.trainer_baseline --data DATA --weights FOLDER [--tasks clinc,wnut17] [--seeds 11711,1,2]

It needs no mtmeta, and reads the files itself. What it does is what the documentation of transformers shows:
AutoModelForSequenceClassification or AutoModelForTokenClassification, padding to the longest of a batch, one evaluation
at the end, `gradient_accumulation_steps` 1. Steps, batch, max_length, cosine schedule, clipping and weight decay are
those of the recipes, and so is the learning rate of the classifier (`head_lr`), by an optimizer with groups. A line of
JSON for each task and seed: the metrics of dev and test, and the seconds of `train()`. One task is one model.

    clinc            accuracy of the 5,500 test texts and recall of the 1,000 out of scope, where an answer below .6 is
                     none; with the temperature that has the least log loss on dev
    goemotions       micro and macro F1 at .5, and with a threshold for each label that has the best F1 on dev
    wnut17, slots    seqeval's F1; a word that is cut off is an O
    intent, entailment   accuracy
    relatedness      Pearson
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

Rows = list[tuple[Any, Any]]
"""Texts, pairs or lists of words, and their labels."""
SPLITS = ("train", "dev", "test")
LR, HEAD_LR, WEIGHT_DECAY, CLIP, BATCH = 1e-4, 1e-3, 0.01, 1.0, 32
ABSTAIN = 0.6


@dataclass(frozen=True)
class Plan:
    """One task: its files as rows, how long it trains, and what is measured."""

    read: Callable[[Path, str], Rows]
    steps: int
    max_length: int
    kind: str
    """`classes`, `sets`, `number` or `words`."""


def clinc(data: Path, split: str) -> Rows:
    tables = json.loads((data / "clinc/data_full.json").read_text(encoding="utf-8"))
    names = {"train": ["train"], "dev": ["val"], "test": ["test", "oos_test"]}[split]
    return [(text, label) for name in names for text, label in tables[name]]


def _lines(path: Path) -> list[list[str]]:
    return [line.rstrip("\r\n").split("\t") for line in path.open(encoding="utf-8", newline="\n")]


def goemotions(data: Path, split: str) -> Rows:
    return [(text, [int(at) for at in found.split(",")]) for text, found, _ in _lines(data / f"goemotions/{split}.tsv")]


def wnut17(data: Path, split: str) -> Rows:
    names = {"train": "wnut17train.conll", "dev": "emerging.dev.conll", "test": "emerging.test.annotated"}
    rows: Rows = []
    words: list[str] = []
    tags: list[str] = []
    for fields in [*_lines(data / "wnut17" / names[split]), [""]]:
        if fields[0].strip():  # some lines between texts hold a tab
            words.append(fields[0].strip())
            tags.append(fields[1].strip())
        elif words:
            rows.append((words, tags))
            words, tags = [], []
    return rows


def slots(data: Path, split: str) -> Rows:
    return [(words.split(), tags.split()) for words, tags, _ in _lines(data / f"atis/{split}.tsv")]


def intent(data: Path, split: str) -> Rows:
    return [(words, label) for words, _, label in _lines(data / f"atis/{split}.tsv")]


def _sick(data: Path, split: str) -> list[list[str]]:
    name = {"train": "SICK_train", "dev": "SICK_trial", "test": "SICK_test_annotated"}[split]
    return _lines(data / f"sick/{name}.txt")[1:]


def relatedness(data: Path, split: str) -> Rows:
    return [((a, b), float(score)) for _, a, b, score, _ in _sick(data, split)]


def entailment(data: Path, split: str) -> Rows:
    return [((a, b), label) for _, a, b, _, label in _sick(data, split)]


PLANS = {
    "clinc": Plan(clinc, 400, 32, "classes"),
    "goemotions": Plan(goemotions, 300, 48, "sets"),
    "wnut17": Plan(wnut17, 300, 96, "words"),
    "slots": Plan(slots, 200, 64, "words"),
    "intent": Plan(intent, 200, 64, "classes"),
    "relatedness": Plan(relatedness, 200, 64, "number"),
    "entailment": Plan(entailment, 200, 64, "classes"),
}


def classes_of(rows: Rows, kind: str) -> list[Any]:
    """Return the classes of the training rows, in their order."""
    if kind == "number":
        return [0]
    found = [label for _, label in rows] if kind == "classes" else [each for _, label in rows for each in label]
    return sorted(set(found))


def encode(rows: Rows, plan: Plan, classes: Sequence[Any], tokenizer: Any) -> list[dict[str, Any]]:
    """Return the inputs and labels of a model; -100 is a piece without a label, or a class that train lacks."""
    index = {name: at for at, name in enumerate(classes)}
    examples = []
    for text, label in rows:
        pair = text if isinstance(text, tuple) else (text,)
        found = tokenizer(*pair, truncation=True, max_length=plan.max_length, is_split_into_words=plan.kind == "words")
        if plan.kind == "words":
            before = [None, *found.word_ids()]
            firsts = [word if word != last else None for last, word in pairwise(before)]
            found["labels"] = [-100 if word is None else index.get(label[word], -100) for word in firsts]
        elif plan.kind == "sets":
            found["labels"] = [float(name in label) for name in classes]
        else:
            found["labels"] = label if plan.kind == "number" else index.get(label, -100)
        examples.append(dict(found))
    return examples


def train(plan: Plan, splits: dict[str, Rows], weights: str, seed: int, bf16: bool) -> dict[str, Any]:
    """Train a model; return its outputs for dev and test, the first pieces of words alone, and the seconds."""
    import transformers

    transformers.set_seed(seed)
    classes = classes_of(splits["train"], plan.kind)
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights)
    collate: Any
    kinds = {"classes": "single_label_classification", "sets": "multi_label_classification", "number": "regression"}
    if plan.kind == "words":
        model = transformers.AutoModelForTokenClassification.from_pretrained(weights, num_labels=len(classes))
        collate = transformers.DataCollatorForTokenClassification(tokenizer)
    else:
        options = {"num_labels": len(classes), "problem_type": kinds[plan.kind]}
        model = transformers.AutoModelForSequenceClassification.from_pretrained(weights, **options)
        collate = transformers.DataCollatorWithPadding(tokenizer)
    sets: dict[str, Any] = {split: encode(rows, plan, classes, tokenizer) for split, rows in splits.items()}
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=plan.steps,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=128,
            gradient_accumulation_steps=1,
            lr_scheduler_type="cosine",
            max_grad_norm=CLIP,
            eval_strategy="no",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
            use_cpu=True,
            bf16=bf16,
        )
        trainer = transformers.Trainer(
            model=model,
            args=arguments,
            train_dataset=sets["train"],
            data_collator=collate,
            optimizers=(_optimizer(model), None),
        )
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        outputs = {split: _outputs(trainer.predict(sets[split]), sets[split], plan.kind) for split in ("dev", "test")}
    return {"classes": classes, "seconds": seconds, **outputs}


def _optimizer(model: Any) -> torch.optim.Optimizer:
    """AdamW with a rate of its own for what is new; biases and LayerNorm do not decay, as in the Trainer's."""
    groups: dict[tuple[float, float], list[Any]] = {}
    for name, parameter in model.named_parameters():
        decay = 0.0 if name.endswith("bias") or "LayerNorm" in name else WEIGHT_DECAY
        groups.setdefault((HEAD_LR if name.startswith("classifier") else LR, decay), []).append(parameter)
    options = [{"params": each, "lr": lr, "weight_decay": decay} for (lr, decay), each in groups.items()]
    return torch.optim.AdamW(options, fused=True)  # as the Trainer's own


def _outputs(found: Any, examples: list[dict[str, Any]], kind: str) -> list[Any]:
    """Return the logits of each example; of words those of the pieces that have a label, or stand for one."""
    if kind != "words":
        return list(found.predictions)
    # which pieces are firsts is known by their ids alone where a tag is none of train's: these are kept as well
    return [row[: len(one["input_ids"])] for row, one in zip(found.predictions, examples, strict=True)]


def tags_of(rows: Rows, logits: list[Any], classes: Sequence[str], words: list[list[int | None]]) -> list[list[str]]:
    """Return a tag for each word: that of its first piece, O where that was cut off."""
    found = []
    for (text, _), row, ids in zip(rows, logits, words, strict=True):
        tags = ["O"] * len(text)
        for at in range(len(ids) - 1, -1, -1):
            if (word := ids[at]) is not None:
                tags[word] = classes[int(row[at].argmax())]
        found.append(tags)
    return found


def best_thresholds(logits: Any, truth: Any) -> Any:
    """Return for each label the logit above which F1 is best."""
    cuts = []
    for scores, own in zip(logits.T, truth.T, strict=True):
        places = np.append(np.unique(scores), np.inf)
        middles = [(low + high) / 2 if np.isfinite(high) else low + 1 for low, high in pairwise(places)]
        middles = [float(scores.min() - 1), *middles]
        order = np.argsort(scores)
        right = own.sum() - np.append(0, np.cumsum(own[order]))[np.searchsorted(scores[order], middles, "right")]
        given = len(scores) - np.searchsorted(scores[order], middles, "right")
        f1 = 2 * right / np.maximum(1, given + own.sum())
        cuts.append(middles[int(f1.argmax())])
    return np.array(cuts)


def temperature(logits: Any, labels: Any) -> float:
    """Return the temperature with the least log loss."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    known = labels >= 0
    places = np.arange(int(known.sum()))

    def loss(log_t: float) -> float:
        return float(-log_softmax(logits[known] / np.exp(log_t), axis=1)[places, labels[known]].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def measure(plan: Plan, rows: dict[str, Rows], found: dict[str, Any], weights: str) -> dict[str, Any]:
    """Return the metrics of dev and test."""
    if plan.kind == "words":
        return _measure_words(plan, rows, found, weights)
    if plan.kind == "sets":
        return _measure_sets(rows, found)
    result: dict[str, Any] = {}
    if plan.kind == "number":
        for split in SPLITS[1:]:
            truth = [label for _, label in rows[split]]
            result[split] = {"pearson": float(np.corrcoef(np.ravel(found[split]), truth)[0, 1])}
        return result
    index = {name: at for at, name in enumerate(found["classes"])}
    labels = {split: np.array([index.get(label, -1) for _, label in rows[split]]) for split in SPLITS[1:]}
    logits = {split: np.stack(found[split]) for split in SPLITS[1:]}
    for split in SPLITS[1:]:
        result[split] = {"accuracy": float((logits[split].argmax(axis=1) == labels[split]).mean())}
    if (labels["test"] < 0).sum() >= 100:
        from scipy.special import softmax

        warm = temperature(logits["dev"], labels["dev"])
        for name, t in (("", 1.0), ("_calibrated", warm)):
            chances = softmax(logits["test"] / t, axis=1)
            silent, outside = chances.max(axis=1) < ABSTAIN, labels["test"] < 0
            right = np.where(silent, outside, chances.argmax(axis=1) == labels["test"])
            result["test"][f"abstain_accuracy{name}"] = float(right.mean())
            result["test"][f"oos_recall{name}"] = float(silent[outside].mean())
        result["temperature"] = warm
        result["test"]["in_scope_accuracy"] = float((logits["test"].argmax(axis=1) == labels["test"])[~outside].mean())
    return result


def _measure_words(plan: Plan, rows: dict[str, Rows], found: dict[str, Any], weights: str) -> dict[str, Any]:
    import transformers
    from seqeval.metrics import f1_score  # type: ignore[import-untyped]

    tokenizer = transformers.AutoTokenizer.from_pretrained(weights)
    result = {}
    for split in SPLITS[1:]:
        how: dict[str, Any] = {"truncation": True, "max_length": plan.max_length, "is_split_into_words": True}
        words = [tokenizer(text, **how).word_ids() for text, _ in rows[split]]
        tags = tags_of(rows[split], found[split], found["classes"], words)
        truth = [label for _, label in rows[split]]
        same = [a == b for own, given in zip(truth, tags, strict=True) for a, b in zip(own, given, strict=True)]
        result[split] = {"entity_f1": float(f1_score(truth, tags)), "word_accuracy": float(np.mean(same))}
    return result


def _measure_sets(rows: dict[str, Rows], found: dict[str, Any]) -> dict[str, Any]:
    from sklearn.metrics import f1_score, label_ranking_average_precision_score

    logits = {split: np.stack(found[split]) for split in SPLITS[1:]}
    truth = {
        split: np.array([[name in label for name in found["classes"]] for _, label in rows[split]]).astype(int)
        for split in SPLITS[1:]
    }
    cuts = best_thresholds(logits["dev"], truth["dev"])
    result: dict[str, Any] = {}
    for split in SPLITS[1:]:
        result[split] = {"label_ranking_ap": float(label_ranking_average_precision_score(truth[split], logits[split]))}
        for name, at in (("at_half", 0.0), ("tuned", cuts)):
            given = (logits[split] > at).astype(int)
            for average in ("micro", "macro"):
                f1 = f1_score(truth[split], given, average=average, zero_division=0)
                result[split][f"{average}_f1_{name}"] = float(f1)
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and measure every task with every seed."""
    parser = ArgumentParser(prog="python -m benchmarks.trainer_baseline")
    parser.add_argument(
        "--data", required=True, type=Path, help="folder with clinc/, goemotions/, wnut17/, atis/, sick/"
    )
    parser.add_argument("--weights", required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--tasks", default=",".join(PLANS))
    parser.add_argument("--seeds", default="11711,1,2")
    parser.add_argument("--steps", type=int, help="of every task, for a trial")
    parser.add_argument("--bf16", action="store_true", help="autocast")
    options = parser.parse_args(arguments)
    for seed in map(int, options.seeds.split(",")):
        for name in options.tasks.split(","):
            plan = PLANS[name]
            plan = Plan(plan.read, options.steps or plan.steps, plan.max_length, plan.kind)
            rows = {split: plan.read(options.data, split) for split in SPLITS}
            found = train(plan, rows, options.weights, seed, options.bf16)
            line = {"task": name, "seed": seed, "steps": plan.steps, "seconds": round(found["seconds"], 1)}
            print(json.dumps(line | measure(plan, rows, found, options.weights)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
