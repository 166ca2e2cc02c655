"""Items of an examination are found in training text, in any script, and foreign text is not taken for them."""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armillary.corpus import build_corpus, find_overlap, training_texts
from armillary.corpus.overlap import MIN_UNITS, RUN, TEMPLATE
from armillary.recipe import CorpusSpec, DomainSpec, TokenizerSpec

ENGLISH = [f"word{i}" for i in range(3000)]
CHINESE = [chr(0x4E00 + i) for i in range(3000)]
SCRIPTS = [(ENGLISH, " "), (CHINESE, "")]


def text(seed: int, alphabet: list[str], between: str, length: int) -> str:
    return between.join(random.Random(seed).choices(alphabet, k=length))


@given(st.sampled_from(SCRIPTS), st.integers(RUN + 1, 60), st.integers(0, 300), st.integers(0, 300))
def test_an_item_inside_a_document_is_found_whole_and_named(
    script: tuple[list[str], str], length: int, before: int, after: int
) -> None:
    alphabet, between = script
    item = text(1, alphabet, between, length)
    holder = "\n".join([text(2, alphabet, between, before), item, text(3, alphabet, between, after)])
    other = text(4, alphabet, between, 500)
    alone, held = find_overlap([text(5, alphabet, between, length), item], [("other", other), ("holder", holder)])
    assert held.exact == held.near == 1
    assert held.document == "holder"
    assert held.contaminated
    assert (alone.exact, alone.document, alone.contaminated) == (0, "", False)


@pytest.mark.parametrize(("alphabet", "between"), SCRIPTS, ids=["english", "chinese"])
def test_an_item_with_changed_words_is_near_where_no_run_is_left(alphabet: list[str], between: str) -> None:
    units = text(1, alphabet, between, 60).split(between) if between else list(text(1, alphabet, between, 60))
    changed = list(units)
    changed[9::10] = ["另" if alphabet is CHINESE else "another"] * len(changed[9::10])
    found = find_overlap([between.join(units)], [("paper", between.join(changed))])[0]
    assert found.exact == 0
    assert 0.5 < (found.near or 0) < 1
    assert found.contaminated
    assert found.document == "paper"


def test_shingles_scattered_over_a_long_document_are_no_passage() -> None:
    words = text(1, ENGLISH, " ", 60).split()
    scattered = " ".join(" ".join([*words[i : i + 3], text(100 + i, ENGLISH, " ", 200)]) for i in range(58))
    found = find_overlap([" ".join(words)], [("long", scattered)])[0]
    assert (found.near or 0) < 0.1
    assert found.contaminated is False


@pytest.mark.parametrize("item", ["", "?!", "1 + 1 = ?", " ".join(ENGLISH[: MIN_UNITS - 1]), "中国的首都是"])
def test_a_short_item_is_not_judged(item: str) -> None:
    found = find_overlap([item], [("a", "1 + 1 = 2 " + item * 3)])[0]
    assert (found.exact, found.near, found.contaminated) == (None, None, None)


def test_punctuation_case_spacing_and_normal_form_do_not_matter() -> None:
    items = ["Où est né l'écrivain qui a écrit les Misérables et Notre-Dame de Paris, et en quelle année ?"]
    items += ["下列哪一项不属于中国古代四大发明之列，请选择并说明你的理由？"]
    versions = [unicodedata.normalize("NFD", items[0]).upper().replace(" ", "  ").replace(",", ""), items[1][:-1]]
    versions[1] = versions[1].replace("，", "\n")
    for found in find_overlap(items, enumerate_names(versions)):
        assert found.exact == 1


def enumerate_names(texts: list[str]) -> list[tuple[str, str]]:
    return [(f"document {i}", text) for i, text in enumerate(texts)]


@given(st.integers(0, 99), st.integers(1, 5))
def test_the_order_of_documents_and_how_they_are_read_do_not_matter(seed: int, parts: int) -> None:
    rng = random.Random(seed)
    items = [text(i, ENGLISH, " ", 30) for i in range(12)]
    documents = enumerate_names([items[i] + " " + text(50 + i, ENGLISH, " ", 40) for i in range(0, 12, parts)])
    expected = find_overlap(items, documents)
    rng.shuffle(documents)
    assert find_overlap(items, documents) == expected
    order = list(range(12))
    rng.shuffle(order)
    assert find_overlap([items[i] for i in order], documents) == [expected[i] for i in order]


def test_the_words_of_a_template_do_not_make_items_near() -> None:
    template = "Answer the following question of the examination with one of the letters A, B, C or D only"
    items = [f"{template}: {text(i, ENGLISH, ' ', 12)}" for i in range(TEMPLATE + 1)]
    # a document with the template's words in pieces of less than a run
    words = template.split()
    document = " and so on ".join(" ".join(words[i : i + 9]) for i in (0, 6, 9))
    assert not any(found.contaminated for found in find_overlap(items, [("form", document)]))


def test_the_text_of_a_corpus_is_what_its_tokens_say(tmp_path: Path) -> None:
    lines = [f"{text(i, ENGLISH[:50], ' ', 40)}." for i in range(300)]
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
    spec = CorpusSpec(
        domains={"a": DomainSpec(source=str(source), licence="CC0-1.0")},
        tokenizer=TokenizerSpec(vocab_size=400),
        validation_share=0.2,
    )
    corpus = build_corpus(spec, tmp_path / "corpus")
    documents = list(training_texts(corpus))
    joined = "\n".join(text for _, text in documents)
    trained = [line in joined for line in lines]
    assert 0 < np.mean(trained) < 1
    for found, inside in zip(find_overlap(lines, documents), trained, strict=True):
        assert (found.exact == 1) == inside
