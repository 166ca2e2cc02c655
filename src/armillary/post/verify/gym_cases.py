"""Labelled replies for the scorers of reasoning-gym (``gym``), from questions of all of its data sets.

Right replies give the known answer alone, announced, boxed or bold. Wrong ones give the answer of another question of
the data set, the answer with one more element or another number, or none. Data sets that build no question, or whose
answers are not text, are left out (``gym_item``).
"""

from __future__ import annotations

import importlib.util
import random
import re
from collections.abc import Iterator

from armillary.post.gym import data_sets, gym_item
from armillary.post.items import Item
from armillary.post.verify.cases import Case
from armillary.post.verify.registry import Task

_FRAMES = {
    "announced": "The answer is {}.",
    "after a colon": "Answer: {}",
    "boxed": r"\boxed{{{}}}",
    "marked": "#### {}",
}
_DIGITS = re.compile(r"\d+")


def gym_installed() -> bool:
    """Whether reasoning-gym is installed."""
    return importlib.util.find_spec("reasoning_gym") is not None


def gym_cases(n: int, seed: int = 0, names: tuple[str, ...] | None = None) -> Iterator[Case]:
    """Yield the cases of ``n`` questions of each data set in ``names`` (by default all)."""
    for name in data_sets() if names is None else names:
        items = [item for number in range(2 * n) if (item := gym_item(name, 1000 * seed + number)) is not None]
        for item, other in zip(items[::2], items[1::2], strict=False):
            yield from _cases(name, item, other, random.Random(f"gym {seed} {name} {item.id}"))


def _cases(name: str, item: Item, other: Item, rng: random.Random) -> Iterator[Case]:
    task, answer = Task(item.check or {}, item.answer, item.language), item.answer or ""
    right, wrong = {"plain": answer}, {"no answer": "I cannot solve this one."}
    if "\n" in answer:
        right["behind text"] = f"Here is the solution.\nThe answer is:\n{answer}"
    else:
        right |= {mutation: frame.format(answer) for mutation, frame in _FRAMES.items()}
        right["bold"] = f"The answer is **{answer}**."
        wrong["negated"] = f"The answer is not {answer}."
        wrong["taken back"] = f"The answer is {answer}. Wait, that is wrong. I do not know."
    if other.answer and _plain(other.answer) != _plain(answer):
        wrong["other question"] = other.reply or ""
        if "\n" not in answer + other.answer:
            wrong["one of two"] = f"The answer is {answer} or {other.answer}."
    numbers = list(_DIGITS.finditer(answer))
    if numbers and "\n" not in answer:
        one = rng.choice(numbers)
        changed = f"{answer[: one.start()]}{int(one.group()) + 1}{answer[one.end() :]}"
        # one element of a long answer may be free, but the only number of a short one is not
        if len(numbers) == 1 and len(answer) < 20:
            wrong["number"] = f"The answer is {changed}."
            wrong["longer number"] = f"The answer is {answer[: one.end()]}7{answer[one.end() :]}."
    for label, replies in ((True, right), (False, wrong)):
        for mutation, reply in replies.items():
            yield Case("gym", f"{name}: {mutation}", label, task, reply)


def _plain(answer: str) -> str:
    return "".join(answer.lower().split())
