"""Supervised examples on disk and in batches: none lost, none cut, none that sees another; damage is named."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from armillary.corpus import (
    Batch,
    Example,
    Examples,
    SupervisedOrder,
    TokenOrder,
    data_order,
    open_examples,
    write_examples,
)
from armillary.recipe import (
    ArmillaryError,
    DamagedFileError,
    ForeignFileError,
    MixturePhase,
    UsageError,
    read_sealed,
    write_sealed,
)

T, B = 24, 4


def some(count: int, end: int, seed: int = 0) -> list[Example]:
    """Examples of 2 to T + 1 tokens, the first of which is the number of the example; some end with ``end``."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        size = int(random.integers(2, T + 1))
        tokens = [10 + number % 250, *random.integers(3, 250, size - 1).tolist()]
        given = int(random.integers(0, size))
        weights = [0.0] * given + random.choice([0.5, 1.0, 2.0], size - given).tolist()
        if number % 3 == 0:
            tokens, weights = [*tokens, end], [*weights, 1.0]
        found.append(Example(tokens[: T + 1], weights[: T + 1]))
    return found


@pytest.fixture(scope="module")
def end(tiny_corpus: Any) -> int:
    return tiny_corpus.manifest.end_of_text_id


@pytest.fixture(scope="module")
def examples(tiny_corpus: Any, end: int) -> Examples:
    return write_examples(tiny_corpus, "chats", some(101, end))


def order_of(examples: Examples, seed: int = 1, sequences: int = B) -> SupervisedOrder:
    return SupervisedOrder(examples, seed=seed, context_length=T, batch_sequences=sequences, pad=0)


def drawn(batch: Batch[Any]) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """The documents of a batch that have a weight: their tokens and the weights of those after the first."""
    assert batch.weights is not None and batch.documents is not None
    found = []
    for tokens, weights, documents in zip(batch.tokens, batch.weights, batch.documents, strict=True):
        changes = np.flatnonzero(np.diff(documents)) + 1
        starts = [0, *changes.tolist()]
        for start, following in zip(starts, [*starts[1:], T], strict=True):
            if weights[start:following].any():
                # the last token of the last one is a target alone
                stop = following + (following == T and bool(weights[T - 1]))
                found.append((tuple(tokens[start:stop].tolist()), tuple(weights[start : stop - 1].tolist())))
    return found


def stored(examples: Examples) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    parts = [examples.part(index) for index in range(len(examples))]
    return [(tuple(examples.tokens[p].tolist()), tuple(examples.weights[p][1:].tolist())) for p in parts]


def test_what_was_written_is_read_with_the_end_of_text_in_the_loss(tiny_corpus: Any, end: int) -> None:
    given = some(30, end)
    examples = write_examples(tiny_corpus, "thirty", given)
    for example, (tokens, weights) in zip(given, stored(examples), strict=True):
        assert list(tokens[: len(example.tokens)]) == list(example.tokens)
        assert tokens[-1] == end and weights[-1] > 0
        assert len(tokens) - len(example.tokens) == (example.tokens[-1] != end)
    assert write_examples(tiny_corpus, "thirty", given).hash == examples.hash
    assert write_examples(tiny_corpus, "thirty", given[::-1]).hash != examples.hash
    assert open_examples(tiny_corpus, examples.hash).name == "thirty"
    assert not list((tiny_corpus.path / "examples").glob(".*"))


def test_an_epoch_holds_each_example_once_and_whole(examples: Examples) -> None:
    order = order_of(examples, sequences=1)
    rows = round(1 / order.epochs(1)["chats"])
    for epoch in (0, 1, 2):
        found = Counter(d for step in range(epoch * rows, (epoch + 1) * rows) for d in drawn(order.batch(step)))
        assert found == Counter(stored(examples))
    assert rows <= 1.15 * examples.lengths.sum() / (T + 1)  # little room is wasted


def test_batches_are_a_function_of_seed_and_step(examples: Examples) -> None:
    in_turn = order_of(examples)
    expected = [in_turn.batch(step) for step in range(40)]
    for step in (39, 0, 17):
        again = order_of(examples).batch(step)
        for name in ("tokens", "weights", "documents"):
            np.testing.assert_array_equal(getattr(again, name), getattr(expected[step], name))
    small = [order_of(examples, sequences=2).batch(step).tokens for step in range(4)]
    np.testing.assert_array_equal(np.concatenate(small), np.concatenate([b.tokens for b in expected[:2]]))
    assert (order_of(examples, seed=2).batch(0).tokens != expected[0].tokens).any()


def test_the_weight_of_a_batch_is_known_without_it(examples: Examples, tiny_corpus: Any) -> None:
    order = order_of(examples)
    for step in range(60):
        batch = order.batch(step)
        assert batch.weights is not None
        assert order.weight(step) == batch.weight == pytest.approx(batch.weights.sum(dtype=np.float64), rel=1e-12)
        assert batch.map(lambda part: part[:1]).weight == batch.weight  # a part knows the whole
    mixture = [MixturePhase(start_step=0, weights={"sky": 1.0})]
    tokens = TokenOrder(tiny_corpus, mixture, seed=0, context_length=T, batch_sequences=B)
    assert tokens.weight(3) == tokens.batch(3).weight == B * T


def test_padding_is_a_document_of_its_own_without_weight(tiny_corpus: Any) -> None:
    one = write_examples(tiny_corpus, "one", [Example([5, 6, 7], [0.0, 1.0, 1.0])])
    batch = order_of(one, sequences=1).batch(0)
    assert batch.weights is not None and batch.documents is not None
    assert batch.weights[0, :3].tolist() == [1.0, 1.0, 1.0] and not batch.weights[0, 3:].any()
    assert batch.documents[0].tolist() == [0] * 4 + [1] * (T - 4)


@pytest.mark.parametrize(
    "example, said",
    [
        (Example([5, 6], [1.0]), "2 tokens have 1 weights"),
        (Example([5, 300], [1.0, 1.0]), "token 300 is outside"),
        (Example([-1, 5], [1.0, 1.0]), "token -1 is outside"),
        (Example([5, 6], [1.0, -1.0]), "at least 0"),
        (Example([5, 6], [1.0, float("nan")]), "finite"),
        (Example([], []), "no token before its end"),
    ],
)
def test_a_bad_example_is_named_and_nothing_is_written(tiny_corpus: Any, example: Example, said: str) -> None:
    before = sorted((tiny_corpus.path / "examples").glob("*")) if (tiny_corpus.path / "examples").exists() else []
    with pytest.raises(UsageError, match="example 1 of 'bad'") as caught:
        write_examples(tiny_corpus, "bad", [Example([5, 6], [1.0, 1.0]), example])
    assert said in str(caught.value)
    assert sorted((tiny_corpus.path / "examples").glob("*")) == before


def test_no_examples_and_a_silent_end_are_refused(tiny_corpus: Any, end: int) -> None:
    with pytest.raises(UsageError, match="no examples"):
        write_examples(tiny_corpus, "none", [])
    with pytest.raises(UsageError, match="learn to stop"):
        write_examples(tiny_corpus, "silent", [Example([5, end], [1.0, 0.0])])


def test_an_example_longer_than_a_sequence_is_refused(tiny_corpus: Any) -> None:
    long = write_examples(tiny_corpus, "long", [Example([5] * (T + 1), [1.0] * (T + 1)), Example([5, 6], [1.0, 1.0])])
    with pytest.raises(
        UsageError, match=f"1 of 2 have more than .* the longest {T + 2}; raise context_length to {T + 1}"
    ):
        order_of(long)


def copied(examples: Examples, tiny_corpus: Any, tmp_path: Path) -> Any:
    """The corpus with its examples in another folder, to be damaged."""
    import shutil

    from armillary.corpus import Corpus

    shutil.copytree(tiny_corpus.path, tmp_path / tiny_corpus.path.name)
    return Corpus.open(tmp_path / tiny_corpus.path.name)


def test_missing_damaged_and_foreign_sets_are_told_apart(examples: Examples, tiny_corpus: Any, tmp_path: Path) -> None:
    corpus = copied(examples, tiny_corpus, tmp_path)
    folder = corpus.path / "examples" / examples.hash
    with pytest.raises(UsageError, match=examples.hash):
        open_examples(corpus, "0" * 16)
    for name in ("tokens.bin", "weights.bin", "ends.bin"):
        good = (folder / name).read_bytes()
        for bad in (good[:-1], good[:-1] + bytes([good[-1] ^ 1]), b""):
            (folder / name).write_bytes(bad)
            with pytest.raises(DamagedFileError, match=name):
                open_examples(corpus, examples.hash)
        (folder / name).unlink()
        with pytest.raises(DamagedFileError, match=name):
            open_examples(corpus, examples.hash)
        (folder / name).write_bytes(good)
    manifest = read_sealed(folder / "manifest.json", "manifest", 1, "")
    for change, error in (
        ({"format": 2}, ForeignFileError),
        ({"corpus": "f" * 16}, ForeignFileError),
        ({"name": "other"}, DamagedFileError),
    ):
        write_sealed(folder / "manifest.json", {**manifest, **change})
        with pytest.raises(error):
            open_examples(corpus, examples.hash)
    write_sealed(folder / "manifest.json", manifest)
    assert len(open_examples(corpus, examples.hash)) == len(examples)


def test_a_failed_write_leaves_nothing(tiny_corpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("armillary.corpus.sets.sync", full)
    before = sorted((tiny_corpus.path / "examples").glob("*")) if (tiny_corpus.path / "examples").exists() else []
    with pytest.raises(ArmillaryError, match="No space left"):
        write_examples(tiny_corpus, "full", [Example([5, 6], [1.0, 1.0])])
    assert [p for p in sorted((tiny_corpus.path / "examples").glob("*")) if not p.name.startswith(".")] == before
    assert not list((tiny_corpus.path / "examples").glob(".*"))


def test_the_order_of_a_run_is_that_of_its_objective(examples: Examples, tiny_corpus: Any, make_spec: Any) -> None:
    plain = make_spec()
    assert isinstance(data_order(plain, tiny_corpus), TokenOrder)
    fields = plain.model_dump(mode="json") | {"mixture": []}
    supervised = type(plain).model_validate(
        fields | {"objective": {"kind": "supervised", "examples": examples.hash}, "context_length": T}
    )
    assert isinstance(data_order(supervised, tiny_corpus), SupervisedOrder)
