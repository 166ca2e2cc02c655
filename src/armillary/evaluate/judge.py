"""A model as the judge of answers to open questions: in pairs, or one at a time.

- **Pairwise** (MT-bench, Zheng et al. 2023, arXiv 2306.05685): each pair is shown in both orders. A model wins a
  question only if it wins in both; anything else is a tie.
- **Single** (AlignBench, Liu et al. 2023, arXiv 2311.18743): a grade from 1 to 10, next to the reference answer if the
  question has one.

The result also reports how often the order alone decides (position bias), how often the judge agrees with itself on
a repeated prompt, and how many verdicts cannot be read. Unreadable verdicts are not dropped: the lower end of the
interval counts all of them as losses, the upper end counts all of them as wins.

Not covered: a judge that prefers its own answers or long ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from armillary.evaluate.asking import Asker
from armillary.evaluate.contests.rows import Row, read_rows
from armillary.evaluate.intervals import Interval, mean_interval
from armillary.generate import Message, Request, Sampling
from armillary.recipe import LANGUAGES, UsageError, write_sealed

LOWEST, HIGHEST = 1, 10

_PAIRWISE = {
    "en": (
        "Act as an impartial judge of two answers to a user's question. Consider helpfulness, relevance, accuracy, "
        "depth and detail. Do not let the order of the answers or their length influence you. Explain your comparison "
        'shortly, then end with your verdict in exactly this form: "[[A]]" if answer A is better, "[[B]]" if answer B '
        'is better, "[[C]]" for a tie.'
    ),
    "zh": (
        "请作为公正的评委，比较两个回答哪个更好。考虑是否有帮助、是否切题、是否准确、是否深入详细。"
        "不要受回答的先后次序和长短影响。先简要说明理由，最后严格按此格式给出结论："
        "回答A更好写“[[A]]”，回答B更好写“[[B]]”，不分上下写“[[C]]”。"
    ),
}
_SINGLE = {
    "en": (
        "Act as an impartial judge of an answer to a user's question. Consider helpfulness, relevance, accuracy, "
        "depth and detail, and compare with the reference answer where there is one. Explain shortly, then end with a "
        'grade from 1 to 10 in exactly this form: "[[5]]".'
    ),
    "zh": (
        "请作为公正的评委，给下面的回答打分。考虑是否准确、是否满足用户需求、是否清晰完整；有参考答案时与之比较。"
        "先简要说明理由，最后严格按此格式给出1到10的分数：“[[5]]”。"
    ),
}
_LABELS = {
    "en": {"question": "Question", "reference": "Reference answer", "answer": "Answer"},
    "zh": {"question": "问题", "reference": "参考答案", "answer": "回答"},
}
_VERDICT = re.compile(r"\[\[\s*([ABC])\s*\]\]")
_GRADE = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*(?:/\s*10)?\s*\]\]")


@dataclass(frozen=True)
class Question:
    """An open question, with or without a reference answer."""

    id: str
    text: str
    reference: str | None = None


@dataclass(frozen=True)
class JudgeOptions:
    """How the judge is prompted.

    Attributes:
        language: language of the instruction.
        repeats: verdicts per prompt. From 2 on, they are sampled at ``temperature``, and the judge's agreement with
            itself is reported.
        max_new_tokens: token limit of explanation and verdict together.
    """

    language: str = "en"
    repeats: int = 1
    temperature: float = 0.7
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        if self.language not in LANGUAGES:
            raise UsageError(
                f"language {self.language!r}: the judge's instruction is available in {' or '.join(LANGUAGES)}"
            )
        if self.repeats < 1:
            raise UsageError(f"repeats must be 1 or more, given {self.repeats}")

    @property
    def sampling(self) -> Sampling:
        """Greedy for one verdict, sampled for several."""
        temperature = self.temperature if self.repeats > 1 else 0.0
        return Sampling(max_new_tokens=self.max_new_tokens, temperature=temperature, n=self.repeats)


@dataclass(frozen=True)
class Judgement:
    """The verdicts or grades for one question in the order of the requests, None where unreadable.

    Attributes:
        verdicts: when judging single answers, the grades. When judging pairs, "A", "B" or "C" as printed: first the
            verdicts with the first model as answer A, then those with the answers swapped.
        score: grade, or 1, 0.5 or 0 for the first model; None without a readable verdict.
        outputs: raw outputs of the judge.
    """

    id: str
    verdicts: tuple[tuple[str | float | None, ...], ...]
    score: float | None
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """The judge's result over all questions.

    Attributes:
        score: mean grade (1 to 10), or the share of questions that the first model wins, ties counted half. None
            without a readable verdict.
        position_bias: pairwise: share of verdicts for the answer shown first minus that for the one shown second.
        consistent: pairwise: share of questions with the same verdict in both orders.
        self_agreement: share of equal verdicts among repeats of one prompt; an unread verdict never agrees. None
            without repeats.
        unread: share of unreadable verdicts.
        n: number of questions.
    """

    kind: str
    score: Interval | None
    position_bias: Interval | None
    consistent: Interval | None
    self_agreement: Interval | None
    unread: float
    n: int
    prompt_tokens: int
    new_tokens: int
    judgements: tuple[Judgement, ...]

    @property
    def intervals(self) -> dict[str, Interval | None]:
        """Each figure with its interval, by name; figures of the other kind of judging are left out."""
        names = ("score", "position_bias", "consistent", "self_agreement")
        pairwise = self.kind == "pairwise"
        return {name: getattr(self, name) for name in names if pairwise or name in ("score", "self_agreement")}

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def write_verdict(path: Path, verdict: Verdict) -> None:
    """Write the verdict and all judgements as a sealed file."""
    write_sealed(path, {"format": 1, **verdict.to_json()})


def read_questions(path: Path) -> list[Question]:
    """Questions from lines of JSON with ``id``, ``question`` and, optionally, ``reference``.

    Raises:
        UsageError: with file, line and field of what is wrong.
    """
    found: dict[str, Question] = {}

    def use(row: Row) -> None:
        name = row.text("id")
        if name in found:
            raise row.wrong("id", f"{name} appears twice")
        reference = row.text("reference") if row.data.get("reference") is not None else None
        found[name] = Question(name, row.text("question"), reference)

    read_rows(path, use)
    return list(found.values())


def read_answers(path: Path, questions: Sequence[Question]) -> dict[str, str]:
    """Answers from lines of JSON with ``id`` and ``answer``; each question needs an answer, which may be empty.

    Raises:
        UsageError: a wrong line, named by file, line and field; or questions without an answer.
    """
    known = {question.id for question in questions}
    found: dict[str, str] = {}

    def use(row: Row) -> None:
        name, answer = row.text("id"), row.value("answer")
        if name not in known:
            raise row.wrong("id", f"{name} is not among the {len(known)} questions")
        if name in found:
            raise row.wrong("id", f"{name} appears twice")
        if not isinstance(answer, str):
            raise row.wrong("answer", f"must be text, given {answer!r}")
        found[name] = answer

    read_rows(path, use)
    lacking = [question.id for question in questions if question.id not in found]
    if lacking:
        raise UsageError(f"{path}: {len(lacking)} questions have no answer ({', '.join(lacking[:3])}…)")
    return found


def judge_single(
    questions: Sequence[Question], answers: Mapping[str, str], asker: Asker, options: JudgeOptions
) -> Verdict:
    """Grade each answer from 1 to 10.

    Raises:
        UsageError: no questions, or a prompt that is longer than the context of the judge.
    """
    prompts = [_prompt(_SINGLE, question, [("", answers[question.id])], options) for question in questions]
    texts, tokens = _asked(prompts, asker, options)
    judgements = []
    ends: list[list[float]] = [[], []]
    for question, outputs in zip(questions, texts, strict=True):
        grades = tuple(_grade(text) for text in outputs)
        judgements.append(Judgement(question.id, (grades,), _mean_of_read(grades), tuple(outputs)))
        for end, worst in zip(ends, (LOWEST, HIGHEST), strict=True):
            end.append(sum(worst if grade is None else grade for grade in grades) / len(grades))
    value = _mean_of_read([one.score for one in judgements])
    score = None
    if value is not None:
        low, high = (mean_interval(end, bounds=(LOWEST, HIGHEST)) for end in ends)
        score = Interval(value, min(value, low.low), max(value, high.high))
    return _verdict("single", score, None, judgements, tokens)


def judge_pairs(
    questions: Sequence[Question],
    answers: tuple[Mapping[str, str], Mapping[str, str]],
    asker: Asker,
    options: JudgeOptions,
) -> Verdict:
    """Compare two models' answers to each question, in both orders.

    Raises:
        UsageError: no questions, or a prompt that is longer than the context of the judge.
    """
    first, second = answers
    prompts = []
    for question in questions:
        mine, other = first[question.id], second[question.id]
        prompts += [
            _prompt(_PAIRWISE, question, [(" A", one), (" B", two)], options)
            for one, two in ((mine, other), (other, mine))
        ]
    texts, tokens = _asked(prompts, asker, options)
    judgements = []
    ends: list[list[float]] = [[], []]
    bias, consistent = [], []
    for place, question in enumerate(questions):
        orders = texts[2 * place], texts[2 * place + 1]
        verdicts = tuple(tuple(_winner(text) for text in outputs) for outputs in orders)
        pairs = list(zip(*verdicts, strict=True))
        scores = [_pair_score(one, two) for one, two in pairs]
        outputs = tuple(text for part in orders for text in part)
        judgements.append(Judgement(question.id, verdicts, _mean_of_read(scores), outputs))
        for end, worst in zip(ends, (0.0, 1.0), strict=True):
            end.append(sum(worst if score is None else score for score in scores) / len(scores))
        every = [verdict for part in verdicts for verdict in part]
        bias.append((every.count("A") - every.count("B")) / len(every))
        consistent.append(sum((one, two) in _SAME for one, two in pairs) / len(pairs))
    score = None
    if any(one.score is not None for one in judgements):
        low, high = (mean_interval(end) for end in ends)
        value = sum(0.5 if one.score is None else one.score for one in judgements) / len(judgements)
        score = Interval(value, min(value, low.low), max(value, high.high))
    order = mean_interval(bias, bounds=(-1, 1)), mean_interval(consistent)
    return _verdict("pairwise", score, order, judgements, tokens)


# The same verdict on two answers, before and after the swap.
_SAME = (("A", "B"), ("B", "A"), ("C", "C"))


def _pair_score(straight: str | None, swapped: str | None) -> float | None:
    """1 if the first model wins in both orders, 0 if it loses in both, else 0.5; None if a verdict is unread."""
    if straight is None or swapped is None:
        return None
    return {("A", "B"): 1.0, ("B", "A"): 0.0}.get((straight, swapped), 0.5)


def _prompt(
    instruction: Mapping[str, str], question: Question, answers: Sequence[tuple[str, str]], options: JudgeOptions
) -> str:
    label = _LABELS[options.language]
    parts = [instruction[options.language], f"[{label['question']}]\n{question.text}"]
    if question.reference is not None:
        parts.append(f"[{label['reference']}]\n{question.reference}")
    parts += [f"[{label['answer']}{name}]\n{answer}" for name, answer in answers]
    return "\n\n".join(parts)


def _asked(prompts: Sequence[str], asker: Asker, options: JudgeOptions) -> tuple[list[list[str]], tuple[int, int]]:
    """Outputs for each prompt, and tokens read and written."""
    if not prompts:
        raise UsageError("no questions to judge")
    requests = [Request((Message("user", text),) if asker.chat else text, options.sampling) for text in prompts]
    done = asker.complete(requests)
    tokens = sum(one.prompt_tokens for one in done), sum(choice.tokens for one in done for choice in one.choices)
    return [[choice.text for choice in one.choices] for one in done], tokens


def _verdict(
    kind: str,
    score: Interval | None,
    order: tuple[Interval, Interval] | None,
    judgements: Sequence[Judgement],
    tokens: tuple[int, int],
) -> Verdict:
    every = [verdict for one in judgements for part in one.verdicts for verdict in part]
    repeated = [
        [float(a == b and a is not None) for part in one.verdicts for a, b in combinations(part, 2)]
        for one in judgements
    ]
    agreement = mean_interval([sum(part) / len(part) for part in repeated]) if all(repeated) else None
    bias, consistent = order or (None, None)
    unread = sum(verdict is None for verdict in every) / len(every)
    return Verdict(kind, score, bias, consistent, agreement, unread, len(judgements), *tokens, tuple(judgements))


def _mean_of_read(values: Sequence[float | None]) -> float | None:
    read = [value for value in values if value is not None]
    return sum(read) / len(read) if read else None


def _winner(text: str) -> str | None:
    """The last verdict in an output of the judge."""
    found = _VERDICT.findall(text)
    return found[-1] if found else None


def _grade(text: str) -> float | None:
    """The last grade in an output of the judge, if it lies between 1 and 10."""
    found = _GRADE.findall(text)
    grade = float(found[-1]) if found else None
    return grade if grade is not None and LOWEST <= grade <= HIGHEST else None
