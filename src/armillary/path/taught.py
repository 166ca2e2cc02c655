"""Reads the folder of a post-training: its part of a report, and the outcome of a lesson."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from armillary import __version__, report
from armillary.path.predicted import VERDICT
from armillary.path.teach import BASE, FORMAT, HELD_OUT, RECORD, Step
from armillary.post import ITEMS, Item, compare_diversity, read_items, read_record
from armillary.post.examine import BITS
from armillary.recipe import DamagedFileError, read_sealed
from armillary.study import StageOutcome

_SETS = ("questions", "verified", "questions-clean", "new-questions", HELD_OUT, "harder")
Language = Literal["en", "zh"]
_REMEDY = "remove it and run `armillary post run` again"


class Taught(StageOutcome):
    """The outcome of a lesson: ``part`` is its part of the report.

    ``base`` is the run that was taught, and ``weights`` a hash of its model. ``kept`` is the name of the published
    model. ``run`` and ``spec`` belong to its fine-tuning, or to the first one if the base is kept. ``edges`` lead from
    it to the base. ``trained`` is the number of trainings, with their ``flops`` and ``seconds``.
    """

    base: str
    weights: str
    kept: str
    run: str
    spec: dict[str, Any]
    edges: list[tuple[str, str, str]]
    part: report.TeachingPart
    trained: int
    flops: float
    seconds: float

    @property
    def published(self) -> bool:
        """Whether a model was better than the base, and is therefore published as a chat model."""
        return self.kept != BASE


def teaching_part(out: Path, steps: Sequence[Step]) -> report.TeachingPart:
    """The part of a report on the finished post-training in ``out``; ``steps`` is the result of ``teach``.

    Raises:
        DamagedFileError: a record or a file of questions was changed.
        ForeignFileError: a record has a newer version.
    """
    try:
        record = read_sealed(out / RECORD, "record of a teaching", FORMAT, _REMEDY)
    except FileNotFoundError as error:
        raise DamagedFileError(f"{out / RECORD}: is missing; {_REMEDY}") from error
    sets = [name for name in _SETS if (out / name / RECORD).exists()]
    records = {name: read_record(out / name)["counts"] for name in sets}
    held = {item.id: item for item in read_items(out / HELD_OUT / ITEMS)}
    trained = next(name for name in ("questions-clean", "verified", "questions") if name in sets)
    taken = next(step for step in reversed(steps) if step.taken)
    compared = ["questions", *([trained] if (out / "evolved" / RECORD).exists() else []), HELD_OUT]
    found = compare_diversity([out / name / ITEMS for name in compared])
    return report.TeachingPart(
        models=[step.name for step in steps],
        taken=taken.name,
        questions=[_questions(name, counts) for name, counts in records.items()],
        scores=[row for step in steps for row in _scores(step, families=step is steps[0] or step is taken)],
        families=list(records["questions"]["by"]["family"]),
        gain=None if record["gain"] is None else _gain(record["gain"], out),
        talks=_talks(steps[0], taken, held) if taken is not steps[0] else [],
        forgetting=_forgetting(steps[0], taken),
        diversity=dict(zip(compared, (one.to_json() for one in found), strict=True)),
        left_out=record["left_out"],
        needs=[row for step in steps for row in _needs(step)],
    )


def brief(found: Taught) -> dict[str, Any]:
    """The lesson in a few machine-readable numbers."""
    part = found.part
    return {
        "run": found.run,
        "taken": found.kept,
        "families": list(part.families),
        "questions": [asdict(row) for row in part.questions],
        "scores": [asdict(row) for row in part.scores],
        "gain": part.gain and asdict(part.gain),
        "forgetting": [asdict(row) for row in part.forgetting],
    }


def write_page(out: Path, name: str, steps: Sequence[Step], language: Language = "en") -> Path:
    """Write the report on the finished post-training ``name`` in ``out``; return its path.

    Raises:
        DamagedFileError, ForeignFileError: as ``teaching_part``.
        ArmillaryError: the file cannot be written.
    """
    path = out / ("report.html" if language == "en" else f"report.{language}.html")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    report.write_teaching(report.TeachingPage(name, teaching_part(out, steps), now, __version__), path, language)
    return path


def _questions(name: str, counts: dict[str, Any]) -> report.QuestionSet:
    verified = counts.get("verified")
    if verified is None:
        return report.QuestionSet(name, counts["kept"])
    return report.QuestionSet(
        name, counts["kept"], verified["share"], verified["low"], verified["high"], verified["of"]
    )


def _scores(step: Step, families: bool) -> list[report.TaughtScore]:
    """The scores of a model on each set, and with ``families`` also on its parts if there are several."""
    rows = []
    for result in step.examination.results:
        whole = result.subset == result.task
        several = len({r.subset for r in step.examination.results if r.task == result.task}) > 2
        if result.metric != "right" or not (whole or (families and several)):
            continue
        change = step.differences.get(result.task, {}) if whole else {}
        rows.append(
            report.TaughtScore(
                model=step.name,
                test=result.task,
                subset=None if whole else result.subset,
                n=result.n,
                value=result.value,
                low=result.low,
                high=result.high,
                against=step.against if change else None,
                difference=change.get("value"),
                difference_low=change.get("low"),
                difference_high=change.get("high"),
                p=change.get("p"),
            )
        )
    return rows


def _forgetting(base: Step, taken: Step) -> list[report.Forgetting]:
    """Bits per byte on plain texts, of the base and of the model taken."""
    before, after = (step.to_json()["texts"] for step in (base, taken))
    return [report.Forgetting(text, row[BITS], after[text][BITS], "bits") for text, row in before.items()]


def _needs(step: Step) -> list[report.ComparisonNeeds]:
    names = ("difference", "power", "items", "needed", "seeds")
    return [
        report.ComparisonNeeds(step.name, step.against or "", test, **{name: row[name] for name in names})
        for test, row in step.planned.items()
    ]


def _gain(record: dict[str, Any], out: Path) -> report.TaughtGain:
    proof: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError):
        proof = read_sealed(out / VERDICT, "verdict on a prediction", FORMAT, _REMEDY)
    return report.TaughtGain(
        parts=record["parts"],
        scores=record["scores"],
        items=record["items"],
        chance=record.get("chance", 0.0),  # missing in records of older versions
        measured=record["measured"],
        recorded_at=record["recorded_at"],
        predicted=record.get("predicted"),
        low=record.get("low"),
        high=record.get("high"),
        inside=record["inside"],
        reason=record.get("cannot_be_predicted", ""),
        proved=proof.get("before_the_run"),
        journal=proof.get("journal", {}),
    )


def _talks(base: Step, taken: Step, items: dict[str, Item]) -> list[report.Talk]:
    """The first held-out question of each language with both replies from the examinations."""
    before = {row.id: row.outputs[0] for row in base.examination.items[HELD_OUT]}
    talks: dict[str, report.Talk] = {}
    for row in taken.examination.items[HELD_OUT]:
        item = items[row.cluster]
        replies = before[row.id].strip(), row.outputs[0].strip()
        talks.setdefault(
            item.language, report.Talk(item.text, item.answer or "", *replies, right=row.scores["right"] == 1.0)
        )
    return list(talks.values())
