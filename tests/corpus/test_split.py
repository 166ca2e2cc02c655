"""Cutting, hashing and splitting documents."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from armillary.corpus.documents import cut, document_hash
from armillary.corpus.split import (
    DUPLICATE,
    ONE_CLUSTER,
    ONE_DOCUMENT,
    SET_ASIDE,
    TRAIN,
    VALIDATION,
    Documents,
    DomainDocuments,
    split_documents,
)
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


def cut_documents(name, texts, limit, train=True, files=None):
    """A domain whose documents are cut into parts of ``limit`` characters."""
    rows = [(i, part) for i, text in enumerate(texts) for part in cut(text, limit)]
    return DomainDocuments(
        name,
        train,
        np.array([document_hash(part) for _, part in rows], dtype="S16"),
        np.array([len(part) for _, part in rows]),
        np.array([i for i, _ in rows]),
        np.array([document_hash(text) for text in texts], dtype="S16"),
        files,
    )


def sides(domain, fates):
    """For each document the set of fates of its parts, duplicates left out."""
    return [set(fates[domain.document == i]) - {DUPLICATE} for i in range(len(domain.document_hashes))]


long_texts = st.lists(st.text(alphabet="abcdefgh", min_size=1, max_size=60), min_size=1, max_size=20, unique=True)


@given(long_texts, long_texts, long_texts, st.floats(0.01, 0.49), st.randoms(use_true_random=False))
def test_no_document_and_no_cluster_is_on_both_sides(first, second, exam, share, rng):
    texts = {"first": [*first, "x" * 90, "y"], "second": [*second, "u", "v" * 70], "exam": exam}
    domains = [cut_documents(name, t, 10, train=name != "exam") for name, t in texts.items()]
    documents = Documents(domains)
    different = [text for t in texts.values() for text in t]
    near = np.array([rng.randrange(2 * len(different)) for _ in documents.different])
    try:
        splits = documents.split(near, share, 10**9)
    except UsageError:
        reject()  # a domain of which each document resembles an examined one
    side = {}
    for d, split in zip(domains, splits, strict=True):
        found = sides(d, split.fates)
        assert d.name != "exam" or all(fates <= {VALIDATION} for fates in found)
        assert not d.train or {TRAIN, VALIDATION} <= set(split.fates)
        if split.remark == ONE_DOCUMENT:
            continue
        assert all(len(fates) < 2 for fates in found)
        if not split.remark:
            start = sum(len(other.document_hashes) for other in domains[: domains.index(d)])
            for i, fates in enumerate(found):
                at = np.flatnonzero(documents.different == start + i)
                for fate in fates if len(at) else ():
                    side.setdefault(int(near[at[0]]), set()).add(int(fate))
    assert all(len(fates) == 1 for fates in side.values())


def test_the_order_of_the_documents_does_not_matter():
    texts = [
        "".join(c * 7 for c in word) for word in ("abcabc", "defdef", "ghi", "abcdef", "defabc", "ihg", "aaa", "cba")
    ]
    near = dict(zip(texts, (0, 1, 2, 3, 0, 4, 5, 1), strict=True))

    def split(order):
        domain = cut_documents("a", order, 10)
        documents = Documents([domain])
        fates = documents.split(np.array([near[order[i]] for i in documents.different]), 0.3, 60)[0].fates
        parts = [part for text in order for part in cut(text, 10)]
        return sorted(zip(parts, fates.tolist(), strict=True))

    assert split(texts) == split(texts[::-1]) == split(texts[3:] + texts[:3])


def test_near_duplicates_are_counted_by_domain():
    domains = [cut_documents(n, t, 50) for n, t in {"a": list("pqrstuvw"), "b": list("PQRS")}.items()]
    exam = cut_documents("exam", ["X"], 50, train=False)
    #                 p  q  r  s  t  u  v  w  P  Q  R  S  X
    near = np.array([0, 0, 2, 3, 4, 5, 6, 7, 0, 9, 3, 8, 9])
    a, b, examined = Documents([*domains, exam]).split(near, 0.2, 10**9)
    assert (a.near_duplicates, a.near_duplicates_in) == (3, {"b": 3})
    assert (b.near_duplicates, b.near_duplicates_in) == (3, {"a": 2, "exam": 1})
    assert (examined.near_duplicates, examined.near_duplicates_in) == (1, {"b": 1})
    assert b.fates[1] == VALIDATION  # what resembles a text that is only examined is not trained on


def test_moved_counts_what_its_own_hash_would_put_on_the_other_side():
    texts = [f"text {i}" for i in range(40)]
    natural = [document_hash(t)[:8] < (int(0.3 * 2**64)).to_bytes(8, "big") for t in texts]
    pair = [natural.index(True), natural.index(False)]
    near = np.arange(40)
    near[pair[1]] = pair[0]
    (split,) = Documents([cut_documents("a", texts, 50)]).split(near, 0.3, 10**9)
    assert (split.near_duplicates, split.near_duplicates_moved) == (2, 1)
    assert split.fates[pair[0]] == split.fates[pair[1]]


def test_a_domain_of_one_document_is_split_within_it_and_says_so():
    domain = cut_documents("a", ["".join(chr(0x4E00 + i) for i in range(400))], 10)
    (split,) = Documents([domain]).split(np.array([0]), 0.1, 10**9)
    assert split.remark == ONE_DOCUMENT
    assert split.fates.tolist() == [TRAIN] * 36 + [VALIDATION] * 4


def test_a_domain_of_one_cluster_is_split_by_document_and_says_so():
    domain = cut_documents("a", [f"document {i}" * 3 for i in range(9)], 10)
    (split,) = Documents([domain]).split(np.zeros(9, dtype=np.int64), 0.2, 10**9)
    assert split.remark == ONE_CLUSTER
    assert {TRAIN, VALIDATION} <= set(split.fates) and all(len(s) == 1 for s in sides(domain, split.fates))


def test_a_document_with_most_of_the_text_trains():
    for seed in range(30):
        small = [f"small {seed} {i}" for i in range(3)]
        big = cut_documents("a", [f"{seed} large " * 50, *small], 100)
        (split,) = Documents([big]).split(np.arange(4), 0.4, 10**9)
        assert sides(big, split.fates)[0] == {TRAIN}


def test_the_blocks_of_one_file_are_on_one_side():
    texts = [f"block {i}" for i in range(60)]
    files = np.repeat(np.arange(20), 3)
    (split,) = Documents([cut_documents("a", texts, 50, files=files)]).split(np.arange(60), 0.3, 10**9)
    by_file = split.fates.reshape(20, 3)
    assert (by_file == by_file[:, :1]).all() and {TRAIN, VALIDATION} <= set(split.fates)


def test_a_part_that_documents_share_is_kept_once():
    shared = "shared text " * 10
    domains = [cut_documents(n, [shared + f"end of {n}{i}" for i in range(8)], 60) for n in "ab"]
    splits = Documents(domains).split(np.arange(16), 0.3, 10**9)
    hashes = np.concatenate([d.hashes[s.fates != DUPLICATE] for d, s in zip(domains, splits, strict=True)])
    assert len(np.unique(hashes)) == len(hashes)


def test_a_domain_that_is_a_copy_of_an_examined_one_cannot_be_trained_on():
    domains = [cut_documents("a", ["one", "two"], 50), cut_documents("exam", ["one!", "two!"], 50, train=False)]
    with pytest.raises(UsageError, match="domain 'a': each of its documents resembles one"):
        Documents(domains).split(np.array([0, 1, 0, 1]), 0.1, 10**9)
