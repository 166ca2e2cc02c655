"""Cutting, hashing and splitting documents."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armillary.corpus.documents import cut, document_hash
from armillary.corpus.split import DUPLICATE, SET_ASIDE, TRAIN, VALIDATION, DomainDocuments, split_documents
from armillary.recipe import UsageError


@given(st.text(alphabet="ab \n", max_size=300), st.integers(2, 40))
def test_parts_of_a_cut_document_are_the_document(text, limit):
    parts = list(cut(text, limit))
    assert "".join(parts) == text
    assert all(len(part) <= limit for part in parts)
    for part in parts[:-1]:
        assert part.endswith("\n") or (len(part) == limit and "\n" not in part[limit // 2 :])


@given(st.text(max_size=40), st.sampled_from(["  ", "\n\t", " ", "\u3000"]))
def test_hash_sees_neither_white_space_nor_how_accents_are_written(text, space):
    assert document_hash(space + text.replace(" ", space) + space) == document_hash(text)
    assert document_hash(unicodedata.normalize("NFD", text)) == document_hash(text)


def test_hash_sees_words_and_case():
    assert len({document_hash(text) for text in ("two words", "twowords", "Two words", "two word")}) == 4


def documents(name, texts, train=True):
    hashes = np.array([document_hash(text) for text in texts], dtype="S16")
    return DomainDocuments(name, train, hashes, np.array([len(text) for text in texts]))


words = st.lists(st.text(alphabet="abc", min_size=1, max_size=3), min_size=1, max_size=60)


@given(words, words, words, st.floats(0.01, 0.49), st.integers(1, 60))
def test_a_duplicate_is_dropped_and_never_on_both_sides(first, second, exam, share, validation_chars):
    texts = {"first": [*first, "x", "y"], "second": [*second, "u", "v"], "exam": exam}
    domains = [documents(name, t, train=name != "exam") for name, t in texts.items()]
    fates = dict(zip(texts, split_documents(domains, share, validation_chars), strict=True))
    used = [text for name in texts for text, fate in zip(texts[name], fates[name], strict=True) if fate != DUPLICATE]
    assert len(used) == len(set(used)) == len({text for t in texts.values() for text in t})
    assert [f != DUPLICATE for f in fates["exam"]] == [text not in exam[:i] for i, text in enumerate(exam)]
    assert TRAIN not in fates["exam"]
    for name, documents_ in texts.items():
        chosen = [len(text) for text, fate in zip(documents_, fates[name], strict=True) if fate == VALIDATION]
        assert chosen and sum(chosen) < validation_chars + 3
        assert SET_ASIDE not in fates[name] or sum(chosen) >= validation_chars
        assert name == "exam" or TRAIN in fates[name]


def test_share_of_documents_held_out_and_sides_kept_when_the_domain_grows():
    texts = [f"document {i}" for i in range(4000)]
    (before,) = split_documents([documents("a", texts[:2000])], 0.1, 10**9)
    (after,) = split_documents([documents("a", texts)], 0.1, 10**9)
    assert 350 < np.count_nonzero(after == VALIDATION) < 450
    np.testing.assert_array_equal(before, after[:2000])


def test_too_little_to_split():
    with pytest.raises(UsageError, match="domain 'b': 1 of its 3 documents differ"):
        split_documents([documents("a", ["x", "y"]), documents("b", ["x", "z", "z"])], 0.1, 10)
