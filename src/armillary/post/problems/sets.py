"""Sets: union, intersection and difference of two, and counts of a class by inclusion and exclusion."""

from __future__ import annotations

import random
import re

from armillary.post.problems.family import Family, Language, Problem, register_family
from armillary.post.problems.wording import fill, language_of

_OPERATIONS = {
    "en": {
        "union": "the union of A and B",
        "intersection": "the intersection of A and B",
        "difference": "the difference A minus B",
    },
    "zh": {"union": "A与B的并集", "intersection": "A与B的交集", "difference": "A与B的差集A-B"},
}
_LISTS = {
    "en": ("Let A = {{{a}}} and B = {{{b}}}. What is {what}?", "Given A = {{{a}}} and B = {{{b}}}, find {what}."),
    "zh": ("设A={{{a}}}，B={{{b}}}，求{what}。", "已知A={{{a}}}，B={{{b}}}。{what}是什么？"),
}
_CLASS = {
    "en": (
        "In a class of {n} students, {a} play football, {b} play chess, and {both} play both. "
        "How many students play {what}?",
    ),
    "zh": ("一个班有{n}名学生，{a}人会下棋，{b}人会游泳，{both}人两样都会。{what}的有多少人？",),
}
_ASKED = {
    "en": {"neither": "neither", "either": "at least one of the two", "first": "football only"},
    "zh": {"neither": "两样都不会", "either": "至少会一样", "first": "只会下棋"},
}


def make(rng: random.Random, level: int, language: Language) -> Problem:
    """Level 1 has sets of three to five numbers, 2 of up to eight, 3 counts a class."""
    if level == 3:
        only_a, only_b, both, none = (rng.randint(1, 15) for _ in range(4))
        n, a, b = only_a + only_b + both + none, only_a + both, only_b + both
        what = rng.choice(("neither", "either", "first"))
        either = only_a + only_b + both
        counted = {
            "neither": [f"{a} + {b} - {both} = {either}", f"{n} - {either} = {none}"],
            "either": [f"{a} + {b} - {both} = {either}"],
            "first": [f"{a} - {both} = {only_a}"],
        }[what]
        text = fill(rng, _CLASS[language], n=n, a=a, b=b, both=both, what=_ASKED[language][what])
        count = {"neither": none, "either": either, "first": only_a}[what]
        return Problem(text, str(count), {"kind": "math"}, tuple(counted), [n, a, b, both, what])
    first, second = ({rng.randint(1, 6 + 6 * level) for _ in range(rng.randint(3, 2 + 3 * level))} for _ in range(2))
    operation = rng.choice(("union", "intersection", "difference"))
    found = sorted({"union": first | second, "intersection": first & second, "difference": first - second}[operation])
    answer = "{" + ", ".join(map(str, found)) + "}" if found else ("空集" if language == "zh" else "the empty set")
    shown = [", ".join(map(str, rng.sample(sorted(one), len(one)))) for one in (first, second)]
    text = fill(rng, _LISTS[language], a=shown[0], b=shown[1], what=_OPERATIONS[language][operation])
    sign = {"union": "∪", "intersection": "∩", "difference": "-"}[operation]
    steps = (f"A {sign} B = {answer}" if found else f"A {sign} B = {{}}",)
    return Problem(text, answer, {"kind": "list", "ordered": False}, steps, [sorted(first), sorted(second), operation])


def read(text: str) -> str | None:
    """Walks over the listed elements; counts a class by its four disjoint parts."""
    language = language_of(text)
    listed = re.findall(r"([AB])\s*(?:=|is|为|是)\s*\{([^{}]*)\}", text)
    if listed:
        return _listed(text, dict(listed), language)
    # Each number by the words behind it.
    shapes = (
        (
            r"(?:class|group) (?:of|has|with|containing) (\d+)",
            r"(\d+) (?:students |of them )?plays? football",
            r"(\d+) (?:students |of them )?plays? chess",
            r"(\d+) (?:students |of them )?plays? both",
        )
        if language == "en"
        else (
            r"有(\d+)(?:名|个|位)(?:学生|同学)",
            r"(\d+)(?:人|名学生|个人)会下棋",
            r"(\d+)(?:人|名学生|个人)会游泳",
            r"(\d+)(?:人|名学生|个人)(?:两样|两项|两种|两者)都会",
        )
    )
    found = [re.findall(shape, text, re.IGNORECASE) for shape in shapes]
    if any(len(one) != 1 for one in found) or len(re.findall(r"\d+", text)) != 4:
        return None
    n, a, b, both = (int(one[0]) for one in found)
    rest = re.split(r"[.。]", text.rstrip("。. "))[-1]
    parts = {"both": both, "a": a - both, "b": b - both}
    parts["none"] = n - sum(parts.values())
    if any(count < 0 for count in parts.values()):
        return None
    asked = {
        "none": r"neither|两[样项种者]都不",
        "either": r"at least one|至少会?一",
        "a": r"football only|only football|只会下棋",
    }
    named = [name for name, shape in asked.items() if re.search(shape, rest, re.IGNORECASE)]
    if len(named) != 1:
        return None
    return str(parts["a"] + parts["b"] + parts["both"] if named[0] == "either" else parts[named[0]])


def _listed(text: str, listed: dict[str, str], language: Language) -> str | None:
    if listed.keys() != {"A", "B"}:
        return None
    first, second = ([int(number) for number in re.findall(r"-?\d+", listed[name])] for name in "AB")
    shapes = {
        "union": r"\bunion\b|并集|∪",
        "intersection": r"\bintersection\b|交集|∩",
        "difference": r"\bdifference\b|差集|A\s*(?:minus|\\)\s*B",
    }
    named = [name for name, shape in shapes.items() if re.search(shape, text, re.IGNORECASE)]
    if len(named) != 1 or (named == ["difference"] and re.search(r"symmetric|对称|B\s*(?:minus|-)\s*A", text)):
        return None
    # Of each number: whether it is in A, and whether it is in B.
    wanted = {
        "union": {(True, True), (True, False), (False, True)},
        "intersection": {(True, True)},
        "difference": {(True, False)},
    }[named[0]]
    candidates = range(min(*first, *second), max(*first, *second) + 1)
    found = [str(one) for one in candidates if (one in first, one in second) in wanted]
    if not found:
        return "空集" if language == "zh" else "the empty set"
    return "{" + ", ".join(found) + "}"


register_family(Family("sets", "logic", make, read))
