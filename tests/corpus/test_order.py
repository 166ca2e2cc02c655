"""Contract 2: the order of the data is a pure function of (seed, step, position)."""

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from armillary.corpus import TokenOrder
from armillary.corpus.order import floor_sum
from armillary.corpus.permutation import permute
from armillary.recipe import LengthPhase, MixturePhase, UsageError

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
    rows = windows_of(order.batch(step).tokens for step in range(steps))
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


@pytest.mark.parametrize("share", [0.05, 0.3, 0.62])
def test_a_share_of_the_text_is_a_fixed_part_that_repeats_as_often(corpus, share):
    def order(share, seed=1):
        return TokenOrder(corpus, (STABLE,), seed=seed, context_length=T, batch_sequences=B, text_share=share)

    steps, part = 120, order(share)
    rows = windows_of(part.batch(step).tokens for step in range(steps))
    every = {
        (d, min(w * T, n - T - 1)) for d, n in enumerate(TOKENS.values()) for w in range(corpus.windows("abc"[d], T))
    }
    for d, name in enumerate(TOKENS):
        drawn = [start for domain, start in rows if domain == d]
        count = max(1, round(share * corpus.windows(name, T)))
        assert len(set(drawn)) == min(count, len(drawn)), "no window beyond the part, each before any repeats"
        assert {(d, start) for start in drawn} <= every
        assert part.epochs(steps)[name] == len(drawn) / count
    # the domains are those of the whole text, step by step; the parts of one seed are nested, other seeds have others
    whole = windows_of(order(1.0).batch(step).tokens for step in range(steps))
    assert [d for d, _ in rows] == [d for d, _ in whole]
    assert set(rows) <= set(windows_of(order(min(1.0, 1.5 * share)).batch(step).tokens for step in range(600)))
    assert set(rows) != set(windows_of(order(share, seed=2).batch(step).tokens for step in range(steps)))


def test_windows_cover_every_token_and_rows_are_the_text(corpus):
    rows = [row for step in range(120) for row in order_of(corpus, STABLE).batch(step).tokens]
    assert all((np.diff(row) == 1).all() and len(row) == T + 1 for row in rows)
    predicted = {int(token) for row in rows for token in row[1:]}
    assert predicted == {d * 10_000 + i for d, n in enumerate(TOKENS.values()) for i in range(1, n)}


def test_a_batch_does_not_depend_on_what_was_fetched_before(corpus):
    in_turn = order_of(corpus, STABLE, ANNEAL)
    expected = [in_turn.batch(step).tokens for step in range(40)]
    jumping = order_of(corpus, STABLE, ANNEAL)
    for step in [39, 3, 16, 17, 18, 0, 38, 39, 17]:
        np.testing.assert_array_equal(jumping.batch(step).tokens, expected[step])
        np.testing.assert_array_equal(order_of(corpus, STABLE, ANNEAL).batch(step).tokens, expected[step])


def test_samples_do_not_depend_on_the_batch_size(corpus):
    """Position in the stream of samples decides, so a run may go on with another batch size."""
    small = TokenOrder(corpus, [STABLE], seed=1, context_length=T, batch_sequences=2)
    np.testing.assert_array_equal(
        np.concatenate([small.batch(step).tokens for step in range(9)]),
        np.concatenate([order_of(corpus, STABLE).batch(step).tokens for step in range(3)]),
    )


def test_mixtures_that_agree_before_a_step_give_the_same_batches_before_it(corpus):
    trunk = order_of(corpus, STABLE)
    branch = order_of(corpus, STABLE, ANNEAL)
    other = order_of(corpus, STABLE, phase(17, a=1.0))
    for step in range(17):
        np.testing.assert_array_equal(trunk.batch(step).tokens, branch.batch(step).tokens)
        np.testing.assert_array_equal(trunk.batch(step).tokens, other.batch(step).tokens)
    assert any((trunk.batch(step).tokens != branch.batch(step).tokens).any() for step in range(17, 20))


def test_order_of_keys_in_a_mixture_does_not_matter_but_the_seed_does(corpus):
    turned = phase(0, c=0.1, b=0.3, a=0.6)
    np.testing.assert_array_equal(order_of(corpus, STABLE).batch(5).tokens, order_of(corpus, turned).batch(5).tokens)
    assert (order_of(corpus, STABLE).batch(5).tokens != order_of(corpus, STABLE, seed=2).batch(5).tokens).any()


@given(
    weights=st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda w: sum(w) > 0.01),
    seed=st.integers(0, 2**31),
    first=st.integers(0, 10**9),
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_stretch_of_samples_holds_the_mixture(corpus, weights, seed, first):
    """Far better than drawing at random, which would be off by 30 of 1000; and exact at any distance."""
    weights = [w / sum(weights) for w in weights]
    order = order_of(corpus, phase(0, **dict(zip(TOKENS, weights, strict=True))), seed=seed)
    steps = 166
    counts = Counter(d for d, _ in windows_of(order.batch(first + step).tokens for step in range(steps)))
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


def test_the_order_never_changes(corpus):
    """Stores hold runs that were trained in it."""
    order = order_of(corpus, STABLE, ANNEAL)
    digest = hashlib.sha256(b"".join(order.batch(step).tokens.tobytes() for step in range(60))).hexdigest()
    assert digest == "d269d6b53057490a4a407aecfbb73c71561f1caaf53bf9e9c1522cc0af1bdab9"


@pytest.fixture
def whole_windows(shards):
    """Windows of 24 tokens and of less do not overlap."""
    return shards({"a": 10 * 24 + 1, "b": 7 * 24 + 1})


@st.composite
def length_phases(draw):
    """Mixture, sizes at the start, phases of other lengths, and steps; the longest length is 24."""
    lengths = draw(st.lists(st.sampled_from([3, 6, 8, 12, 24]), min_size=1, max_size=3))
    lengths[draw(st.integers(0, len(lengths) - 1))] = 24
    starts = sorted(draw(st.sets(st.integers(1, 30), min_size=len(lengths) - 1, max_size=len(lengths) - 1)))
    rows = [draw(st.integers(1, 5)) for _ in lengths]
    phases = [
        LengthPhase(start_step=start, context_length=length, batch_sequences=sequences)
        for start, length, sequences in zip(starts, lengths[1:], rows[1:], strict=True)
    ]
    share = draw(st.floats(0, 1))
    mixture = [phase(0, a=share, b=1 - share), phase(draw(st.integers(1, 20)), a=0.5, b=0.5)]
    sizes = {"context_length": lengths[0], "batch_sequences": rows[0]}
    steps = max([0, *starts]) + draw(st.integers(1, 25))
    return mixture, {**sizes, "lengths": phases, "steps": steps, "seed": draw(st.integers(0, 99))}


@given(length_phases(), st.randoms(use_true_random=False))
@settings(max_examples=35, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_lengths_text_is_seen_once_before_any_is_again(whole_windows, drawn, random):
    mixture, options = drawn
    longest, corpus = 24, whole_windows
    order = TokenOrder(corpus, mixture, **options)
    batches = [order.batch(step).tokens for step in range(options["steps"])]
    for step in random.sample(range(options["steps"]), min(5, options["steps"])):  # resumed anywhere
        np.testing.assert_array_equal(TokenOrder(corpus, mixture, **options).batch(step).tokens, batches[step])

    sizes = [(0, options["context_length"], options["batch_sequences"])]
    sizes += [(p.start_step, p.context_length, p.batch_sequences) for p in options["lengths"]]
    seen = [np.zeros(len(corpus.train_tokens(name)) - 1, dtype=int) for name in "ab"]
    left = 0  # tokens of a domain that phases have left over, at most
    for step, batch in enumerate(batches):
        start, length, rows = next(size for size in reversed(sizes) if size[0] <= step)
        assert batch.shape == (rows, length + 1)
        if step == start and step > 0:
            left += longest
        for row in batch:
            assert (np.diff(row) == 1).all() and int(row[0]) % 10_000 % length == 0
            domain, first = divmod(int(row[0]), 10_000)
            seen[domain][first : first + length] += 1
            # a token comes for the n-th time only when the others, but for what was left over, have come n - 1 times
            assert np.maximum(seen[domain].max() - 1 - seen[domain], 0).sum() <= left
    for counts, passes in zip(seen, order.epochs(options["steps"]).values(), strict=True):
        assert passes * len(counts) == pytest.approx(counts.sum())


def test_neighbours_in_the_text_lie_far_apart(shards):
    corpus = shards({"a": 40 * 24 + 1})
    options = {"context_length": 6, "batch_sequences": 4, "steps": 60, "seed": 1}
    later = [LengthPhase(start_step=30, context_length=24, batch_sequences=1)]
    order = TokenOrder(corpus, [phase(0, a=1.0)], lengths=later, **options)
    windows = [int(row[0]) // 6 for step in range(30) for row in order.batch(step).tokens]
    drawn = {window: draw for draw, window in enumerate(windows)}
    assert len(drawn) == 120  # 30 long windows of 4 parts
    assert all(abs(drawn[w] - drawn[w + 1]) == 30 for w in drawn if w % 4 < 3)


def test_without_phases_a_longest_length_changes_nothing(corpus):
    plain = order_of(corpus, STABLE, ANNEAL)
    same = [LengthPhase(start_step=20, context_length=T, batch_sequences=B)]
    other = TokenOrder(corpus, [STABLE, ANNEAL], seed=1, context_length=T, batch_sequences=B, lengths=same, steps=40)
    for step in range(40):
        np.testing.assert_array_equal(plain.batch(step).tokens, other.batch(step).tokens)


def test_wrong_mixtures_are_refused(shards):
    corpus = shards(TOKENS | {"exam": 50}, examined=["exam"])
    with pytest.raises(UsageError, match="no domain 'bb'; nearest: 'b'"):
        order_of(corpus, phase(0, a=0.5, bb=0.5))
    with pytest.raises(UsageError, match="'exam' is only examined"):
        order_of(corpus, phase(0, a=0.5, exam=0.5))
    with pytest.raises(UsageError, match=r"domain 'c': 9 training tokens are fewer.*context_length \+ 1 = 17.*below 9"):
        TokenOrder(corpus, [STABLE], seed=0, context_length=16, batch_sequences=1)
    never_drawn = phase(0, a=0.5, b=0.5, exam=0.0)
    assert TokenOrder(corpus, [never_drawn], seed=0, context_length=16, batch_sequences=3).batch(0).tokens.shape == (
        3,
        17,
    )
