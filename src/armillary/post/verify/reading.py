"""Finds the final answer in a reply, in Chinese and English: boxed, announced, or the whole reply.

A value mentioned along the way is not an answer. A reply that retracts its answer, or gives two, has no answer.
"""

from __future__ import annotations

import re

_ANCHOR = re.compile(
    r"(?:\b(?:final|correct)\s+)?\b(?:answer|result)"
    r"(?:\s+to\s+[^.\n:：]{1,60})?(?:\s+(?:is|are|would\s+be|equals)\b|\s*[:：=])[:：]?"
    r"|####"
    r"|(?:最终|最后|正确)?(?:的)?(?:答案|结果)\s*(?:应该是|应为|就是|等于|是|为|[:：=])[:：]?"
    r"|(?:^|(?<=[\n。！？.!?]))\s*(?:答|解答)\s*[:：]",
    re.IGNORECASE | re.MULTILINE,
)
_CONCLUSION = re.compile(
    r"^(?:so|therefore|thus|hence|in total|altogether|in conclusion|所以|因此|因而|故|综上|综上所述|总之|总共|一共|∴)"
    r"(?![a-z])[\s,，:：]*",
    re.IGNORECASE,
)
_NOT_GIVEN = re.compile(
    r"^\W*(?:not\b|不(?!等式)|unknown\b|unclear\b|未知|不确定|none of\b)|\b(?:is|are) not\b|n't\b|不是"
    r"|\b(?:maybe|perhaps|possibly|probably|might be|could be|not sure|don't know|cannot be determined)\b"
    r"|\b(?:at least|at most|(?:more|less|fewer|greater) than|between)\b"
    r"|至少|至多|最多是|超过|不到|多于|少于|大于|小于|之间"
    r"|也许|可能|大概是|不知道|无法确定|不确定",
    re.IGNORECASE,
)
# Behind the last announced answer.
_TAKEN_BACK = re.compile(
    r"\bwait\b|\b(?:that|this) (?:is|was) (?:wrong|incorrect|a mistake)\b|等等[，,。]|等一下|算错了|不对[，,。！]",
    re.IGNORECASE,
)
_ALTERNATIVE = re.compile(r"\bor\b|\beither\b|或者|或|还是", re.IGNORECASE)
# Reasons follow these words, with numbers and names that are not the answer.
_REASON = re.compile(r"[,，\s]*(?:\b(?:because|since)\b|因为|由于)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[。！!\n；;？?]|\.(?=\s|$|[*_`$\"')\]])|(?<=[^\d\s])\.(?=[A-Z])")
# In characters. A longer phrase is not an answer, and reading it could take minutes.
_LONGEST = 2000
# A reply that consists only of its answer, and a last line that is only a value or a word.
_BARE = 120
_VALUE = re.compile(r"\W*(?:[A-Z]|[-−]?\s*[$¥￥]?\s*\d[\d,./:]*\s*%?\s*[^\W\d]{0,12}|[^\W_]{1,16})\W*")


def final_answer(reply: str) -> str | None:
    """The phrase with the final answer; None if the reply has none.

    The last of several announced answers counts. Without an announcement, the answer is the whole reply if it is one
    short line, the last line if it is one value, or the last sentence if it begins with a word such as "so" or 所以.
    """
    reply = reply.strip()
    found = max(_boxed(reply), _announced(reply), key=lambda one: one[0])
    if found[0] >= 0:
        phrase = found[1]
        if _TAKEN_BACK.search(reply, found[0] + len(phrase)):
            return None
    elif len(reply) <= _BARE and "\n" not in reply and len(_sentences(reply)) == 1:
        phrase = _CONCLUSION.sub("", reply)
    else:
        last = (_sentences(reply) or [""])[-1]
        line = reply.rpartition("\n")[2]
        if not _CONCLUSION.match(last) and _VALUE.fullmatch(line):
            last = f"so {line}"
        if not _CONCLUSION.match(last):
            return None
        phrase = _CONCLUSION.sub("", last)
    phrase = _REASON.split(phrase, maxsplit=1)[0].strip().strip("*_` \t").strip()
    return None if not phrase or len(phrase) > _LONGEST or _NOT_GIVEN.search(phrase) else phrase


def announced_rest(reply: str) -> str | None:
    """The text behind the last "the answer is", up to the end of the reply; None without an announcement."""
    *_, last = [None, *_ANCHOR.finditer(reply)]
    return None if last is None else reply[last.end() :].strip().strip("*`").strip()


def gives_two(phrase: str) -> bool:
    """Whether a phrase leaves a choice, as in "5 or 6"."""
    return _ALTERNATIVE.search(phrase) is not None


def _boxed(reply: str) -> tuple[int, str]:
    """Position and content of the last ``\\boxed{}``; the position is -1 without one."""
    start = max(reply.rfind("\\boxed{"), reply.rfind("\\fbox{"))
    if start < 0:
        return -1, ""
    begin = reply.index("{", start)
    depth = 0
    for place in range(begin, len(reply)):
        depth += {"{": 1, "}": -1}.get(reply[place], 0)
        if depth == 0:
            return start, reply[begin + 1 : place]
    return start, ""  # torn: there is an answer, but it cannot be read


def _announced(reply: str) -> tuple[int, str]:
    """Position and phrase after the last "the answer is"; the position is -1 without one."""
    anchors = list(_ANCHOR.finditer(reply))
    for match in reversed(anchors):
        rest = reply[match.end() :].lstrip(" \t*_")
        if not rest.strip():
            continue
        rest = rest.lstrip("\n ")
        end = _SENTENCE_END.search(rest)
        phrase = rest[: end.start()] if end else rest
        if phrase.strip():
            # "The answer is \boxed{5}" counts as the box.
            boxed = _boxed(phrase)
            return (match.start(), boxed[1]) if boxed[0] >= 0 else (match.start(), phrase)
    return -1, ""


def _sentences(text: str) -> list[str]:
    return [part.strip() for part in _SENTENCE_END.split(text) if part and part.strip()]
