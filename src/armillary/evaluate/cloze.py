"""A cloze test for small models: which of two continuations belongs to the beginning of a held-out text.

Each item is cut from a validation document: its beginning, what follows it, and, as the wrong choice, what follows at
the same place in another document of the domain. A model chooses the continuation to which it gives the higher log
probability per byte of UTF-8. Guessing is right half of the time, so a model of a million parameters, which is at
chance in every public examination, shows here what it has learned, in each language of its corpus.

The items are text, not tokens, so that models with other tokenizers can answer them too. They depend on the corpus and
the context length alone.

Trade-off: the wrong continuation is of the same domain and not written to mislead. The test separates small models; a
large one is right nearly always.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from armillary.corpus import Corpus, held_out_texts
from armillary.evaluate.intervals import mean_interval
from armillary.evaluate.results import Examination, Item, Result, item_id, named_model
from armillary.generate import Backend, Pair
from armillary.recipe import canonical_hash

TASK = "cloze"
METRIC = "acc"
# Shares of the context that a beginning and what follows it take, and the longest context that is made use of: with a
# longer beginning the choice becomes too easy to tell models apart.
BEFORE, AFTER, LONGEST = 0.5, 0.17, 128
_SPACE = re.compile(r"\s")
_UNSPACED = re.compile(r"[฀-࿿က-႟ក-៿⺀-鿿ꀀ-꓏가-힯豈-﫿]")


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
    """At most ``per_domain`` items from the held-out text of each domain; none of a domain with under two passages.

    An item takes about two thirds of ``context_length`` tokens. Long documents give several items, which do not
    overlap. The items of a domain are spread evenly over its text.
    """
    items = []
    tokenizer, longest = corpus.tokenizer(), min(context_length, LONGEST)
    for domain in corpus.domains:
        texts = list(held_out_texts(corpus, domain))
        share = longest / max(len(corpus.validation_tokens(domain)), 1)
        chars = sum(len(text) for _, text in texts) * share  # as many as the context holds
        lengths = max(int(BEFORE * chars), 1), max(int(AFTER * chars), 1)
        passages = [(name, *passage) for name, text in texts for passage in _passages(text, *lengths)]
        step = max(len(passages) / per_domain, 1)
        chosen = [passages[int(i * step)] for i in range(min(per_domain, len(passages)))]
        if len(chosen) < 2:
            continue
        for i, (name, beginning, following) in enumerate(chosen):
            # half of the list away: in most domains another document
            _, _, other = chosen[(i + len(chosen) // 2) % len(chosen)]
            if other == following:
                continue
            right = int(item_id(TASK, domain, beginning)[0], 16) % 2
            choices = (following, other) if right == 0 else (other, following)
            # words of many tokens make some passages longer than most
            if any(len(tokenizer.encode(beginning + choice).ids) > longest for choice in choices):
                continue
            items.append(ClozeItem(domain, name, beginning, choices, right))
    return items


def examine_cloze(backend: Backend, items: Sequence[ClozeItem]) -> Examination:
    """The answers of a model and its share of right ones, for each domain and in total (``acc``, chance 0.5)."""
    pairs = [Pair(item.beginning, choice) for item in items for choice in item.choices]
    found = backend.loglikelihood(pairs)
    settings = canonical_hash({"task": TASK, "format": 1, "score": "log probability per byte"})[:32]
    rows = []
    for i, item in enumerate(items):
        values = [found[2 * i + k].value / len(choice.encode()) for k, choice in enumerate(item.choices)]
        answer = int(values[1] > values[0])
        rows.append(
            Item(
                id=item.id,
                subset=item.domain,
                cluster=item.document,
                settings=settings,
                gold=item.right,
                outputs=tuple(repr(found[2 * i + k].value) for k in range(2)),
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
        backend={"harness": f"{TASK} 1"},
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


def _passages(text: str, before: int, after: int) -> list[tuple[str, str]]:
    """Beginnings of ``before`` characters and ``after`` that follow, one after the other; words are left whole."""
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
    """The first place from ``place`` on where a word ends; None beyond the text."""
    if place > len(text):
        return None
    if not spaced or place == len(text):
        return place
    space = _SPACE.search(text, place)
    return len(text) if space is None else space.start()
