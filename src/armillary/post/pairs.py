"""Pairs of a preferred and a rejected answer from a model's own samples, in TRL's conversational format.

One model answers each question of a file of items several times. There are two ways to rank the answers:

- *a verifier*: an answer that passes the item's check is chosen, one that fails is rejected. An unreadable answer is
  neither, since it does not show what the model knows.
- *a judge*: another model compares two answers in both orders; an answer that wins in both is chosen.

Of a question's possible pairs, those with the smallest difference in length are used, because a model trained on longer
chosen answers learns to write more, not better (Park et al. 2024, arXiv 2403.19159).

The folder is that of a stage (`stage`): ``items.jsonl`` holds the pairs, ``dropped.jsonl`` the questions without a pair
and the reason. A pair keeps the id of its question and the origin of its answers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from armillary.evaluate import Asker, JudgeOptions, Question, judge_pairs
from armillary.generate import Answers, Backend, Completion, Message, Request, Sampling
from armillary.post.items import Item
from armillary.post.records import read_records
from armillary.post.stage import Stage, StageSpec, open_stage
from armillary.recipe import UsageError

GROUP = 64  # questions per batch

Progress = Callable[[str, float, float, str], None]
Verify = Callable[[Item, str], Literal["right", "wrong", "unreadable"]]
"""The outcome of an answer to an item by its check."""


@dataclass(frozen=True)
class PairOptions:
    """Options for sampling and pairing answers.

    ``samples`` answers are drawn for each question at each of ``temperatures``. At most ``per_question`` of the
    possible pairs are kept; no answer is in two pairs.

    Raises:
        UsageError: a value outside its range.
    """

    samples: int = 4
    temperatures: tuple[float, ...] = (0.7, 1.0)
    max_new_tokens: int = 512
    per_question: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "per_question"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be 1 or more, given {getattr(self, name)}")
        if not self.temperatures or min(self.temperatures) <= 0:
            raise UsageError(
                f"temperatures must be above 0, given {self.temperatures}: equal answers cannot form a pair"
            )

    def requests(self, item: Item) -> list[Request]:
        """The requests for a question: one per temperature."""
        return [
            Request(item.question, Sampling(self.max_new_tokens, temperature=t, seed=self.seed, n=self.samples))
            for t in self.temperatures
        ]


@dataclass(frozen=True)
class PairsMade:
    """The result of a stage of pairs: its folder, the file of pairs, and the counts of its record."""

    folder: Path
    pairs: Path
    counts: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"folder": str(self.folder), "pairs": str(self.pairs), "counts": dict(self.counts)}


@dataclass(frozen=True)
class Files:
    """The file of questions, the folder for their pairs, and the progress callback."""

    items: Path
    out: Path
    progress: Progress = lambda *_: None


def pairs_by_verifier(files: Files, backend: Backend, options: PairOptions, verify: Verify) -> PairsMade:
    """Pairs of right and wrong answers of ``backend``, as judged by ``verify`` with each question's check.

    After a kill, the next call resumes without losing or repeating anything. Questions are dropped as ``no check``,
    ``all right``, ``all wrong`` (unreadable answers are counted separately) or ``unreadable``. An answer cut by the
    token limit is always unreadable.

    Raises:
        UsageError: a wrong line in the questions, or the folder holds something else.
        RequestError: a question is too long for the model, or the server refuses it.
        DamagedFileError, ForeignFileError, ArmillaryError: as ``open_stage``.
    """
    settings = {"by": "verifier", "model": backend.identity, **asdict(options)}

    def decide(stage: Stage, group: Sequence[tuple[Item, list[Completion]]]) -> None:
        for item, completions in group:
            _by_verifier(stage, item, completions, _Judging(options, verify))

    return _made(files, backend, options, _Work(settings, decide, needs_check=True))


def pairs_by_judge(
    files: Files, models: tuple[Backend, Backend], options: PairOptions, judge: JudgeOptions = JudgeOptions()
) -> PairsMade:
    """Pairs of answers of the first of ``models`` for which the second, the judge, prefers the same one in both orders.

    The judge compares the first two different answers to each question. Questions are dropped as ``all alike``, ``tie``
    (also if only the order decides) or ``unread``. Raises as ``pairs_by_verifier``.
    """
    backend, arbiter = models
    settings = {"by": "judge", "model": backend.identity, "judge": arbiter.identity, "asked": asdict(judge)}

    def decide(stage: Stage, group: Sequence[tuple[Item, list[Completion]]]) -> None:
        with stage.answers(arbiter, "verdicts") as verdicts:
            _by_judge(stage, group, _asker(arbiter, verdicts), judge)

    return _made(files, backend, options, _Work({**settings, **asdict(options)}, decide))


@dataclass(frozen=True)
class _Work:
    """A way of ranking answers: its settings, the function that decides a group, and whether questions need a check."""

    settings: Mapping[str, Any]
    decide: Callable[[Stage, Sequence[tuple[Item, list[Completion]]]], None]
    needs_check: bool = False


@dataclass(frozen=True)
class _Judging:
    """Decide one question with a verifier."""

    options: PairOptions
    verify: Verify


def _made(files: Files, backend: Backend, options: PairOptions, work: _Work) -> PairsMade:
    with open_stage(files.out, StageSpec("pairs", work.settings, {"items": files.items})) as stage:
        if not stage.finished:
            total = sum(1 for _ in read_records(files.items))
            if not total:
                raise UsageError(f"{files.items}: has no items; give at least one question")
            with stage.answers(backend) as answers:
                for group in _groups(_askable(stage, files.items, work.needs_check)):
                    work.decide(stage, _answered(group, backend, answers, options))
                    summary = f"{stage.kept} pairs from {stage.decisions} questions"
                    files.progress("pairs", stage.decisions, total, summary)
        record = stage.finish()
    return PairsMade(files.out, files.out / "items.jsonl", record["counts"])


def _askable(stage: Stage, items: Path, needs_check: bool) -> Iterator[Item]:
    for one in stage.pending(read_records(items)):
        if one.refusal:
            stage.drop(one.id, one.refusal, {"item": one.id})
        elif needs_check and one.item.check is None:
            stage.drop(one.id, "no check", {"item": one.id})
        else:
            yield one.item


def _groups(items: Iterator[Item]) -> Iterator[list[Item]]:
    while group := list(itertools.islice(items, GROUP)):
        yield group


def _answered(
    group: Sequence[Item], backend: Backend, answers: Answers, options: PairOptions
) -> list[tuple[Item, list[Completion]]]:
    """Each item with its completions, one per temperature."""
    requests = [request for item in group for request in options.requests(item)]
    found = {completion.index: completion for completion in answers.complete(backend, requests)}
    each = len(options.temperatures)
    return [(item, [found[each * n + t] for t in range(each)]) for n, item in enumerate(group)]


def _by_verifier(stage: Stage, item: Item, completions: Sequence[Completion], judging: _Judging) -> None:
    right: list[str] = []
    wrong: list[str] = []
    unreadable = 0
    for choice in (choice for completion in completions for choice in completion.choices):
        outcome = "unreadable" if choice.finish == "length" else judging.verify(item, choice.text)
        if outcome == "unreadable":
            unreadable += 1
        else:
            (right if outcome == "right" else wrong).append(choice.text)
    counts = {"right": len(right), "wrong": len(wrong), "unreadable": unreadable}
    pairs = alike_in_length(right, wrong, judging.options.per_question)
    if pairs:
        notes = {"by": "verifier", **counts}
        stage.keep_rows(item.id, [pair_row(item, chosen, rejected, notes) for chosen, rejected in pairs])
    else:
        reason = "all right" if right else "all wrong" if wrong else "unreadable"
        stage.drop(item.id, reason, {"item": item.id, **counts})


def alike_in_length(right: Sequence[str], wrong: Sequence[str], most: int) -> list[tuple[str, str]]:
    """At most ``most`` pairs of a text of ``right`` and one of ``wrong``, smallest difference in length first.

    No text is in two pairs. Duplicate texts count once; empty texts are ignored.
    """
    ours, theirs = (list(dict.fromkeys(text for text in texts if text.strip())) for texts in (right, wrong))
    combinations = sorted(
        itertools.product(range(len(ours)), range(len(theirs))),
        key=lambda pair: abs(len(ours[pair[0]]) - len(theirs[pair[1]])),
    )
    taken: list[tuple[int, int]] = []
    for one, other in combinations:
        if len(taken) < most and all(one != a and other != b for a, b in taken):
            taken.append((one, other))
    return [(ours[one], theirs[other]) for one, other in taken]


def pair_row(item: Item, chosen: str, rejected: str, notes: Mapping[str, Any]) -> dict[str, Any]:
    """A pair as a line of TRL's conversational format, with the id and unknown fields of its question."""
    return {
        "id": item.id,
        "prompt": [asdict(message) for message in item.question],
        "chosen": [asdict(Message("assistant", chosen))],
        "rejected": [asdict(Message("assistant", rejected))],
        "notes": dict(notes),
        **item.extra,
    }


def _asker(arbiter: Backend, verdicts: Answers) -> Asker:
    def complete(requests: Sequence[Request]) -> list[Completion]:
        found = {completion.index: completion for completion in verdicts.complete(arbiter, requests)}
        return [found[place] for place in range(len(requests))]

    return Asker(complete, identity=arbiter.identity)


def _by_judge(
    stage: Stage, group: Sequence[tuple[Item, list[Completion]]], asker: Asker, options: JudgeOptions
) -> None:
    compared: dict[str, tuple[Item, str, str]] = {}
    for item, completions in group:
        whole = (c.text for completion in completions for c in completion.choices if c.finish == "stop")
        texts = list(dict.fromkeys(text for text in whole if text.strip()))
        if len(texts) < 2:
            stage.drop(item.id, "all alike", {"item": item.id})
        else:
            compared[item.id] = (item, texts[0], texts[1])
    if not compared:
        return
    questions = [Question(name, item.text, item.answer) for name, (item, _, _) in compared.items()]
    both = {name: one for name, (_, one, _) in compared.items()}, {name: two for name, (_, _, two) in compared.items()}
    for judgement in judge_pairs(questions, both, asker, options).judgements:
        item, one, two = compared[judgement.id]
        if judgement.score in (0.0, 1.0):
            chosen, rejected = (one, two) if judgement.score else (two, one)
            stage.keep_rows(item.id, [pair_row(item, chosen, rejected, {"by": "judge"})])
        else:
            stage.drop(item.id, "unread" if judgement.score is None else "tie", {"item": item.id})
