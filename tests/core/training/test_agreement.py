"""Stops that ranks agree on: a signal that comes between two agreements waits for the next, and is not lost."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from mtmeta.core.errors import Stopped
from mtmeta.core.signals import StopRequest
from mtmeta.core.training.spread.agreement import Agreement, Apart, InStep


class Ranks:
    """Two ranks, of which the other one says what it is given to say; `meanwhile` happens while they agree."""

    orphaned = False

    def __init__(self, other: str = "", meanwhile: Any = lambda: None) -> None:
        self.other, self.meanwhile, self.words = other, meanwhile, dict[str, str]()

    def settle(self, mine: dict[str, Any]) -> list[dict[str, Any]]:
        said = dict(mine)
        self.meanwhile()
        return [said, {"signal": self.other, "due": False}]

    def heard(self, name: str) -> str:
        return self.words.get(name, "")

    def tell(self, name: str, text: str) -> None:
        self.words[name] = text


def arrive(stop: StopRequest) -> None:
    stop.handle(int(signal.SIGTERM), None)


def test_a_signal_that_comes_after_the_agreement_waits_for_the_next() -> None:
    stop = StopRequest()
    ranks: Any = Ranks(meanwhile=lambda: arrive(stop))
    with stop.deferred():
        agreement = InStep(ranks)
        assert agreement.after_step(stop, is_due=True)
        assert stop.signal == "SIGTERM" and not agreement.asks(stop)  # the other rank does not know of it
        ranks.meanwhile = lambda: None
        agreement.after_step(stop, is_due=False)
        assert agreement.asks(stop)


def test_what_another_rank_was_told_stops_this_one() -> None:
    stop = StopRequest()
    ranks: Any = Ranks(other="SIGINT")
    agreement = InStep(ranks)
    agreement.after_step(stop, is_due=False)
    assert agreement.asks(stop) and stop.signal == "SIGINT"


def test_a_rank_with_learners_of_its_own_tells_the_others_before_it_stops() -> None:
    stop = StopRequest()
    ranks: Any = Ranks()
    agreement = Apart(ranks)
    with stop.deferred():
        agreement.after_step(stop, is_due=False)
        arrive(stop)
        assert not agreement.asks(stop) and not ranks.words
        agreement.after_step(stop, is_due=False)
        assert agreement.asks(stop) and ranks.words == {"stop": "SIGTERM"}


def test_alone_a_signal_counts_at_once() -> None:
    stop = StopRequest()
    with stop.deferred():
        arrive(stop)
        assert Agreement().asks(stop)


def test_an_inner_wait_does_not_end_the_outer_one() -> None:
    stop = StopRequest()
    with stop.deferred():
        with stop.deferred():
            pass
        arrive(stop)  # only noted
    assert stop.signal == "SIGTERM"
    with pytest.raises(Stopped):
        stop.check()
