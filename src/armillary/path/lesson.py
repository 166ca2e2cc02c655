"""The lesson: teaches the published model questions with computed answers, examines it, and publishes a chat model.

The post-training is that of ``armillary post run`` (``path.teach``), in ``taught/KEY`` of the workspace. Its outcome is
a stage of the store, under a key over the published run and all settings of the lesson. A finished lesson is therefore
not repeated, and a lesson with another model or other questions has its own folder. Its prediction and verdict are
records in the store's journal, like those of the target run.

The number of passes over the questions is the largest that fits into the lesson's share of the budget.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from armillary import __version__, report
from armillary.launch import stopping
from armillary.model import import_hf
from armillary.path.evidence import public_source
from armillary.path.taught import Taught, teaching_part
from armillary.path.teach import BASE, HELD_OUT, Step, teach
from armillary.post import ITEMS
from armillary.post.formats import read_conversations
from armillary.post.synthesize import SynthesisOptions, synthesize
from armillary.post.template import open_renderer
from armillary.post.tuning import Handling
from armillary.publish import is_published, publish_chat
from armillary.recipe import (
    ArmillaryError,
    Edge,
    Lesson,
    Questioning,
    Teaching,
    canonical_hash,
    parse_budget,
    read_result,
    read_sealed,
    read_spec,
)
from armillary.study import Lab
from armillary.train import validate

FOLDER, CHAT = "taught", "chat"
STAGE = "lesson"
# Increased when the content of the outcome changes.
_FORMAT = 1
# Share of the lesson's time for its trainings at the rate of all workers together. The rest is a reserve: one process
# trains them, which is slower, and questions must be drawn and five examinations run.
_TRAINING_SHARE = 0.45
# Fields of the post-training that its outcome does not depend on.
_NOT_IN_KEY: dict[str, Any] = {"model": True, "examine": {"difference"}}
# Number of questions drawn to estimate their length.
_SAMPLE = 64


@dataclass(frozen=True)
class Pupil:
    """The published model: its ``run``, its ``folder``, and the ``lineage`` published with it."""

    run: str
    folder: Path
    lineage: dict[str, Any]


def check_lesson(lesson: Lesson) -> None:
    """Check the lesson's settings before anything is trained.

    Raises:
        UsageError: an unknown family, language or level.
    """
    asked = lesson.questions
    SynthesisOptions(asked.items, asked.families, asked.languages, asked.levels)


def give_lesson(lab: Lab, pupil: Pupil, workspace: Path) -> Taught:
    """Teach the published model in ``workspace``, and publish it as ``chat/``; finished steps are not repeated.

    Raises:
        UsageError: ``chat/`` holds files that were not published there, or the model cannot be taught these questions.
        InterruptedRunError: Ctrl-C; call again to resume.
        ArmillaryError: a stage failed; earlier results are kept.
    """
    lesson = lab.recipe.lesson
    assert lesson is not None
    with tempfile.TemporaryDirectory() as scratch:
        epochs = _epochs(lab, lesson, pupil.folder, Path(scratch))
    teaching = Teaching(
        name=STAGE,
        model=str(pupil.folder),
        questions=lesson.questions,
        sft=lesson.sft.model_copy(update={"epochs": epochs}),
        gain=lesson.gain,
        examine=Questioning(max_new_tokens=lesson.max_new_tokens),
    )
    key = lab.key([lab.store.run_spec(pupil.run)], _FORMAT, teaching.model_dump(mode="json", exclude=_NOT_IN_KEY))
    out = workspace / FOLDER / key
    question = canonical_hash([STAGE, key])
    found = lab.stored(STAGE, key, Taught)
    if found is None:
        found = lab.conclude(STAGE, key, _outcome(lab, pupil, out, _teach(lab, teaching, out, question)))
    if not found.published:
        lab.say(
            f"lesson: no chat model is published, because none answers better than the model in {pupil.folder.name}/"
        )
        return found
    lineage = _lineage(pupil, found)
    if not is_published(workspace / CHAT, lineage):
        if not (out / found.kept / "model" / "config.json").exists():
            _teach(lab, teaching, out, question)  # its files had been removed
        kept = publish_chat(out / found.kept / "model", workspace / CHAT, lineage)
        if kept is not None:
            lab.say(f"lesson: {workspace / CHAT} was changed after publication; the changed folder is kept as {kept}")
    return found


def _epochs(lab: Lab, lesson: Lesson, model: Path, scratch: Path) -> float:
    """The passes over the questions that fit into the budget, at most the lesson's own number."""
    if lab.plan.budget is None:
        return lesson.sft.epochs
    asked = lesson.questions
    options = SynthesisOptions(_SAMPLE, asked.families, asked.languages, asked.levels, seed=asked.seed, split="train")
    synthesize(scratch / "sample", options)
    renderer = open_renderer(model, None)
    lengths = [len(renderer.render(one).tokens) for one in read_conversations(scratch / "sample" / ITEMS)]
    tokens = asked.items * sum(lengths) / len(lengths)
    value, unit = parse_budget(lab.plan.budget)
    name = f"{lab.recipe.model.family}/{lab.recipe.model.depth}"
    shape = lab.shape(lab.recipe.model.family, lab.recipe.model.depth)
    cost = (
        shape.train_flops_per_token(lab.recipe.training.context_length) if unit == "flops" else 1 / lab.plan.rates[name]
    )
    passes = value * lesson.budget_share * _TRAINING_SHARE / (cost * tokens * (1 + sum(lesson.gain.parts)))
    return min(lesson.sft.epochs, float(f"{passes:.2g}"))


def _teach(lab: Lab, teaching: Teaching, out: Path, question: str) -> list[Step]:
    """Teach; record the prediction before the fine-tuning that it is about, and the verdict after."""

    def progress(stage: str, done: float, total: float, note: str) -> None:
        lab.progress(f"lesson: {stage}", done, total, note)

    def record(prediction: dict[str, Any]) -> None:
        if lab.store.prediction(question) is None:
            if (out / "sft" / "run").exists():
                raise ArmillaryError(
                    f"{out}: its fine-tuning has begun, but the store has no prediction of it; remove the folder to "
                    "predict and teach again, or restore the database from a backup"
                )
            content = {name: value for name, value in prediction.items() if name not in ("format", "sha256")}
            lab.store.record_prediction(question, {"what": STAGE, "set": HELD_OUT, **content, "version": __version__})

    with stopping() as stop:
        steps = teach(
            teaching, out, Handling(progress=progress, stop=stop), lambda text: lab.say(f"lesson: {text}"), record
        )
    gain = read_sealed(out / "record.json", "record of a teaching", 1, "remove it")["gain"]
    if gain is not None and lab.store.verdict(question) is None:
        status = "unpredicted" if gain["inside"] is None else "judged"
        lab.store.record_verdict(question, {"status": status, "measured": gain["measured"], "inside": gain["inside"]})
    return steps


def _outcome(lab: Lab, pupil: Pupil, out: Path, steps: list[Step]) -> Taught:
    part = teaching_part(out, steps)
    assert lab.recipe.lesson is not None
    parts = lab.recipe.lesson.gain.parts
    result = read_result(out / "sft" / "run")
    assert result is not None
    times = 1 + sum(parts)  # the models of the parts are removed after their examination
    trained = out / ("sft" if part.taken == BASE else part.taken)
    record = read_sealed(trained / "record.json", "record of a fine-tuning", 1, "remove it")
    spec = read_spec(trained / "run").model_dump(mode="json")
    spec["start"]["weights"] = public_source(spec["start"]["weights"])
    return Taught(
        base=pupil.run,
        weights=record["settings"]["model"],
        kept=part.taken,
        run=record["run"],
        spec=spec,
        edges=record["edges"],
        part=replace(part, forgetting=_forgetting(lab, pupil, out / "sft" / "model")),
        trained=1 + len(parts),
        flops=times * result.flops,
        seconds=times * result.wall_s,
    )


def _forgetting(lab: Lab, pupil: Pupil, model: Path) -> list[report.Forgetting]:
    """The validation losses of the base (as measured by its run) and of the fine-tuned ``model``."""
    result = lab.store.result(pupil.run)
    assert result is not None
    trained = import_hf(model)

    @torch.no_grad()
    def entropy(windows: torch.Tensor) -> float:
        total = trained.loss(windows)[1].item()
        return total / windows[:, 1:].numel()

    after = {name: loss for name, (loss, _) in validate(entropy, lab.store.run_spec(pupil.run), lab.corpus).items()}
    weights = lab.recipe.target_weights
    target = sum(weight * after[name] for name, weight in weights.items())
    rows = [report.Forgetting(name, result.loss[name], after[name]) for name in after]
    return [*rows, report.Forgetting("target", lab.target_loss(result), target)]


def _lineage(pupil: Pupil, found: Taught) -> dict[str, Any]:
    """The lineage of the chat model: from its weights through the base model to the text."""
    edges = [*map(tuple, found.edges), (f"model:{found.weights}", "published from", f"run:{pupil.run}")]
    edges += map(tuple, pupil.lineage["edges"])
    return {
        "run": found.run,
        "spec": found.spec,
        "base": {"run": pupil.run, "weights": found.weights},
        "corpus": pupil.lineage["corpus"],
        "edges": [Edge(*edge) for edge in dict.fromkeys(edges)],
        "argued_by": {},
        "teaching": _for_card(found),
        "losses": {row.domain: [row.before, row.after] for row in found.part.forgetting},
    }


def _for_card(found: Taught) -> dict[str, Any]:
    part = found.part
    before = {row.test: row.value for row in part.scores if row.model == BASE and row.subset is None}
    scores = [
        {
            "test": row.test,
            "n": row.n,
            "before": before[row.test],
            "after": row.value,
            "difference": row.difference,
            "low": row.difference_low,
            "high": row.difference_high,
        }
        for row in part.scores
        if row.model == found.kept and row.subset is None
    ]
    gain = None if part.gain is None else asdict(part.gain)
    return {
        "families": list(part.families),
        "items": sum(row.items for row in part.questions if row.name == "questions"),
        "example": part.talks[-1].question if part.talks else "",
        "scores": scores,
        "gain": gain,
    }
