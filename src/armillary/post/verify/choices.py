"""``choice``, ``text`` and ``list``: a choice among options, words, and a series of words or numbers.

- ``choice``: ``options`` (letter to text), if an answer may also be the text of an option;
- ``text``: ``accept`` (other spellings of the correct answer), ``among`` (all possible answers: the one named in the
  phrase counts, and a phrase that names two is unreadable);
- ``list``: ``ordered`` (default true), ``among``. The correct answer is the elements joined with ", "; an empty list is
  "none".
"""

from __future__ import annotations

import re

from armillary.post.verify.numbers import plain, read_quantity
from armillary.post.verify.reading import final_answer, gives_two
from armillary.post.verify.registry import Task, Verdict, register_verifier
from armillary.recipe import UsageError

_LETTER = re.compile(r"(?<![A-Za-z'])\(?([A-Z])\)?(?![A-Za-z'])")
_EMPTY = re.compile(
    r"^\W*(?:none|nothing|(?:the )?empty(?: set)?|no (?:one|elements?)|没有|无|空集|空)\W*$|∅|\\emptyset", re.IGNORECASE
)
_SEPARATORS = re.compile(r"\s*(?:,\s*and\b|,|;|；|>|<|→|->|\band\b|\bthen\b|和|与|\n)\s*", re.IGNORECASE)


@register_verifier("choice", ("options",))
def verify_choice(task: Task, reply: str) -> Verdict:
    """Judge a letter, or the text of an option."""
    options = task.check.get("options", {})
    if not isinstance(options, dict) or not all(isinstance(text, str) for text in options.values()):
        raise UsageError(f"check.options: must be an object of letters and texts, given {options!r:.200}")
    phrase = final_answer(reply)
    if phrase is None:
        return Verdict("unreadable", note="no final answer")
    text = re.sub(r"^\W*(?:option|choice|选项?|选择)\s*", "", plain(phrase), flags=re.IGNORECASE)
    letters = list(dict.fromkeys(_LETTER.findall(text)))
    # "A" in "A dog" is a word.
    if len(letters) > 1 and "A" in letters and re.search(r"\bA [a-z]", text):
        letters.remove("A")
    if len(letters) == 1 and not gives_two(phrase):
        found = letters[0]
    else:
        named = [letter for letter, option in options.items() if _folded(option) == _folded(text)]
        if letters or len(named) != 1:
            return Verdict("unreadable", phrase, "not one option")
        found = named[0]
    if options and found not in options:
        return Verdict("unreadable", phrase, f"no option {found}")
    return Verdict("right" if found == task.gold.strip("() ").upper() else "wrong", found)


@register_verifier("text", ("accept", "among"))
def verify_text(task: Task, reply: str) -> Verdict:
    """Judge words: equal after folding case, width, spaces and punctuation."""
    phrase = final_answer(reply)
    if phrase is None:
        return Verdict("unreadable", note="no final answer")
    right = {_folded(word) for word in (task.gold, *task.texts("accept"))}
    among = task.texts("among")
    if not among:
        # A remark in parentheses may follow.
        forms = {_folded(phrase), _folded(re.sub(r"(?<=\S)\s*[(（][^()（）]*[)）]\W*$", "", phrase))}
        return Verdict("right" if forms & right else "wrong", phrase)
    named = _named(phrase, (*among, task.gold, *task.texts("accept")))
    folded = {_folded(word) for word in named}
    if not folded or gives_two(phrase) or (len(folded) > 1 and not folded <= right):
        return Verdict("unreadable", phrase, "does not name one of the possible answers")
    return Verdict("right" if folded <= right else "wrong", ", ".join(named))


@register_verifier("list", ("ordered", "among"))
def verify_list(task: Task, reply: str) -> Verdict:
    """Judge a series of words or numbers, element by element."""
    phrase = final_answer(reply)
    if phrase is None:
        return Verdict("unreadable", note="no final answer")
    if gives_two(phrase):
        return Verdict("unreadable", phrase, "leaves a choice")
    among, ordered = task.texts("among"), task.check.get("ordered", True)
    gold, found = _elements(task.gold, among), _elements(phrase, among)
    if found is None or gold is None:
        return Verdict("unreadable", phrase, "no list of the possible elements")
    same = found == gold if ordered else sorted(found) == sorted(gold)
    return Verdict("right" if same else "wrong", ", ".join(found))


def names_no_element(phrase: str) -> bool:
    """Whether ``phrase`` says that a list is empty."""
    return bool(_EMPTY.search(phrase.strip()))


def _elements(phrase: str, among: tuple[str, ...]) -> list[str] | None:
    if names_no_element(phrase):
        return []
    if among:
        return [_folded(word) for word in _named(phrase, among)] or None
    text = re.sub(r"\\[{}]|[\[\]{}()\"'“”‘’]", "", plain(phrase)).strip()
    if "=" in text:
        text = text.rpartition("=")[2]
    # Words may precede the first element, as in "the order is: 3, 1, 2".
    text = text.rpartition(":")[2]
    found = []
    for part in _SEPARATORS.split(text):
        if not part.strip():
            continue
        number = read_quantity(part)
        found.append(_folded(part) if number is None else str(number.value))
    return found or None


def _named(phrase: str, words: tuple[str, ...]) -> list[str]:
    """The ``words`` that occur in ``phrase``, in the order of the phrase; a word inside a longer one does not count."""
    ordered = sorted(dict.fromkeys(words), key=len, reverse=True)
    pattern = "|".join(
        rf"(?<![A-Za-z]){re.escape(word)}(?![A-Za-z])" if word.isascii() else re.escape(word) for word in ordered
    )
    by_folded = {_folded(word): word for word in reversed(ordered)}
    return [by_folded[_folded(found)] for found in re.findall(pattern, plain(phrase), re.IGNORECASE)]


def _folded(text: str) -> str:
    text = re.sub(r"[^\w+\-.%]+", " ", plain(text).casefold()).strip(" .")
    return re.sub(r"^(?:the|a|an) ", "", text)
