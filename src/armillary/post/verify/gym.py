"""``gym``: tasks of reasoning-gym by their own scorers.

Parameters: ``dataset`` (its name in reasoning-gym), ``entry`` (question, answer and metadata from reasoning-gym). An
answer is right if it gets the full score of 1. Some scorers of reasoning-gym 0.1.25 also give it to other answers; for
these data sets there is one more condition (``_STRICTER``).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from armillary.post.verify.reading import announced_rest, final_answer, gives_two
from armillary.post.verify.registry import Task, Verdict, register_verifier
from armillary.recipe import UsageError


def _same_numbers(phrase: str, answer: str) -> bool:
    return sorted(re.findall(r"\d+", phrase)) == sorted(re.findall(r"\d+", answer))


def _same_probability(phrase: str, answer: str) -> bool:
    return abs(Fraction(phrase.replace(",", "")) - Fraction(answer.replace(",", ""))) <= Fraction(1, 10_000)


# Conditions on an answer and the known one. The scorers compare truth values of texts, count numbers without comparing
# them, and accept a number that begins with the known one.
_STRICTER: dict[str, Callable[[str, str], bool]] = {
    "game_of_life_halting": lambda phrase, answer: phrase.lower() == answer.lower(),
    "puzzle24": _same_numbers,
    "coin_flip": _same_probability,
}


@register_verifier("gym", ("dataset", "entry"))
def verify_gym(task: Task, reply: str) -> Verdict:
    """Score the final answer; a reply without an announced answer, such as a grid or program, is scored as a whole."""
    name, entry = task.text("dataset"), task.check.get("entry")
    score = _scorer(name)
    if not isinstance(entry, dict) or not {"question", "answer", "metadata"} <= entry.keys():
        raise UsageError(f"check.entry: must be an entry of reasoning-gym (question, answer, metadata), {entry!r:.200}")
    known, final, rest = str(entry["answer"]), final_answer(reply), announced_rest(reply)
    if (final is None and rest is not None) or (gives_two(final or "") and not gives_two(known)):
        return Verdict("unreadable", final)
    # an answer may have several lines, or end with a mark that ends a sentence
    whole = (reply.strip(),) if rest is None else (rest.removesuffix(".").rstrip("*"), rest)
    phrases = [phrase for phrase in dict.fromkeys((final, *whole)) if phrase]
    # some scorers compare with tuples, which JSON turns into lists
    entries = (entry, {**entry, "metadata": _tuples(entry["metadata"])})
    for phrase in phrases:
        try:
            if any(score(phrase, one) >= 1.0 for one in entries) and (
                name not in _STRICTER or _STRICTER[name](phrase, known)
            ):
                return Verdict("right", phrase)
        except Exception as error:  # a scorer may fail on any text that is not a right answer
            return Verdict("unreadable", phrase, f"{type(error).__name__}: {error}"[:200])
    return Verdict("wrong" if final is not None else "unreadable", phrases[0])


def _tuples(value: Any) -> Any:
    """``value`` with a tuple in place of each list."""
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@functools.cache
def _scorer(dataset: str) -> Any:
    try:
        import reasoning_gym
    except ImportError:
        raise UsageError(
            "reasoning-gym is not installed: pip install 'armillary[teach]', or pip install reasoning-gym"
        ) from None
    try:
        return reasoning_gym.get_score_answer_fn(dataset)
    except (KeyError, ValueError):
        raise UsageError(f"check.dataset: reasoning-gym has no data set {dataset!r}") from None
