"""A model as the judge of answers to open questions: in pairs, or one at a time.

- **Pairwise** (MT-bench, Zheng et al. 2023, arXiv 2306.05685): each pair is shown in both orders. A model wins a
  question only if it wins in both; anything else is a tie.
- **Single** (AlignBench, Liu et al. 2023, arXiv 2311.18743): a grade from 1 to 10, next to the reference answer if the
  question has one; with dimensions, a grade for each of them and one overall.

Each turn of a dialogue (MT-bench's ``turns``) is a separate question, shown with the turns before it. Turns of one
dialogue are one cluster of the intervals.

The result also reports how often the order alone decides (position bias), how often the judge agrees with itself on
a repeated prompt, and how many verdicts cannot be read. Unreadable verdicts are not dropped: the lower end of the
interval counts all of them as losses, the upper end counts all of them as wins.

Not covered: a judge that prefers its own answers or long ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
_DIALOGUE = {
    "en": "The answers end a dialogue; judge the last answer, and read the turns before it as its context.",
    "zh": "以下是多轮对话，请只评价最后一个回答，前面各轮作为上下文。",
}
_DIMENSIONS = {
    "en": (
        "Act as an impartial judge of an answer to a user's question, and compare with the reference answer where "
        "there is one. Explain shortly, then end with a grade from 1 to 10 for each of these dimensions and for the "
        "answer as a whole, in exactly this form: {form}"
    ),
    "zh": (
        "请作为公正的评委，从下列各维度评价下面的回答；有参考答案时与之比较。"
        "先简要说明理由，最后严格按此格式给出各维度和综合的1到10的分数：{form}"
    ),
}
_LABELS = {
    "en": {"question": "Question", "reference": "Reference answer", "answer": "Answer", "overall": "overall"},
    "zh": {"question": "问题", "reference": "参考答案", "answer": "回答", "overall": "综合得分"},
}
_ANSWERS = ("事实正确性", "满足用户需求", "清晰度", "完备性")
_REASONING = ("事实正确性", "满足用户需求", "逻辑连贯性", "完备性")
_WRITING = ("事实正确性", "满足用户需求", "逻辑连贯性", "创造性", "丰富度")
# The dimensions of AlignBench's categories, which questions without ``dimensions`` of their own have.
DIMENSIONS = {
    **dict.fromkeys(("基本任务", "中文理解", "综合问答", "专业能力"), _ANSWERS),
    **dict.fromkeys(("数学计算", "逻辑推理"), _REASONING),
    **dict.fromkeys(("文本写作", "角色扮演"), _WRITING),
}
_VERDICT = re.compile(r"\[\[\s*([ABC])\s*\]\]")
_NAMED_GRADE = re.compile(r"""["']([^"']+)["']\s*[:：]\s*(\d+(?:\.\d+)?)""")
_GRADE = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*(?:/\s*10)?\s*\]\]")


@dataclass(frozen=True)
class Question:
    """An open question, or one turn of a dialogue.

    Attributes:
        category: scored separately as well.
        dimensions: what is graded besides the answer as a whole, unless answers are compared in pairs.
        before: the earlier turns of the dialogue.
    """

    id: str
    text: str
    reference: str | None = None
    category: str | None = None
    dimensions: tuple[str, ...] = ()
    before: tuple[Question, ...] = ()

    @property
    def first(self) -> str:
        """Id of the first turn; all turns of a dialogue share it."""
        return self.before[0].id if self.before else self.id

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of questions that have a score of their own: the turn's, and the category's."""
        turn = self.id.rpartition(" turn ")[2] if " turn " in self.id else None
        named = {"turn": turn, "category": self.category}
        return tuple(f"{kind} {name}" for kind, name in named.items() if name is not None)


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
        dimensions: mean grade of each dimension, None where unreadable.
    """

    id: str
    verdicts: tuple[tuple[str | float | None, ...], ...]
    score: float | None
    outputs: tuple[str, ...]
    dimensions: Mapping[str, float | None] = field(default_factory=dict)


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
        n: number of questions; each turn of a dialogue is one.
        parts: the score of each turn, category and dimension, of those that have any.
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
    parts: Mapping[str, Interval | None] = field(default_factory=dict)

    @property
    def intervals(self) -> dict[str, Interval | None]:
        """Each figure with its interval, by name; figures of the other kind of judging are left out."""
        names = ("score", "position_bias", "consistent", "self_agreement")
        pairwise = self.kind == "pairwise"
        found = {name: getattr(self, name) for name in names if pairwise or name in ("score", "self_agreement")}
        return {**found, **self.parts}

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def write_verdict(path: Path, verdict: Verdict) -> None:
    """Write the verdict and all judgements as a sealed file."""
    write_sealed(path, {"format": 1, **verdict.to_json()})


def read_questions(path: Path) -> list[Question]:
    """Questions from lines of JSON in one of three forms.

    - ``id``, ``question`` and, optionally, ``reference``, ``category`` and ``dimensions``;
    - AlignBench: the same with ``question_id``. Its categories have their ``DIMENSIONS``;
    - MT-bench: ``question_id``, ``turns`` (a list) and, optionally, ``category`` and ``reference`` (a list). Turn 2 of
      question 81 has the id "81 turn 2".

    Raises:
        UsageError: with file, line and field of what is wrong.
    """
    found: dict[str, Question] = {}

    def use(row: Row) -> None:
        name = _id(row)
        if name in found or f"{name} turn 1" in found:
            raise row.wrong("id", f"{name} appears twice")
        category = row.text("category") if row.data.get("category") is not None else None
        has_reference = row.data.get("reference") is not None
        if "turns" not in row.data:
            dimensions = _texts(row, "dimensions") if "dimensions" in row.data else DIMENSIONS.get(category or "", ())
            reference = row.text("reference") if has_reference else None
            found[name] = Question(name, row.text("question"), reference, category, dimensions)
            return
        turns = _texts(row, "turns")
        references = _texts(row, "reference") if has_reference else ()
        if references and len(references) != len(turns):
            raise row.wrong("reference", f"must have one entry for each of the {len(turns)} turns")
        before: tuple[Question, ...] = ()
        for number, text in enumerate(turns, start=1):
            reference = references[number - 1] if references else None
            question = Question(f"{name} turn {number}", text, reference, category, (), before)
            found[question.id] = question
            before += (question,)

    read_rows(path, use)
    return list(found.values())


def _id(row: Row) -> str:
    """``id``, or ``question_id``, which the public sets have, as text or as a whole number."""
    if "question_id" not in row.data:
        return row.text("id")
    number = row.data["question_id"]
    return str(row.whole("question_id")) if isinstance(number, int) else row.text("question_id")


def _texts(row: Row, name: str) -> tuple[str, ...]:
    value = row.value(name)
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise row.wrong(name, f"must be a list of texts, given {value!r}")
    return tuple(value)


def read_answers(path: Path, questions: Sequence[Question]) -> dict[str, str]:
    """Answers by id of the question, which may be empty; each question needs one.

    A line has ``id`` or ``question_id``, and ``answer`` or, for a dialogue, ``turns``: a list with one answer per turn,
    which may be in the first of MT-bench's ``choices``.

    Raises:
        UsageError: a wrong line, named by file, line and field; or questions without an answer.
    """
    wanted: dict[str, list[str]] = {}
    for question in questions:
        wanted.setdefault(question.first.removesuffix(" turn 1"), []).append(question.id)
    found: dict[str, str] = {}

    def use(row: Row) -> None:
        name = _id(row)
        if name not in wanted:
            raise row.wrong("id", f"{name} is not among the {len(wanted)} questions")
        if wanted[name][0] in found:
            raise row.wrong("id", f"{name} appears twice")
        if row.data.get("choices"):
            row = row.objects("choices")[0]
        if "turns" in row.data:
            answers = _texts(row, "turns")
        else:
            answer = row.value("answer")
            if not isinstance(answer, str):
                raise row.wrong("answer", f"must be text, given {answer!r}")
            answers = (answer,)
        if len(answers) != len(wanted[name]):
            count = len(wanted[name])
            raise row.wrong("turns", f"{len(answers)} answers to {name}, which has {count}; give one for each turn")
        found.update(zip(wanted[name], answers, strict=True))

    read_rows(path, use)
    lacking = [name for name, turns in wanted.items() if turns[0] not in found]
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
    prompts = [_prompt(_single(question, options), question, {"": answers}, options) for question in questions]
    texts, tokens = _asked(prompts, asker, options)
    judgements, rows = [], []
    parts: dict[str, list[_Scored]] = {}
    for question, outputs in zip(questions, texts, strict=True):
        overall = _LABELS[options.language]["overall"] if question.dimensions else None
        grades = tuple(_grade(text, overall) for text in outputs)
        each = {name: [_grade(text, name) for text in outputs] for name in question.dimensions}
        means = {name: _mean_of_read(values) for name, values in each.items()}
        judgements.append(Judgement(question.id, (grades,), _mean_of_read(grades), tuple(outputs), means))
        rows.append(_scored(question, grades))
        for name, values in each.items():
            parts.setdefault(name, []).append(_scored(question, values))
    bounds = float(LOWEST), float(HIGHEST)
    apart = {name: _interval(part, bounds) for name, part in (_by_group(questions, rows) | parts).items()}
    clusters = [question.first for question in questions]
    return _verdict("single", (_interval(rows, bounds), None), clusters, judgements, tokens, apart)


@dataclass(frozen=True)
class _Scored:
    """The score of a question or None, what it is with all unread verdicts lost and won, and its cluster."""

    score: float | None
    lowest: float
    highest: float
    cluster: str


def _scored(
    question: Question, values: Sequence[float | None], worst: float = LOWEST, best: float = HIGHEST
) -> _Scored:
    low, high = (sum(end if value is None else value for value in values) / len(values) for end in (worst, best))
    return _Scored(_mean_of_read(values), low, high, question.first)


def _interval(rows: Sequence[_Scored], bounds: tuple[float, float], unread: float | None = None) -> Interval | None:
    """The mean of the scores; without a verdict, a score is ``unread``, or left out. Unread verdicts widen it."""
    if all(row.score is None for row in rows):
        return None
    value = _mean_of_read([unread if row.score is None else row.score for row in rows])
    assert value is not None
    clusters = [row.cluster for row in rows]
    low = mean_interval([row.lowest for row in rows], clusters, bounds=bounds)
    high = mean_interval([row.highest for row in rows], clusters, bounds=bounds)
    return Interval(value, min(value, low.low), max(value, high.high))


def _by_group(questions: Sequence[Question], rows: Sequence[_Scored]) -> dict[str, list[_Scored]]:
    groups: dict[str, list[_Scored]] = {}
    for question, row in zip(questions, rows, strict=True):
        for name in question.groups:
            groups.setdefault(name, []).append(row)
    return dict(sorted(groups.items(), key=lambda group: (not group[0].startswith("turn"), group[0])))


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
        prompts += [
            _prompt(_PAIRWISE[options.language], question, {" A": one, " B": two}, options)
            for one, two in ((first, second), (second, first))
        ]
    texts, tokens = _asked(prompts, asker, options)
    judgements, rows, bias, consistent = [], [], [], []
    for place, question in enumerate(questions):
        orders = texts[2 * place], texts[2 * place + 1]
        verdicts = tuple(tuple(_winner(text) for text in outputs) for outputs in orders)
        pairs = list(zip(*verdicts, strict=True))
        scores = [_pair_score(one, two) for one, two in pairs]
        outputs = tuple(text for part in orders for text in part)
        judgements.append(Judgement(question.id, verdicts, _mean_of_read(scores), outputs))
        rows.append(_scored(question, scores, 0.0, 1.0))
        every = [verdict for part in verdicts for verdict in part]
        bias.append((every.count("A") - every.count("B")) / len(every))
        consistent.append(sum((one, two) in _SAME for one, two in pairs) / len(pairs))
    clusters = [question.first for question in questions]
    order = mean_interval(bias, clusters, bounds=(-1, 1)), mean_interval(consistent, clusters)
    bounds = 0.0, 1.0
    apart = {name: _interval(part, bounds, 0.5) for name, part in _by_group(questions, rows).items()}
    return _verdict("pairwise", (_interval(rows, bounds, 0.5), order), clusters, judgements, tokens, apart)


# The same verdict on two answers, before and after the swap.
_SAME = (("A", "B"), ("B", "A"), ("C", "C"))


def _pair_score(straight: str | None, swapped: str | None) -> float | None:
    """1 if the first model wins in both orders, 0 if it loses in both, else 0.5; None if a verdict is unread."""
    if straight is None or swapped is None:
        return None
    return {("A", "B"): 1.0, ("B", "A"): 0.0}.get((straight, swapped), 0.5)


def _single(question: Question, options: JudgeOptions) -> str:
    """The instruction for a grade, or for the grades of the question's dimensions."""
    if not question.dimensions:
        return _SINGLE[options.language]
    names = [*question.dimensions, _LABELS[options.language]["overall"]]
    form = "{" + ", ".join(f"'{name}': 5" for name in names) + "}"
    return _DIMENSIONS[options.language].format(form=form)


def _prompt(
    instruction: str, question: Question, answers: Mapping[str, Mapping[str, str]], options: JudgeOptions
) -> str:
    label = _LABELS[options.language]
    parts = [instruction]
    if question.before:
        parts.append(_DIALOGUE[options.language])
    else:
        parts.append(f"[{label['question']}]\n{question.text}")
    if question.reference is not None:
        parts.append(f"[{label['reference']}]\n{question.reference}")
    for name, by_id in answers.items():
        for number, turn in enumerate(question.before, start=1):
            parts.append(f"[{label['question']}{name} {number}]\n{turn.text}")
            parts.append(f"[{label['answer']}{name} {number}]\n{by_id[turn.id]}")
        if question.before:
            parts.append(f"[{label['question']}{name} {len(question.before) + 1}]\n{question.text}")
        parts.append(f"[{label['answer']}{name}]\n{by_id[question.id]}")
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
    found: tuple[Interval | None, tuple[Interval, Interval] | None],
    clusters: Sequence[str],
    judgements: Sequence[Judgement],
    tokens: tuple[int, int],
    parts: Mapping[str, Interval | None],
) -> Verdict:
    score, order = found
    every = [verdict for one in judgements for part in one.verdicts for verdict in part]
    repeated = [
        [float(a == b and a is not None) for part in one.verdicts for a, b in combinations(part, 2)]
        for one in judgements
    ]
    agreement = mean_interval([sum(part) / len(part) for part in repeated], clusters) if all(repeated) else None
    bias, consistent = order or (None, None)
    unread = sum(verdict is None for verdict in every) / len(every)
    done = tuple(judgements)
    return Verdict(kind, score, bias, consistent, agreement, unread, len(done), *tokens, done, dict(parts))


def _mean_of_read(values: Sequence[float | None]) -> float | None:
    read = [value for value in values if value is not None]
    return sum(read) / len(read) if read else None


def _winner(text: str) -> str | None:
    """The last verdict in an output of the judge."""
    found = _VERDICT.findall(text)
    return found[-1] if found else None


def _grade(text: str, name: str | None = None) -> float | None:
    """The last grade in an output of the judge, or the last one of ``name``, if it lies between 1 and 10."""
    if name is None:
        found = _GRADE.findall(text)
    else:
        found = [value for key, value in _NAMED_GRADE.findall(text) if key == name]
    grade = float(found[-1]) if found else None
    return grade if grade is not None and LOWEST <= grade <= HIGHEST else None
