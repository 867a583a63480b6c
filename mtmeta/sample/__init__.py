"""A sample data set for three tasks, which the project generates from its own grammar and lexicon.

It makes the default recipe run with nothing downloaded. The sentences are simple but the split is honest: the dev and
test sets use templates and words that the train set of the task does not, see `mtmeta.sample.lexicon`.
"""

from __future__ import annotations

from mtmeta.sample.dataset import SampleRow, examples, things, vocabulary

__all__ = ["SampleRow", "examples", "things", "vocabulary"]
