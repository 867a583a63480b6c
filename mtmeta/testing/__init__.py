"""For the tests of plugins: a tiny learner, and checks that a task, an algorithm or another part keeps its contract.

    from mtmeta.testing import check_algorithm, check_reporter, check_task, tiny_learner

    def test_contract() -> None:
        check_task(Cola, [{"sentence": "They slept.", "label": 1}, {"sentence": "Slept they the.", "label": 0}])

The checks raise AssertionError, which pytest shows, and need no GPU, no download and one or two seconds. Input that
core itself refuses, such as a label that is none of the task's, raises the MtmetaError that a run would end with.
"""

from __future__ import annotations

from mtmeta.testing.algorithms import check_algorithm
from mtmeta.testing.launchers import check_launcher
from mtmeta.testing.reporters import check_reporter, run_events
from mtmeta.testing.tasks import check_task
from mtmeta.testing.tiny import tiny_learner

__all__ = ["check_algorithm", "check_launcher", "check_reporter", "check_task", "run_events", "tiny_learner"]
