"""Rejection sampling: keeps a model's own verified answers as training data.

Each question is answered ``samples`` times at each temperature. Its pass rate is its difficulty. The rules, in order:

0. ``tool calls`` or ``order of turns``: the row is not a question (`records`);
1. ``refused``: the model cannot take the question, for instance because it exceeds the context;
2. ``unreadable``: no sample can be read;
3. ``impossible``: the pass rate is at most ``hard`` (0: no sample is right);
4. ``easy``: the pass rate is at least ``easy`` (1: all samples are right), and a hash of the question's id lies
   outside the ``easy_share`` to keep. An easy question that is kept has one answer.

For the other questions, right answers with different reasoning are kept, up to ``most``: in the order of the
temperatures, each answer whose similarity to all kept ones (Jaccard, three-word shingles) is below ``same``.

``dropped.jsonl`` holds the dropped questions with their pass rates. Generations stay in ``answers.jsonl``: a killed
stage loses no finished answer and requests none again.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from armillary.corpus import similarity
from armillary.evaluate import mean_interval
from armillary.generate import Backend, BadRequestError, Message
from armillary.post.items import Item, read_items
from armillary.post.records import read_records
from armillary.post.sampling import PassRate, Sample, SampleOptions, draw
from armillary.post.stage import DROPPED, ITEMS, Stage, StageSpec, open_stage
from armillary.post.verify import OUTCOMES
from armillary.recipe import UsageError

_GROUP = 32  # questions per batch
_CELL = ("domain", "family", "level", "language")


@dataclass(frozen=True)
class RejectOptions:
    """Options of rejection sampling; the module docstring explains the rules.

    Attributes:
        sampling: how answers are drawn.
        easy: a question with at least this pass rate is easy.
        easy_share: share of the easy questions to keep.
        hard: a question with at most this pass rate is impossible.
        same: two answers with at least this similarity have the same reasoning.
        most: maximum number of answers kept per question.
        progress: called with the number of decided questions.

    Raises:
        UsageError: a value outside its range.
    """

    sampling: SampleOptions = field(default_factory=SampleOptions)
    easy: float = 1.0
    easy_share: float = 0.25
    hard: float = 0.0
    same: float = 0.7
    most: int = 4
    progress: Callable[[int], None] = lambda done: None

    def __post_init__(self) -> None:
        for name in ("easy", "easy_share", "hard", "same"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name.replace('_', ' ')} is {getattr(self, name)}; give a share from 0 to 1")
        if self.hard >= self.easy:
            raise UsageError(f"hard is {self.hard} and easy {self.easy}; hard must be the smaller pass rate")
        if self.most < 1:
            raise UsageError(f"most is {self.most}; give 1 answer or more")

    def to_json(self) -> dict[str, Any]:
        """The rules as plain data."""
        return {name: value for name, value in asdict(self).items() if name != "progress"}


def reject(items: Path, out: Path, backend: Backend, options: RejectOptions) -> dict[str, Any]:
    """Sample answers to ``items`` and keep verified ones in ``out``; return the record of the stage.

    After a kill, the next call resumes without losing or repeating anything. The record's ``yield`` has a row per
    domain, family, level and language, and ``temperatures`` one per temperature.

    Raises:
        UsageError: a wrong row, a question without a check, or a folder with different settings or inputs.
        RequestError: a server refused a request.
    """
    settings = {"model": backend.identity, **options.to_json()}
    with open_stage(out, StageSpec("reject", settings, {"items": items})) as stage:
        if stage.finished:
            return stage.finish()
        with stage.answers(backend) as answers:
            pending = _questions(stage, items)
            while group := list(islice(pending, _GROUP)):
                for item, samples in zip(group, draw(backend, answers, group, options.sampling), strict=True):
                    _decide(stage, item, samples, options)
                options.progress(stage.decisions)
        return stage.finish(_counts(out))


def _questions(stage: Stage, path: Path) -> Iterator[Item]:
    """The open questions; a row that is not a question is dropped.

    Raises:
        UsageError: a wrong row, or a question without a check.
    """
    for one in stage.pending(read_records(path)):
        if one.refusal:
            stage.drop(one.id, one.refusal, {"cell": {name: one.row.get(name) for name in _CELL}})
        elif one.item.check is None:
            raise UsageError(
                f"{one.where}: has no check, so answers to it cannot be verified; add a field check, such as "
                '{"kind": "math"}, and the right answer'
            )
        else:
            yield one.item


def _decide(stage: Stage, item: Item, samples: Sequence[Sample] | BadRequestError, options: RejectOptions) -> None:
    cell = {name: getattr(item, name) for name in _CELL}
    if isinstance(samples, BadRequestError):
        stage.drop(item.id, "refused", {"problem": samples.problem, "cell": cell})
        return
    rate = PassRate.of(samples)
    by_temperature = {
        str(temperature): PassRate.of([sample for sample in samples if sample.temperature == temperature]).to_json()
        for temperature in options.sampling.temperatures
    }
    measured = {"cell": cell, "pass_rate": rate.to_json(), "by_temperature": by_temperature}
    easy = rate.rate >= options.easy
    if rate.unreadable == len(samples):
        stage.drop(item.id, "unreadable", measured)
    elif rate.rate <= options.hard:
        stage.drop(item.id, "impossible", measured)
    elif easy and _share(item.id) >= options.easy_share:
        stage.drop(item.id, "easy", measured)
    else:
        kept, alike = _different(samples, options.same, 1 if easy else options.most)
        notes = {**item.notes, "reject": {**measured, "alike": alike}}
        stage.keep(item.id, [_answered(item, sample, {**notes, "sample": n}) for n, sample in enumerate(kept)])


def _answered(item: Item, sample: Sample, notes: Mapping[str, Any]) -> Item:
    origin = {"temperature": sample.temperature, "request": sample.request, "choice": sample.choice}
    messages = (*item.question, Message("assistant", sample.text.strip()))
    return item.derived("reject", messages=messages, origin=origin, notes=notes)


def _different(samples: Sequence[Sample], same: float, most: int) -> tuple[list[Sample], int]:
    """The right samples with different reasoning, and the number of right ones similar to them."""
    right = [sample for sample in samples if sample.verdict.outcome == "right"]
    table = similarity([sample.text for sample in right])
    kept, alike = list[int](), 0
    for place in range(len(right)):
        if any(table[place, other] >= same for other in kept):
            alike += 1
        elif len(kept) < most:
            kept.append(place)
    return [right[place] for place in kept], alike


def _share(name: str) -> float:
    """A number from 0 to 1 that depends only on ``name``."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def _counts(out: Path) -> dict[str, Any]:
    """The yield by cell and by temperature, from the stage's files, so that earlier processes count too."""
    cells: dict[tuple[Any, ...], dict[str, Any]] = {}
    temperatures: dict[str, Counter[str]] = {}
    rates: dict[tuple[Any, ...], array[float]] = {}
    for reason, measured, answers in _decisions(out):
        key = tuple(measured["cell"].values())
        row = cells.setdefault(key, {**measured["cell"], **dict.fromkeys(_COUNTED, 0)})
        row["questions"] += 1
        row["answers"] += answers
        row[reason] = row.get(reason, 0) + 1
        if "pass_rate" not in measured:
            continue
        rates.setdefault(key, array("d")).append(measured["pass_rate"]["rate"])
        for outcome in OUTCOMES:
            row[f"samples {outcome}"] += measured["pass_rate"][outcome]
        for temperature, rate in measured["by_temperature"].items():
            temperatures.setdefault(temperature, Counter()).update({outcome: rate[outcome] for outcome in OUTCOMES})
    for key, row in cells.items():
        if key in rates:
            row["pass_rate"] = asdict(mean_interval(rates[key]))
    return {
        "yield": [cells[key] for key in sorted(cells, key=str)],
        "temperatures": {name: dict(counts) for name, counts in sorted(temperatures.items())},
    }


_COUNTED = (
    *("questions", "kept", "answers", "easy", "impossible", "unreadable", "refused"),
    *(f"samples {outcome}" for outcome in OUTCOMES),
)


def _decisions(out: Path) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Per question: ``kept`` or the reason for dropping it, its measurements, and the number of kept answers."""
    last: tuple[str, dict[str, Any]] | None = None
    number = 0
    for item in read_items(out / ITEMS):
        (source,) = item.origin["parents"]
        if last is not None and last[0] != source:
            yield "kept", last[1], number
            number = 0
        last, number = (source, dict(item.notes["reject"])), number + 1
    if last is not None:
        yield "kept", last[1], number
    with open(out / DROPPED, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            yield row["reason"], row, 0
