"""How long a rank waits for others follows from measured times, and is long where nothing was measured."""

import pytest

from armillary.resilience import patience
from armillary.resilience.patience import LEAST_S, START_S, Patience, wait_limit


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(patience.time, "monotonic", lambda: Clock.now)
    return Clock


def test_the_limit_follows_steps_and_other_work(clock):
    limits = []
    patience = Patience(limits.append)

    def passes(seconds, act, *arguments):
        clock.now += seconds
        act(*arguments)
        return limits[-1]

    assert passes(300, patience.step) == START_S  # the first step, which also compiles
    assert passes(0, patience.busy, None) == START_S
    assert passes(2, patience.step) == LEAST_S
    assert passes(20, patience.step) == 120.0
    assert passes(2, patience.step) == 120.0  # the longest counts
    assert passes(0, patience.busy, "Validate") == START_S  # no validation has ended before
    assert passes(40, patience.busy, None) == 240.0
    assert passes(1, patience.busy, "Validate") == 240.0
    assert passes(0, patience.busy, "restore") == START_S
    assert passes(90, patience.step) == 540.0  # a step ends any work
    assert limits == [START_S, LEAST_S, 120.0, START_S, 240.0, START_S, 540.0]


def test_no_limit_is_longer_than_that_of_the_start():
    assert wait_limit(0.0) == LEAST_S and wait_limit(1e6) == START_S
