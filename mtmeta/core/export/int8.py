"""A graph in int8, and what that costs on dev: against the run, and against itself in batches of another size.

Scheme `batch` is onnxruntime's dynamic quantisation: one scale for all activations of a batch, so that a text's logits
depend on its batch mates. Scheme `row` gives each token a scale of its own, so that they do not. Weights are int8 with
a scale for each output, embeddings with one for each row.

Shapes: `N` texts, `T` tokens, `K` inputs and `M` outputs of a matrix, `C` logits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtmeta.core.data.dataset import Dataset, select
from mtmeta.core.errors import UsageError
from mtmeta.core.export.check import pad
from mtmeta.core.export.onnx_graphs import run_graph, silently
from mtmeta.core.export.parts import Part
from mtmeta.core.export.text_classification import GRAPH, is_typed, outputs_of
from mtmeta.core.run.directory import check_hashes
from mtmeta.core.run.fetch import bring
from mtmeta.core.run.session import Session
from mtmeta.core.storage.staging import StagingFolder
from mtmeta.core.training import evaluation

if TYPE_CHECKING:
    from numpy.typing import NDArray

QUANTISED = "onnx/model_quantized.onnx"  # where transformers.js looks for `dtype: "q8"`
BATCH = 32
MOST = 2000  # rows of dev that are run one by one
STEPS = 127.0  # of an int8 on each side of zero


@dataclass(frozen=True)
class Int8Loss:
    """What int8 costs on a split: the primary metric, and answers that are others."""

    scheme: str
    split: str
    metric: str
    examples: int
    run: float
    """The metric of the run itself."""
    batches: float
    """That of int8 in batches of 32, in the order of the file."""
    singly: float
    """That of int8 in batches of one."""
    changed: int | None
    """Answers of int8, in batches of 32, that are not those of the run; None for numbers."""
    changed_by_mates: int | None
    """Answers in batches of 32 that are not those of batches of one."""
    moved: float
    """The largest difference of a logit to the run's, in units of the largest of these where it is above 1."""
    moved_by_mates: float
    """The largest difference of a logit between the two sizes of batches, in the same units."""
    bytes: int
    """Size of the graph."""
    bytes_fp32: int
    """Size of the graph that it was made from."""

    def told(self) -> str:
        """Return it in one line."""
        changed = "" if self.changed is None else f"; {self.changed} of {self.examples} answers are others"
        return f"int8 has {self.metric} {self.batches:.4f} on {self.split}, the run {self.run:.4f}{changed}"

    def plain(self) -> dict[str, Any]:
        """Return it as data."""
        return asdict(self)


def put_int8(draft: StagingFolder, under: str, session: Session, part: Part, scheme: str) -> dict[str, Int8Loss]:
    """Write the int8 graph beside that of a task, measured on the split that selects; return what it costs.

    Raises MtmetaError where that split cannot be read: nothing goes out unmeasured.
    """
    whole = (draft.folder / f"{under}{GRAPH}").read_bytes()
    quantised = SCHEMES[scheme](whole)
    draft.write(f"{under}{QUANTISED}", quantised)
    (name,) = part.names
    dataset = _split(session, part, name)
    return {name: _measured(session, part, dataset, scheme, quantised, len(whole))}


def _split(session: Session, part: Part, name: str) -> Dataset:
    recipe = session.recipe
    session.backbone, split = part.backbone, recipe.evaluation.select_on
    if getattr(recipe.tasks[name], split) is None:
        raise UsageError("--int8", f"is measured on {split}, and task '{name}' has none; leave it out")
    bring(replace(recipe, tasks={name: recipe.tasks[name]}), [split], session.sources, backbone=False)
    dataset = session.read_split(name, split)
    check_hashes(session.folder.lock()["data"], {f"{name}-{split}": (dataset.file, dataset.sha256)})
    if len(dataset) > MOST:
        dataset = select(dataset, np.linspace(0, len(dataset) - 1, MOST).astype(np.int64))
    return dataset


@dataclass(frozen=True)
class _Answers:
    """Raw outputs [N, C] of a graph or of the run, what they mean, and how good that is."""

    outputs: NDArray[np.float64]
    decoded: NDArray[np.float64]
    score: evaluation.Score

    def moved(self, other: _Answers) -> float:
        """Return the largest difference of an output."""
        return float(np.abs(self.outputs - other.outputs).max())

    def changed(self, other: _Answers) -> int:
        """Return how many examples have another answer."""
        return int((self.decoded != other.decoded).reshape(len(self.decoded), -1).any(axis=1).sum())


@torch.inference_mode()
def _measured(session: Session, part: Part, dataset: Dataset, scheme: str, quantised: bytes, whole: int) -> Int8Loss:
    """Run a graph on a split, in batches of 32 and of one, beside the run's own model."""
    name = dataset.task
    objective = part.model.objectives[name]

    def answers(outputs: torch.Tensor) -> _Answers:
        raw, decoded = outputs.double().numpy(), objective.decode(outputs).double().numpy()
        found = evaluation.Predictions(dataset, decoded, 0.0, objective, raw)
        return _Answers(raw.reshape(len(raw), -1), decoded, session.measure(found, intervals=False))

    def by_graph(size: int) -> _Answers:
        batches = [range(start, min(start + size, len(dataset))) for start in range(0, len(dataset), size)]
        inputs = 3 if is_typed(part.portable) else 2
        found = run_graph(quantised, [pad(dataset.stores, batch)[:inputs] for batch in batches])
        return answers(outputs_of(objective, torch.from_numpy(np.concatenate([logits for logits, *_ in found]))))

    run, batches, singly = (
        answers(_outputs(part, dataset) / part.temperatures.get(name, 1.0)),
        by_graph(BATCH),
        by_graph(1),
    )
    unit = max(1.0, float(np.abs(run.outputs).max()))
    labelled = bool(objective.classes)
    return Int8Loss(
        scheme=scheme,
        split=dataset.split,
        metric=run.score.metric,
        examples=len(dataset),
        run=run.score.value,
        batches=batches.score.value,
        singly=singly.score.value,
        changed=run.changed(batches) if labelled else None,
        changed_by_mates=batches.changed(singly) if labelled else None,
        moved=run.moved(batches) / unit,
        moved_by_mates=batches.moved(singly) / unit,
        bytes=len(quantised),
        bytes_fp32=whole,
    )


def _outputs(part: Part, dataset: Dataset) -> torch.Tensor:
    """Return the raw outputs [N, C] or [N] of the run's own model, in the order of the split."""
    found: list[torch.Tensor] = [torch.empty(0)] * len(dataset)
    for indices, _, outputs in evaluation.forward(part.model, dataset, batch_tokens=8192):
        for index, row in zip(indices.tolist(), outputs, strict=True):
            found[index] = row
    return torch.stack(found)


# ------------------------------------------------------------------------------------------------------------- schemes


def _by_batch(graph: bytes) -> bytes:
    """Quantise as onnxruntime does by itself."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(prefix="mtmeta-") as folder, silently():
        target = Path(folder) / "model.onnx"
        quantize_dynamic(onnx.load_from_string(graph), target, weight_type=QuantType.QInt8)
        return target.read_bytes()


def _by_row(graph: bytes) -> bytes:
    """Quantise every product with a matrix of weights, its inputs token by token, and every table of embeddings."""
    import onnx

    model = onnx.load_from_string(graph)
    rewriting = _Rewriting(model)
    rewriting.run()
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


class _Rewriting:
    """A graph whose nodes are replaced one by one."""

    def __init__(self, model: Any) -> None:
        from onnx import helper, numpy_helper

        self._helper, self._arrays = helper, numpy_helper
        self._graph = model.graph
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._nodes: list[Any] = []
        self._rows: dict[str, tuple[str, str]] = {}  # of an input: its int8 values and their scales

    def run(self) -> None:
        """Replace the nodes, and drop the weights that none uses any more."""
        for node in list(self._graph.node):
            if node.op_type == "MatMul" and self._is_matrix(node.input[1]):
                self._product(node)
            elif node.op_type == "Gather" and self._is_matrix(node.input[0]):
                self._lookup(node)
            else:
                self._nodes.append(node)
        used = {name for node in self._nodes for name in node.input}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        del self._graph.node[:], self._graph.initializer[:]
        self._graph.node.extend(self._nodes)
        self._graph.initializer.extend(kept)

    def _is_matrix(self, name: str) -> bool:
        tensor = self._weights.get(name)
        return tensor is not None and len(tensor.dims) == 2 and tensor.data_type == self._float

    @property
    def _float(self) -> int:
        return int(self._helper.np_dtype_to_tensor_dtype(np.dtype(np.float32)))

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self._nodes.append(self._helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def _constant(self, name: str, values: NDArray[Any]) -> str:
        if name not in self._weights:
            tensor = self._arrays.from_array(values, name)
            self._graph.initializer.append(tensor)
            self._weights[name] = tensor
        return name

    def _quantised(self, name: str, axis: int) -> tuple[str, str]:
        """Return the names of a matrix in int8 and of its scales, which share all but `axis`."""
        values = self._arrays.to_array(self._weights[name])
        scales = np.maximum(np.abs(values).max(axis=axis, keepdims=True), np.finfo(np.float32).tiny) / STEPS
        whole = np.clip(np.rint(values / scales), -STEPS, STEPS).astype(np.int8)
        return self._constant(f"{name}.int8", whole), self._constant(f"{name}.scale", scales.astype(np.float32))

    def _product(self, node: Any) -> None:
        """x [.., K] W [K, M], with x in int8 by row and W by column: the int32 product times both scales."""
        weight, scale = self._quantised(node.input[1], 0)
        rows, row_scale = self._row(node.input[0])
        own = node.output[0]
        product = self._node("MatMulInteger", [rows, weight], f"{own}.int32")
        product = self._node("Cast", [product], f"{own}.float", to=self._float)
        product = self._node("Mul", [product, row_scale], f"{own}.scaled")
        self._node("Mul", [product, scale], own)

    def _row(self, name: str) -> tuple[str, str]:
        """Return x in int8 and the scale of each of its rows, [.., K] and [.., 1]."""
        if name not in self._rows:
            steps = self._constant("int8/steps", np.array(STEPS, dtype=np.float32))
            least = self._constant("int8/least", np.array(np.finfo(np.float32).tiny * STEPS, dtype=np.float32))
            last = self._constant("int8/last", np.array([-1], dtype=np.int64))
            size = self._node("Abs", [name], f"{name}.abs")
            size = self._node("ReduceMax", [size, last], f"{name}.max", keepdims=1)
            size = self._node("Max", [size, least], f"{name}.most")
            scale = self._node("Div", [size, steps], f"{name}.scale")
            whole = self._node("Div", [name, scale], f"{name}.units")
            whole = self._node("Round", [whole], f"{name}.round")
            int8 = int(self._helper.np_dtype_to_tensor_dtype(np.dtype(np.int8)))
            self._rows[name] = self._node("Cast", [whole], f"{name}.int8", to=int8), scale
        return self._rows[name]

    def _lookup(self, node: Any) -> None:
        """Rows of a table, by their numbers: int8 times the scale of the row."""
        table, scale = self._quantised(node.input[0], 1)
        own = node.output[0]
        rows = self._node("Gather", [table, node.input[1]], f"{own}.int8")
        rows = self._node("Cast", [rows], f"{own}.float", to=self._float)
        scales = self._node("Gather", [scale, node.input[1]], f"{own}.scale")
        self._node("Mul", [rows, scales], own)


SCHEMES: dict[str, Callable[[bytes], bytes]] = {"row": _by_row, "batch": _by_batch}
