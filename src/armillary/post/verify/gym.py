"""``gym``: tasks of reasoning-gym by their own scorers.

Parameters: ``dataset`` (its name in reasoning-gym), ``entry`` (question, answer and metadata from reasoning-gym). An
answer is right if it gets the full score of 1.
"""

from __future__ import annotations

import functools
from typing import Any

from armillary.post.verify.reading import final_answer
from armillary.post.verify.registry import Task, Verdict, register_verifier
from armillary.recipe import UsageError


@register_verifier("gym", ("dataset", "entry"))
def verify_gym(task: Task, reply: str) -> Verdict:
    """Score the final answer; a reply without an announced answer, such as a grid or program, is scored as a whole."""
    score, entry = _scorer(task.text("dataset")), task.check.get("entry")
    if not isinstance(entry, dict) or not {"question", "answer", "metadata"} <= entry.keys():
        raise UsageError(f"check.entry: must be an entry of reasoning-gym (question, answer, metadata), {entry!r:.200}")
    phrases = [phrase for phrase in dict.fromkeys((final_answer(reply), reply.strip())) if phrase]
    for phrase in phrases:
        try:
            if score(phrase, entry) >= 1.0:
                return Verdict("right", phrase)
        except Exception as error:  # a scorer may fail on any text that is not a right answer
            return Verdict("unreadable", phrase, f"{type(error).__name__}: {error}"[:200])
    return Verdict("wrong" if final_answer(reply) is not None else "unreadable", phrases[0])


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
