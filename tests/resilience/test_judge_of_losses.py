"""A step is judged by the losses before it alone."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armillary.resilience import WINDOW, Judge
from armillary.resilience.judge import LEAST


def falling(steps, seed=0):
    """Losses of an ordinary run: falling, with noise."""
    chance = random.Random(seed)
    return [2 + 4 * math.exp(-step / 100) + chance.gauss(0, 0.05) for step in range(steps)]


@pytest.mark.parametrize("seed", range(20))
def test_an_ordinary_run_has_no_spike_and_each_spike_is_found(seed):
    judge, losses = Judge(8.0), falling(400, seed)
    for step, loss in enumerate(losses, start=1):
        assert judge.look(step, loss, 1.0) is None
    for step in range(401, 404):  # one spike does not hide the next
        verdict = judge.look(step, losses[-1] + 2, 1.0)
        assert verdict is not None and verdict.finite and "from the steps before it" in verdict.what


@given(st.lists(st.floats(0.1, 20), min_size=1, max_size=150), st.integers(1, 149))
def test_it_decides_the_same_after_a_restart(losses, cut):
    def verdicts(judge, begin):
        return [judge.look(step, losses[step - 1], 1.0) for step in range(begin, len(losses) + 1)]

    whole = Judge(3.0)
    said, good = [], []
    for step, loss in enumerate(losses, start=1):
        said.append(whole.look(step, loss, 1.0))
        if said[-1] is None and step <= cut:
            good.append(loss)
    again = Judge(3.0)
    again.restore(min(cut, len(losses)), good[-WINDOW:])
    assert verdicts(again, min(cut, len(losses)) + 1) == said[min(cut, len(losses)) :]


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_what_is_not_finite_is_never_accepted(loss, norm):
    judge = Judge()
    judge.accept(1)
    verdict = judge.look(1, loss, norm)
    assert verdict is not None and not verdict.finite


def test_a_step_is_judged_once_and_an_accepted_spike_counts_as_good():
    judge = Judge(5.0)
    for step in range(1, LEAST + 1):
        assert judge.look(step, 1.0, 1.0) is None
    assert judge.look(LEAST, math.nan, 1.0) is None  # judged before
    assert judge.look(LEAST + 1, 9.0, 1.0) is not None
    judge.accept(LEAST + 1)
    assert judge.look(LEAST + 1, 9.0, 1.0) is None
    assert Judge().look(1, 1e30, 1.0) is None  # without a limit any finite loss is good
