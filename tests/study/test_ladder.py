"""The ladder's outcome: what it says of models that end worse than smaller ones."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from armillary.study import LadderOutcome, Point


def outcome(losses: dict[tuple[int, int], list[float]], family: str = "base") -> LadderOutcome:
    """An outcome with the given target losses of each depth and number of tokens, one per seed."""
    points = [
        Point(
            run=f"{family}{depth}x{tokens}x{seed}",
            family=family,
            depth=depth,
            seed=seed,
            parameters=100_000 * depth,
            tokens=tokens,
            flops=6e5 * depth * tokens,
            loss={"a": loss},
            target=loss,
        )
        for (depth, tokens), group in losses.items()
        for seed, loss in enumerate(group)
    ]
    return LadderOutcome(points=points)


def test_a_larger_model_that_ends_worse_is_named() -> None:
    # The losses of a demonstration with 71 to 178 steps.
    rows = {(1, 72704): [5.672], (2, 72704): [5.642], (3, 72704): [5.735], (1, 182272): [4.961], (2, 182272): [4.950]}
    rise = outcome(rows).rise("base")
    assert rise is not None
    assert (rise.smaller, rise.larger, rise.tokens, rise.before, rise.after) == (2, 3, 72704, 5.642, 5.735)
    assert "after 72,704 tokens the target loss of depth 3 is 5.735" in str(rise) and "training.lr" in str(rise)


def test_a_rise_within_the_spread_of_seeds_says_nothing() -> None:
    assert outcome({(1, 1000): [5.00], (2, 1000): [5.04]}).rise("base") is None
    assert outcome({(1, 1000): [5.00, 5.20], (2, 1000): [5.20, 5.05]}).rise("base") is None
    assert outcome({(1, 1000): [5.00, 5.00], (2, 1000): [5.20, 5.05]}).rise("base") is not None


def test_other_tokens_and_other_families_are_no_comparison() -> None:
    assert outcome({(1, 2000): [4.0], (2, 1000): [5.0]}).rise("base") is None
    assert outcome({(1, 1000): [4.0], (2, 1000): [5.0]}, "wide").rise("base") is None


@given(st.lists(st.floats(2, 8), min_size=1, max_size=6, unique=True))
def test_a_ladder_that_falls_with_size_never_rises(losses: list[float]) -> None:
    falling = sorted(losses, reverse=True)
    assert outcome({(depth, 1000): [loss] for depth, loss in enumerate(falling)}).rise("base") is None
