"""BLEU and ROUGE-L of short Chinese strings, where a character is a token.

BLEU is the sentence BLEU of Papineni et al. (2002), as sacrebleu's ``sentence_bleu`` computes it by default: n-grams up
to 4, only orders that fit the candidate's length (``effective_order``), exponential smoothing of orders without a
match (Chen and Cherry 2014, method 3), and the brevity penalty ``exp(1 - reference / candidate)``. Without a common
character it is 0. ROUGE-L is the F1 of the longest common subsequence (Lin 2004), as in the package ``rouge_score``.
"""

from __future__ import annotations

import math
from collections import Counter

_ORDERS = 4


def bleu(candidate: str, reference: str) -> float:
    """Sentence BLEU over characters, from 0 to 1. Two empty strings score 1."""
    if not candidate or not reference:
        return float(candidate == reference)
    precisions: list[float] = []
    smoothing = 1
    for order in range(1, min(_ORDERS, len(candidate)) + 1):
        there, wanted = _ngrams(candidate, order), _ngrams(reference, order)
        matched, total = (there & wanted).total(), there.total()
        if order == 1 and not matched:
            return 0.0
        if not matched:
            smoothing *= 2
        precisions.append((matched or 1 / smoothing) / total)
    brevity = min(0.0, 1 - len(reference) / len(candidate))
    return math.exp(brevity + sum(map(math.log, precisions)) / len(precisions))


def rouge_l(candidate: str, reference: str) -> float:
    """F1 of the longest common subsequence of characters, from 0 to 1. Two empty strings score 1."""
    if not candidate or not reference:
        return float(candidate == reference)
    row = [0] * (len(reference) + 1)
    for character in candidate:
        diagonal = 0
        for i, wanted in enumerate(reference, 1):
            diagonal, row[i] = row[i], diagonal + 1 if character == wanted else max(row[i], row[i - 1])
    return 2 * row[-1] / (len(candidate) + len(reference))


def _ngrams(text: str, order: int) -> Counter[str]:
    return Counter(text[i : i + order] for i in range(len(text) - order + 1))
