"""Heads that tasks build: pooled vectors [B, V, D], or hidden states [S, D], to the outputs of an objective.

Shapes: `B` batch, `V` vectors that a head takes of an example (2 for separately encoded pairs, else 1), `D` hidden,
`C` outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtmeta.core.api.batch import Packed


def mean_over(head: nn.Module, views: Sequence[Tensor], run: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Return the mean of a head's outputs over the views of its examples, [B, V, D] each; `run` stands in for the head.

    The two orders of a pair are two views; swapped, they give the same bits, for the sum of two numbers commutes. A
    cosine is the same in both orders, and computed once.
    """
    run = run or head
    outputs: Tensor = run(views[0])
    if type(head) is CosineHead:  # not isinstance: a subclass may compute anything
        return outputs
    for view in views[1:]:
        outputs = outputs + run(view)
    return outputs if len(views) == 1 else outputs / len(views)


class MLPHead(nn.Module):
    """Concatenate, Linear, GELU, Linear (paper, section 4.1): [B, V, D] -> [B, C], or [B] where `outputs` is None."""

    def __init__(self, hidden_size: int, *, vectors: int = 1, outputs: int | None) -> None:
        super().__init__()
        self.dense = nn.Linear(vectors * hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, outputs or 1)
        self.squeeze = outputs is None

    def forward(self, pooled: Tensor) -> Tensor:
        outputs: Tensor = self.out(functional.gelu(self.dense(pooled.flatten(1))))  # [B, V * D] -> [B, C]
        return outputs[:, 0] if self.squeeze else outputs


class CosineHead(nn.Module):
    """Scaled cosine of two vectors after one shared Linear (paper, section 4.1, sts): [B, 2, D] -> [B].

    `relu` (the paper) has no gradient where the cosine is negative; `none` leaves clamping to the prediction.
    """

    def __init__(self, hidden_size: int, *, scale: float = 5.0, activation: Literal["relu", "none"] = "relu") -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.scale = scale
        self.activation = activation

    def forward(self, pooled: Tensor) -> Tensor:
        a, b = self.dense(pooled).unbind(dim=1)  # [B, D] each
        cosine = functional.cosine_similarity(a, b, dim=-1)
        return self.scale * (functional.relu(cosine) if self.activation == "relu" else cosine)


class SequenceClassificationHead(nn.Module):
    """Linear, activation, Linear on the first token's hidden state: [B, 1, D] -> [B, C], or [B] if `outputs` is None.

    It is what transformers' models for sequence classification have, without the dropout of their training.
    """

    def __init__(self, hidden_size: int, *, activation: Literal["tanh", "relu", "gelu"], outputs: int | None) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, outputs or 1)
        self.activation = activation
        self.squeeze = outputs is None

    def forward(self, pooled: Tensor) -> Tensor:
        functions: dict[str, Callable[[Tensor], Tensor]] = {
            "tanh": torch.tanh,
            "relu": functional.relu,
            "gelu": functional.gelu,
        }
        outputs: Tensor = self.out(functions[self.activation](self.dense(pooled[:, 0])))  # [B, D] -> [B, C]
        return outputs[:, 0] if self.squeeze else outputs


class LinearHead(nn.Module):
    """One Linear on one vector: [B, 1, D] -> [B]."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.out = nn.Linear(hidden_size, 1)

    def forward(self, pooled: Tensor) -> Tensor:
        outputs: Tensor = self.out(pooled[:, 0])
        return outputs[:, 0]


class CoralHead(nn.Module):
    """Concatenate, Linear, GELU, one weight vector and K - 1 biases: [B, V, D] -> [B, K - 1] (Cao et al. 2020).

    An example's outputs are one number of its own, and to each of them a bias that all examples share. The biases begin
    where the number 0 makes all K classes equally likely: at zeros, the steps of a short training would not get them
    apart.
    """

    def __init__(self, hidden_size: int, *, vectors: int = 1, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(vectors * hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, 1, bias=False)
        above = torch.arange(outputs, 0, -1) / (outputs + 1)  # P(y > k) of equally likely classes
        self.bias = nn.Parameter(above.logit())

    def forward(self, pooled: Tensor) -> Tensor:
        number: Tensor = self.out(functional.gelu(self.dense(pooled.flatten(1))))  # [B, V * D] -> [B, 1]
        return number + self.bias


class ChoiceHead(nn.Module):
    """Linear, GELU, Linear to a score, of each choice by itself: [B, V, D] -> [B, V]."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, 1)

    def forward(self, pooled: Tensor) -> Tensor:
        scores: Tensor = self.out(functional.gelu(self.dense(pooled)))  # [B, V, D] -> [B, V, 1]
        return scores[:, :, 0]


class VectorHead(nn.Module):
    """Each vector over its length, after one Linear without bias where `outputs` are given: [B, V, D] -> [B, V, C].

    Without `outputs` C is D, and the head has no parameters.
    """

    def __init__(self, hidden_size: int, *, outputs: int | None = None) -> None:
        super().__init__()
        self.dense = nn.Identity() if outputs is None else nn.Linear(hidden_size, outputs, bias=False)

    def forward(self, pooled: Tensor) -> Tensor:
        vectors: Tensor = self.dense(pooled)
        return functional.normalize(vectors.float() if vectors.dtype.itemsize < 4 else vectors, dim=-1)


class MultiHead(nn.Module):
    """Several heads by name on the same pooled vectors, their outputs side by side: [B, V, D] -> [B, C]."""

    def __init__(self, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._modules.update(heads)  # unlike nn.ModuleDict it takes any name

    def forward(self, pooled: Tensor) -> Tensor:
        outputs: list[Tensor] = [head(pooled) for head in self.children()]
        return torch.cat([each if each.ndim == 2 else each[:, None] for each in outputs], dim=1)


class WordHead(nn.Module):
    """One Linear on the first piece of each word: hidden states [S, D] of a packed batch of W words -> [W, C]."""

    takes = "sequence"

    def __init__(self, hidden_size: int, *, outputs: int) -> None:
        super().__init__()
        self.out = nn.Linear(hidden_size, outputs)

    def forward(self, hidden: Tensor, packed: Packed) -> Tensor:
        if packed.words is None:
            raise ValueError("the batch has no words; the task's objective has to be labelled by words")
        outputs: Tensor = self.out(hidden.index_select(0, packed.words))
        return outputs


class PrototypeHead(nn.Module):
    """Linear on the pooled vectors, [B, V, D] -> [B, C], that begins as a nearest-prototype classifier.

    Of class means mu [C, V * D] the logits are 2 mu x - |mu|^2, which is -|x - mu|^2 up to what all classes share
    (Snell et al. 2017; Proto-MAML, Triantafillou et al. 2020). For a `binary` task [B, 1]: the second less the first.
    """

    def __init__(self, means: Tensor, *, binary: bool = False) -> None:
        super().__init__()
        weight, bias = 2.0 * means, -means.square().sum(dim=1)
        if binary:
            weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
        self.out = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.out.weight.copy_(weight)
            self.out.bias.copy_(bias)

    def forward(self, pooled: Tensor) -> Tensor:
        outputs: Tensor = self.out(pooled.flatten(1))  # [B, V * D]
        return outputs


class CosinePrototypeHead(nn.Module):
    """Cosines of the pooled vectors with class means mu [C, V * D], over a temperature: [B, V, D] -> [B, C].

    For a `binary` task [B, 1]: the second less the first.
    """

    def __init__(self, means: Tensor, *, temperature: float = 0.1, binary: bool = False) -> None:
        super().__init__()
        self.means = nn.Parameter(means.clone())
        self.temperature = temperature
        self.binary = binary

    def forward(self, pooled: Tensor) -> Tensor:
        vectors = functional.normalize(pooled.flatten(1), dim=1)  # [B, V * D]
        cosines: Tensor = vectors @ functional.normalize(self.means, dim=1).T / self.temperature  # [B, C]
        return cosines[:, 1:] - cosines[:, :1] if self.binary else cosines
