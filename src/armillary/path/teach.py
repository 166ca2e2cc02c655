"""A post-training from questions to an examined model: every stage a folder of its own, each gain measured in pairs.

The folder of a teaching::

    OUT/questions/, held-out/, harder/   questions with computed answers (``post.synthesize``)
    OUT/questions-clean/                 the training questions without those of evaluation sets
    OUT/sft/, sft-2/, dpo/, merged/      the models, each with what it was trained on
    OUT/rejected/                        verified samples of the first model on new questions
    OUT/examined/MODEL/                  answers and scores of each model on the same items
    OUT/record.json                      all scores, paired differences and the model that was taken; sealed, last

A stage's model is taken where it is better than the one taken before, beyond the paired interval on the held-out
questions. So a stage that does not help is reported and left out. The held-out score of the model taken is that of the
best of a few, which is a little more than it would have on new questions.

The same call resumes: finished stages are found, and an unfinished one goes on. Each refuses changed settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armillary.evaluate import Examination, compare
from armillary.files import write_file
from armillary.generate import BackendOptions, Sampling, open_backend
from armillary.post.decontaminate import DecontaminateOptions, decontaminate
from armillary.post.examine import ExamineOptions, examine_items
from armillary.post.plan import SftOptions
from armillary.post.reject import RejectOptions, reject
from armillary.post.sampling import SampleOptions
from armillary.post.sft import fine_tune
from armillary.post.stage import ITEMS
from armillary.post.synthesize import SynthesisOptions, synthesize
from armillary.post.template import open_renderer
from armillary.post.tuning import Handling
from armillary.recipe import Teaching, canonical_hash, exclusive, write_sealed

FORMAT = 1
RECORD = "record.json"
HELD_OUT = "held-out"


@dataclass(frozen=True)
class Step:
    """One model of the path.

    Attributes:
        name: of its stage; ``base`` is the model that everything starts from.
        model: its folder.
        examination: its answers and scores.
        against: name of the model that it is compared with.
        differences: of the share of right answers, by set: value, low and high of the paired interval, and p.
        taken: whether it is better than the one taken before.
    """

    name: str
    model: Path
    examination: Examination
    against: str | None
    differences: dict[str, dict[str, float]]
    taken: bool

    def to_json(self) -> dict[str, Any]:
        """The step as plain data."""
        scores = {
            result.task: {
                "right": result.value,
                "low": result.low,
                "high": result.high,
                "n": result.n,
                "truncated": result.truncated,
            }
            for result in self.examination.results
            if result.subset == result.task and result.metric == "right"
        }
        return {
            "name": self.name,
            "model": str(self.model),
            "scores": scores,
            "against": self.against,
            "differences": self.differences,
            "taken": self.taken,
        }


def teach(
    recipe: Teaching, out: Path, handling: Handling = Handling(), say: Callable[[str], None] = lambda text: None
) -> list[Step]:
    """Carry out ``recipe`` in the folder ``out``; the models in the order in which they were made.

    Raises:
        UsageError: a model, file or option that a stage refuses; or ``out`` holds stages of another recipe.
        InterruptedRunError: ``handling.stop()`` returned true; call again to resume.
        ArmillaryError: a stage failed; what was done before is kept.
    """
    with exclusive(out / ".lock", "teaches in this folder"):
        return _Teaching(recipe, out, handling, say).run()


class _Teaching:
    def __init__(self, recipe: Teaching, out: Path, handling: Handling, say: Callable[[str], None]) -> None:
        self.recipe, self.out, self.handling, self.say = recipe, out, handling, say
        self.base = Path(recipe.model)
        self.renderer = open_renderer(self.base, recipe.template)
        self.steps: list[Step] = []

    def run(self) -> list[Step]:
        self._hold_out()
        data = self._questions("questions", self.recipe.questions.items, self.recipe.questions.seed)
        self._examined("base", self.base)
        first = self._tuned("sft", data)
        if self.recipe.reject is not None:
            kept = self._rejected(first)
            both = self.out / "sft-2.jsonl"
            _join(both, (data, kept))
            self._tuned("sft-2", both)
        write_sealed(
            self.out / RECORD,
            {
                "format": FORMAT,
                "recipe": self.recipe.model_dump(mode="json"),
                "steps": [step.to_json() for step in self.steps],
                "taken": self.taken.name,
            },
        )
        return self.steps

    @property
    def taken(self) -> Step:
        """The model that is the best so far."""
        return next(step for step in reversed(self.steps) if step.taken)

    def _hold_out(self) -> None:
        asked = self.recipe.questions
        self.sets = {HELD_OUT: self._questions(HELD_OUT, asked.held_out, asked.seed, split="held-out")}
        if asked.harder:
            above = (max(asked.levels) + 1,)
            self.sets["harder"] = self._questions("harder", asked.harder, asked.seed, "held-out", above)
        self.sets.update({name: Path(where) for name, where in self.recipe.examine.sets.items()})

    def _questions(
        self, name: str, count: int, seed: int, split: str = "train", levels: tuple[int, ...] | None = None
    ) -> Path:
        asked = self.recipe.questions
        options = SynthesisOptions(
            count, asked.families, asked.languages, levels or asked.levels, seed=seed, split=split
        )
        # held-out questions keep the families' own wording: one set for every teacher
        teacher = asked.teacher if split == "train" else None
        opened = None if teacher is None else open_backend(teacher, BackendOptions())
        try:
            record = synthesize(
                self.out / name,
                options,
                opened,
                lambda done, total, note: self.handling.advance(name, done, total, note),
            )
        finally:
            if opened is not None:
                opened.close()
        self.say(f"{name}: {record['counts']['kept']} items")
        made = self.out / name / ITEMS
        return made if split == "held-out" else self._clean(made, self.out / f"{name}-clean")

    def _clean(self, items: Path, out: Path) -> Path:
        """Training questions without those of evaluation sets. Held-out ones of the same families are others already:
        the pass that masks numbers would take every question of a family for a repetition.
        """
        against = [Path(where) for where in (*self.recipe.decontaminate, *self.recipe.examine.sets.values())]
        if not against:
            return items
        options = DecontaminateOptions(
            progress=lambda done, total: self.handling.advance(out.name, done, total, ""), note=self.say
        )
        record = decontaminate(items, against, out, options)
        dropped = record["counts"]["dropped"]
        self.say(f"{out.name}: {sum(dropped.values())} items of evaluation sets removed")
        return out / ITEMS

    def _tuned(self, name: str, data: Path) -> Path:
        asked = self.recipe.sft
        options = SftOptions(**asked.model_dump(), template=self.recipe.template, too_long="drop")
        found = fine_tune(self.base, data, self.out / name, options, handling=self.handling)
        self._examined(name, found.model)
        return found.model

    def _rejected(self, model: Path) -> Path:
        asked = self.recipe.reject
        assert asked is not None
        questions = self._questions("new-questions", asked.questions, self.recipe.questions.seed + 1)
        options = RejectOptions(
            sampling=SampleOptions(asked.samples, asked.temperatures, self.recipe.examine.max_new_tokens),
            progress=lambda done: self.handling.advance("reject", done, asked.questions, ""),
        )
        with closing(open_backend(str(model), BackendOptions())) as backend:
            record = reject(questions, self.out / "rejected", backend, options)
        self.say(f"reject: {record['counts']['kept']} verified samples kept")
        return self.out / "rejected" / ITEMS

    def _examined(self, name: str, model: Path) -> None:
        options = ExamineOptions(
            Sampling(max_new_tokens=self.recipe.examine.max_new_tokens),
            render=lambda turns: self.renderer.chat.render([{"role": t.role, "content": t.content} for t in turns]),
            template=canonical_hash(self.renderer.chat.source),
        )
        with closing(open_backend(str(model), BackendOptions())) as backend:
            found = examine_items(
                backend,
                self.sets,
                self.out / "examined" / name,
                options,
                lambda done, total: self.handling.advance(f"examine {name}", done, total, ""),
            )
        against = self.taken if self.steps else None
        differences = {} if against is None else _differences(against.examination, found)
        taken = against is None or differences[HELD_OUT]["low"] > 0
        step = Step(name, model, found, None if against is None else against.name, differences, taken)
        self.steps.append(step)
        self.say(_said(step))


def _differences(first: Examination, second: Examination) -> dict[str, dict[str, float]]:
    """Of the share of right answers, second less first, on the same items."""
    return {
        found.task: {
            "value": found.paired.difference.value,
            "low": found.paired.difference.low,
            "high": found.paired.difference.high,
            "p": found.paired.p_value,
        }
        for found in compare(first, second)
        if found.metric == "right"
    }


def _said(step: Step) -> str:
    scores = ", ".join(
        f"{result.task} {result.value:.3f} ({result.low:.3f} to {result.high:.3f})"
        for result in step.examination.results
        if result.subset == result.task and result.metric == "right"
    )
    if step.against is None:
        return f"{step.name}: {scores}"
    change = step.differences[HELD_OUT]
    word = "taken" if step.taken else f"not better beyond chance, {step.against} stays"
    interval = f"{change['value']:+.3f} ({change['low']:+.3f} to {change['high']:+.3f})"
    return f"{step.name}: {scores}; against {step.against} {interval}: {word}"


def _join(path: Path, parts: Iterable[Path]) -> None:
    """The lines of all parts in one file."""
    write_file(path, b"".join(part.read_bytes() for part in parts))
