"""Small Python functions on lists of numbers, with tests."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from armillary.post.problems.family import Family, Language, Problem, register_family
from armillary.post.problems.wording import fill

_LISTS: tuple[list[int], ...] = (
    [3, 1, 2],
    [5],
    [4, 4, 7, 1, 7],
    [-2, 0, 9, 6, -8, 3],
    [10, 20, 30, 40],
    [1, 2, 3, 4, 5, 6, 7, 8, 12, 15],
)
_TASKS: dict[str, tuple[int, str, dict[str, str], str]] = {
    "total": (
        1,
        "return sum(numbers)",
        {"en": "returns the sum of the numbers", "zh": "返回所有数的和"},
        r"sum of (?:all )?(?:the )?numbers|adds up|所有数的(?:和|总和)",
    ),
    "largest": (
        1,
        "return max(numbers)",
        {"en": "returns the largest number", "zh": "返回最大的数"},
        r"\b(?:largest|maximum|biggest)\b|最大的?数|最大值",
    ),
    "smallest": (
        1,
        "return min(numbers)",
        {"en": "returns the smallest number", "zh": "返回最小的数"},
        r"\b(?:smallest|minimum)\b|最小的?数|最小值",
    ),
    "ascending": (
        1,
        "return sorted(numbers)",
        {"en": "returns the numbers in ascending order as a list", "zh": "返回从小到大排好序的列表"},
        r"ascending|increasing order|从小到大|升序",
    ),
    "evens": (
        2,
        "return [one for one in numbers if one % 2 == 0]",
        {"en": "returns a list of the even numbers in their order", "zh": "按原来的顺序返回所有偶数组成的列表"},
        r"\beven\b|偶数",
    ),
    "above": (
        2,
        "return sum(one > {k} for one in numbers)",
        {"en": "returns how many numbers are greater than {k}", "zh": "返回大于{k}的数的个数"},
        r"(?:greater|larger|more) than \d+|大于\s*\d+",
    ),
    "multiples": (
        2,
        "return [one for one in numbers if one % {k} == 0]",
        {
            "en": "returns a list of the multiples of {k} in their order",
            "zh": "按原来的顺序返回所有{k}的倍数组成的列表",
        },
        r"multiples of \d+|divisible by \d+|\d+\s*的倍数",
    ),
    "squares": (
        2,
        "return [one * one for one in numbers]",
        {"en": "returns a list of the squares of the numbers", "zh": "返回由每个数的平方组成的列表"},
        r"squares?\b|平方",
    ),
    "unique": (
        3,
        "return list(dict.fromkeys(numbers))",
        {
            "en": "returns a list without repeated numbers, each where it first occurs",
            "zh": "返回去掉重复的数之后的列表，保留第一次出现的位置",
        },
        r"without (?:repeated|duplicate)|(?:removes?|drops?) (?:repeated|duplicate)|重复",
    ),
    "running": (
        3,
        "return [sum(numbers[: place + 1]) for place in range(len(numbers))]",
        {
            "en": "returns the list of running sums, each being the sum of all numbers up to that place",
            "zh": "返回前缀和列表，每个元素是到该位置为止所有数的和",
        },
        r"running sums?|prefix sums?|cumulative|前缀和",
    ),
    "scaled": (
        3,
        "return [one * {k} + 1 for one in numbers]",
        {
            "en": "returns a list in which each number is multiplied by {k} and then increased by 1",
            "zh": "返回每个数先乘以{k}再加1所得的列表",
        },
        r"multiplied by \d+[^.]*(?:increased by 1|plus 1|add(?:ed|ing)? 1)|乘以\s*\d+\s*再加\s*1",
    ),
}
_ASK = {
    "en": (
        "Write a Python function {entry}(numbers) that {what}.",
        "Define a Python function named {entry}(numbers) that {what}.",
    ),
    "zh": ("请写一个Python函数{entry}(numbers)，{what}。", "编写Python函数{entry}(numbers)，要求：{what}。"),
}


def _tests(entry: str, compute: Callable[[list[int]], object]) -> str:
    return "\n".join(f"assert {entry}({numbers!r}) == {compute(list(numbers))!r}" for numbers in _LISTS)


def make(rng: random.Random, level: int, language: Language) -> Problem:
    """A task of the level."""
    task = rng.choice([name for name, (at, *_) in _TASKS.items() if at == level])
    entry = rng.choice(("solve", "f", "task", "select", "process", "answer", "compute", "run"))
    k = rng.randint(2, 9)
    _, body, wording, _ = _TASKS[task]
    program = f"def {entry}(numbers):\n    {body.format(k=k) if '{k}' in body else body}"
    scope: dict[str, Callable[[list[int]], object]] = {}
    exec(program, scope)  # this file's own program
    text = fill(rng, _ASK[language], entry=entry, what=wording[language].format(k=k))
    check = {"kind": "code", "entry": entry, "tests": _tests(entry, scope[entry])}
    return Problem(text, "", check, (), [task, entry, k if "{k}" in body else 0], program)


def _again(task: str, k: int) -> Callable[[list[int]], object]:
    """Each task by loops."""

    def ascending(numbers: list[int]) -> list[int]:
        done: list[int] = []
        for number in numbers:
            place = sum(other <= number for other in done)
            done.insert(place, number)
        return done

    def unique(numbers: list[int]) -> list[int]:
        return [number for place, number in enumerate(numbers) if number not in numbers[:place]]

    def running(numbers: list[int]) -> list[int]:
        total, found = 0, []
        for number in numbers:
            total += number
            found.append(total)
        return found

    known: dict[str, Callable[[list[int]], object]] = {
        "total": lambda numbers: running(numbers)[-1],
        "largest": lambda numbers: ascending(numbers)[-1],
        "smallest": lambda numbers: ascending(numbers)[0],
        "ascending": ascending,
        "evens": lambda numbers: [number for number in numbers if not number & 1],
        "above": lambda numbers: len([number for number in numbers if number > k]),
        "multiples": lambda numbers: [number for number in numbers if number // k * k == number],
        "squares": lambda numbers: [number**2 for number in numbers],
        "unique": unique,
        "running": running,
        "scaled": lambda numbers: [1 + k * number for number in numbers],
    }
    return known[task]


def read(text: str) -> str | None:
    """The tests again, from the words that name the task."""
    entry = set(re.findall(r"(?<![a-z_])([a-z_]+)\(numbers\)", text))
    named = [name for name, (*_, shape) in _TASKS.items() if re.search(shape, text, re.IGNORECASE)]
    if "running" in named and "total" in named:
        named.remove("total")
    digits = [int(number) for number in re.findall(r"(?<![a-z])\d+", text)]
    wanted = {"above": 1, "multiples": 1, "scaled": 2}
    if len(entry) != 1 or len(named) != 1 or len(digits) != wanted.get(named[0], 0):
        return None
    return _tests(entry.pop(), _again(named[0], digits[0] if digits else 0))


register_family(Family("listcode", "code", make, read))
