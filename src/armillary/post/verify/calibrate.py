"""Measures the error rates of the verifiers on labelled variants of known answers, right and wrong.

Answers come from the families of ``post.problems`` and a table of formulas. Each is put into a reply that a person or a
model could write. *Right* replies give the same answer in another form (digits, words, fractions, units, order, frame)
and must be accepted. *Wrong* replies give another answer (sign, digit, neighbour, unit, element) or none (mentioned,
hedged, taken back) and must not be accepted. A right reply that is not accepted is a false reject; a wrong reply that
is accepted is a false accept.

The rates hold for these mutations in equal shares. A model's real mistakes have different shares; the table by mutation
shows which ones matter.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from armillary.evaluate import Interval
from armillary.post.items import Item
from armillary.post.problems import LANGUAGES, LEVELS, family_names, family_of
from armillary.post.problems.wording import written
from armillary.post.verify.cases import Case
from armillary.post.verify.choices import names_no_element
from armillary.post.verify.form_cases import rule_cases, several_cases
from armillary.post.verify.gym_cases import gym_cases, gym_installed
from armillary.post.verify.numbers import read_quantity
from armillary.post.verify.registry import Task, judge_task
from armillary.post.verify.shares import share_interval

_FRAMES = {
    "en": (
        *(
            "The answer is {}.",
            "So the answer is {}.",
            "Answer: {}",
            "**Final answer:** {}",
            "#### {}",
            r"\boxed{{{}}}",
        ),
        *("Let me think. 17 is odd, and that does not help.\nThe answer is **{}**.", "The answer is: {}"),
    ),
    "zh": (
        *("答案是{}。", "所以答案是{}。", "答案：{}", "**最终答案为**：{}", "#### {}", r"\boxed{{{}}}"),
        *("先想一想：17是奇数，没有用。\n答案是**{}**。", "答：{}。"),
    ),
}
_NOT_GIVEN = {
    "en": (
        ("mentioned", "I saw the number {} somewhere in this question.\nI cannot solve it, sorry."),
        ("negated", "The answer is not {}."),
        ("hedged", "The answer is {} or {}."),
        ("doubted", "The answer is possibly {}."),
        ("bounded", "The answer is at least {}."),
        ("between", "The answer is between {} and {}."),
        ("taken back", "The answer is {}. Wait, that is wrong. The answer is {wrong}."),
        ("withdrawn", "The answer is {}. No, that is wrong. I do not know."),
    ),
    "zh": (
        ("mentioned", "题目里好像提到了{}这个数。\n我不会做这道题。"),
        ("negated", "答案不是{}。"),
        ("hedged", "答案是{}或{}。"),
        ("doubted", "答案可能是{}。"),
        ("bounded", "答案至少是{}。"),
        ("between", "答案在{}和{}之间。"),
        ("taken back", "答案是{}。等等，算错了。答案是{wrong}。"),
        ("withdrawn", "答案是{}。不对，算错了。我不知道。"),
    ),
}
# Frames with an unannounced answer, or with more text than the answer.
_LOOSE = {
    "en": (
        ("reason behind", "The answer is {}, because 17 is not 18."),
        ("remark behind", "The answer is {} (that is 3 + 4 and so on)."),
        ("more text behind", "The answer is {}.\n\nI hope this helps. Ask me 2 or 3 more questions if you like!"),
        ("conclusion", "First I look at the 17.\nTherefore the result is {}."),
        ("last line alone", "First I look at the 17.\nThen I compute.\n{}"),
    ),
    "zh": (
        ("reason behind", "答案是{}，因为17不等于18。"),
        ("remark behind", "答案是{}(也就是3 + 4等等)。"),
        ("more text behind", "答案是{}。\n\n希望对你有帮助，还可以再问我2个或3个问题！"),
        ("conclusion", "先看17。\n所以结果是{}。"),
        ("last line alone", "先看17。\n然后计算。\n{}"),
    ),
}
# Formula, equal formulas, different formulas.
_FORMULAS = (
    (
        r"\frac{\sqrt{2}}{2}",
        (r"\frac{1}{\sqrt{2}}", r"\sqrt{\frac{1}{2}}", "sqrt(2)/2"),
        (r"\frac{\sqrt{2}}{3}", r"-\frac{\sqrt{2}}{2}", r"\sqrt{2}"),
    ),
    ("2x+3", ("3+2x", "2(x+1)+1", r"2 \cdot x + 3"), ("2x-3", "3x+2", "2x+4", "2y+3")),
    ("x^2-1", ("(x-1)(x+1)", r"x^{2} - 1", "-1+x^2"), ("x^2+1", "(x-1)^2", "x^3-1")),
    (r"\{1, 2, 3\}", (r"\{3, 2, 1\}", r"\left\{1,2,3\right\}"), (r"\{1, 2\}", r"\{1, 2, 4\}", r"\{1, 2, 3, 4\}")),
    ("(1, 2)", (r"\left(1, 2\right)", "(1,2)"), ("(2, 1)", "[1, 2]", "(1, 3)")),
    (r"\pi", (r"1 \cdot \pi", r"\frac{2\pi}{2}"), ("3", "3.14", r"2\pi", r"\frac{\pi}{2}")),
    (r"3\sqrt{5}", (r"\sqrt{45}", r"\sqrt{5}\cdot 3"), (r"5\sqrt{3}", r"\sqrt{15}", r"-3\sqrt{5}")),
    (r"\frac{x}{y}", ("x/y", r"\dfrac{x}{y}"), (r"\frac{y}{x}", "xy", "x-y")),
)
_CHINESE = "零一二三四五六七八九"
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_UNDER_20 = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_SMALLER = {
    "km": ("m", "千米", 1000),
    "m": ("cm", "米", 100),
    "kg": ("g", "千克", 1000),
    "g": ("mg", "克", 1000),
    "l": ("ml", "升", 1000),
    "h": ("minutes", "小时", 60),
    "min": ("seconds", "分钟", 60),
    "yuan": ("角", "元", 10),
    "dollar": ("cents", "美元", 100),
}


@dataclass(frozen=True)
class Rates:
    """Error rates over cases of one kind: false rejects of right replies, false accepts of wrong ones."""

    kind: str
    right: int
    false_rejects: int
    wrong: int
    false_accepts: int

    @property
    def reject_rate(self) -> Interval | None:
        """False rejects as a share of the right replies, with Wilson's interval."""
        return share_interval(self.false_rejects, self.right) if self.right else None

    @property
    def accept_rate(self) -> Interval | None:
        """False accepts as a share of the wrong replies, with Wilson's interval."""
        return share_interval(self.false_accepts, self.wrong) if self.wrong else None

    def to_json(self) -> dict[str, Any]:
        """The counts and rates as plain data."""
        row: dict[str, Any] = {"kind": self.kind}
        for name, count, of, rate in (
            ("false_reject", self.false_rejects, self.right, self.reject_rate),
            ("false_accept", self.false_accepts, self.wrong, self.accept_rate),
        ):
            row[name] = rate and {"count": count, "of": of, "rate": rate.value, "low": rate.low, "high": rate.high}
        return row


@dataclass(frozen=True)
class Calibration:
    """Rates by kind and by mutation, and up to three wrongly judged cases of each mutation.

    ``missing`` are the kinds without rates, because a library is not installed.
    """

    kinds: tuple[Rates, ...]
    mutations: tuple[Rates, ...]
    errors: tuple[Case, ...]
    missing: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The calibration as plain data."""
        return {
            "kinds": [rates.to_json() for rates in self.kinds],
            "mutations": [rates.to_json() for rates in self.mutations],
            "errors": [
                {
                    "kind": case.kind,
                    "mutation": case.mutation,
                    "right": case.right,
                    "answer": case.task.answer,
                    "check": dict(case.task.check),
                    "reply": case.reply,
                }
                for case in self.errors
            ],
            "missing": list(self.missing),
        }


def calibrate(
    n: int = 40, seed: int = 0, progress: Callable[[int, int, str], None] = lambda done, total, note: None
) -> Calibration:
    """Judge all labelled cases: ``n`` answers per family, ``n`` rounds of forms, and the table of formulas.

    Programs run in the sandbox, about a tenth of a second per case, so a code family gets only a tenth of ``n``, and so
    does each of the hundred data sets of reasoning-gym. Without reasoning-gym, the kind ``gym`` is missing.

    Raises:
        ArmillaryError: there is no sandbox, or math-verify cannot be started.
    """
    cases = list(labelled_cases(n, seed))
    if gym_installed():
        cases += gym_cases(max(1, n // 10), seed)
    accepted = []
    for place, case in enumerate(cases, 1):
        accepted.append(judge_task(case.task, case.reply).outcome == "right")
        progress(place, len(cases), case.kind)
    judged = list(zip(cases, accepted, strict=True))

    def rates(name: str, rows: list[tuple[Case, bool]]) -> Rates:
        right = [taken for case, taken in rows if case.right]
        wrong = [taken for case, taken in rows if not case.right]
        return Rates(name, len(right), right.count(False), len(wrong), wrong.count(True))

    kinds = sorted({case.kind for case in cases})
    mutations = sorted({(case.kind, case.mutation) for case in cases})
    return Calibration(
        tuple(rates(kind, [row for row in judged if row[0].kind == kind]) for kind in kinds),
        tuple(
            rates(f"{kind}: {mutation}", [row for row in judged if (row[0].kind, row[0].mutation) == (kind, mutation)])
            for kind, mutation in mutations
        ),
        _examples([case for case, taken in judged if taken != case.right]),
        () if gym_installed() else ("gym",),
    )


def _examples(errors: list[Case]) -> tuple[Case, ...]:
    """Up to three of each mutation."""
    seen: Counter[tuple[str, str, bool]] = Counter()
    found = []
    for case in errors:
        seen[case.kind, case.mutation, case.right] += 1
        if seen[case.kind, case.mutation, case.right] <= 3:
            found.append(case)
    return tuple(found)


def labelled_cases(n: int, seed: int = 0) -> Iterator[Case]:
    """Yield the cases of all kinds but ``gym``, which are the same for the same ``n`` and ``seed``."""
    for name in family_names():
        family = family_of(name)
        for number in range(max(1, n // 10) if family.domain == "code" else n):
            rng = random.Random(f"calibrate {seed} {name} {number}")
            language = LANGUAGES[number % len(LANGUAGES)]
            level = 1 + number // 2 % LEVELS
            item = family.item(family.make(rng, level, language), level, language)
            cases = list(_CASES[(item.check or {})["kind"]](item, rng))
            yield from cases
            if family.domain != "code":
                replies = (next(case.reply for case in cases if case.right is label) for label in (True, False))
                yield from several_cases(item, rng, *replies)
    yield from rule_cases(n, seed)
    for gold, equal, other in _FORMULAS:
        task = Task({"kind": "math"}, gold, "en")
        for right, formulas in ((True, equal), (False, other)):
            for formula in formulas:
                for language in LANGUAGES:
                    reply = _FRAMES[language][0].format(f"${formula}$")
                    yield Case("formula", "equal" if right else "other", right, task, reply)


def _framed(item: Item, rng: random.Random, kind: str, mutations: list[tuple[str, bool, str]]) -> Iterator[Case]:
    """Each answer in its own frame; equal mutations once."""
    task = Task(item.check or {}, item.answer, item.language)
    for mutation, right, answer in dict.fromkeys(mutations):
        yield Case(kind, mutation, right, task, rng.choice(_FRAMES[item.language]).format(answer))


def _loose(item: Item, kind: str, right: str, wrong: str) -> Iterator[Case]:
    """The answer, and a different one, in frames that say more or less than the answer."""
    task = Task(item.check or {}, item.answer, item.language)
    for mutation, frame in _LOOSE[item.language]:
        yield Case(kind, mutation, True, task, frame.format(right))
        yield Case(kind, mutation, False, task, frame.format(wrong))


def _not_given(item: Item, kind: str, right: str, wrong: str) -> Iterator[Case]:
    task = Task(item.check or {}, item.answer, item.language)
    for mutation, frame in _NOT_GIVEN[item.language]:
        reply = frame.format(right, wrong, wrong=wrong)
        yield Case(kind, mutation, False, task, reply)


def _math(item: Item, rng: random.Random) -> Iterator[Case]:
    unit = (item.check or {}).get("unit")
    quantity = read_quantity(item.answer or "", unit)
    assert quantity is not None
    value = quantity.value
    plain = written(value)
    whole = value.denominator == 1
    chinese = item.language == "zh"
    name = "" if unit is None else (_SMALLER[unit][1] if chinese and unit in _SMALLER else f" {unit}")
    right = [
        ("plain", plain),
        ("full width", "".join(chr(ord(one) + 0xFEE0) if one.isdigit() else one for one in plain)),
        ("zeros", f"{plain}.00" if whole else f"{plain}0" if "/" not in plain else plain),
        ("equation", f"x = {plain}"),
        ("LaTeX", f"${plain}$"),
        ("fraction", f"{value.numerator * 2}/{value.denominator * 2}"),
        (
            "LaTeX fraction",
            rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
            if not whole
            else rf"\frac{{{value.numerator * 3}}}{{3}}",
        ),
        ("minus sign", plain.replace("-", "−")),
    ]
    if whole and abs(value) >= 1000:
        right.append(("thousands", f"{int(value):,}"))
    if whole and 0 <= value < 100:
        right.append(("words", _in_words(int(value), chinese)))
    if unit is None:
        right.append(("percent", f"{written(value * 100)}%"))
        right.append(("noun", f"{plain}个" if chinese else f"{plain} of them"))
    else:
        right.append(("unit", f"{plain}{name}"))
        if unit in _SMALLER:
            smaller, _, factor = _SMALLER[unit]
            right.append(("smaller unit", f"{written(value * factor)} {smaller}"))
    digits = str(abs(value.numerator))
    place = rng.randrange(len(digits))
    changed = digits[:place] + str((int(digits[place]) + rng.randint(1, 8)) % 10) + digits[place + 1 :]
    others = {
        "sign": -value,
        "off by one": value + rng.choice((-1, 1)),
        "times ten": value * 10,
        "a tenth": value / 10,
        "digit": Fraction(int(changed), value.denominator),
        "digits swapped": Fraction(int(digits[::-1]), value.denominator),
        "nearly": value + Fraction(1, 100),
        "reciprocal": 1 / value if value else Fraction(1),
        "double": value * 2,
    }
    wrong = [(mutation, written(other)) for mutation, other in others.items() if other != value]
    if unit in _SMALLER and value:
        wrong.append(("other unit", f"{plain} {_SMALLER[unit][0]}"))
    if unit is not None and unit != "kg":
        wrong.append(("unit of another kind", f"{plain}{'千克' if chinese else ' kilograms'}"))
    if unit is None and value:
        wrong.append(("percent sign", f"{plain}%"))
    wrong.append(("not carried out", f"{written(value - 3)} + 3"))
    yield from _framed(item, rng, "math", [(mutation, True, answer) for mutation, answer in right])
    yield from _framed(item, rng, "math", [(mutation, False, answer) for mutation, answer in wrong])
    yield from _not_given(item, "math", plain, written(value + 1))
    yield from _loose(item, "math", plain, written(value + 1))


def _in_words(number: int, chinese: bool) -> str:
    tens, ones = divmod(number, 10)
    if chinese:
        if number < 10:
            return _CHINESE[number]
        return ("" if tens == 1 else _CHINESE[tens]) + "十" + (_CHINESE[ones] if ones else "")
    return _UNDER_20[number] if number < 20 else _TENS[tens] + (f"-{_UNDER_20[ones]}" if ones else "")


def _text(item: Item, rng: random.Random) -> Iterator[Case]:
    check, answer = item.check or {}, item.answer or ""
    same = {answer, *check.get("accept", ())}
    right = [("plain", True, answer), ("bold", True, f"**{answer}**"), ("upper case", True, answer.upper())]
    right += [("other spelling", True, other) for other in check.get("accept", ())]
    others = [word for word in check.get("among", ()) if word not in same]
    if not others and ":" in answer:
        hour, minute = answer.split(":")
        others = [f"{hour}:{(int(minute) + 1) % 60:02d}", f"{int(hour) + 1}:{minute}"]
    elif not others:
        others = [answer[:-1] + ("0" if answer[-1] != "0" else "1"), answer + "0", answer[::-1]]
    others = [other for other in dict.fromkeys(others) if other not in same]
    wrong = [("another", False, other) for other in rng.sample(others, min(4, len(others)))]
    yield from _framed(item, rng, "text", right + wrong)
    yield from _not_given(item, "text", answer, others[0])
    yield from _loose(item, "text", answer, others[0])


def _list(item: Item, rng: random.Random) -> Iterator[Case]:
    check, answer = item.check or {}, item.answer or ""
    elements = [one.strip() for one in answer.strip("{}").split(",")]
    if names_no_element(answer):
        yield from _framed(
            item, rng, "list", [("empty", True, answer), ("empty", True, "∅"), ("something", False, "{1}")]
        )
        return
    ordered = check.get("ordered", True)
    shuffled = rng.sample(elements, len(elements))
    right = [("plain", True, ", ".join(elements)), ("joined", True, (" > " if ordered else "，").join(elements))]
    wrong = [("shortened", False, ", ".join(elements[:-1]) or "none")]
    if ordered:
        right.append(("arrows", True, " → ".join(elements)))
        if elements != elements[::-1]:
            wrong.append(("reversed", False, ", ".join(reversed(elements))))
        if shuffled != elements:
            wrong.append(("shuffled", False, ", ".join(shuffled)))
    else:
        right += [("shuffled", True, "{" + ", ".join(shuffled) + "}"), ("brackets", True, f"[{', '.join(shuffled)}]")]
        wrong += [
            ("one more", False, ", ".join([*elements, "99"])),
            ("twice", False, ", ".join([*elements, elements[0]])),
        ]
        wrong.append(("changed", False, ", ".join([*elements[:-1], str(int(elements[-1]) + 50)])))
    yield from _framed(item, rng, "list", right + wrong)


def _choice(item: Item, rng: random.Random) -> Iterator[Case]:
    options, answer = (item.check or {})["options"], item.answer or ""
    text = options[answer]
    right = [("letter", True, answer), ("parentheses", True, f"({answer})"), ("with text", True, f"{answer}. {text}")]
    if list(options.values()).count(text) == 1:
        right.append(("text", True, text))
    others = [letter for letter in options if letter != answer]
    wrong = [("another letter", False, letter) for letter in others]
    wrong += [("another text", False, options[letter]) for letter in others if options[letter] != text]
    wrong += [("no option", False, "F"), ("all", False, ", ".join(options))]
    yield from _framed(item, rng, "choice", right + wrong)
    yield from _not_given(item, "choice", answer, others[0])
    yield from _loose(item, "choice", answer, others[0])


def _code(item: Item, rng: random.Random) -> Iterator[Case]:
    program, entry = item.answer or "", (item.check or {})["entry"]
    head, body = program.split("\n", 1)
    argument = head.partition("(")[2].partition(")")[0]
    task = Task(item.check or {}, item.answer, item.language)
    block = "```python\n{}\n```"
    right = {
        "block": block.format(program),
        "bare": program,
        "with words": f"Here it is:\n\n{block.format(program)}\n\nIt works for all inputs.",
        "helper": block.format(
            f"def helper({argument}):\n{body}\n\ndef {entry}({argument}):\n    return helper({argument})"
        ),
        "renamed": block.format(f"def {entry}(value):\n    {argument} = value\n{body}"),
        "with comment": block.format(f"{head}\n    # simple\n    '''Doc.'''\n{body}"),
    }
    wrong = {
        "another result": block.format(program.replace("return ", "return [0] + [", 1) + "]"),
        "prints": block.format(program.replace("return ", "print(", 1) + ")"),
        "nothing": block.format(f"{head}\n    pass"),
        "argument back": block.format(f"{head}\n    return ({argument}, 1)"),
        "leaves early": block.format(f"{program}\nimport os\nos._exit(0)"),
        "no program": f"The function {entry} takes {argument} and gives back the result.",
        "syntax": block.format(program.replace(":", "", 1)),
        "another name": block.format(program.replace(f"def {entry}(", f"def {entry}_2(")),
    }
    for mutation, reply in right.items():
        yield Case("code", mutation, True, task, reply)
    for mutation, reply in wrong.items():
        yield Case("code", mutation, False, task, reply)


_CASES: dict[str, Callable[[Item, random.Random], Iterator[Case]]] = {
    "math": _math,
    "text": _text,
    "list": _list,
    "choice": _choice,
    "code": _code,
}
