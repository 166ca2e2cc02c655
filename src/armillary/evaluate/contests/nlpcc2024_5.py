"""NLPCC 2024 shared task 5: the argumentative role of each sentence in Chinese essays, coarse and fine.

The score is the mean of the coarse and the fine micro-F1 over sentences. There are 4 coarse and 10 fine classes, as in
the CEAMC corpus (Ren et al. 2024). The contest's essays are private, so the format is our own: one essay per line with
``id``, ``title`` and ``sentences``, and each sentence has ``text``, ``coarse`` and ``fine``. The essays in this folder
were written for Armillary. A sentence without a prediction counts as wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from armillary.evaluate.contests.contest import ALL, Answer, Ballot, Contest, Item, Numbers, plurality, ratio
from armillary.evaluate.contests.rows import Row

# The coarse class of each fine class.
CLASSES = {
    "major claim": "assertion",
    "claim": "assertion",
    "restated claim": "assertion",
    "fact": "evidence",
    "anecdote": "evidence",
    "quotation": "evidence",
    "proverb": "evidence",
    "axiom": "evidence",
    "elaboration": "elaboration",
    "others": "others",
}
COARSE: tuple[str, ...] = tuple(dict.fromkeys(CLASSES.values()))
# The spellings that models use.
_CHINESE = {
    "assertion": "主张",
    "evidence": "论据",
    "elaboration": "阐述",
    "others": "其他",
    "major claim": "中心论点",
    "claim": "分论点",
    "restated claim": "重申论点",
    "fact": "事实",
    "anecdote": "事例",
    "quotation": "引用",
    "proverb": "谚语",
    "axiom": "公理",
}


class Nlpcc2024Task5(Contest):
    """Argument mining in Chinese essays."""

    name = "nlpcc2024-5"
    title = "NLPCC 2024 Task 5"
    example_line = '{"id": "essay-1", "sentences": [{"coarse": "evidence", "fine": "quotation"}, …]}'
    main_metric = "score"
    answer_tokens = 12
    own_data = Path(__file__).parent / "essays"

    def read_items(self, row: Row) -> Iterable[Item]:
        """One essay per line, an item per sentence."""
        essay, title = row.text("id"), row.text("title")
        sentences = row.objects("sentences")
        texts = [sentence.text("text") for sentence in sentences]
        for place, sentence in enumerate(sentences):
            coarse, fine = sentence.one_of("coarse", COARSE), sentence.one_of("fine", CLASSES)
            if CLASSES[fine] != coarse:
                raise sentence.wrong("coarse", f"must be {CLASSES[fine]}, the coarse class of {fine}; given {coarse}")
            around = (("上文", place - 1), ("句子", place), ("下文", place + 1))
            shown = [f"{label}：{texts[i]}" for label, i in around if 0 <= i < len(texts)]
            question = "\n".join([f"作文题目：{title}", *shown])
            yield Item(f"{essay}:{place}", "", essay, texts[place], question, (coarse, fine))

    def read_predictions(self, row: Row) -> Iterable[tuple[str, Answer]]:
        """One essay per line: id, then coarse and fine for each sentence in order; null marks an unanswered one."""
        essay, sentences = row.text("id"), row.objects("sentences")
        if not sentences:
            raise row.wrong("sentences", "has no sentence")
        for place, sentence in enumerate(sentences):
            if sentence.data.get("coarse", 0) is None and sentence.data.get("fine", 0) is None:
                continue
            coarse = sentence.one_of("coarse", COARSE)
            yield f"{essay}:{place}", (coarse, sentence.one_of("fine", CLASSES))

    def prediction_rows(self, items: Sequence[Item], answers: Mapping[str, Answer | None]) -> list[dict[str, Any]]:
        """One essay per line, with sentences up to the last one examined; null where there is no answer."""
        essays: dict[str, list[dict[str, Any]]] = {}
        for item in items:
            essay, _, place = item.id.rpartition(":")
            sentences = essays.setdefault(essay, [])
            while len(sentences) <= int(place):
                sentences.append({"coarse": None, "fine": None})
            answer = answers.get(item.id)
            if answer is not None:
                sentences[int(place)] = {"coarse": answer[0], "fine": answer[1]}
        return [{"id": essay, "sentences": sentences} for essay, sentences in essays.items()]

    def tally(self, item: Item, answer: Answer | None) -> Sequence[float]:
        """Correct coarse and fine classes, predicted and true sentences."""
        coarse, fine = answer or (None, None)
        return [float(coarse == item.gold[0]), float(fine == item.gold[1]), 1.0, 1.0]

    def scores(self, sums: Numbers) -> dict[tuple[str, str], Numbers]:
        """The composite, and the micro-F1 of both levels."""
        coarse, fine = (ratio(2 * sums[..., i], sums[..., 2] + sums[..., 3]) for i in (0, 1))
        return {("score", ALL): (coarse + fine) / 2, ("coarse_f1", ALL): coarse, ("fine_f1", ALL): fine}

    def value(self, item: Item, answer: Answer | None) -> float:
        """Half a point for each correct level."""
        return float(self.scores(np.array(self.tally(item, answer)))["score", ALL])

    def combine(self, ballots: Sequence[Ballot], share: float) -> Answer | None:
        """The fine class with the most weight and its coarse class; ``share`` is not used."""
        return plurality(ballots)

    def instruction(self, within: tuple[str, ...] | None) -> str:
        """The task and the classes."""
        names = [_CHINESE[fine] for fine, coarse in CLASSES.items() if within is None or coarse in within]
        return f"判断议论文中“句子”一行的论证成分。只写类别。类别只能是：{'、'.join(names)}。"

    def coarse_instruction(self) -> str:
        """The 4 coarse classes."""
        return (
            "判断议论文中“句子”一行的论证成分。只写类别。"
            f"类别只能是：{'、'.join(_CHINESE[coarse] for coarse in COARSE)}。"
        )

    def coarse_of(self, answer: Answer) -> tuple[str, ...]:
        """The coarse class."""
        return (answer[0],)

    def written(self, answer: Answer, within: tuple[str, ...] | None) -> str | None:
        """The fine class in Chinese."""
        return _CHINESE[answer[1]] if within is None or answer[0] in within else None

    def coarse_written(self, coarse: tuple[str, ...]) -> str:
        """The coarse class in Chinese."""
        return _CHINESE[coarse[0]]

    def read(self, text: str, item: Item, within: tuple[str, ...] | None) -> Answer | None:
        """The class that is named first."""
        fine = _first([fine for fine, coarse in CLASSES.items() if within is None or coarse in within], text)
        return None if fine is None else (CLASSES[fine], fine)

    def read_coarse(self, text: str) -> tuple[str, ...] | None:
        """The class that is named first."""
        coarse = _first(COARSE, text)
        return None if coarse is None else (coarse,)


def _first(names: Iterable[str], text: str) -> str | None:
    """The name that occurs first in ``text``, in Chinese or English; of two at the same position, the longer one."""
    words = {form: name for name in names for form in (name, _CHINESE[name])}
    pattern = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    found = re.search(pattern, text, re.IGNORECASE)
    return words[found.group().lower()] if found else None
