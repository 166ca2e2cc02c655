"""Intervals of the regret cover, whether the options differ or not, and the noise of the lowest mean is not regret."""

import numpy as np
import pytest

from armillary.laws import regret_of
from armillary.recipe import UsageError


@pytest.mark.parametrize(("options", "seeds"), [(3, 2), (5, 2), (5, 3), (8, 5)])
@pytest.mark.parametrize("scatter", [0.0, 1.0, 3.0])
def test_the_interval_covers(options, seeds, scatter):
    rng, inside, errors, trials = np.random.default_rng(options + seeds), 0, [], 150
    for trial in range(trials):
        true = rng.normal(0, scatter, options)
        losses = true[:, None] + rng.normal(0, 1, (options, seeds)) + rng.normal(0, 2, seeds)
        chosen = int(losses.mean(1).argmin()) if trial % 2 else 0
        found = regret_of({str(i): row for i, row in enumerate(losses)}, str(chosen))
        regret = true[chosen] - true.min()
        inside += found.low - 1e-9 <= regret <= found.high + 1e-9
        errors.append(float(found.mean) - regret)
    assert inside / trials >= 0.84
    if scatter:
        assert abs(np.mean(errors)) < 0.35


def test_exact_losses_have_an_exact_regret():
    found = regret_of({"a": [3.0, 4.0], "b": [2.5, 3.5]}, "a")
    assert float(found.mean) == float(found.low) == float(found.high) == pytest.approx(0.5)
    assert float(regret_of({"a": [3.0, 4.0], "b": [2.5, 3.5]}, "b").high) == 0


def test_wrong_input_is_refused():
    with pytest.raises(UsageError, match="no option 'c' among a, b"):
        regret_of({"a": [1, 2], "b": [1, 2]}, "c")
    for groups in ({"a": [1, 2]}, {"a": [1], "b": [2]}, {"a": [1, 2], "b": [1, 2, 3]}):
        with pytest.raises(UsageError, match="at least two options with the same two or more seeds"):
            regret_of(groups, "a")
