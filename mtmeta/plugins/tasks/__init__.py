"""Built-in tasks: the paper's three, and generic ones usable from YAML alone."""

from __future__ import annotations

import mtmeta
from mtmeta.plugins.tasks.generic import ClassificationTask, PairClassificationTask, RegressionTask, SimilarityTask
from mtmeta.plugins.tasks.multi_label import MultiLabelTask
from mtmeta.plugins.tasks.multi_output import MultiOutputTask
from mtmeta.plugins.tasks.multiple_choice import MultipleChoiceTask
from mtmeta.plugins.tasks.ordinal import OrdinalTask
from mtmeta.plugins.tasks.para import Para
from mtmeta.plugins.tasks.ranking import RankingTask
from mtmeta.plugins.tasks.sst import Sst
from mtmeta.plugins.tasks.sts import Sts
from mtmeta.plugins.tasks.tagging import TaggingTask


@mtmeta.hookimpl
def register_tasks() -> list[type[mtmeta.Task]]:
    generic = [ClassificationTask, PairClassificationTask, SimilarityTask, RegressionTask]
    several = [MultiLabelTask, MultiOutputTask, MultipleChoiceTask]
    return [Sst, Para, Sts, *generic, *several, OrdinalTask, RankingTask, TaggingTask]
