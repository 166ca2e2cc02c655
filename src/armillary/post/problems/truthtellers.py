"""Truth-tellers and liars: what each says about the others, and what one of them is."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Mapping

from armillary.post.problems.family import Family, Language, Problem, register_family
from armillary.post.problems.wording import PEOPLE, fill, language_of

_KINDS = {"en": ("knight", "knave"), "zh": ("老实人", "骗子")}
_RULE = {
    "en": (
        "On an island, knights always tell the truth and knaves always lie.",
        "Knights always tell the truth, and knaves always lie.",
    ),
    "zh": ("岛上的老实人总说真话，骗子总说假话。", "老实人只说真话，骗子只说假话。"),
}
_SAYS = {"en": '{a} says: "{what}"', "zh": "{a}说：“{what}”"}
_IS = {"en": "{b} is a {kind}.", "zh": "{b}是{kind}。"}
_SAME = {"en": "{b} and {c} are of the same kind.", "zh": "{b}和{c}是同一类人。"}
_OTHER = {"en": "{b} and {c} are of different kinds.", "zh": "{b}和{c}不是同一类人。"}
_ASK = {
    "en": ("Is {who} a knight or a knave?", "What is {who}, a knight or a knave?"),
    "zh": ("{who}是老实人还是骗子？", "请问{who}是老实人，还是骗子？"),
}
_KNOWN = {"en": "We know that {b} is a {kind}.", "zh": "已知{b}是{kind}。"}


def make(rng: random.Random, level: int, language: Language) -> Problem:
    """Level 1 has a chain of two, 2 of three, 3 of four people, with statements about pairs."""
    people = rng.sample(PEOPLE[language], level + 1)
    honest = [rng.random() < 0.5 for _ in people]
    kinds = _KINDS[language]
    parts, steps = [fill(rng, _RULE[language])], []

    def kind(place: int) -> str:
        return kinds[0 if honest[place] else 1]

    last = len(people) - 1
    parts.append(_KNOWN[language].format(b=people[last], kind=kind(last)))
    parameters: list[object] = [honest[last]]
    # Each speaks of the next, so that the kinds follow one after the other from the last.
    for place in range(last - 1, -1, -1):
        after = place + 1
        pair = level == 3 and after < last and rng.random() < 0.6
        if pair:
            same = honest[after] == honest[after + 1]
            true = rng.random() < 0.5
            says_same = same == true
            honest[place] = true
            what = (_SAME if says_same else _OTHER)[language].format(b=people[after], c=people[after + 1])
            parameters.append(["same", says_same])
        else:
            claims = rng.random() < 0.5
            honest[place] = claims == honest[after]
            what = _IS[language].format(b=people[after], kind=kinds[0 if claims else 1])
            parameters.append(["is", claims])
        parts.append(_SAYS[language].format(a=people[place], what=what))
        if language == "en":
            speaks = "speaks the truth" if honest[place] else "lies"
            steps.append(f"{people[place]} {speaks}, so {people[place]} is a {kind(place)}.")
        else:
            steps.append(
                f"{people[place]}说的是{'真' if honest[place] else '假'}话，所以{people[place]}是{kind(place)}。"
            )
    parts.append(fill(rng, _ASK[language], who=people[0]))
    check = {"kind": "text", "among": list(kinds)}
    text = (" " if language == "en" else "").join(parts)
    return Problem(text, kind(0), check, tuple(steps), [people, *parameters])


def _holds(what: str, kinds: Mapping[str, bool], language: Language) -> bool | None:
    """Whether a statement is true where each person is of these kinds; None where it is not understood."""
    named = [name for name in kinds if (re.search(rf"\b{name}\b", what) if language == "en" else name in what)]
    if len(named) == 2:
        if re.search(r"\bsame\b" if language == "en" else r"(?<!不)是同一类", what):
            return kinds[named[0]] == kinds[named[1]]
        if re.search(r"\bdifferent\b" if language == "en" else r"不是同一类|不同", what):
            return kinds[named[0]] != kinds[named[1]]
        return None
    if len(named) != 1:
        return None
    if language == "en":
        stated = re.findall(r"\bis (not )?an? (knight|knave)\b", what)
        claims = [(not negated) == (kind == "knight") for negated, kind in stated]
    else:
        stated = re.findall(r"(不)?是(老实人|骗子)", what)
        claims = [(not negated) == (kind == "老实人") for negated, kind in stated]
    return kinds[named[0]] == claims[0] if len(claims) == 1 else None


def read(text: str) -> str | None:
    """Tries all kinds of all people; the answer must be the same in each that fits."""
    language = language_of(text)
    text = text.replace("“", '"').replace("”", '"')
    statements = re.findall(
        r'(\w+) (?:says|claims|states|said|tells you)[,:]? ?(?:that )?"([^"]+)"'
        if language == "en"
        else r'(小\w)(?:说|声称|表示)[：:,，]?"([^"]+)"',
        text,
    )
    rest = re.sub(r'"[^"]*"', " ", text)
    asked = re.findall(
        r"(?:[Ii]s|[Ww]hat is|[Ww]hich is) (\w+),? (?:is )?(?:a|as a)? ?(?:knight or a? ?knave|knave or a? ?knight)"
        r"|whether (\w+) is a knight or"
        if language == "en"
        else r"(小\w)(?:到底|究竟)?是(?:老实人|骗子)，?还是",
        rest,
    )
    who = {name for match in asked for name in ([match] if isinstance(match, str) else match) if name}
    known = re.findall(
        r"[Ww]e know(?: that)? (\w+) is a (knight|knave)|[Kk]nown(?: that)? (\w+) is a (knight|knave)"
        if language == "en"
        else r"已知(小\w)是(老实人|骗子)()()",
        rest,
    )
    people = sorted(
        {name for name in PEOPLE[language] if (re.search(rf"\b{name}\b", text) if language == "en" else name in text)}
    )
    if len(who) != 1 or len(known) != 1 or not statements or len(people) > 6 or text.count('"') != 2 * len(statements):
        return None
    (asked_name,) = who
    name, kind = (known[0][0], known[0][1]) if known[0][0] else (known[0][2], known[0][3])
    if not {asked_name, name, *(speaker for speaker, _ in statements)} <= set(people):
        return None
    fits = set()
    for honest in itertools.product((True, False), repeat=len(people)):
        kinds = dict(zip(people, honest, strict=True))
        held = [_holds(what, kinds, language) for _, what in statements]
        if None in held:
            return None
        if kinds[name] == (kind in ("knight", "老实人")) and all(
            kinds[speaker] == true for (speaker, _), true in zip(statements, held, strict=True)
        ):
            fits.add(kinds[asked_name])
    return _KINDS[language][0 if fits.pop() else 1] if len(fits) == 1 else None


register_family(Family("truthtellers", "logic", make, read))
