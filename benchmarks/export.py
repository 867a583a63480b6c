"""How far exports of a run are from `mtmeta predict`, on real sentences: the largest differences, by format.

    python -m benchmarks.export --data DATA --run RUN [--count 256] [--format transformers]... [--int8 row] [--json]

DATA holds TASK-dev.csv for the tasks of the run; the first --count rows are taken. Each format goes to a temporary
folder and is loaded as its model card says: modeling.py with transformers, inference.py with onnxruntime,
SentenceTransformer. The figures are absolute differences of the raw outputs of a head, of probabilities or numbers, and
of the mean-pooled vectors. Of text-classification they are those of AutoModelForSequenceClassification, of pipeline()
and of the graphs, fp32 and, with --int8, int8, in batches of 32; `changed` counts the answers of int8 that are others,
`cut` the pairs too long for the model that AutoTokenizer cuts otherwise, by a token; these are left out.
"""

from __future__ import annotations

import csv
import importlib.util
import itertools
import json
import os
import tempfile
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import mtmeta
from mtmeta.core.data.loading import from_texts
from mtmeta.core.data.packing import pack_sequences
from mtmeta.core.export.check import Single
from mtmeta.core.export.export import FORMATS, export, formats_of
from mtmeta.core.export.heads import Vector
from mtmeta.core.export.int8 import QUANTISED, SCHEMES
from mtmeta.core.export.onnx_graphs import run_graph
from mtmeta.core.export.text_classification import GRAPH, outputs_of
from mtmeta.core.run.predictor import Predictor, Text
from mtmeta.core.training.evaluation import forward
from mtmeta.core.training.model import mean_pool

__all__ = ["differences", "main", "raw_outputs", "read_texts"]

Array = NDArray[np.float64]
INPUTS = Vector.inputs


def read_texts(path: Path, columns: Sequence[str], count: int) -> list[Text]:
    """The first texts, or pairs of texts, of a tab-separated file."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = [row for row, _ in zip(csv.DictReader(file, delimiter="\t"), range(count), strict=False)]
    return [row[columns[0]] if len(columns) == 1 else (row[columns[0]], row[columns[1]]) for row in rows]


@torch.inference_mode()
def raw_outputs(predictor: Predictor, name: str, texts: Sequence[Text]) -> Array:
    """Logits, or the numbers before they are clamped, of the run's own model [N, C]."""
    model, backbone = predictor._model(name)
    firsts, seconds = _columns(texts)
    dataset = from_texts(name, predictor.task(name), firsts, [seconds] if seconds else [], backbone)
    raw = np.empty((len(texts), predictor.task(name).objective.outputs))
    for indices, _, outputs in forward(model, dataset, batch_tokens=8192):
        raw[indices] = outputs.reshape(len(indices), -1).double().numpy()
    return raw


def _columns(texts: Sequence[Text]) -> tuple[list[str], list[str]]:
    pairs = [(text,) if isinstance(text, str) else text for text in texts]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs if len(pair) > 1]


def _answers(predictor: Predictor, name: str, texts: Sequence[Text]) -> Array:
    """Probabilities of all classes, or the number, as `mtmeta predict` says them."""
    predictions = predictor.predict(name, texts)
    rows = [list(p.probabilities.values()) if p.probabilities else [p.score] for p in predictions]
    return np.array(rows, dtype=np.float64)


def differences(run: Path, form: str, folder: Path, texts: dict[str, list[Text]]) -> dict[str, dict[str, float]]:
    """By task, and within by kind of output, the largest difference of an export in `folder` to the run."""
    predictor = mtmeta.load(run, device="cpu")
    return {name: CHECKS[form](predictor, name, _folder_of(folder, name), given) for name, given in texts.items()}


def _folder_of(folder: Path, name: str) -> Path:
    return folder / name if (folder / name).is_dir() else folder


def _largest(wanted: Any, exported: Any) -> float:
    wanted, exported = np.asarray(wanted), np.asarray(exported)
    assert wanted.shape == exported.shape, (wanted.shape, exported.shape)
    return float(np.abs(wanted - exported).max())


def _transformers(predictor: Predictor, name: str, folder: Path, texts: Sequence[Text]) -> dict[str, float]:
    model = _module(folder, "modeling").MultiTaskModel.from_folder(folder)
    with torch.inference_mode():
        logits = torch.cat([model(name, texts[i : i + 32]) for i in range(0, len(texts), 32)])
    return _compared(predictor, name, texts, model.predict(name, texts), logits.double().numpy())


def _module(folder: Path, name: str) -> Any:
    """A module that lies in an export."""
    place = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert place and place.loader
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


def _compared(
    predictor: Predictor, name: str, texts: Sequence[Text], exported: Sequence[dict[str, Any]], logits: Any
) -> dict[str, float]:
    """Differences of logits, and of probabilities or numbers; labels must be the same."""
    wanted = predictor.predict(name, texts)
    assert [row.get("label") for row in exported] == [row.label for row in wanted]
    assert [list(row.get("probabilities", ())) for row in exported] == [list(row.probabilities or ()) for row in wanted]
    answers = [list(row["probabilities"].values()) if "probabilities" in row else [row["score"]] for row in exported]
    outputs = _largest(raw_outputs(predictor, name, texts), logits)
    return {"outputs": outputs, "answers": _largest(_answers(predictor, name, texts), answers)}


def _onnx(predictor: Predictor, name: str, folder: Path, texts: Sequence[Text]) -> dict[str, float]:
    model = _module(folder, "inference").OnnxModel(folder)
    logits = np.concatenate([model.run(name, texts[i : i + 32])[0] for i in range(0, len(texts), 32)])
    return _compared(predictor, name, texts, model.predict(name, texts), logits)


@torch.inference_mode()
def _sentence_transformers(predictor: Predictor, name: str, folder: Path, texts: Sequence[Text]) -> dict[str, float]:
    from sentence_transformers import SentenceTransformer

    sentences = _columns(texts)[0]
    model, backbone = predictor._model(name)
    dataset = from_texts(name, Single(train=""), sentences, [], backbone, Single(train="").inputs)
    wanted = []
    for start in range(0, len(sentences), 32):
        packed = pack_sequences(dataset.stores, np.arange(start, min(start + 32, len(sentences))))
        wanted.append(mean_pool(model.eval().encode(name, packed), packed))
    encoded = SentenceTransformer(str(folder), device="cpu").encode(sentences, show_progress_bar=False)
    return {"vectors": _largest(torch.cat(wanted).numpy(), encoded)}


@torch.inference_mode()
def _text_classification(predictor: Predictor, name: str, folder: Path, texts: Sequence[Text]) -> dict[str, float]:
    import transformers

    objective = predictor._model(name)[0].objectives[name]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    firsts, seconds = _columns(texts)
    batches = []
    for start in range(0, len(texts), 32):
        parts = [column[start : start + 32] for column in (firsts, seconds) if column]
        batches.append(tokenizer(*parts, padding=True, truncation=True, return_tensors="pt"))
    same = _same_ids(predictor, name, firsts, seconds, batches)
    wanted = raw_outputs(predictor, name, texts)[same]

    def raw(logits: Sequence[torch.Tensor]) -> Array:
        outputs = outputs_of(objective, torch.cat(list(logits)))
        return outputs.reshape(len(texts), -1).double().numpy()[same]

    found = {"cut": float(len(texts) - len(same))}
    found["outputs"] = _largest(wanted, raw([model(**batch).logits for batch in batches]))
    by_pipeline = _by_pipeline(objective, name, folder, firsts, seconds)
    found["answers"] = _largest(_answers(predictor, name, texts)[same], by_pipeline[same])
    for which, file in (("onnx", GRAPH), ("int8", QUANTISED)):
        if not (folder / file).exists():
            continue
        inputs = [[batch[key].numpy() for key in INPUTS if key in batch] for batch in batches]
        answers = raw([torch.from_numpy(first) for first, *_ in run_graph((folder / file).read_bytes(), inputs)])
        found[which] = _largest(wanted, answers)
        if which == "int8" and objective.classes:
            decoded = [objective.decode(torch.from_numpy(part)).numpy() for part in (wanted, answers)]
            found["changed"] = float((decoded[0] != decoded[1]).sum())
    return found


def _same_ids(
    predictor: Predictor, name: str, firsts: Sequence[str], seconds: Sequence[str], batches: Sequence[Any]
) -> list[int]:
    """The rows of which AutoTokenizer makes what the run does: of a pair that is too long it may cut another token."""
    store = from_texts(
        name, predictor.task(name), firsts, [seconds] if seconds else [], predictor._model(name)[1]
    ).stores[0]
    theirs = [
        row[mask.bool()].tolist()
        for b in batches
        for row, mask in zip(b["input_ids"], b["attention_mask"], strict=True)
    ]
    ours = [store.ids[begin:end].tolist() for begin, end in itertools.pairwise(store.offsets)]
    return [at for at, (own, other) in enumerate(zip(ours, theirs, strict=True)) if own == other]


def _by_pipeline(objective: Any, name: str, folder: Path, firsts: Sequence[str], seconds: Sequence[str]) -> Array:
    """Probabilities of all classes, or the number within its range, as pipeline() says them."""
    import transformers

    classify = transformers.pipeline("text-classification", model=str(folder), truncation=True, device="cpu")
    pairs = [{"text": a, "text_pair": b} for a, b in zip(firsts, seconds, strict=False)]
    answers: Any = classify(pairs or list(firsts), top_k=None, batch_size=32)
    rows = [{part["label"]: part["score"] for part in row} for row in answers]
    scores = np.array([[row[label] for label in list(objective.classes) or [name]] for row in rows])
    if not objective.classes:
        scores = objective.decode(torch.from_numpy(scores[:, 0])).numpy()[:, None]
    return scores


CHECKS = {
    "transformers": _transformers,
    "onnx": _onnx,
    "sentence-transformers": _sentence_transformers,
    "text-classification": _text_classification,
    "peft": _transformers,  # modeling.py is the same
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or one JSON document."""
    parser = ArgumentParser(prog="python -m benchmarks.export")
    parser.add_argument("--data", type=Path, default=os.environ.get("MTMETA_DATA"), help="folder of TASK-dev.csv")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--count", type=int, default=256, help="rows of each file")
    parser.add_argument("--format", action="append", choices=FORMATS)
    parser.add_argument("--int8", choices=list(SCHEMES), help="of text-classification, a graph in int8 too")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    predictor = mtmeta.load(options.run, device="cpu")
    texts = {
        name: read_texts(Path(options.data) / f"{name}-dev.csv", predictor.task(name).columns, options.count)
        for name in predictor.tasks
    }
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for form in options.format or formats_of(predictor._session.recipe):
            int8 = options.int8 if form == "text-classification" else None
            document = export(options.run, form, out=Path(folder) / form, int8=int8)
            given = {name: texts[name] for name in texts if name in document["tasks"]}
            results[form] = differences(options.run, form, Path(folder) / form, given)
    if options.json:
        print(json.dumps({"texts": {name: len(given) for name, given in texts.items()}, "differences": results}))
        return
    table = Table(title=f"largest difference to {options.run} on {options.count} real examples a task")
    kinds = ("outputs", "answers", "vectors", "onnx", "int8", "changed", "cut")
    for heading in ("format", "task", *kinds):
        table.add_column(heading)
    for form, tasks in results.items():
        for name, figures in tasks.items():
            shown = {
                key: f"{value:.0f}" if key in ("changed", "cut") else f"{value:.1e}" for key, value in figures.items()
            }
            cells = (shown.get(key, "") for key in kinds)
            table.add_row(form, name, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
