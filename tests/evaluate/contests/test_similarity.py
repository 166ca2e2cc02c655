"""BLEU and ROUGE-L against the packages whose definitions they follow."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.evaluate.contests.similarity import bleu, rouge_l

few = settings(max_examples=40)
words = st.text(alphabet="攻城伐楚遣使来", min_size=1, max_size=9)


@few
@given(words, words)
def test_bleu_is_sacrebleu_over_characters(candidate: str, reference: str) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    there = sacrebleu.sentence_bleu(" ".join(candidate), [" ".join(reference)], tokenize="none")
    assert bleu(candidate, reference) == pytest.approx(there.score / 100, abs=1e-12)


@few
@given(words, words)
def test_rouge_l_is_that_of_rouge_score(candidate: str, reference: str) -> None:
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")

    class Characters:
        def tokenize(self, text: str) -> list[str]:
            return list(text)

    there = rouge_scorer.RougeScorer(["rougeL"], tokenizer=Characters()).score(reference, candidate)
    assert rouge_l(candidate, reference) == pytest.approx(there["rougeL"].fmeasure, abs=1e-12)


@few
@given(words, words)
def test_bleu_is_that_of_nltk_where_all_orders_match(candidate: str, reference: str) -> None:
    nltk = pytest.importorskip("nltk.translate.bleu_score")
    order = min(4, len(candidate))
    counts = [nltk.modified_precision([list(reference)], list(candidate), n) for n in range(1, order + 1)]
    if all(count.numerator for count in counts):
        there = nltk.sentence_bleu([list(reference)], list(candidate), weights=[1 / order] * order)
        assert bleu(candidate, reference) == pytest.approx(there, abs=1e-12)


@pytest.mark.parametrize(
    ("candidate", "reference", "expected_bleu", "expected_rouge"),
    [("攻", "攻", 1.0, 1.0), ("攻", "伐", 0.0, 0.0), ("", "伐", 0.0, 0.0), ("伐", "", 0.0, 0.0), ("", "", 1.0, 1.0)],
)
def test_short_triggers(candidate: str, reference: str, expected_bleu: float, expected_rouge: float) -> None:
    assert (bleu(candidate, reference), rouge_l(candidate, reference)) == (expected_bleu, expected_rouge)
