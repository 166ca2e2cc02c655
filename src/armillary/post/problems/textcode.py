"""Small Python functions on texts, with tests."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from armillary.post.problems.family import Family, Language, Problem, register_family
from armillary.post.problems.wording import fill

_WORDS = (
    "banana",
    "Hello World",
    "level",
    "a b c",
    "Mississippi",
    "",
    "x",
    "Data Science",
    "noon",
    "abcABC",
    "tree house",
)
# Of each task: level, program with a parameter, wording, and words by which a text names it.
_TASKS: dict[str, tuple[int, str, dict[str, str], str]] = {
    "reverse": (
        1,
        "return text[::-1]",
        {"en": "returns the text reversed", "zh": "返回倒序的文本"},
        r"revers|backwards|倒序|反转|颠倒",
    ),
    "upper": (
        1,
        "return text.upper()",
        {"en": "returns the text in upper case", "zh": "返回全部大写的文本"},
        r"upper ?case|uppercase|capital letters|大写",
    ),
    "length": (
        1,
        "return len(text)",
        {"en": "returns the number of characters in the text", "zh": "返回文本的字符个数"},
        r"(?:number|count) of characters|how many characters|字符(?:个数|数量|的数量|数)",
    ),
    "words": (
        1,
        "return len(text.split())",
        {"en": "returns the number of words in the text", "zh": "返回文本中单词的个数"},
        r"(?:number|count) of words|how many words|单词(?:的)?(?:个数|数量)",
    ),
    "vowels": (
        2,
        'return sum(letter in "aeiou" for letter in text.lower())',
        {
            "en": "returns the number of vowels (a, e, i, o, u, in either case) in the text",
            "zh": "返回文本中元音字母(a、e、i、o、u，不分大小写)的个数",
        },
        r"vowels|元音",
    ),
    "palindrome": (
        2,
        "return text == text[::-1]",
        {
            "en": "returns True if the text reads the same in both directions, and False otherwise",
            "zh": "判断文本正读和反读是否相同，返回True或False",
        },
        r"same (?:in both directions|forwards|backwards)|palindrome|正读|(?<!返)回文",
    ),
    "count": (
        2,
        'return text.count("{p}")',
        {"en": 'returns how many times the letter "{p}" occurs in the text', "zh": "返回字母“{p}”在文本中出现的次数"},
        r"how (?:many times|often) the (?:letter|character)|(?:number of times|occurrences)[^.]*(?:letter|character)"
        "|出现的次数|出现了几次",
    ),
    "remove": (
        2,
        'return text.replace("{p}", "")',
        {"en": 'returns the text without the letter "{p}"', "zh": "返回去掉所有字母“{p}”之后的文本"},
        r"without the letter|remov\w+ (?:all|every|the)|去掉|删除|移除",
    ),
    "repeat": (
        3,
        "return text * {k}",
        {"en": "returns the text repeated {k} times", "zh": "返回重复{k}次的文本"},
        r"repeat|重复",
    ),
    "every": (
        3,
        "return text[::{k}]",
        {
            "en": "returns every {k}-th character of the text, beginning with the first",
            "zh": "从第一个字符开始，每隔{k}个位置取一个字符，返回所得文本(步长为{k})",
        },
        r"every \d|步长",
    ),
    "longest": (
        3,
        "return max(text.split(), key=len, default='')",
        {
            "en": "returns the longest word of the text (the first one if several are equally long, and an empty text "
            "if there is none)",
            "zh": "返回文本中最长的单词(一样长时取第一个，没有单词时返回空文本)",
        },
        r"longest word|最长的单词",
    ),
}
_ASK = {
    "en": (
        "Write a Python function {entry}(text) that {what}.",
        "Define a Python function named {entry}(text) that {what}.",
    ),
    "zh": ("请写一个Python函数{entry}(text)，{what}。", "编写Python函数{entry}(text)，要求：{what}。"),
}


def _tests(entry: str, compute: Callable[[str], object]) -> str:
    return "\n".join(f"assert {entry}({word!r}) == {compute(word)!r}" for word in _WORDS)


def make(rng: random.Random, level: int, language: Language) -> Problem:
    """A task of the level."""
    task = rng.choice([name for name, (at, *_) in _TASKS.items() if at == level])
    entry = rng.choice(("solve", "f", "task", "convert", "process", "answer", "compute", "run"))
    p, k = rng.choice("abeilnos"), rng.randint(2, 6)
    _, body, wording, _ = _TASKS[task]
    what = wording[language].format(p=p, k=k)
    program = f"def {entry}(text):\n    {body.format(p=p, k=k) if '{' in body else body}"
    scope: dict[str, Callable[[str], object]] = {}
    exec(program, scope)  # this file's own program
    text = fill(rng, _ASK[language], entry=entry, what=what)
    check = {"kind": "code", "entry": entry, "tests": _tests(entry, scope[entry])}
    parameters = [task, entry, p if "{p}" in body else "", k if "{k}" in body else 0]
    return Problem(text, "", check, (), parameters, program)


def _again(task: str, p: str, k: int) -> Callable[[str], object]:
    """Each task by loops over characters."""

    def every(text: str) -> str:
        return "".join(letter for place, letter in enumerate(text) if place % k == 0)

    def longest(text: str) -> str:
        best = ""
        for word in text.split():
            best = word if len(word) > len(best) else best
        return best

    known: dict[str, Callable[[str], object]] = {
        "reverse": lambda text: "".join(reversed(text)),
        "upper": lambda text: "".join(chr(ord(one) - 32) if "a" <= one <= "z" else one for one in text),
        "length": lambda text: sum(1 for _ in text),
        "words": lambda text: len(re.findall(r"\S+", text)),
        "vowels": lambda text: len(re.findall("[aeiouAEIOU]", text)),
        "palindrome": lambda text: all(text[place] == text[-1 - place] for place in range(len(text) // 2)),
        "count": lambda text: len(re.findall(p, text)),
        "remove": lambda text: "".join(one for one in text if one != p),
        "repeat": lambda text: "".join(text for _ in range(k)),
        "every": every,
        "longest": longest,
    }
    return known[task]


def read(text: str) -> str | None:
    """The tests again, from the words that name the task."""
    entry = re.findall(r"(?<![a-z_])([a-z_]+)\(text\)", text)
    named = [name for name, (*_, shape) in _TASKS.items() if re.search(shape, text, re.IGNORECASE)]
    # "every 3rd" may be said with "repeat", and a palindrome with "backwards".
    for stronger, weaker in (("palindrome", "reverse"), ("every", "repeat"), ("vowels", "upper")):
        if stronger in named and weaker in named:
            named.remove(weaker)
    letter = re.findall(r"[\"'“‘`]([a-zA-Z])[\"'”’`]", text)
    number = sorted(set(re.findall(r"(?<![a-z])\d+", text)))
    if len(set(entry)) != 1 or len(named) != 1 or (named[0] in ("count", "remove")) != (len(set(letter)) == 1):
        return None
    if (named[0] in ("repeat", "every")) != (len(number) == 1):
        return None
    return _tests(entry[0], _again(named[0], letter[0] if letter else "", int(number[0]) if number else 0))


register_family(Family("textcode", "code", make, read))
