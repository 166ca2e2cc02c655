"""SpaCE2024: choices about space in Chinese texts; accuracy, and accuracy per type of task.

A question has one or several correct options. An answer counts if it names exactly these options. The type of task is
the first part of ``qid``: 1 entities, 2 roles, 3 anomalies, 4 inference, 5 synonymy. Source: data and licence at
github.com/2030NLP/SpaCE2024.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from armillary.evaluate.contests.contest import (
    ALL,
    Answer,
    Ballot,
    Contest,
    Item,
    Numbers,
    cluster_of,
    plurality,
    ratio,
)
from armillary.evaluate.contests.rows import Row

TASKS = {"1": "entities", "2": "roles", "3": "anomalies", "4": "inference", "5": "synonymy"}
ONE, SEVERAL = "单选", "多选"
_LETTERS = re.compile(r"(?<![A-Za-z])[A-D](?:[ ,，、;；和与及]*[A-D])*(?![A-Za-z])")
_MARK = re.compile(r"(?:答案|[Aa]nswer)\s*(?:是|为|is)?\s*[:：]?\s*")


class Space2024(Contest):
    """Spatial semantics of Chinese."""

    name = "space2024"
    title = "SpaCE2024"
    example_line = '{"qid": "1-dev-s-1", "answer": ["D"]}'
    main_metric = "accuracy"
    answer_tokens = 16

    def read_items(self, row: Row) -> Iterable[Item]:
        """One question per line: qid, text, question, option, answer."""
        name, text, question = row.text("qid"), row.text("text"), row.text("question")
        task = TASKS.get(name.partition("-")[0])
        if task is None:
            raise row.wrong("qid", f"must begin with a task type from 1 to 5, such as 1-dev-s-1; given {name}")
        options = row.value("option")
        if not isinstance(options, dict) or sorted(options) != ["A", "B", "C", "D"]:
            raise row.wrong("option", "must be an object with the options A, B, C and D")
        listed = "\n".join(f"{letter}. {options[letter]}" for letter in "ABCD")
        asked = f"短文：{text}\n问题：{question}\n{listed}"
        gold = _letters(row)
        if not gold:
            raise row.wrong("answer", "has no option; items without an answer cannot be scored")
        yield Item(name, task, cluster_of(text), f"{question}\n{text}", asked, gold)

    def read_predictions(self, row: Row) -> Iterable[tuple[str, Answer]]:
        """One question per line: qid and answer, a list of options or a text such as "AC"."""
        yield row.text("qid"), _letters(row)

    def prediction_rows(self, items: Sequence[Item], answers: Mapping[str, Answer | None]) -> list[dict[str, Any]]:
        """One question per line."""
        return [{"qid": item.id, "answer": list(answers.get(item.id) or ())} for item in items]

    def tally(self, item: Item, answer: Answer | None) -> Sequence[float]:
        """Correct answers per type of task, then items per type of task."""
        mine = [float(task == item.subset) for task in TASKS.values()]
        right = self.value(item, answer)
        return [right * one for one in mine] + mine

    def scores(self, sums: Numbers) -> dict[tuple[str, str], Numbers]:
        """Accuracy over all items, and per type of task."""
        right, count = sums[..., :5], sums[..., 5:]
        found = {("accuracy", ALL): ratio(right.sum(-1), count.sum(-1))}
        for place, task in enumerate(TASKS.values()):
            found["accuracy", task] = ratio(right[..., place], count[..., place])
        return found

    def value(self, item: Item, answer: Answer | None) -> float:
        """1 where the sets are equal."""
        return float(answer is not None and set(answer) == set(item.gold))

    def combine(self, ballots: Sequence[Ballot], share: float) -> Answer | None:
        """The set with the most weight, as a whole; ``share`` is not used."""
        return plurality(ballots)

    def instruction(self, within: tuple[str, ...] | None) -> str:
        """The task, and whether one or several options are correct if that is known."""
        count = {ONE: "只有一个选项正确。", SEVERAL: "有两个或更多选项正确。"}.get(
            "".join(within or ()), "可能有一个或多个选项正确。"
        )
        return f"阅读短文，回答关于空间关系的选择题。{count}只写出正确选项的字母，格式为“答案：A”或“答案：AC”。"

    def coarse_instruction(self) -> str:
        """Whether one or several options are correct."""
        return (
            f"阅读短文和选择题，判断它是{ONE}（只有一个选项正确）还是{SEVERAL}（有多个选项正确）。"
            f"只写“{ONE}”或“{SEVERAL}”。"
        )

    def coarse_of(self, answer: Answer) -> tuple[str, ...]:
        """Whether the answer has one or several options."""
        return (ONE if len(answer) == 1 else SEVERAL,)

    def written(self, answer: Answer, within: tuple[str, ...] | None) -> str | None:
        """答案：AC."""
        return None if within and self.coarse_of(answer) != within else f"答案：{''.join(answer)}"

    def coarse_written(self, coarse: tuple[str, ...]) -> str:
        """单选 or 多选."""
        return coarse[0]

    def read(self, text: str, item: Item, within: tuple[str, ...] | None) -> Answer | None:
        """The letters after the last 答案 or "answer", else the first standalone letters."""
        marks = list(_MARK.finditer(text))
        found = next((m for mark in reversed(marks) if (m := _LETTERS.match(text, mark.end()))), None)
        found = found or _LETTERS.search(text)
        return tuple(sorted(set(re.findall("[A-D]", found.group())))) if found else None

    def read_coarse(self, text: str) -> tuple[str, ...] | None:
        """单选 or 多选, whichever comes first."""
        places = {word: text.find(word) for word in (ONE, SEVERAL) if word in text}
        return (min(places, key=places.__getitem__),) if places else None


def _letters(row: Row) -> Answer:
    """The set of options in the field ``answer``, sorted."""
    value = row.value("answer")
    letters = re.findall(r"[^\s,，、]", value) if isinstance(value, str) else value
    if not isinstance(letters, list) or not all(isinstance(letter, str) for letter in letters):
        raise row.wrong("answer", f'must be a list of options such as ["A", "C"], given {value!r}')
    for letter in letters:
        if letter not in ("A", "B", "C", "D"):
            raise row.wrong("answer", f"unknown option {letter!r}; the options are A, B, C and D")
    return tuple(sorted(set(letters)))
