"""The learning rate as a function of the step, for every kind and shape."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armillary.recipe import Schedule, decay_factor

SHAPES = ["linear", "cosine", "1-sqrt"]


@st.composite
def schedules(draw):
    """A schedule and a number of steps that it fits into."""
    steps = draw(st.integers(1, 3000))
    warmup = draw(st.integers(0, steps))
    kind = draw(st.sampled_from(["constant", "cosine", "linear", "wsd"]))
    decay = draw(st.integers(0, steps - warmup)) if kind == "wsd" else 0
    final = draw(st.sampled_from([0.0, 0.0, 0.1, 1.0]))
    shape = draw(st.sampled_from(SHAPES))
    return Schedule(kind=kind, warmup_steps=warmup, decay_steps=decay, decay=shape, final_ratio=final), steps


@given(schedules())
def test_up_then_level_then_down_and_never_zero(drawn):
    schedule, steps = drawn
    rates = [schedule.ratio(step, steps) for step in range(steps)]
    start = schedule.decay_start(steps)
    assert all(0 < rate <= 1 for rate in rates)
    up, level, down = rates[: schedule.warmup_steps], rates[schedule.warmup_steps : start], rates[start:]
    assert up == [(step + 1) / schedule.warmup_steps for step in range(schedule.warmup_steps)]
    assert set(level) <= {1.0}
    assert all(later <= earlier for earlier, later in itertools.pairwise(down))
    assert all(rate >= schedule.final_ratio for rate in down)
    if down and schedule.final_ratio < 1:
        assert down[0] < 1
    assert len(down) == {"constant": 0, "wsd": schedule.decay_steps}.get(schedule.kind, steps - schedule.warmup_steps)


@given(schedules())
def test_the_end_lies_one_notch_above_the_final_ratio(drawn):
    schedule, steps = drawn
    decaying = steps - schedule.decay_start(steps)
    if decaying:
        last = schedule.ratio(steps - 1, steps)
        shape = schedule.decay if schedule.kind == "wsd" else schedule.kind
        expected = schedule.final_ratio + (1 - schedule.final_ratio) * decay_factor(shape, decaying / (decaying + 1))
        assert last == pytest.approx(expected, rel=1e-12)
        assert schedule.final_ratio < last or schedule.final_ratio == 1


@pytest.mark.parametrize(
    ("shape", "middle"),
    [("linear", 0.5), ("cosine", 0.5), ("1-sqrt", 1 - 0.5**0.5)],
)
def test_the_shapes_of_a_decay(shape, middle):
    assert decay_factor(shape, 0.0) == 1
    assert decay_factor(shape, 0.5) == pytest.approx(middle)
    assert decay_factor(shape, 1.0) == pytest.approx(0, abs=1e-15)
    schedule = Schedule(kind="wsd", decay_steps=99, decay=shape, final_ratio=0.2)
    assert schedule.ratio(49, 99) == pytest.approx(0.2 + 0.8 * middle)


@given(schedules(), st.integers(1, 3000))
def test_a_stable_phase_does_not_depend_on_what_comes_later(drawn, more):
    """What lets branches of other lengths share a trunk."""
    schedule, steps = drawn
    if schedule.kind == "wsd":
        trunk = Schedule(kind="constant", warmup_steps=schedule.warmup_steps)
        for step in range(schedule.decay_start(steps)):
            assert schedule.ratio(step, steps) == trunk.ratio(step, steps + more)
