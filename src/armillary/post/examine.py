"""Examine a model on items: it answers their questions, and verifiers judge the answers.

Each set of items is one task of the examination, and each family of problems one subset of it. The folder has the
format of every examination (``evaluate.results``), so ``evaluate compare`` can compare two models on the same items.
The metrics are ``right`` and ``unreadable``: an unreadable answer is not right, and is also counted separately. Plain
texts can be added; their metric ``bits_per_byte`` shows how much a model has forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from armillary.evaluate import Examination, Result, item_id, mean_interval, write_examination
from armillary.evaluate import Item as Row
from armillary.evaluate.results import ANSWERS, engine_of, named_model
from armillary.generate import Backend, Choice, Likelihood, Message, Pair, Request, Sampling, open_answers
from armillary.post.items import Item, read_rows
from armillary.post.records import read_records
from armillary.post.stage import ITEMS
from armillary.post.template import open_renderer
from armillary.post.verify import verify
from armillary.recipe import UsageError, canonical_hash

BITS = "bits_per_byte"
_TEXTS = 32  # texts scored and kept per call


@dataclass(frozen=True)
class ExamineOptions:
    """Options of an examination on items.

    Attributes:
        sampling: sampling of the answers; greedy by default.
        render: renders the turns of a question as a prompt, for a model without its own chat template.
        template: name of this rendering; part of the settings that two examinations must share.
        limit: use only the first items of each set.
        texts: files of plain text by the name of their task, JSON Lines with ``text``.
    """

    sampling: Sampling = field(default_factory=Sampling)
    render: Callable[[Sequence[Message]], str] | None = None
    template: str = "model"
    limit: int | None = None
    texts: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.sampling.n != 1:
            raise UsageError(f"sampling.n is {self.sampling.n}, but it must be 1: one answer per item is judged")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"limit must be 1 or more, given {self.limit}")

    def request(self, item: Item) -> Request:
        """The request for an item."""
        prompt = item.question if self.render is None else self.render(item.question)
        return Request(prompt, self.sampling)


def in_template(options: ExamineOptions, model: Path, template: str | None) -> ExamineOptions:
    """``options`` with prompts from a chat template: a name, a file, or None for the template of the folder ``model``.

    Raises:
        UsageError: no such template, or one that does not fit the tokenizer of ``model``.
    """
    chat = open_renderer(model, template).chat

    def render(turns: Sequence[Message]) -> str:
        return chat.render([{"role": turn.role, "content": turn.content} for turn in turns])

    return replace(options, render=render, template=canonical_hash(chat.source))


def named_sets(paths: Sequence[Path]) -> dict[str, Path]:
    """Files of items by the name of their task: the file's name, or its folder's if a stage wrote it.

    Raises:
        UsageError: two files have the same name.
    """
    sets: dict[str, Path] = {}
    for path in paths:
        name = path.absolute().parent.name if path.name == ITEMS else path.stem
        if name in sets:
            raise UsageError(f"{path}: another set already has the name {name} ({sets[name]}); rename one of the two")
        sets[name] = path
    return sets


def examine_items(
    backend: Backend,
    sets: Mapping[str, Path],
    out: Path,
    options: ExamineOptions = ExamineOptions(),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Examination:
    """Examine a model on ``sets``, files of items by the name of their task; the results are written to ``out``.

    Answers are kept as they arrive, and a second call requests only missing ones. ``progress`` gets the number of
    answers and of items.

    Raises:
        UsageError: a file without items or texts, an item without a check, or a duplicate item; the message names
            file and item.
        ForeignFileError: the answers in ``out`` come from another model.
        ArmillaryError: a request failed, or the folder cannot be written.
    """
    if twice := sorted(sets.keys() & options.texts.keys()):
        raise UsageError(
            f"{options.texts[twice[0]]}: another set already has the name {twice[0]}; rename one of the two"
        )
    every = {task: _items(path, options.limit) for task, path in sets.items()}
    settings = canonical_hash(
        {"format": 1, "template": options.template, "sampling": Request("", options.sampling).to_json()["sampling"]}
    )
    texts = {task: _texts(path, options.limit) for task, path in options.texts.items()}
    asked = [(task, item) for task, items in every.items() for item in items]
    given: dict[int, Choice] = {}
    out.mkdir(parents=True, exist_ok=True)
    with open_answers(out / ANSWERS, backend.identity) as answers:
        for completion in answers.complete(backend, [options.request(item) for _, item in asked]):
            (given[completion.index],) = completion.choices
            progress(len(given), len(asked))
        likelihoods = {
            task: answers.loglikelihood(backend, [Pair("", text) for text in mine], at_a_time=_TEXTS)
            for task, mine in texts.items()
        }
    rows: dict[str, list[Row]] = {task: [] for task in (*every, *texts)}
    for place, (task, item) in enumerate(asked):
        rows[task].append(_judged(task, item, given[place], settings))
    for task, mine in texts.items():
        rows[task] += [_measured(task, *one) for one in zip(mine, likelihoods[task], strict=True)]
    found = Examination(
        tuple(result for task, judged in rows.items() for result in _results(task, judged)),
        {task: tuple(judged) for task, judged in rows.items()},
        model=named_model(backend.identity),
        backend=engine_of(backend.identity, "armillary post examine"),
        cost=asdict(backend.cost),
    )
    write_examination(out, found)
    return found


def _items(path: Path, limit: int | None) -> list[Item]:
    items: dict[str, Item] = {}
    for one in read_records(path):
        item = one.item
        if item.check is None:
            raise UsageError(f"{one.where}: item {item.id} has no check, so its answers cannot be judged; leave it out")
        if item.id in items:
            raise UsageError(f"{path}: item {item.id} occurs twice; leave one out")
        items[item.id] = item
        if len(items) == limit:
            break
    if not items:
        raise UsageError(f"{path}: has no items")
    return list(items.values())


def _texts(path: Path, limit: int | None) -> list[str]:
    texts: dict[str, None] = {}
    for number, row in read_rows(path):
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise UsageError(f"{path}:{number}: text: must be non-empty text, given {text!r:.200}")
        texts[text] = None
        if len(texts) == limit:
            break
    if not texts:
        raise UsageError(f"{path}: has no texts; write one JSON object with text per line")
    return list(texts)


def _measured(task: str, text: str, likelihood: Likelihood) -> Row:
    """The bits per byte of a text; its settings are the same for all models, even with different tokenizers."""
    name = item_id(task, task, [text])
    bits = -likelihood.value / math.log(2) / len(text.encode())
    return Row(name, task, name, canonical_hash({"format": 1, "metric": BITS}), None, (), None, None, {BITS: bits})


def _judged(task: str, item: Item, choice: Choice, settings: str) -> Row:
    verdict = verify(item, choice.text)
    subset = item.family or item.domain or task
    question = [[message.role, message.content] for message in item.question]
    return Row(
        id=item_id(task, subset, [question, item.answer, dict(item.check or {})]),
        subset=subset,
        cluster=item.id,
        settings=settings,
        gold=item.answer,
        outputs=(choice.text,),
        answer=verdict.found,
        second_answer=None,
        scores={"right": float(verdict.outcome == "right"), "unreadable": float(verdict.outcome == "unreadable")},
        truncated=choice.finish == "length",
    )


def _results(task: str, rows: Sequence[Row]) -> list[Result]:
    parts = [task, *sorted({row.subset for row in rows} - {task})]
    return [_result(task, part, metric, rows) for part in parts for metric in rows[0].scores]


def _result(task: str, subset: str, metric: str, rows: Sequence[Row]) -> Result:
    mine = [row for row in rows if subset in (task, row.subset)]
    scores = [row.scores[metric] for row in mine]
    interval = mean_interval(scores, bounds=(0.0, max(1.0, *scores)))
    return Result(
        task=task,
        subset=subset,
        metric=metric,
        value=interval.value,
        low=interval.low,
        high=interval.high,
        n=len(mine),
        truncated=sum(row.truncated for row in mine) / len(mine),
        extraction_disagreement=None,
        settings=rows[0].settings,
    )
