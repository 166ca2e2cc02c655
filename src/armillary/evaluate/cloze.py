"""A cloze test for small models: which of two continuations follows the beginning of a held-out text?

Each item is cut from a validation document: a beginning and two continuations. One is the real continuation, the other
is the same text with its parts in another order. Both have the same characters, so length and vocabulary give no hint.
A model chooses the continuation with the higher log probability; chance is one half. A model of a million parameters
is at chance in every public examination, but above it here, in each language of its corpus.

The items are text, not tokens, so models with other tokenizers can answer them too. They depend only on the corpus and
the context length.

Trade-off: models learn word order early, so a large model is nearly always right. Text from another document would be
a harder wrong choice, but small models are at chance there: the probability of a text depends far more on its own words
than on its context.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from armillary.corpus import Corpus, held_out_texts
from armillary.evaluate.intervals import mean_interval
from armillary.evaluate.results import Examination, Item, Result, engine_of, item_id, named_model
from armillary.generate import Backend, Pair
from armillary.recipe import canonical_hash

TASK = "cloze"
METRIC = "acc"
FORMAT = 2  # 2 reorders the right continuation; 1 took the wrong one from another document
# Shares of the context for a beginning and its continuation, and the longest context used: a longer beginning makes the
# choice too easy to separate models.
BEFORE, AFTER, LONGEST = 0.5, 0.17, 128
# Parts that change places. With single words shuffled, even small models are nearly always right.
PARTS = 4
_SPACE = re.compile(r"\s")
_UNSPACED_RANGES = "฀-࿿က-႟ក-៿⺀-鿿ꀀ-꓏가-힯豈-﫿"
_UNSPACED = re.compile(f"[{_UNSPACED_RANGES}]")
# A word with the space before it, or one character of a script without spaces.
_UNIT = re.compile(rf"\s*(?:[{_UNSPACED_RANGES}]|[^\s{_UNSPACED_RANGES}]+)|\s+")


@dataclass(frozen=True)
class ClozeItem:
    """A ``beginning`` of a document of ``domain``, and two ``choices``; the one at ``right`` (0 or 1) follows it."""

    domain: str
    document: str
    beginning: str
    choices: tuple[str, str]
    right: int

    @property
    def id(self) -> str:
        """Hash of the item's text."""
        return item_id(TASK, self.domain, [self.beginning, *self.choices])


def cloze_items(corpus: Corpus, per_domain: int, context_length: int) -> list[ClozeItem]:
    """At most ``per_domain`` items from the held-out text of each domain; none from a domain whose texts are too short.

    An item takes about two thirds of ``context_length`` tokens. Long documents yield several items without overlap.
    The items of a domain are spread evenly over its text. A passage that several documents share is one item.
    """
    items: dict[str, ClozeItem] = {}
    tokenizer, longest = corpus.tokenizer(), min(context_length, LONGEST)
    for domain in corpus.domains:
        texts = list(held_out_texts(corpus, domain))
        share = longest / max(len(corpus.validation_tokens(domain)), 1)
        chars = sum(len(text) for _, text in texts) * share  # as many as fit into the context
        lengths = max(int(BEFORE * chars), 1), max(int(AFTER * chars), 1)
        passages = [(name, *passage) for name, text in texts for passage in _passages(text, *lengths)]
        step = max(len(passages) / per_domain, 1)
        for name, beginning, following in (passages[int(i * step)] for i in range(min(per_domain, len(passages)))):
            draw = int(item_id(TASK, domain, [beginning, following]), 16)
            wrong = _reordered(following, draw)
            if wrong is None:
                continue
            right = draw % 2
            choices = (following, wrong) if right == 0 else (wrong, following)
            # passages whose words need many tokens may not fit
            if any(len(tokenizer.encode(beginning + choice).ids) > longest for choice in choices):
                continue
            item = ClozeItem(domain, name, beginning, choices, right)
            items.setdefault(item.id, item)
    return list(items.values())


def examine_cloze(backend: Backend, items: Sequence[ClozeItem]) -> Examination:
    """The answers of a model and its accuracy, for each domain and in total (``acc``, chance 0.5)."""
    pairs = [Pair(item.beginning, choice) for item in items for choice in item.choices]
    found = backend.loglikelihood(pairs)
    settings = canonical_hash({"task": TASK, "format": FORMAT, "score": "log probability"})[:32]
    rows = []
    for i, item in enumerate(items):
        values = [found[2 * i + k].value for k in range(2)]
        answer = int(values[1] > values[0])
        rows.append(
            Item(
                id=item.id,
                subset=item.domain,
                cluster=item.document,
                settings=settings,
                gold=item.right,
                outputs=tuple(map(repr, values)),
                answer=answer,
                second_answer=None,
                scores={METRIC: 0.5 if values[0] == values[1] else float(answer == item.right)},
            )
        )
    subsets = [TASK, *dict.fromkeys(row.subset for row in rows)] if rows else []
    return Examination(
        tuple(_result(subset, [row for row in rows if subset in (TASK, row.subset)]) for subset in subsets),
        {TASK: tuple(rows)},
        model=named_model(backend.identity),
        backend=engine_of(backend.identity, f"{TASK} {FORMAT}"),
        cost=asdict(backend.cost),
    )


def _result(subset: str, rows: Sequence[Item]) -> Result:
    interval = mean_interval([row.scores[METRIC] for row in rows], [row.cluster for row in rows])
    return Result(
        task=TASK,
        subset=subset,
        metric=METRIC,
        value=interval.value,
        low=interval.low,
        high=interval.high,
        n=len(rows),
        truncated=0.0,
        extraction_disagreement=None,
        settings=rows[0].settings,
    )


def _reordered(text: str, draw: int) -> str | None:
    """``text`` with its parts in an order drawn from all that change the text; None if there is none."""
    units = _UNIT.findall(text)
    parts = min(PARTS, len(units))
    cuts = [len(units) * part // parts for part in range(parts + 1)] if parts else [0]
    pieces = ["".join(units[start:end]) for start, end in itertools.pairwise(cuts)]
    others = sorted({"".join(order) for order in itertools.permutations(pieces)} - {text})
    return others[draw // 2 % len(others)] if others else None


def _passages(text: str, before: int, after: int) -> list[tuple[str, str]]:
    """Consecutive pairs of a beginning (``before`` characters) and its continuation (``after``); words stay whole."""
    text = text.strip()
    spaced = len(_UNSPACED.findall(text)) < 0.3 * len(text)
    found, start = [], 0
    while (end := _word_end(text, start + before + after, spaced)) is not None:
        middle = _word_end(text, start + before, spaced)
        if middle is not None and text[start:middle].strip() and text[middle:end].strip():
            found.append((text[start:middle], text[middle:end]))
        start = end
    return found


def _word_end(text: str, place: int, spaced: bool) -> int | None:
    """The first position at or after ``place`` where a word ends; None beyond the text."""
    if place > len(text):
        return None
    if not spaced or place == len(text):
        return place
    space = _SPACE.search(text, place)
    return len(text) if space is None else space.start()
