"""Encoder and heads as ONNX graphs: token ids to logits and probabilities, any batch and any length.

PyTorch traces the encoder once and each head once; a task's graph is made of the two, with the encoder twice where both
texts of a pair are encoded apart (its weights are there once). Shapes: `N` examples, `T` tokens, padding included.
"""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from mtmeta.core.api.contracts import Task
from mtmeta.core.errors import MachineError, UsageError, out_of_memory
from mtmeta.core.export.heads import Answer, ChoiceScore, Logits, TokenLogits, Vector
from mtmeta.core.wording import safe

if TYPE_CHECKING:
    from numpy.typing import NDArray

LIMIT = 2_000_000_000  # bytes that one file of this format holds
TRACED = (2, 6)  # N and T of the inputs to trace with; 0 and 1 would be taken for constants


def check_packages(option: str = "--format onnx") -> None:
    """Raise MachineError unless the packages that write and run these graphs are installed."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            message = f"needs {name}, which is not installed; pip install 'mtmeta[onnx]'"
            raise MachineError(option, message) from error


def check_size(encoder: nn.Module) -> None:
    """Raise UsageError for an encoder too large for the format."""
    size = sum(tensor.nbytes for tensor in encoder.state_dict().values())
    if size > LIMIT:
        message = f"takes files of 2 GB, this encoder is {size / 1e9:.3g} GB; use --format transformers"
        raise UsageError("--format onnx", message)


def task_graphs(encoder: nn.Module, heads: Mapping[str, nn.Module], tasks: Mapping[str, Task]) -> Iterator[Any]:
    """Give name and graph (onnx.ModelProto) of each task. Raises UsageError for an encoder too large for the format."""
    check_size(encoder)
    ids = torch.ones(TRACED, dtype=torch.int64)
    traced: dict[str, tuple[Any, torch.Tensor]] = {}
    for name, task in tasks.items():
        if task.pooling not in traced:
            vector = Vector(encoder, task.pooling).eval()
            with torch.inference_mode():
                traced[task.pooling] = _trace(vector, ids, ("batch", "length")), vector(ids, ids, ids)
        graph, pooled = traced[task.pooling]
        module = ChoiceScore(heads[name]) if task.inputs == "choices" else Answer(heads[name], task)
        yield name, _joined(graph, _trace(module.eval(), pooled, ("batch",)))


def logits_graph(module: Logits | TokenLogits) -> Any:
    """Return the graph (onnx.ModelProto) from a padded batch to logits, named as optimum and transformers.js expect."""
    import onnx

    check_size(module)
    ids = torch.ones(TRACED, dtype=torch.int64)
    traced = _trace(module.eval(), ids, ("batch_size", "sequence_length"))
    model = onnx.ModelProto()
    model.CopyFrom(traced)
    assert not traced.functions
    model.ClearField("metadata_props")
    model.graph.ClearField("node")
    model.graph.ClearField("value_info")
    model.graph.name = "mtmeta"
    named = [value.name for value in (*traced.graph.input, *traced.graph.initializer, *traced.graph.output)]
    _add(model.graph, traced.graph.node, {name: name for name in ("", *named)}, "node/")
    onnx.checker.check_model(model)
    return model


def _trace(
    module: Vector | Answer | ChoiceScore | Logits | TokenLogits, argument: torch.Tensor, dynamic: Sequence[str]
) -> Any:
    """Return a module as an onnx.ModelProto, by PyTorch's exporter; `dynamic` names the axes that are free."""
    try:
        with silently(), torch.no_grad():
            program = torch.onnx.export(
                module,
                tuple(argument.clone() for _ in module.inputs),
                input_names=list(module.inputs),
                output_names=list(module.outputs),
                dynamic_shapes={name: dict(enumerate(dynamic)) for name in module.inputs},
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        return program.model_proto
    except MemoryError:
        raise
    except Exception as error:  # of PyTorch's exporter, which may raise any
        if out_of_memory(error):
            raise
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        message = f"PyTorch cannot make a graph of this model ({safe(first, 200)}); use --format transformers"
        raise MachineError("--format onnx", message) from error


@contextmanager
def silently() -> Iterator[None]:
    """Drop a library's advice to its own developers, on stderr, in the log and on stdout."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _joined(encoder: Any, head: Any) -> Any:
    """Join an encoder (three inputs to `vector`) and a head (`first`, perhaps `second`, to its outputs) in a graph."""
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(encoder)
    for field in ("graph", "metadata_props", "functions"):
        model.ClearField(field)
    assert not encoder.functions and not head.functions
    graph = model.graph
    graph.name = "mtmeta"
    weights = {tensor.name for tensor in encoder.graph.initializer}
    graph.initializer.extend(encoder.graph.initializer)
    names: dict[str, str] = {}
    for place, suffix in zip([value.name for value in head.graph.input], ("", "_2"), strict=False):
        for value in encoder.graph.input:
            copy = graph.input.add()
            copy.CopyFrom(value)
            copy.name += suffix
            copy.type.tensor_type.shape.dim[1].dim_param += suffix
        renamed = {name: name for name in ("", *weights)}
        renamed |= {value.name: value.name + suffix for value in encoder.graph.input}
        _add(graph, encoder.graph.node, renamed, f"encoder{suffix}/")
        names[place] = renamed[encoder.graph.output[0].name]
    names |= {"": ""} | {value.name: value.name for value in head.graph.output}
    for tensor in head.graph.initializer:
        kept = graph.initializer.add()
        kept.CopyFrom(tensor)
        kept.name = names[tensor.name] = f"head/{tensor.name}"
    _add(graph, head.graph.node, names, "head/")
    graph.output.extend(head.graph.output)
    onnx.checker.check_model(model)
    return model


def _add(graph: Any, nodes: Any, names: dict[str, str], prefix: str) -> None:
    """Append copies of nodes without traces of our files; their outputs are named anew unless `names` has them."""
    for node in nodes:
        kept = graph.node.add()
        kept.CopyFrom(node)
        kept.name = prefix + node.name
        kept.ClearField("metadata_props")
        kept.ClearField("doc_string")
        kept.input[:] = [names[name] for name in node.input]
        kept.output[:] = [names.setdefault(name, prefix + name) for name in node.output]


def run_choices(model: bytes, feeds: Sequence[Sequence[NDArray[np.int64]]]) -> list[list[NDArray[np.float32]]]:
    """Return scores [N, V] and probabilities [N, V] of the choices of questions, by a graph that scores one of them."""
    answers = []
    for feed in feeds:
        scores = [out for (out,) in run_graph(model, [feed[at : at + 3] for at in range(0, len(feed), 3)])]
        logits = np.concatenate(scores, axis=1)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        answers.append([logits, powers / powers.sum(axis=1, keepdims=True)])
    return answers


def run_graph(model: bytes, feeds: Sequence[Sequence[NDArray[np.int64]]]) -> list[list[NDArray[np.float32]]]:
    """Return the outputs of a graph for each list of inputs, by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        return [session.run(None, dict(zip(names, feed, strict=True))) for feed in feeds]
    except Exception as error:  # onnxruntime's have no base of their own
        message = f"onnxruntime cannot run the graph ({safe(str(error), 200)}); update onnxruntime and torch"
        raise MachineError("--format onnx", message) from error
