"""Texts that belong together, told from the others of their batch (Henderson et al. 2017; van den Oord et al. 2018).

Of anchors a_i, their positives p_i and the candidates c_j, which are all positives and hard negatives of a batch, with
s the scale and cos the cosine,

    loss = 1/B sum_i -log( exp(s cos(a_i, p_i)) / sum_j exp(s cos(a_i, c_j)) )

where j goes over p_i itself and the negatives of a_i: the candidates that are neither a_i's own text nor that of a
positive of the same anchor, in whatever row. With `symmetric` it is the mean of this and the same with anchors for
candidates of each positive. Shapes: `B` batch, `T` texts of an example (anchor, positive, hard negatives), `C` numbers
of a vector, `M` = B (T - 1) candidates, `N` examples of a split, `U` different candidates of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

import mtmeta
from mtmeta import sample

if TYPE_CHECKING:
    from torch import Tensor

Names = Annotated[tuple[str, ...], Field(min_length=1)]
TIED = 1e-6  # cosines that differ by less are equal: so far rounding moves them
AT_ONCE = 2**24  # cosines that are held at once
DEPTHS = (1, 3, 5, 10, 30, 100)


@dataclass(frozen=True)
class Ranking(mtmeta.Objective):
    """A text's own among others: outputs [B, T, C], vectors of length 1 of anchor, positive and hard negatives."""

    scale: float = 20.0
    symmetric: bool = False
    dim: int | None = None

    labelled = "texts"

    @property
    def outputs(self) -> int:
        return self.dim or 0

    def parse(self, label: object) -> float:
        """Return a rank; of no label the best, which is what an example's own text should have."""
        return 1 if label in (None, "") else float(str(label))

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        import torch
        from torch.nn import functional

        if outputs.ndim != 3 or labels.ndim != 2 or outputs.shape[:2] != labels.shape or labels.shape[1] < 2:
            shapes = f"outputs have shape {list(outputs.shape)}, labels {list(labels.shape)}"
            raise ValueError(f"{shapes}, the loss needs [B, T, C] and [B, T]")
        vectors = outputs.float() if outputs.dtype.itemsize < 8 else outputs
        batch = torch.arange(len(labels), device=labels.device)
        anchors, candidates = vectors[:, 0], vectors[:, 1:].transpose(0, 1).flatten(0, 1)  # [B, C], [M, C]
        known = _known(labels)  # [B, M]
        known[batch, batch] = False  # its own positive is what is to be found
        logits = self.scale * anchors @ candidates.T  # [B, M]
        forward = functional.cross_entropy(logits.masked_fill(known, -torch.inf), batch)
        if not self.symmetric:
            return forward
        own = slice(len(labels))
        backward = functional.cross_entropy(logits[:, own].T.masked_fill(known[:, own].T, -torch.inf), batch)
        return (forward + backward) / 2

    def decode(self, outputs: Tensor) -> Tensor:
        """Return the cosines [B] of anchors and positives."""
        vectors = outputs.float()
        return (vectors[:, 0] * vectors[:, 1]).sum(dim=-1)

    def ranks(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the rank [N] of each positive among the texts of all positives and hard negatives of a split.

        A text that stands there several times counts once, the anchor's own and those of its other positives never.
        Equal cosines, to 1e-6, count against the model. No more than 2^24 cosines are held at once.
        """
        import torch

        places, at = torch.unique(labels[:, 1:].flatten(), return_inverse=True)  # [U], [N (T - 1)]
        rows = torch.arange(len(at), device=at.device)
        first = at.new_full((len(places),), len(at)).scatter_reduce(0, at, rows, "amin")
        corpus = outputs[:, 1:].flatten(0, 1)[first].float()  # [U, C]
        own = self.decode(outputs)
        known = _KnownTexts(labels[:, 0].contiguous(), at.view(len(labels), -1)[:, 0], places)
        ranks, size = torch.empty_like(own), max(1, AT_ONCE // len(places))
        for start in range(0, len(labels), size):
            here = slice(start, start + size)
            cosines = outputs[here, 0].float() @ corpus.T  # [size, U]
            cosines[known.of(start, len(cosines))] = -torch.inf
            ranks[here] = 1 + (cosines >= own[here, None] - TIED).sum(dim=1)
        return ranks

    def confusion(self, labels: Any, predictions: Any) -> mtmeta.Confusion:
        """Return how many of the texts are found within so many places."""
        shares = [
            (f"first {depth}", (int((predictions <= depth).sum()), float((predictions <= depth).mean())))
            for depth in DEPTHS
        ]
        return mtmeta.Confusion("own texts found among the", ("examples", "share"), tuple(shares))

    def export(self) -> Mapping[str, Any]:
        return {"objective": "cosine"}


def _known(texts: Tensor) -> Tensor:
    """Return which candidates [B, M] are an anchor's own text, or that of a positive of the same anchor."""
    anchors, positives, candidates = texts[:, 0], texts[:, 1], texts[:, 1:].T.flatten()
    same = (anchors[:, None] == anchors).float()  # [B, B]
    right = (positives[:, None] == candidates).float()  # [B, M]
    return (same @ right > 0) | (anchors[:, None] == candidates)


class _KnownTexts:
    """Which texts of a split are no negatives of an anchor: its own, and its positives, in whatever rows."""

    def __init__(self, anchors: Tensor, positives: Tensor, places: Tensor) -> None:
        """`anchors` are texts [N]; `positives` places [N] among the candidates, the texts `places` [U], in order."""
        import torch

        _, group, sizes = torch.unique(anchors, return_inverse=True, return_counts=True)
        self._positives = positives[group.argsort(stable=True)]  # anchor by anchor
        self._begins, self._sizes = (sizes.cumsum(0) - sizes)[group], sizes[group]  # [N]
        self._self = torch.searchsorted(places, anchors).clamp(max=len(places) - 1)
        self._is_there = places[self._self] == anchors

    def of(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Return example and place of the texts of the examples from `start` on, examples counted from there."""
        import torch

        here = slice(start, start + count)
        sizes, rows = self._sizes[here], torch.arange(count, device=self._self.device)
        ends = sizes.cumsum(0)
        steps = torch.arange(int(ends[-1]), device=ends.device) - (ends - sizes).repeat_interleave(sizes)
        positives = self._positives[self._begins[here].repeat_interleave(sizes) + steps]
        there = self._is_there[here]
        return torch.cat([rows.repeat_interleave(sizes), rows[there]]), torch.cat([positives, self._self[here][there]])


@dataclass(frozen=True, kw_only=True)
class RankingTask(mtmeta.Task):
    """Texts that belong together, as a question and its answer: each is to be found among the others of its batch.

    Rows are pairs, or with `negatives` triplets and more. The loss is sentence-transformers'
    MultipleNegativesRankingLoss; a text that is right for an anchor is no negative of it, in whatever row it stands.
    `mtmeta predict` gives the cosine of a pair.
    """

    name = "ranking"
    inputs = "separate"

    anchor: str = "anchor"
    """Column of the text that is asked for, as a question."""
    positive: str = "positive"
    """Column of the text that belongs to it."""
    negatives: str | Names | None = None
    """Column of a text that does not, or a list of several: hard negatives."""
    scale: mtmeta.PositiveFloat = 20.0
    """What cosines are multiplied by before the softmax; its inverse is called temperature."""
    symmetric: bool = False
    """Whether anchors are to be found by their positives as well, among those of the batch."""
    dim: mtmeta.PositiveInt | None = None
    """Numbers of a vector after a linear map, trained with the encoder; default: the pooled vectors themselves."""
    metrics: Names = ("accuracy_at_1", "accuracy_at_10", "mrr_at_10", "ndcg_at_10")
    """Metrics; the first selects."""

    @property
    def objective(self) -> Ranking:
        return Ranking(self.scale, self.symmetric, self.dim)

    @property
    def columns(self) -> tuple[str, ...]:
        return self.anchor, self.positive

    @property
    def extra_texts(self) -> int:
        return len(self._negatives)

    @property
    def _negatives(self) -> tuple[str, ...]:
        """The columns of hard negatives."""
        return (self.negatives,) if isinstance(self.negatives, str) else self.negatives or ()

    def check(self) -> Iterator[tuple[str, str]]:
        columns = (*self.columns, *self._negatives)
        if twice := [name for name, count in Counter(columns).items() if count > 1]:
            yield "negatives" if self._negatives else "positive", f"names column {mtmeta.quote(twice[0])} twice"
        if self.batch_size == 1 and not self._negatives:
            yield "batch_size", "is 1: there is no other text in a batch to tell the right one from; give 2 or more"

    def read(self, file: mtmeta.DataFile) -> Iterable[mtmeta.Example]:
        for row in file.rows(*self.columns, *self._negatives):
            anchor, positive, *negatives = (row[name] for name in (*self.columns, *self._negatives))
            if positive in negatives:
                file.bad.add(row.line, "a negative is the positive", "other")
                continue
            yield mtmeta.Example(anchor, positive, id=row.id, line=row.line, choices=tuple(negatives))

    def sample(self, split: str) -> Iterable[mtmeta.Example]:
        """Yield questions and statements with another way to say the same, and, as negatives, with others."""
        rows = [row for row in sample.examples("para", split) if row.pair is not None]
        others = [row.pair for row in rows if not row.label]
        for number, row in enumerate(row for row in rows if row.label):
            negatives = tuple(others[(number + step) % len(others)] for step in range(self.extra_texts))
            yield mtmeta.Example(row.text, row.pair, id=row.id, choices=negatives)  # type: ignore[arg-type]
