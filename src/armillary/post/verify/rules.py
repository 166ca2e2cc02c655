"""``rules``: checks the form of a reply by rules that a program can decide, as in IFEval (Zhou et al. 2023, table 1).

The parameter ``rules`` is a list of objects: ``rule`` names a rule below, the other fields are its parameters. A reply
is right if it follows all rules. ``all``: several checks at once (``checks``), for a question with checks of both
answer
and form: right if all are right, wrong if one is wrong, else unreadable.

Words are runs of letters and digits; each Chinese character is a word. Keywords ignore case.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from armillary.post.verify.registry import Task, Verdict, judge_task, register_verifier
from armillary.recipe import UsageError

_WORDS = re.compile(r"[\u3400-\u9fff]|\d+(?:[.,]\d+)+|[^\W_\u3400-\u9fff]+(?:['’-][^\W_\u3400-\u9fff]+)*")
# The points of decimals and common abbreviations end no sentence.
_NO_END = re.compile(r"(?<=\d)\.(?=\d)|\b(?:Mr|Mrs|Ms|Dr|Prof|vs|e\.g|i\.e)\.")
_SENTENCES = re.compile(r"[^.!?。！？\n]*\w[^.!?。！？\n]*[.!?。！？]*")
_BULLET = re.compile(r"^\s*(?:[-*•]\s+|\d+[.)]\s+|\d+、\s*|\d+\.(?=[\u3400-\u9fff]))\S", re.MULTILINE)
_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*)\n```\Z", re.DOTALL)

_COUNTS: dict[str, Callable[[str], int]] = {
    "words": lambda reply: len(_WORDS.findall(reply)),
    "characters": lambda reply: len("".join(reply.split())),
    "sentences": lambda reply: len(_SENTENCES.findall(_NO_END.sub("", reply))),
    "paragraphs": lambda reply: len([part for part in re.split(r"\n\s*\n", reply) if part.strip()]),
    "lines": lambda reply: len([line for line in reply.splitlines() if line.strip()]),
    "bullets": lambda reply: len(_BULLET.findall(reply)),
}


@register_verifier("rules", ("rules",))
def verify_rules(task: Task, reply: str) -> Verdict:
    """Judge the form of ``reply``."""
    rules = task.check.get("rules")
    if not isinstance(rules, list) or not rules:
        raise UsageError(f"check.rules: must be a non-empty list of rules, given {rules!r:.200}")
    broken = []
    for place, rule in enumerate(rules):
        try:
            rest = _kept(rule, reply.strip())
        except UsageError as error:
            raise UsageError(f"check.rules[{place}]: {error}") from None
        if not rest:
            broken.append(str(rule["rule"]))
    return Verdict("wrong" if broken else "right", None, f"breaks {', '.join(broken)}" if broken else "")


@register_verifier("all", ("checks",))
def verify_several(task: Task, reply: str) -> Verdict:
    """Judge by each of several checks."""
    checks = task.check.get("checks")
    if not isinstance(checks, list) or not checks or not all(isinstance(check, dict) for check in checks):
        raise UsageError(f"check.checks: must be a non-empty list of checks, given {checks!r:.200}")
    verdicts = [judge_task(replace(task, check=check), reply) for check in checks]
    for outcome in ("wrong", "unreadable"):
        for verdict in verdicts:
            if verdict.outcome == outcome:
                return verdict
    return next((verdict for verdict in verdicts if verdict.found is not None), verdicts[0])


def rule_names() -> tuple[str, ...]:
    """The names of all rules."""
    return (*_COUNTS, *_RULES)


def _kept(rule: Any, reply: str) -> bool:
    if not isinstance(rule, dict) or not isinstance(rule.get("rule"), str):
        raise UsageError(f'must be an object such as {{"rule": "words", "most": 50}}, given {rule!r:.200}')
    name, given = rule["rule"], {key: value for key, value in rule.items() if key != "rule"}
    if name in _COUNTS:
        return _within(given, _COUNTS[name](reply))
    if name not in _RULES:
        raise UsageError(f"no rule {name!r}; known are {', '.join(rule_names())}")
    parameters, decide = _RULES[name]
    if given.keys() != set(parameters):
        raise UsageError(
            f"the rule {name} has the parameters {', '.join(parameters) or 'none'}, given {', '.join(given) or 'none'}"
        )
    for parameter, kind in parameters.items():
        value = given[parameter]
        if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, str) and not value):
            raise UsageError(f"{parameter}: must be {kind.__name__}, given {value!r:.200}")
        if isinstance(value, list) and not all(isinstance(one, str) and one for one in value):
            raise UsageError(f"{parameter}: must be a list of texts, given {value!r:.200}")
    return decide(reply, given)


def _within(given: Mapping[str, Any], count: int) -> bool:
    if not given or given.keys() - {"least", "most"}:
        raise UsageError(f"a count has the parameters least, most or both, given {', '.join(given) or 'none'}")
    for name, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise UsageError(f"{name}: must be a whole number, given {value!r}")
    least, most = given.get("least", 0), given.get("most")
    return bool(count >= least and (most is None or count <= most))


def _occurrences(reply: str, word: str) -> int:
    """How often a word, or a Chinese text, occurs in ``reply``."""
    edges = (r"(?<!\w)", r"(?!\w)") if re.fullmatch(r"[\x00-\x7f]+", word) else ("", "")
    return len(re.findall(f"{edges[0]}{re.escape(word)}{edges[1]}", reply, re.IGNORECASE))


def _json(reply: str) -> Any:
    fenced = _FENCE.match(reply)
    try:
        return json.loads(fenced[1] if fenced else reply)
    except (ValueError, RecursionError):
        return None


def _letters(reply: str) -> str:
    return "".join(character for character in reply if character.isalpha())


def _chinese_share(reply: str) -> float:
    letters = _letters(reply)
    return sum("\u3400" <= letter <= "\u9fff" for letter in letters) / len(letters) if letters else 0.0


# Per rule: its parameters with their types, and the test of a reply.
_RULES: dict[str, tuple[dict[str, type], Callable[[str, Mapping[str, Any]], bool]]] = {
    "includes": ({"words": list}, lambda reply, given: all(_occurrences(reply, word) for word in given["words"])),
    "excludes": ({"words": list}, lambda reply, given: not any(_occurrences(reply, word) for word in given["words"])),
    "frequency": (
        {"word": str, "count": int},
        lambda reply, given: bool(_occurrences(reply, given["word"]) >= given["count"]),
    ),
    "starts": ({"text": str}, lambda reply, given: reply.lstrip("\"'“‘* ").startswith(given["text"])),
    "ends": ({"text": str}, lambda reply, given: reply.rstrip("\"'”’* ").endswith(given["text"])),
    "json": ({}, lambda reply, given: isinstance(_json(reply), dict | list)),
    "json_keys": (
        {"keys": list},
        lambda reply, given: isinstance(found := _json(reply), dict) and found.keys() == set(given["keys"]),
    ),
    "no_commas": ({}, lambda reply, given: not re.search("[,，]", reply)),
    "upper_case": ({}, lambda reply, given: bool(_letters(reply)) and reply == reply.upper()),
    "lower_case": ({}, lambda reply, given: bool(_letters(reply)) and reply == reply.lower()),
    "title": ({}, lambda reply, given: bool(re.search(r"<<[^<>\n]+>>|《[^《》\n]+》", reply))),
    "quoted": ({}, lambda reply, given: bool(re.fullmatch(r"\"[^\"]+\"|“[^“”]+”", reply))),
    "chinese": ({}, lambda reply, given: _chinese_share(reply) > 0.5),
    "english": ({}, lambda reply, given: bool(_letters(reply)) and _chinese_share(reply) == 0),
}
