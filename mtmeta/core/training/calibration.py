"""The temperature of a task's probabilities, fitted on labelled examples (Guo et al. 2017).

    p(y | x) = softmax(z / T)_y        T = argmin of the mean of -log p(y | x)

The loss is convex in 1 / T, so its derivative, the mean of E_p[z] - z_y, has one root at most; Brent's method finds it
to the last digits. Where every label has the highest logit there is none, for the loss falls all the way to T = 0; and
where no T is better than equal chances it falls to infinity. Then T is 1.

Shapes: `N` examples, `C` classes.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtmeta.core.api.objectives import has_temperature
from mtmeta.core.data.dataset import Dataset
from mtmeta.core.machine import Precision
from mtmeta.core.training.evaluation import forward
from mtmeta.core.training.model import MultiTaskModel

Array = NDArray[np.float64]
LEAST, MOST = 0.01, 100.0
"""Temperatures that are looked between."""
BINS = 15
"""Of the expected calibration error."""


@dataclass(frozen=True)
class Calibration:
    """A temperature, and what it changes on the examples it was fitted on: before, at T = 1, and after."""

    temperature: float
    examples: int
    loss: list[float]
    """The mean of -log p(y)."""
    error: list[float]
    """Expected calibration error: how far the mean of the highest probability is from accuracy, over 15 bins of it."""

    def json(self) -> dict[str, Any]:
        """Return it as summary.json holds it."""
        return asdict(self)


def calibrated(logits: Array, labels: NDArray[np.int64]) -> Calibration:
    """Fit a temperature to logits [N, C] and labels [N]."""
    temperature = fit_temperature(logits, labels)
    before, after = log_chances(logits, 1.0), log_chances(logits, temperature)
    rows = np.arange(len(labels))
    losses = [float(-log[rows, labels].mean()) for log in (before, after)]
    errors = [calibration_error(np.exp(log), labels) for log in (before, after)]
    return Calibration(temperature, len(labels), losses, errors)


def fit_temperature(logits: Array, labels: NDArray[np.int64]) -> float:
    """Return the temperature of the least loss, or 1 where there is none between LEAST and MOST."""
    from scipy.optimize import brentq

    own = logits[np.arange(len(labels)), labels]

    def slope(log_beta: float) -> float:
        """Of the loss in beta = 1 / T."""
        chances = np.exp(log_chances(logits, float(np.exp(-log_beta))))
        return float(((chances * logits).sum(axis=1) - own).mean())

    low, high = -np.log(MOST), -np.log(LEAST)
    if not slope(low) < 0 < slope(high):
        return 1.0
    return float(np.exp(-brentq(slope, low, high, xtol=1e-12, rtol=1e-12)))


def log_chances(logits: Array, temperature: float) -> Array:
    """Return the logarithms of the probabilities [N, C] at a temperature."""
    scaled = logits / temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    logs: Array = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return logs


def calibration_error(chances: Array, labels: NDArray[np.int64]) -> float:
    """Return the expected calibration error of probabilities [N, C], over BINS equal bins (a, b] of the highest one."""
    highest, right = chances.max(axis=1), chances.argmax(axis=1) == labels
    bins = np.clip(np.ceil(highest * BINS) - 1, 0, BINS - 1).astype(np.int64)
    gaps = np.bincount(bins, weights=right - highest, minlength=BINS)
    return float(np.abs(gaps).sum() / len(labels))


@torch.inference_mode()
def calibrate(
    model: MultiTaskModel, dataset: Dataset, *, batch_tokens: int, precision: Precision = "fp32"
) -> Calibration | None:
    """Fit a temperature to what a model says of a dataset; None for a task whose probabilities have none."""
    objective = model.tasks[dataset.task].objective
    if not has_temperature(objective):
        return None
    logits = np.empty((len(dataset), len(objective.classes)))
    with closing(forward(model, dataset, batch_tokens=batch_tokens, precision=precision)) as batches:
        for indices, _, outputs in batches:
            raw = outputs.double().cpu().numpy()
            logits[indices] = raw if raw.shape[1] == logits.shape[1] else np.concatenate([0 * raw, raw], axis=1)
    known = dataset.labels >= 0
    return calibrated(logits[known], dataset.labels[known].astype(np.int64))
