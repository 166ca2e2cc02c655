"""Pairs of answers on disk and in batches: none lost, none cut over sequences, the reference beside its answer."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from armillary.corpus import (
    Batch,
    Corpus,
    Example,
    Pair,
    Pairs,
    PreferenceOrder,
    data_order,
    open_pairs,
    verify_corpus,
    write_pairs,
)
from armillary.recipe import DamagedFileError, ForeignFileError, RunSpec, UsageError, read_sealed, write_sealed

T, B, START = 40, 4, "a" * 64


def some(count: int, seed: int = 0) -> list[Pair]:
    """Pairs of T + 1 tokens at most, whose answers are behind a common prompt of 1 to 6 tokens."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        prompt = [10 + number % 200, *random.integers(3, 250, int(random.integers(0, 6))).tolist()]
        sides = []
        for _ in range(2):
            answer = random.integers(3, 250, int(random.integers(1, 15))).tolist()
            sides.append(Example([*prompt, *answer], [0.0] * len(prompt) + [1.0] * len(answer)))
        reference = (-float(random.uniform(1, 50)), -float(random.uniform(1, 50)))
        found.append(Pair(sides[0], sides[1], reference))
    return found


@pytest.fixture(scope="module")
def pairs(tiny_corpus: Any) -> Pairs:
    return write_pairs(tiny_corpus, "preferences", START, some(73))


def order_of(pairs: Pairs, seed: int = 1, sequences: int = B) -> PreferenceOrder:
    return PreferenceOrder(pairs, seed=seed, context_length=T, batch_sequences=sequences, pad=0)


def key(pair: Pair) -> Any:
    sides = ((tuple(side.tokens), tuple(side.weights[1:])) for side in (pair.chosen, pair.rejected))
    return *sides, tuple(np.float32(pair.reference).tolist())


def drawn(batch: Batch[Any]) -> list[Any]:
    """The pairs of a batch as ``key`` has them, read from what a criterion sees."""
    assert batch.weights is not None and batch.documents is not None and batch.reference is not None
    found = []
    for row, documents in enumerate(batch.documents):
        answers: dict[int, Any] = {}
        for document in np.unique(documents[batch.weights[row] != 0]).tolist():
            places = np.flatnonzero(documents == document)
            assert (np.diff(places) == 1).all()
            # the last token of a sequence is a target alone
            stop = places[-1] + 1 + (places[-1] == T - 1 and bool(batch.weights[row, -1]))
            tokens, weights = batch.tokens[row, places[0] : stop], batch.weights[row, places[0] : stop - 1]
            assert not batch.weights[row, stop - 1 : places[-1] + 1].any()
            reference = batch.reference[row, places]
            assert np.count_nonzero(reference) == 1 and batch.weights[row, places][reference != 0] == 1
            answers[document] = (tuple(tokens.tolist()), tuple(weights.tolist())), float(reference.sum())
        assert sorted(answers) == list(range(len(answers)))
        for even in range(0, len(answers), 2):
            (chosen, first), (rejected, second) = answers[even], answers[even + 1]
            found.append((chosen, rejected, (first, second)))
    return found


def test_an_epoch_holds_each_pair_once_with_its_reference(pairs: Pairs) -> None:
    order = order_of(pairs, sequences=1)
    rows = round(1 / order.epochs(1)["preferences"])
    for epoch in (0, 1, 2):
        found = Counter(d for step in range(epoch * rows, (epoch + 1) * rows) for d in drawn(order.batch(step)))
        assert found == Counter(map(key, some(73)))


def test_batches_are_a_function_of_seed_and_step(pairs: Pairs) -> None:
    in_turn = [order_of(pairs).batch(step) for step in range(20)]
    for step in (19, 0, 7):
        again = order_of(pairs).batch(step)
        for name in ("tokens", "weights", "documents", "reference"):
            np.testing.assert_array_equal(getattr(again, name), getattr(in_turn[step], name))
    small = [order_of(pairs, sequences=2).batch(step) for step in range(2)]
    assert [d for batch in small for d in drawn(batch)] == drawn(in_turn[0])
    assert (order_of(pairs, seed=2).batch(0).tokens != in_turn[0].tokens).any()


def test_the_divisor_is_the_number_of_pairs_and_known_without_the_batch(pairs: Pairs) -> None:
    order = order_of(pairs)
    for step in range(30):
        batch = order.batch(step)
        found = drawn(batch)
        assert order.weight(step) == batch.weight == len(found)
        chosen, rejected = (sum(sum(pair[side][1]) for pair in found) for side in (0, 1))
        assert batch.answers == (chosen, rejected) and batch.predictions == chosen + rejected
        part = batch.map(lambda x: x[:1])
        assert (part.weight, part.answers) == (batch.weight, batch.answers)


def test_what_was_written_is_read_and_named_by_its_content(pairs: Pairs, tiny_corpus: Any) -> None:
    given = some(73)
    for number, pair in enumerate(given):
        for part, side in zip(pairs.parts(number), (pair.chosen, pair.rejected), strict=True):
            assert pairs.tokens[part].tolist() == side.tokens and pairs.weights[part].tolist() == side.weights
        assert tuple(pairs.reference[number].tolist()) == pair.reference
    again = write_pairs(tiny_corpus, "preferences", START, given)
    assert again.hash == pairs.hash and open_pairs(tiny_corpus, pairs.hash).start == START
    other = write_pairs(tiny_corpus, "preferences", "b" * 64, given)
    moved = write_pairs(tiny_corpus, "preferences", START, [Pair(p.chosen, p.rejected, (-1.0, -2.0)) for p in given])
    assert len({pairs.hash, other.hash, moved.hash}) == 3


GOOD = Example([5, 6], [0.0, 1.0])


@pytest.mark.parametrize(
    "bad, said",
    [
        (Pair(Example([5, 6], [0.0]), GOOD, (-1.0, -1.0)), "pair 1 of 'bad', chosen: 2 tokens have 1 weights"),
        (Pair(GOOD, Example([5, 300], [0.0, 1.0]), (-1.0, -1.0)), "pair 1 of 'bad', rejected: token 300"),
        (Pair(GOOD, Example([5, 6], [0.0, 0.5]), (-1.0, -1.0)), "weights must be 0 or 1"),
        (
            Pair(GOOD, Example([5, 6], [1.0, 0.0]), (-1.0, -1.0)),
            "must have two tokens or more and end with a weighted token",
        ),
        (Pair(Example([5], [1.0]), GOOD, (-1.0, -1.0)), "must have two tokens or more"),
        (Pair(GOOD, GOOD, (-1.0, float("nan"))), "log-probabilities must be finite"),
        (Pair(GOOD, GOOD, (0.5, -1.0)), "at most 0"),
    ],
)
def test_a_bad_pair_is_named_and_nothing_is_written(tiny_corpus: Any, bad: Pair, said: str) -> None:
    before = sorted((tiny_corpus.path / "pairs").glob("*"))
    with pytest.raises(UsageError, match="pair 1 of 'bad'") as caught:
        write_pairs(tiny_corpus, "bad", START, [Pair(GOOD, GOOD, (-1.0, -1.0)), bad])
    assert said in str(caught.value)
    assert sorted((tiny_corpus.path / "pairs").glob("*")) == before


def test_missing_damaged_and_foreign_sets_are_told_apart(pairs: Pairs, tiny_corpus: Any, tmp_path: Path) -> None:
    shutil.copytree(tiny_corpus.path, tmp_path / tiny_corpus.path.name)
    corpus = Corpus.open(tmp_path / tiny_corpus.path.name)
    folder = corpus.path / "pairs" / pairs.hash
    with pytest.raises(UsageError, match=rf"no pairs 0000000000000000; it has .*{pairs.hash}"):
        open_pairs(corpus, "0" * 16)
    for name in ("tokens.bin", "weights.bin", "ends.bin", "reference.bin"):
        good = (folder / name).read_bytes()
        for bad in (good[:-1], good[:-1] + bytes([good[-1] ^ 1])):
            (folder / name).write_bytes(bad)
            with pytest.raises(DamagedFileError, match=name):
                open_pairs(corpus, pairs.hash)
            assert [problem.file for problem in verify_corpus(corpus.path)] == [folder / name]
        (folder / name).unlink()
        with pytest.raises(DamagedFileError, match=name):
            open_pairs(corpus, pairs.hash)
        (folder / name).write_bytes(good)
    (folder / "reference.bin").write_bytes(b"torn")  # the remedy of the error
    assert write_pairs(corpus, "preferences", START, some(73)).hash == pairs.hash
    manifest = read_sealed(folder / "manifest.json", "manifest", 1, "")
    for change, error in (
        ({"format": 2}, ForeignFileError),
        ({"corpus": "f" * 16}, ForeignFileError),
        ({"start": "b" * 64}, DamagedFileError),
    ):
        write_sealed(folder / "manifest.json", {**manifest, **change})
        with pytest.raises(error):
            open_pairs(corpus, pairs.hash)
    write_sealed(folder / "manifest.json", manifest)
    assert len(open_pairs(corpus, pairs.hash)) == 73 and not verify_corpus(corpus.path)


def test_the_order_of_a_run_refuses_what_cannot_be_compared_with_its_reference(
    pairs: Pairs, tiny_corpus: Any, make_spec: Any
) -> None:
    objective = {"kind": "preference", "examples": pairs.hash}
    start = {"weights": "weights.safetensors", "sha256": START}
    fields = make_spec().model_dump(mode="json") | {"mixture": [], "context_length": T, "objective": objective}
    spec = RunSpec.model_validate(fields | {"start": start})
    assert isinstance(data_order(spec, tiny_corpus), PreferenceOrder)
    with pytest.raises(UsageError, match=f"{START}, but the run has no start"):
        data_order(RunSpec.model_validate(fields), tiny_corpus)
    with pytest.raises(UsageError, match=f"SHA-256 {START}, but the run has start.sha256 {'c' * 64}"):
        data_order(RunSpec.model_validate(fields | {"start": {**start, "sha256": "c" * 64}}), tiny_corpus)
    optimizer = {**fields["optimizer"], "z_loss": 1e-4}
    with pytest.raises(UsageError, match="z_loss"):
        data_order(RunSpec.model_validate(fields | {"start": start, "optimizer": optimizer}), tiny_corpus)
    short = RunSpec.model_validate(fields | {"start": start, "context_length": 16})
    with pytest.raises(UsageError, match=r"more than context_length \+ 1 = 17 tokens in both answers"):
        data_order(short, tiny_corpus)
