"""Numbers in other bases: to binary, octal and hexadecimal, and back."""

from __future__ import annotations

import random
import re

from armillary.post.problems.family import Family, Language, Problem, register_family
from armillary.post.problems.wording import fill

_NAMES = {
    "en": {2: "binary", 8: "octal", 16: "hexadecimal", 10: "decimal"},
    "zh": {2: "二进制", 8: "八进制", 16: "十六进制", 10: "十进制"},
}
_ASK = {
    "en": (
        "Write the {of} number {n} in {to}.",
        "Convert {n} from {of} to {to}.",
        "What is the {of} number {n} in {to}?",
    ),
    "zh": ("把{of}数{n}写成{to}。", "将{of}数{n}转换为{to}。", "{of}数{n}用{to}表示是多少？"),
}


def make(rng: random.Random, level: int, language: Language) -> Problem:
    """Level 1 goes from decimal to binary up to 31, 2 both ways up to 255, 3 with octal and hexadecimal up to 4095."""
    base = 2 if level < 3 else rng.choice((8, 16))
    n = rng.randint(2, (31, 255, 4095)[level - 1])
    digits, rest = "", n
    steps = []
    while rest:
        digit = "0123456789abcdef"[rest % base]
        steps.append(f"{rest} = {base} × {rest // base} + {rest % base}")
        digits, rest = digit + digits, rest // base
    names = _NAMES[language]
    if level > 1 and rng.random() < 0.5:
        powers = [(int(digit, 16), len(digits) - 1 - place) for place, digit in enumerate(digits)]
        steps = [" + ".join(f"{digit} × {base**power}" for digit, power in powers if digit) + f" = {n}"]
        text = fill(rng, _ASK[language], of=names[base], n=digits, to=names[10])
        return Problem(text, str(n), {"kind": "math"}, tuple(steps), [n, base, "back"])
    text = fill(rng, _ASK[language], of=names[10], n=n, to=names[base])
    prefixed = {2: "0b", 8: "0o", 16: "0x"}[base] + digits
    return Problem(text, digits, {"kind": "text", "accept": [prefixed]}, tuple(steps), [n, base, "to"])


def read(text: str) -> str | None:
    """By the built-in formats. The number's own base stands right before it, or after "from"."""
    bases = {name: base for names in _NAMES.values() for base, name in names.items()}
    names = "|".join(sorted(bases, key=len, reverse=True))
    lowered = text.lower()
    mentioned = [bases[name] for name in re.findall(names, lowered)]
    number = r"(?:0[box])?([0-9a-f]+)(?![0-9a-z])"
    own = re.findall(rf"({names})(?: number| value|数)?(?: is)?\s*{number}", lowered)
    moved = re.findall(rf"(?<![0-9a-z]){number}\s*从?(?: from )?({names})", lowered)
    found = [(bases[name], digits) for name, digits in own] or [(bases[name], digits) for digits, name in moved]
    if (
        len(mentioned) != 2
        or len(found) != 1
        or len(re.findall(r"(?<![0-9a-z])[0-9a-f]*[0-9][0-9a-f]*(?![a-z])", lowered)) > 1
    ):
        return None
    of, digits = found[0]
    to = mentioned[1] if mentioned[0] == of else mentioned[0]
    # One of both is decimal, and a number's digits must be of its base.
    if of == to or 10 not in (of, to):
        return None
    try:
        value = int(digits, of)
    except ValueError:
        return None
    return format(value, {2: "b", 8: "o", 16: "x", 10: "d"}[to])


register_family(Family("bases", "math", make, read))
