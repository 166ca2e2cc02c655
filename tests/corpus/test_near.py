"""Near duplicates are found in any script, whatever the order, and different texts are not taken for them."""

import random

import numpy as np
import pytest

from armillary.corpus.documents import document_hash
from armillary.corpus.near import near_duplicates, signatures

ENGLISH = [f"word{i}" for i in range(3000)]
CHINESE = [chr(0x4E00 + i) for i in range(2000)]
JAPANESE = [chr(0x3041 + i) for i in range(80)] + CHINESE
THAI = [chr(0x0E01 + i) for i in range(46)]


def text(rng, alphabet, length, between):
    return between.join(rng.choices(alphabet, k=length))


def changed(rng, text, alphabet, between, share):
    units = text.split(between) if between else list(text)
    return between.join(rng.choice(alphabet) if rng.random() < share else unit for unit in units)


def clusters(texts):
    """The partition of the texts, as a set of sets of texts."""
    labels = near_duplicates(
        signatures(texts), np.array([document_hash(t) for t in texts], dtype="S16"), lambda *_: None
    )
    return {frozenset(texts[i] for i in np.flatnonzero(labels == label)) for label in np.unique(labels)}


@pytest.mark.parametrize(
    ("alphabet", "between", "length"),
    [(ENGLISH, " ", 200), (ENGLISH, " ", 3000), (CHINESE, "", 300), (JAPANESE, "", 300), (THAI, "", 2000)],
)
def test_versions_of_a_text_are_found_and_other_texts_are_not(alphabet, between, length):
    rng = random.Random(0)
    originals = [text(rng, alphabet, length, between) for _ in range(40)]
    versions = [changed(rng, t, alphabet, between, 0.04) for t in originals]
    assert clusters(originals + versions) == {frozenset(pair) for pair in zip(originals, versions, strict=True)}


def test_order_does_not_matter():
    rng = random.Random(1)
    texts = [text(rng, ENGLISH, 120, " ") for _ in range(60)]
    for version in texts[:20]:  # chains: each version is made of the one before
        chain = [version]
        for _ in range(4):
            chain.append(changed(rng, chain[-1], ENGLISH, " ", 0.06))
        texts += chain[1:]
    expected = clusters(texts)
    assert len(expected) < len(texts)
    for _ in range(3):
        rng.shuffle(texts)
        assert clusters(texts) == expected


def test_case_space_and_the_spelling_of_accents_do_not_matter():
    words = " ".join(f"Élan{i} naïve{i}" for i in range(20))
    other = words.upper().lower().replace(" ", "\n\n").replace("é", "e\u0301").replace("ï", "i\u0308")
    assert clusters([words, other]) == {frozenset([words, other])}


def test_too_little_text_has_no_signature_and_no_neighbour():
    few = ["", "one", "one two", "天地", "one two three"]
    assert [bool(row.any()) for row in signatures(few)] == [False, False, False, False, True]
    assert clusters(["a b", "a b!"]) == {frozenset(["a b"]), frozenset(["a b!"])}


def test_a_long_text_is_hashed_in_slices_to_nearly_the_same_signature(monkeypatch):
    rng = random.Random(2)
    texts = [text(rng, ENGLISH, 4000, " "), text(rng, ENGLISH, 50, " "), text(rng, ENGLISH, 60, " ")]
    whole = signatures(texts)
    monkeypatch.setattr("armillary.corpus.near.BATCH_CHARS", 5000)
    sliced = signatures(texts)
    assert np.mean(whole[0] == sliced[0]) > 0.9
    np.testing.assert_array_equal(whole[1:], sliced[1:])
