"""Contract 2: the order of the data is a pure function of (seed, step, position)."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from armillary.corpus import TokenOrder
from armillary.corpus.order import floor_sum
from armillary.corpus.permutation import permute
from armillary.recipe import MixturePhase, UsageError

T, B = 8, 6
TOKENS = {"a": 403, "b": 90, "c": 9}


def phase(start, **weights):
    return MixturePhase(start_step=start, weights=weights)


STABLE = phase(0, a=0.6, b=0.3, c=0.1)
ANNEAL = phase(17, b=0.75, c=0.25)


def order_of(corpus, *phases, seed=1):
    return TokenOrder(corpus, phases, seed=seed, context_length=T, batch_sequences=B)


@pytest.fixture
def corpus(shards):
    return shards(TOKENS)


def windows_of(batches):
    """(domain number, first position) of every row, read off the tokens themselves."""
    return [(int(row[0]) // 10_000, int(row[0]) % 10_000) for batch in batches for row in batch]


def test_every_window_once_before_any_repeats(corpus):
    order = order_of(corpus, STABLE, ANNEAL)
    steps = 120
    rows = windows_of(order.batch(step) for step in range(steps))
    for d, (name, tokens) in enumerate(TOKENS.items()):
        drawn = [start for domain, start in rows if domain == d]
        count = corpus.windows(name, T)
        starts = {min(w * T, tokens - T - 1) for w in range(count)}
        assert len(starts) == count
        assert len(drawn) > count / 2
        for begin in range(0, len(drawn) - count + 1, count):
            assert set(drawn[begin : begin + count]) == starts
        rest = drawn[len(drawn) // count * count :]
        assert len(set(rest)) == len(rest)
        assert order.epochs(steps)[name] == len(drawn) / count


def test_windows_cover_every_token_and_rows_are_the_text(corpus):
    rows = [row for step in range(120) for row in order_of(corpus, STABLE).batch(step)]
    assert all((np.diff(row) == 1).all() and len(row) == T + 1 for row in rows)
    predicted = {int(token) for row in rows for token in row[1:]}
    assert predicted == {d * 10_000 + i for d, n in enumerate(TOKENS.values()) for i in range(1, n)}


def test_a_batch_does_not_depend_on_what_was_fetched_before(corpus):
    in_turn = order_of(corpus, STABLE, ANNEAL)
    expected = [in_turn.batch(step) for step in range(40)]
    jumping = order_of(corpus, STABLE, ANNEAL)
    for step in [39, 3, 16, 17, 18, 0, 38, 39, 17]:
        np.testing.assert_array_equal(jumping.batch(step), expected[step])
        np.testing.assert_array_equal(order_of(corpus, STABLE, ANNEAL).batch(step), expected[step])


def test_samples_do_not_depend_on_the_batch_size(corpus):
    """Position in the stream of samples decides, so a run may go on with another batch size."""
    small = TokenOrder(corpus, [STABLE], seed=1, context_length=T, batch_sequences=2)
    np.testing.assert_array_equal(
        np.concatenate([small.batch(step) for step in range(9)]),
        np.concatenate([order_of(corpus, STABLE).batch(step) for step in range(3)]),
    )


def test_mixtures_that_agree_before_a_step_give_the_same_batches_before_it(corpus):
    trunk = order_of(corpus, STABLE)
    branch = order_of(corpus, STABLE, ANNEAL)
    other = order_of(corpus, STABLE, phase(17, a=1.0))
    for step in range(17):
        np.testing.assert_array_equal(trunk.batch(step), branch.batch(step))
        np.testing.assert_array_equal(trunk.batch(step), other.batch(step))
    assert any((trunk.batch(step) != branch.batch(step)).any() for step in range(17, 20))


def test_order_of_keys_in_a_mixture_does_not_matter_but_the_seed_does(corpus):
    turned = phase(0, c=0.1, b=0.3, a=0.6)
    np.testing.assert_array_equal(order_of(corpus, STABLE).batch(5), order_of(corpus, turned).batch(5))
    assert (order_of(corpus, STABLE).batch(5) != order_of(corpus, STABLE, seed=2).batch(5)).any()


@given(
    weights=st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda w: sum(w) > 0.01),
    seed=st.integers(0, 2**31),
    first=st.integers(0, 10**9),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_stretch_of_samples_holds_the_mixture(corpus, weights, seed, first):
    """Far better than drawing at random, which would be off by 30 of 1000; and exact at any distance."""
    weights = [w / sum(weights) for w in weights]
    order = order_of(corpus, phase(0, **dict(zip(TOKENS, weights, strict=True))), seed=seed)
    steps = 166
    counts = Counter(d for d, _ in windows_of(order.batch(first + step) for step in range(steps)))
    for d, (name, weight) in enumerate(zip(TOKENS, weights, strict=True)):
        assert abs(counts[d] - weight * steps * B) <= 8
        passes = order.epochs(first + steps)[name] - order.epochs(first)[name]
        assert passes * corpus.windows(name, T) == pytest.approx(counts[d], abs=1e-3)


@given(st.integers(0, 200), st.integers(1, 50), st.integers(0, 200), st.integers(0, 200))
def test_floor_sum(n, m, a, b):
    assert floor_sum(n, m, a, b) == sum((a * r + b) // m for r in range(n))


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
@settings(max_examples=60)
def test_permutation_is_one(size, key):
    image = permute(np.arange(size), np.full(size, size), np.full(size, key, dtype=np.uint64))
    np.testing.assert_array_equal(np.sort(image), np.arange(size))


def test_permutations_look_random():
    """First place, neighbours that stay neighbours, and fixed points, over 2000 keys, against what chance gives."""
    size, keys = 24, 2000
    rng = np.random.default_rng(0)
    images = np.array(
        [
            permute(np.arange(size), np.full(size, size), np.full(size, key, dtype=np.uint64))
            for key in rng.integers(0, 2**63, keys, dtype=np.uint64)
        ]
    )
    for place in (0, 5, 23):
        counts = np.bincount(images[:, place], minlength=size)
        assert ((counts - keys / size) ** 2 / (keys / size)).sum() < 23 + 5 * np.sqrt(2 * 23)  # chi square, 5 sigma
    neighbours = (np.abs(np.diff(images, axis=1)) == 1).sum(axis=1).mean()
    assert neighbours == pytest.approx(2 * (size - 1) / size, abs=0.15)
    assert (images == np.arange(size)).sum(axis=1).mean() == pytest.approx(1, abs=0.12)


def test_wrong_mixtures_are_refused(shards):
    corpus = shards(TOKENS | {"exam": 50}, examined=["exam"])
    with pytest.raises(UsageError, match="no domain 'bb'; nearest: 'b'"):
        order_of(corpus, phase(0, a=0.5, bb=0.5))
    with pytest.raises(UsageError, match="'exam' is only examined"):
        order_of(corpus, phase(0, a=0.5, exam=0.5))
    with pytest.raises(UsageError, match=r"domain 'c': 9 training tokens are fewer.*context_length \+ 1 = 17.*below 9"):
        TokenOrder(corpus, [STABLE], seed=0, context_length=16, batch_sequences=1)
    never_drawn = phase(0, a=0.5, b=0.5, exam=0.0)
    assert TokenOrder(corpus, [never_drawn], seed=0, context_length=16, batch_sequences=3).batch(0).shape == (3, 17)
