"""Labelled replies for checks of form (``rules``) and for several checks at once (``all``).

A reply to a check of form is built from parts whose counts are known (words, sentences, paragraphs, bullets), so its
label does not depend on the code that counts them. *Right* replies are at the limit, in another layout (bold, fence,
quotes, spacing), or contain what is often miscounted (decimals, contractions, list markers without a space). *Wrong*
replies are one beyond the limit, or only resemble the form. Replies for ``all`` combine an answer and a form, each
right or wrong.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from armillary.post.items import Item
from armillary.post.verify.cases import Case
from armillary.post.verify.registry import Task

Rows = Iterator[tuple[str, bool, Mapping[str, Any], str]]  # mutation, label, rule, reply

_WORDS = {
    "en": ("river", "stone", "garden", "window", "paper", "bridge", "silver", "morning", "letter", "candle", "forest"),
    "zh": tuple("山水花木石桥灯窗纸书船云雨风"),
}
_NUMBER = {"en": "the value rose by 3.5 percent", "zh": "数值上升了3.5个百分点"}


def rule_cases(n: int, seed: int = 0) -> Iterator[Case]:
    """Yield ``n`` rounds of all mutations of all rules, in both languages in turn."""
    for number in range(n):
        language = ("en", "zh")[number % 2]
        rng = random.Random(f"rules {seed} {number}")
        for make in (_counted, _words, _sentences, _bullets, _keywords, _edges, _json, _characters):
            for mutation, right, rule, reply in make(rng, language):
                task = Task({"kind": "rules", "rules": [dict(rule)]}, None, language)
                yield Case("rules", f"{rule['rule']}: {mutation}", right, task, reply)


def several_cases(item: Item, rng: random.Random, right: str, wrong: str) -> Iterator[Case]:
    """Cases of a check of the answer and one of the form; ``right`` and ``wrong`` are readable replies to ``item``."""
    chinese = item.language == "zh"
    begin, end = ("解：", "解答完毕。") if chinese else ("Solution:", "End of solution.")
    forms: dict[str, tuple[dict[str, Any], Callable[[str], str]]] = {
        "starts": ({"rule": "starts", "text": begin}, lambda reply: f"{begin}\n{reply}"),
        "ends": ({"rule": "ends", "text": end}, lambda reply: f"{reply}\n{end}"),
        "title": ({"rule": "title"}, lambda reply: f"{'《答案》' if chinese else '<<Answer>>'}\n{reply}"),
        "lines": ({"rule": "lines", "least": 3}, lambda reply: f"1 + 1\n2 + 2\n{reply}"),
    }
    name = rng.choice(list(forms))
    rule, formed = forms[name]
    checks = [dict(item.check or {}), {"kind": "rules", "rules": [rule]}]
    task = Task({"kind": "all", "checks": checks}, item.answer, item.language)
    silent = "我不会做这道题。" if chinese else "I cannot solve this, and so I stop here."
    replies = {
        "answer and form": (True, formed(right)),
        "form only": (False, formed(wrong)),
        "answer only": (False, right),
        "neither": (False, wrong),
        "form without an answer": (False, formed(silent)),
    }
    for mutation, (label, reply) in replies.items():
        yield Case("all", f"{name}: {mutation}", label, task, reply)


def _text(rng: random.Random, language: str, count: int) -> str:
    """``count`` words without punctuation; in Chinese, characters."""
    return ("" if language == "zh" else " ").join(rng.choice(_WORDS[language]) for _ in range(count))


def _counted(rng: random.Random, language: str) -> Rows:
    """Paragraphs and lines: at both limits, and one beyond each."""
    low, high = rng.randint(2, 3), rng.randint(4, 5)
    stop = "。" if language == "zh" else "."
    for name, gap, other in (("paragraphs", "\n\n", "\n \n\n"), ("lines", "\n", "\n\n")):
        rule = {"rule": name, "least": low, "most": high}
        parts = [_text(rng, language, 5) + stop for _ in range(high + 1)]
        yield "at the least", True, rule, gap.join(parts[:low])
        yield "at the most", True, rule, gap.join(parts[:high])
        yield "wider gaps", True, rule, other.join(parts[:high])
        yield "one too few", False, rule, gap.join(parts[: low - 1])
        yield "one too many", False, rule, gap.join(parts)
    joined = "\n".join(_text(rng, language, 5) + stop for _ in range(low))
    yield "lines in place of paragraphs", False, {"rule": "paragraphs", "least": low}, joined


def _words(rng: random.Random, language: str) -> Rows:
    low, high = rng.randint(5, 8), rng.randint(12, 16)
    rule, chinese = {"rule": "words", "least": low, "most": high}, language == "zh"
    yield "at the least", True, rule, _text(rng, language, low)
    yield "at the most", True, rule, _text(rng, language, high)
    yield "with marks", True, rule, f"**{_text(rng, language, high - 1)}**" + ("，山！" if chinese else " — stone!")
    yield "one too few", False, rule, _text(rng, language, low - 1)
    yield "one too many", False, rule, _text(rng, language, high + 1)
    most = {"rule": "words", "most": 7}
    if not chinese:
        yield "contractions", True, most, "We don't know it's well-known here."  # 6 words
        yield "decimals", True, most, "It rose by 3.5 to 1,024.75 today."  # 7
    yield "only marks", False, {"rule": "words", "least": 1}, "— … ！"
    size = len(text := _text(rng, "zh", 9))
    yield "at the most", True, {"rule": "characters", "most": size}, text
    yield "spaces", True, {"rule": "characters", "most": size}, " ".join(text)
    yield "one too many", False, {"rule": "characters", "most": size - 1}, text


def _sentences(rng: random.Random, language: str) -> Rows:
    low, high = 2, rng.randint(3, 5)
    rule = {"rule": "sentences", "least": low, "most": high}
    chinese = language == "zh"
    gap, marks = ("", "。！？") if chinese else (" ", ".!?")
    parts = [_text(rng, language, 5) + rng.choice(marks) for _ in range(high + 1)]
    yield "at the least", True, rule, gap.join(parts[:low])
    yield "at the most", True, rule, gap.join(parts[:high])
    yield "by lines", True, rule, "\n".join(parts[:high])
    yield "two marks", True, rule, gap.join([*parts[: high - 1], _text(rng, language, 5) + marks[1] * 2])
    yield "quoted", True, rule, ("“{}”" if chinese else '"{}"').format(gap.join(parts[:high]))
    yield "decimals", True, rule, gap.join([*parts[: high - 1], _NUMBER[language] + marks[0]])
    yield "one too few", False, rule, parts[0]
    yield "one too many", False, rule, gap.join(parts)
    yield "decimals for a sentence", False, rule, _NUMBER[language] + marks[0]
    if not chinese:
        yield "abbreviation", True, rule, gap.join([*parts[: high - 1], "Dr. Green likes fruit, e.g. pears."])


def _bullets(rng: random.Random, language: str) -> Rows:
    count = rng.randint(2, 4)
    rule = {"rule": "bullets", "least": count, "most": count}
    parts = [_text(rng, language, 4) for _ in range(count + 1)]
    markers = {"hyphens": "- {1}", "stars": "* {1}", "dots": "• {1}", "numbers": "{0}. {1}", "brackets": "{0}) {1}"}
    for name, form in markers.items():
        yield name, True, rule, "\n".join(form.format(i, part) for i, part in enumerate(parts[:count], 1))
    if language == "zh":
        yield "numbers with 、", True, rule, "\n".join(f"{i}、{part}" for i, part in enumerate(parts[:count], 1))
    yield "indented", True, rule, "\n".join(f"  - {part}" for part in parts[:count])
    yield "with a heading", True, rule, f"**{parts[count]}**\n\n" + "\n".join(f"- {part}" for part in parts[:count])
    yield "one too many", False, rule, "\n".join(f"- {part}" for part in parts)
    yield "one too few", False, rule, "\n".join(f"- {part}" for part in parts[: count - 1])
    yield "lines", False, rule, "\n".join(parts[:count])
    yield "negative numbers", False, rule, "\n".join(f"-{i} {part}" for i, part in enumerate(parts[:count], 1))
    yield "decimals", False, rule, "\n".join(f"{i}.5 {part}" for i, part in enumerate(parts[:count], 1))


def _keywords(rng: random.Random, language: str) -> Rows:
    chinese = language == "zh"
    one, other = ("高山", "流水") if chinese else ("stone", "river")
    filler = _text(rng, language, 6).replace(one, "").replace(other, "")
    filler = filler if chinese else " ".join(w for w in filler.split() if w not in (one, other))
    gap = "，" if chinese else ", "
    both, without = {"rule": "includes", "words": [one, other]}, {"rule": "excludes", "words": [one, other]}
    twice = {"rule": "frequency", "word": one, "count": 2}
    yield "both", True, both, gap.join((filler, one, other))
    yield "other case", True, both, gap.join((filler, one.upper(), other.title()))
    yield "in marks", True, both, gap.join((f"**{one}**", filler, f"({other})"))
    yield "one missing", False, both, gap.join((filler, one))
    yield "none", True, without, filler
    yield "one there", False, without, gap.join((filler, other))
    yield "one there, in marks", False, without, gap.join((filler, f"“{other}”"))
    yield "as often", True, twice, gap.join((one, filler, one))
    yield "once", False, twice, gap.join((one, filler))
    if not chinese:
        yield "inside of a word", False, both, gap.join((filler, "stones", other))
        yield "inside of a word", True, without, gap.join((filler, "cobblestones"))


def _edges(rng: random.Random, language: str) -> Rows:
    chinese = language == "zh"
    begin, end = ("解：", "就是这样。") if chinese else ("Solution:", "That is all.")
    text = _text(rng, language, 8)
    starts, ends = {"rule": "starts", "text": begin}, {"rule": "ends", "text": end}
    for mutation, right, reply in (
        ("plain", True, f"{begin} {text}"),
        ("blank lines", True, f"\n\n{begin} {text}"),
        ("bold", True, f"**{begin}** {text}"),
        ("later", False, f"{text} {begin}"),
        ("missing", False, text),
    ):
        yield mutation, right, starts, reply
    for mutation, right, reply in (
        ("plain", True, f"{text} {end}"),
        ("blank lines", True, f"{text} {end}\n\n"),
        ("bold", True, f"{text} **{end}**"),
        ("quoted", True, f'"{text} {end}"'),
        ("more behind", False, f"{text} {end} {text}"),
        ("missing", False, text),
    ):
        yield mutation, right, ends, reply
    whole = {"rule": "quoted"}
    left, right_mark = ("“", "”") if chinese else ('"', '"')
    yield "plain", True, whole, f"{left}{text}{right_mark}"
    yield "two lines", True, whole, f"{left}{text}\n{text}{right_mark}"
    yield "a part", False, whole, f"{left}{text}{right_mark} {text}"
    yield "one mark", False, whole, f"{left}{text}"
    yield "quotation inside", True, whole, f"{left}{text} ‘{text}’{right_mark}"
    yield "two quotations", False, whole, f"{left}{text}{right_mark} {text} {left}{text}{right_mark}"
    for mutation, right, reply in (
        ("plain", True, f"《{text}》\n{text}" if chinese else f"<<{text}>>\n{text}"),
        ("inside", True, f"{text}《{text}》" if chinese else f"{text} <<{text}>>"),
        ("one mark", False, f"《{text}" if chinese else f"<<{text}"),
        ("empty", False, f"《》{text}" if chinese else f"<<>> {text}"),
        ("other marks", False, f"【{text}】" if chinese else f"<{text}>"),
    ):
        yield mutation, right, {"rule": "title"}, reply


def _json(rng: random.Random, language: str) -> Rows:
    first, second = ("名称", "数量") if language == "zh" else ("name", "count")
    value = {first: _text(rng, language, 3), second: rng.randint(1, 99)}
    plain = json.dumps(value, ensure_ascii=False)
    keys = {"rule": "json_keys", "keys": [first, second]}
    for rule in ({"rule": "json"}, keys):
        yield "plain", True, rule, plain
        yield "over lines", True, rule, json.dumps(value, indent=2)
        yield "fenced", True, rule, f"```json\n{plain}\n```"
        yield "trailing comma", False, rule, plain[:-1] + ",}"
        yield "single quotes", False, rule, str(value)
        yield "with words", False, rule, f"{_text(rng, language, 4)} {plain}"
        yield "torn", False, rule, plain[:-1]
    yield "list", True, {"rule": "json"}, f"[{plain}]"
    yield "number", False, {"rule": "json"}, str(value[second])
    yield "other order", True, keys, json.dumps(dict(reversed(value.items())))
    yield "one missing", False, keys, json.dumps({first: 1})
    yield "one more", False, keys, json.dumps({**value, "z": 1})
    yield "list", False, keys, f"[{plain}]"


def _characters(rng: random.Random, language: str) -> Rows:
    english, chinese = _text(rng, "en", 8), _text(rng, "zh", 12)
    commas = {"rule": "no_commas"}
    own = chinese if language == "zh" else english
    yield "plain", True, commas, own
    yield "semicolons", True, commas, f"{own}; {own}"
    yield "comma", False, commas, f"{own}, {own}"
    yield "full width", False, commas, f"{own}，{own}"
    yield "in a number", False, commas, f"{own} 1,000"
    for name, reply, other in (
        ("upper_case", english.upper(), "river"),
        ("lower_case", english, "River"),
    ):
        rule = {"rule": name}
        yield "plain", True, rule, reply
        yield "numbers", True, rule, f"{reply}: 12, 30!"
        yield "one letter", False, rule, f"{reply} {other}"
        yield "no letter", False, rule, "12 + 30 = 42"
    is_chinese, is_english = {"rule": "chinese"}, {"rule": "english"}
    yield "plain", True, is_chinese, f"{chinese}。"
    yield "a name", True, is_chinese, f"{chinese}，即DNA。"
    yield "other language", False, is_chinese, english
    yield "one word", False, is_chinese, f"{english} 山"
    yield "plain", True, is_english, f"{english}."
    yield "accents", True, is_english, f"{english} café."
    yield "other language", False, is_english, chinese
    yield "one word", False, is_english, f"{english} 山水."
