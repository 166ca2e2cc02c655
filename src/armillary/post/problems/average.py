"""Mean and median of a few numbers, and the number that is missing for a mean."""

from __future__ import annotations

import random
import re
import statistics
from fractions import Fraction

from armillary.post.problems.family import Family, Language, Problem, register_family
from armillary.post.problems.wording import fill, written

_MEAN = {
    "en": (
        "What is the average of {terms}?",
        "Find the mean of the numbers {terms}.",
        "Compute the average of these numbers: {terms}.",
    ),
    "zh": ("{terms}的平均数是多少？", "求{terms}这几个数的平均数。", "计算下列各数的平均数：{terms}。"),
}
_MEDIAN = {
    "en": ("What is the median of {terms}?", "Find the median of the numbers {terms}."),
    "zh": ("{terms}的中位数是多少？", "求{terms}这几个数的中位数。"),
}
_MISSING = {
    "en": ("The average of {n} numbers is {mean}. All but one of them are {terms}. What is the missing number?",),
    "zh": ("{n}个数的平均数是{mean}，其中除一个以外分别是{terms}。缺少的那个数是多少？",),
}


def _listed(terms: list[int], language: Language) -> str:
    return ("，" if language == "zh" else ", ").join(map(str, terms))


def make(rng: random.Random, level: int, language: Language) -> Problem:
    """Level 1 asks for a whole mean of three or four, 2 for a median of five to seven, 3 for a missing number."""
    if level == 2:
        terms = [rng.randint(1, 60) for _ in range(rng.choice((5, 6, 7)))]
        row = sorted(terms)
        half = len(row) // 2
        answer = Fraction(row[half] + row[-half - 1], 2)
        steps = [", ".join(map(str, row))]
        if len(row) % 2 == 0:
            steps.append(f"({row[half - 1]} + {row[half]}) ÷ 2 = {written(answer)}")
        shown, text = terms, fill(rng, _MEDIAN[language], terms=_listed(terms, language))
    else:
        count = rng.randint(3, 4) if level == 1 else rng.randint(4, 5)
        mean = rng.randint(5, 30 * level)
        terms = [mean + rng.randint(-4, 4) for _ in range(count - 1)]
        terms.append(count * mean - sum(terms))
        total, rest = count * mean, sum(terms[:-1])
        if level == 1:
            shown, answer, text = terms, Fraction(mean), fill(rng, _MEAN[language], terms=_listed(terms, language))
            steps = [" + ".join(map(str, terms)) + f" = {total}", f"{total} ÷ {count} = {mean}"]
        else:
            shown, answer = terms[:-1], Fraction(terms[-1])
            text = fill(rng, _MISSING[language], terms=_listed(shown, language), n=count, mean=mean)
            steps = [
                f"{count} × {mean} = {total}",
                " + ".join(map(str, shown)) + f" = {rest}",
                f"{total} - {rest} = {terms[-1]}",
            ]
    return Problem(text, written(answer), {"kind": "math"}, tuple(steps), [terms, level])


def read(text: str) -> str | None:
    """By the library's statistics; what is missing makes the sum of differences from the mean zero."""
    runs = re.findall(r"-?\d+(?:\s*(?:[,，、]|,? and|和)\s*-?\d+)+", text)
    if len(runs) != 1:
        return None
    terms = [int(term) for term in re.findall(r"-?\d+", runs[0])]
    outside = [int(number) for number in re.findall(r"\d+", text.replace(runs[0], " "))]
    if re.search(r"missing|缺少|remaining number|last number", text, re.I):
        found = re.search(
            r"(?:average|mean) of (?:the )?(\d+) numbers is (\d+)|(\d+)个数的平均数(?:是|为)(\d+)", text, re.I
        )
        if found is None or len(outside) != 2:
            return None
        count, mean = (int(one) for one in found.groups() if one)
        return str(mean - sum(term - mean for term in terms)) if count == len(terms) + 1 else None
    median, mean_word = re.search(r"median|中位数", text, re.I), re.search(r"average|\bmean\b|平均", text, re.I)
    if outside or bool(median) == bool(mean_word):
        return None
    exact = [Fraction(term) for term in terms]
    return written(statistics.median(exact) if median else statistics.mean(exact))


register_family(Family("average", "math", make, read))
