"""Word problems of getting and giving away: a start, one to four events, and how many there are now."""

from __future__ import annotations

import random
import re

from armillary.post.problems.family import Family, Language, Problem, register_family
from armillary.post.problems.wording import PEOPLE, THINGS, clauses, fill, language_of, numbers_in

_START = {
    "en": ("{who} has {n} {things}.", "At first {who} has {n} {things}.", "{who} starts with {n} {things}."),
    "zh": ("{who}有{n}{m}{thing}。", "{who}原来有{n}{m}{thing}。", "一开始,{who}有{n}{m}{thing}。"),
}
_GAIN = {
    "en": ("{who} buys {n} more.", "{who} finds {n} more.", "{who} gets {n} more from a friend."),
    "zh": ("{who}又买了{n}{m}。", "{who}捡到了{n}{m}。", "朋友送给{who}{n}{m}。"),
}
_LOSS = {
    "en": ("{who} gives away {n}.", "{who} loses {n}.", "{who} sells {n}."),
    "zh": ("{who}送出了{n}{m}。", "{who}弄丢了{n}{m}。", "{who}卖掉了{n}{m}。"),
}
_PACKS = {
    "en": ("{who} buys {k} boxes with {n} {things} each.", "{who} buys {k} bags of {n} {things} each."),
    "zh": ("{who}又买了{k}盒,每盒{n}{m}。", "{who}又买了{k}袋,每袋{n}{m}。"),
}
_ASK = {
    "en": ("How many {things} does {who} have now?", "How many {things} does {who} have in the end?"),
    "zh": ("{who}现在有多少{m}{thing}?", "最后{who}有几{m}{thing}?"),
}
_EN_GAIN = (
    r"\b(?:buys?|bought|finds?|found|gets?|got|receives?d?|gains?|picks? up|picked up|collects?|earns?|wins?|won|adds?"
    r"|acquires?|purchases?d?|discovers?|obtains?)\b"
)
_EN_LOSS = (
    r"\b(?:gives? away|gave away|loses?|lost|sells?|sold|eats?|ate|uses?|donates?|breaks?|misplaces?|throws? away)\b"
)
_ZH_GAIN = r"买[了到来]?|捡到|得到|收到|(?:赠送|送给)(?:了)?(?:他|她|小)|给了?(?:他|她|小)|获得|找到|增加"
_ZH_LOSS = r"送出|送给(?:了)?(?:朋友|别人|同学)|送走|弄丢|丢[了失掉]|卖[掉出了]|吃[掉了]|用[掉了]|失去"
_PACKED = re.compile(
    r"\b(?:boxes|bags|packs|packets)\b.*\beach\b|\beach\b.*\b(?:boxes|bags|packs)\b|[盒袋包].*每[盒袋包]"
)
_OTHER = re.compile(r"\b(?:half|twice|double|triple|all of|times|another)\b|一半|倍|全部|每(?![盒袋包])|其中")


def make(rng: random.Random, level: int, language: Language) -> Problem:
    """Level 1 has one event, 2 has two, 3 has three, of which one comes in boxes."""
    who, (first, second) = rng.choice(PEOPLE[language]), rng.choice(THINGS[language])
    words = {"who": who, "things": second, "thing": second, "m": first}
    start = total = rng.randint(5, 15 * level)
    parts, steps = [fill(rng, _START[language], n=start, **words)], list[str]()
    parameters: list[object] = [start]
    packs = rng.randrange(level) if level == 3 else -1
    for place in range(level):
        if place == packs:
            k, n = rng.randint(2, 6), rng.randint(2, 9)
            parts.append(fill(rng, _PACKS[language], k=k, n=n, **words))
            steps += [f"{k} × {n} = {k * n}", f"{total} + {k * n} = {total + k * n}"]
            total, parameters = total + k * n, [*parameters, [k, n]]
            continue
        loss = total > 2 and rng.random() < 0.5
        n = rng.randint(2, total - 1 if loss else 12 * level)
        parts.append(fill(rng, (_LOSS if loss else _GAIN)[language], n=n, **words))
        after = total - n if loss else total + n
        steps.append(f"{total} {'-' if loss else '+'} {n} = {after}")
        total, parameters = after, [*parameters, -n if loss else n]
    parts.append(fill(rng, _ASK[language], **words))
    text = (" " if language == "en" else "").join(parts)
    return Problem(
        text.replace(",", "，").replace("?", "？") if language == "zh" else text,
        str(total),
        {"kind": "math"},
        tuple(steps),
        parameters,
    )


def read(text: str) -> str | None:
    """Adds up the clauses by their verbs; a clause with numbers and without a known verb is not understood."""
    gain, loss = (_EN_GAIN, _EN_LOSS) if language_of(text) == "en" else (_ZH_GAIN, _ZH_LOSS)
    joined = re.sub(r"[,，]\s*(?=每[盒袋包]|each|with)", " ", text)
    *story, question = clauses(joined) or [""]
    if _OTHER.search(text) or not re.search(
        r"how many\b.*\b(?:have|has|own|left|now)\b|[有剩](?:下|余)?(?:多少|几)", question, re.I
    ):
        return None
    if numbers_in(question):
        return None
    total = None
    for clause in story:
        found = numbers_in(clause)
        if not found:
            if re.search(gain, clause, re.I) or re.search(loss, clause, re.I):
                return None
            continue
        if _PACKED.search(clause) and len(found) == 2:
            found = [found[0] * found[1]]
        if len(found) != 1:
            return None
        gains, losses = bool(re.search(gain, clause, re.I)), bool(re.search(loss, clause, re.I))
        if gains and losses:
            return None
        if total is None:
            if gains or losses or not re.search(r"\b(?:has|had|have|starts?|started|owns?|begins?)\b|有", clause, re.I):
                return None
            total = found[0]
        elif gains or losses:
            total += found[0] if gains else -found[0]
        else:
            return None
    return None if total is None else str(total)


register_family(Family("tally", "math", make, read))
