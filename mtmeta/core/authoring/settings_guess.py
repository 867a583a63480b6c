"""The guess of a recipe's settings beside its tasks: sequence length, algorithm, steps, evaluations, inner steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtmeta.core.authoring.task_guess import Choice, TaskGuess

LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
BUDGET = 1_000_000  # tokens through the encoder: some minutes on two cores for the encoder inside the package
EPOCHS, LEAST_STEPS, MOST_STEPS = 3, 40, 1000
INNER_STEPS = 8


def inner_steps(algorithm: type[Any], guesses: Sequence[TaskGuess]) -> dict[str, int]:
    """Return the inner steps of each task, as many as its rows allow; nothing where there is no inner loop."""
    if "inner_optimizer" not in getattr(algorithm, "__dataclass_fields__", {}):
        return {}
    return {g.name: max(1, min(INNER_STEPS, g.rows // g.batch_size - 1)) for g in guesses}


def guess_settings(
    guesses: Sequence[TaskGuess], algorithm: type[Any], by_default: bool, longest: int, inner: Mapping[str, int]
) -> list[Choice]:
    """Choose the settings that depend on all tasks.

    `by_default` says whether nobody asked for the algorithm, `longest` is the most tokens that the encoder reads,
    `inner` holds the inner steps of each task.
    """
    max_length = _max_length(guesses, longest)
    lengths = [np.minimum(guess.lengths, max_length.value).mean() * guess.inputs for guess in guesses]
    affordable = BUDGET * (3 + len(guesses)) / 4 / float(np.mean(lengths))  # examples
    steps = _steps(guesses, algorithm, inner, affordable)
    evaluations = max(1, min(5, int(affordable / 2 / max(1, sum(guess.dev_rows for guess in guesses)))))
    every = -(-steps.value // evaluations)
    choices = [
        max_length,
        Choice("algorithm", algorithm.name, _why_algorithm(by_default, len(guesses))),
        steps,
        Choice("every", every, f"evaluated {-(-steps.value // every)} times on the dev splits"),
    ]
    if bad := sum(guess.bad for guess in guesses):
        lost = ", ".join(f"{guess.name} {guess.bad:,}" for guess in guesses if guess.bad)
        why = f"up to {bad:,} rows cannot be used ({lost}): mtmeta validate --data says why"
        choices.append(Choice("on_bad_rows", "skip", why))
    return choices


def _max_length(guesses: Sequence[TaskGuess], longest: int) -> Choice:
    """Choose the sequence length, so that 99% of every task's sequences are whole if the encoder reads so many."""
    wanted = max(int(np.percentile(guess.lengths, 99)) for guess in guesses)
    length = next((length for length in LENGTHS if length >= wanted and length <= longest), longest)
    cut = float((np.concatenate([guess.lengths for guess in guesses]) > length).mean())
    limit = "as many as the encoder reads; " if wanted > length else ""
    return Choice("max_length", length, f"{limit}99% of the sequences have at most {wanted} tokens; {cut:.1%} are cut")


def _steps(guesses: Sequence[TaskGuess], algorithm: type[Any], inner: Mapping[str, int], affordable: float) -> Choice:
    """Choose the outer steps: EPOCHS epochs, within the `affordable` examples."""
    batch = {guess.name: guess.batch_size for guess in guesses}
    if inner:
        a_step = sum(inner[name] * size for name, size in batch.items()) / len(batch)
        wanted = EPOCHS * sum(guess.rows for guess in guesses) / a_step
    else:
        a_step = float(sum(batch.values()))  # for individual: one step of every learner
        epochs = [guess.rows / batch[guess.name] for guess in guesses]
        wanted = EPOCHS * (max(epochs) if algorithm.name == "individual" else float(np.mean(epochs)))
    least = LEAST_STEPS // 4 if inner else LEAST_STEPS
    steps = int(min(MOST_STEPS, max(least, min(wanted, affordable / a_step))))
    if wanted >= steps + 1:
        why = f"{EPOCHS} epochs would be {round(wanted):,}; this many take some minutes on two cores"
    else:
        why = "few rows: several epochs" if steps == least else f"{EPOCHS} epochs"
    return Choice("steps", steps, why)


def _why_algorithm(by_default: bool, tasks: int) -> str:
    if not by_default:
        return "as asked for"
    if tasks == 1:
        return "there is one task; with others, joint and reptile share the encoder"
    return "the usual first choice: every task in every step; `mtmeta compare` tells it from individual and reptile"
