"""Cloze items: cut from held-out text alone, and right where a model knows what follows."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armillary.corpus import Corpus, build_corpus, held_out_texts, training_texts
from armillary.evaluate.cloze import _UNIT, METRIC, PARTS, TASK, _passages, _reordered, cloze_items, examine_cloze
from armillary.generate import Cost, Likelihood, Pair
from armillary.recipe import CorpusSpec, DomainSpec, TokenizerSpec

WORDS = [f"word{i}" for i in range(400)]
CONTEXT = 64
HAN = [chr(0x4E00 + i) for i in range(400)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """200 documents of two scripts each, and a domain whose held-out documents are too short for an item."""
    folder = tmp_path_factory.mktemp("cloze")
    rng = random.Random(0)
    texts = {
        "spaced": [" ".join(rng.choices(WORDS, k=90)) for _ in range(200)],
        "unspaced": ["".join(rng.choices(HAN, k=200)) for _ in range(200)],
        "short": [" ".join(rng.choices(WORDS, k=8)) for _ in range(200)],
    }
    for name, documents in texts.items():
        lines = [json.dumps({"text": text}) + "\n" for text in documents]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    spec = CorpusSpec(
        domains={name: DomainSpec(source=str(folder / f"{name}.jsonl"), licence="CC0-1.0") for name in texts},
        tokenizer=TokenizerSpec(vocab_size=1500),
        validation_share=0.2,
    )
    return build_corpus(spec, folder / "corpus")


class _Table:
    """A backend that gives each pair of ``values`` that likelihood, and -9 to any other."""

    identity: dict[str, Any] = {"backend": "table", "model": "/srv/table"}  # noqa: RUF012
    cost = Cost(prompt_tokens=7)

    def __init__(self, values: dict[Pair, float]) -> None:
        self.values = values

    def loglikelihood(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        return [Likelihood(self.values.get(pair, -9.0), 1, False) for pair in pairs]


def test_items_are_held_out_text_and_no_training_text(corpus: Corpus) -> None:
    items = cloze_items(corpus, 10, CONTEXT)
    assert {item.domain for item in items} == {"spaced", "unspaced"}
    assert len(items) == len({item.id for item in items}) == 20
    trained = "\n".join(text for _, text in training_texts(corpus))
    for item in items:
        held_out = dict(held_out_texts(corpus, item.domain))
        assert item.beginning + item.choices[item.right] in held_out[item.document]
        assert item.beginning + item.choices[1 - item.right] not in held_out[item.document]
        assert sorted(item.choices[0]) == sorted(item.choices[1])
        assert item.beginning not in trained
    assert 4 <= sum(item.right for item in items) <= 16


def test_the_right_choice_scores_one_the_wrong_one_zero_and_a_tie_a_half(corpus: Corpus) -> None:
    items = cloze_items(corpus, 10, CONTEXT)
    right = {Pair(item.beginning, item.choices[item.right]): -1.0 for item in items}
    wrong = {Pair(item.beginning, item.choices[1 - item.right]): -1.0 for item in items}
    for table, value in ((right, 1.0), (wrong, 0.0), ({}, 0.5)):
        examination = examine_cloze(cast(Any, _Table(table)), items)
        total = examination.results[0]
        assert (total.task, total.subset, total.metric, total.n) == (TASK, TASK, METRIC, 20)
        assert math.isclose(total.value, value)
        assert examination.model == {"backend": "table", "model": "table"}
        assert examination.backend["engine"] == "table" and examination.cost["prompt_tokens"] == 7
        assert total.low <= value <= total.high
        assert [result.subset for result in examination.results[1:]] == ["spaced", "unspaced"]
        assert sum(result.n for result in examination.results[1:]) == 20


def test_without_held_out_text_there_is_no_score() -> None:
    assert examine_cloze(cast(Any, _Table({})), []).results == ()


@pytest.mark.parametrize("context", [16, 64, 128, 2048])
def test_an_item_fits_into_the_context(corpus: Corpus, context: int) -> None:
    tokenizer = corpus.tokenizer()
    items = cloze_items(corpus, 10, context)
    assert items
    for item in items:
        for choice in item.choices:
            assert len(tokenizer.encode(item.beginning + choice).ids) <= min(context, 128)


@given(st.text(st.sampled_from("ab  \n中文，"), max_size=600), st.integers(1, 30), st.integers(1, 12))
def test_passages_follow_each_other_and_never_overlap(text: str, before: int, after: int) -> None:
    place = 0
    for beginning, following in _passages(text, before, after):
        at = text.find(beginning + following, place)
        assert at >= place
        place = at + len(beginning) + len(following)
        assert len(beginning) >= before
        assert following.strip()


@given(st.text(st.sampled_from("ab  \n中文，(x"), max_size=60), st.integers(0, 2**64 - 1))
def test_the_wrong_choice_has_the_same_words_in_another_order(text: str, draw: int) -> None:
    units = _UNIT.findall(text)
    assert "".join(units) == text
    wrong = _reordered(text, draw)
    if wrong is None:
        assert len(set(units)) < 2 or len(set(text)) < 2
    else:
        assert wrong != text and sorted(wrong) == sorted(text)


def test_every_order_of_the_parts_is_drawn() -> None:
    text = " one two three four five six seven eight"
    drawn = {_reordered(text, draw) for draw in range(200)}
    assert len(drawn) == math.factorial(PARTS) - 1
    assert all(" one two" in str(wrong) and " seven eight" in str(wrong) for wrong in drawn)


def test_a_passage_that_documents_share_is_one_item(tmp_path: Path) -> None:
    shared = " ".join(random.Random(3).choices(WORDS, k=80))
    lines = [json.dumps({"text": f"{shared} {number}"}) + "\n" for number in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(lines), encoding="utf-8")
    domain = DomainSpec(source=str(tmp_path / "a.jsonl"), licence="CC0-1.0")
    spec = CorpusSpec(domains={"a": domain}, tokenizer=TokenizerSpec(vocab_size=400), validation_share=0.3)
    items = cloze_items(build_corpus(spec, tmp_path / "corpus"), 10, 32)
    assert len({item.id for item in items}) == len(items) > 0
