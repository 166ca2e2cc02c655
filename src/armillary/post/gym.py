"""reasoning-gym as a source of questions: its data sets by name, in English, with its own scorers as checks."""

from __future__ import annotations

import functools
import json
import random
from typing import Any

from armillary.generate import Message
from armillary.post.items import Item
from armillary.recipe import UsageError

PREFIX = "gym:"


def gym_item(name: str, seed: int) -> Item | None:
    """A question of the data set ``name``, drawn by ``seed``; None if its answer cannot be stored as JSON.

    Raises:
        UsageError: reasoning-gym is not installed, or has no such data set.
    """
    entry = _generator(name)(seed)
    try:
        entry = json.loads(json.dumps(entry, allow_nan=False))
    except (TypeError, ValueError):
        return None
    question, answer = entry["question"], entry["answer"]
    if not isinstance(answer, str) or not answer.strip() or not question.strip():
        return None
    reply = answer if "\n" in answer else f"The answer is {answer}."
    messages = (Message("user", question), Message("assistant", reply))
    check = {"kind": "gym", "dataset": name, "entry": entry}
    return Item(messages, answer, check, "logic", f"{PREFIX}{name}", 0, "en")


def data_sets() -> tuple[str, ...]:
    """The names of all data sets that make questions without further settings.

    Raises:
        UsageError: reasoning-gym is not installed.
    """
    return tuple(sorted(_registered().keys() - {"composite"}))


def _registered() -> Any:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise UsageError(
            "reasoning-gym is not installed: pip install 'armillary[teach]', or pip install reasoning-gym"
        ) from None
    return DATASETS


@functools.cache
def _generator(name: str) -> Any:
    known = _registered()
    if name not in known:
        raise UsageError(f"reasoning-gym has no data set {name!r}; known are {', '.join(sorted(known))}")
    import reasoning_gym

    def draw(seed: int) -> Any:
        # Some data sets also draw from the global generator.
        state = random.getstate()
        try:
            random.seed(seed)
            return reasoning_gym.create_dataset(name, seed=seed, size=1)[0]
        finally:
            random.setstate(state)

    return draw
