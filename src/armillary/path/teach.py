"""A post-training from questions to an examined model. Each stage has its own folder; each gain is a paired difference.

The folder of a teaching::

    OUT/questions/, held-out/, harder/   questions with computed answers (``post.synthesize``)
    OUT/evolved/                         the first training questions, with harder and other ones derived from them
    OUT/verified/                        the questions whose reply passes its own check
    OUT/questions-clean/                 the training data: verified questions without repetitions of evaluation sets
    OUT/gain/                            scores of fine-tunings on parts of the data, and the prediction from these
    OUT/sft/, sft-2/, dpo/, merged/      the models, each with its training data
    OUT/rejected/, pairs/                verified samples of a model on new questions, and pairs of right and wrong ones
    OUT/merged.search/                   the losses of merges on a validation set, for the search of weights
    OUT/examined/MODEL/                  answers and scores of each model on the same items
    OUT/record.json                      all scores, paired differences and the model that was taken; sealed, last.
                                         Its paths are relative to OUT

A stage's model is taken only if it beats the model taken before: the paired interval on the held-out questions must lie
above zero. A stage that does not help is reported and left out. The model taken is the best of several, so its held-out
score is slightly too high.

The same call resumes: finished stages are reused, and an unfinished one continues. Each refuses changed settings.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import astuple, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from armillary.evaluate import Examination, compare, scores_of
from armillary.generate import Backend, BackendOptions, Sampling, open_backend
from armillary.laws import AtChanceError, GainLaw, paired_difference
from armillary.path.graph import Graph
from armillary.path.needs import needed, said_needed
from armillary.post import ITEMS, EvolveOptions, Keys, SampleOptions, evolve, read_items, read_rows, to_line
from armillary.post.chance import chance_level
from armillary.post.decontaminate import DecontaminateOptions, decontaminate
from armillary.post.dpo import DpoOptions, prefer
from armillary.post.examine import BITS, ExamineOptions, examine_items, in_template
from armillary.post.joins import Written, in_random_order, lines_of, write_lines
from armillary.post.merge import LEAST_ITEMS, MERGE, MergeOptions, Search, find_weights, held_out_loss, merge
from armillary.post.pairs import Files, PairOptions, pairs_by_verifier
from armillary.post.plan import SftOptions
from armillary.post.reject import RejectOptions, reject
from armillary.post.sft import fine_tune
from armillary.post.synthesize import SynthesisOptions, synthesize
from armillary.post.template import Templated, open_renderer
from armillary.post.tuning import Handling, digest, digest_model
from armillary.post.verify import verify, verify_file
from armillary.recipe import (
    DamagedFileError,
    Edge,
    Evolution,
    Gain,
    Merging,
    PreferenceStage,
    Rejection,
    Teaching,
    UsageError,
    exclusive,
    read_sealed,
    write_sealed,
)

FORMAT = 1
RECORD = "record.json"
HELD_OUT = "held-out"
BASE = "base"
INTERVAL = 0.9


@dataclass(frozen=True)
class Step:
    """One model of the path.

    Attributes:
        name: name of its stage; ``base`` is the model that everything starts from.
        model: its folder.
        examination: its answers and scores.
        against: name of the model that it is compared with.
        differences: differences in accuracy by set and in bits per byte by text: value, low and high of the paired
            interval, and p.
        taken: whether it is better than the model taken before.
        planned: by set, what the comparison needs, as computed before the model was made (`needs`).
    """

    name: str
    model: Path
    examination: Examination
    against: str | None
    differences: dict[str, dict[str, float]]
    taken: bool
    planned: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The step as plain data."""
        return {
            "name": self.name,
            "model": str(self.model),
            "scores": self._means("right"),
            "texts": self._means(BITS),
            "against": self.against,
            "differences": self.differences,
            "taken": self.taken,
            "planned": self.planned,
        }

    def _means(self, metric: str) -> dict[str, dict[str, float]]:
        return {
            result.task: {
                metric: result.value,
                "low": result.low,
                "high": result.high,
                "n": result.n,
                "truncated": result.truncated,
            }
            for result in self.examination.results
            if result.subset == result.task and result.metric == metric
        }


def teach(
    recipe: Teaching,
    out: Path,
    handling: Handling = Handling(),
    say: Callable[[str], None] = lambda text: None,
    on_prediction: Callable[[dict[str, Any]], None] = lambda prediction: None,
) -> list[Step]:
    """Run ``recipe`` in the folder ``out``; return the models in the order of their stages.

    ``on_prediction`` gets the prediction of the gain before the predicted run begins; every call passes the same one.

    Raises:
        UsageError: a model, file or option that a stage refuses; or ``out`` holds stages of another recipe.
        InterruptedRunError: ``handling.stop()`` returned true; call again to resume.
        ForeignFileError: ``out`` holds the record of a newer version, which is not changed.
        ArmillaryError: a stage failed; earlier results are kept.
    """
    with exclusive(out / ".lock", "teaches in this folder"):
        return _Teaching(recipe, out, handling, say, on_prediction).run()


class _Teaching:
    def __init__(
        self,
        recipe: Teaching,
        out: Path,
        handling: Handling,
        say: Callable[[str], None],
        on_prediction: Callable[[dict[str, Any]], None],
    ) -> None:
        self.recipe, self.out, self.handling, self.say, self.on_prediction = recipe, out, handling, say, on_prediction
        self.base = Path(recipe.model)
        open_renderer(self.base, recipe.template)  # an unusable model is refused before any work
        self.steps: list[Step] = []
        self.left_out: dict[str, str] = {}  # stages without material, with the reason
        self.plans: dict[str, dict[str, dict[str, Any]]] = {}  # by model and set, made before the comparison
        self.graph = Graph(out)
        self.search: dict[str, Any] | None = None  # result of the search for merge weights

    def run(self) -> list[Step]:
        # a record of a newer version is refused, never replaced; a damaged record is rewritten
        with contextlib.suppress(FileNotFoundError, DamagedFileError):
            read_sealed(self.out / RECORD, "record of a teaching", FORMAT, "name another folder")
        self._hold_out()
        data = self._data()
        self._examined(BASE, self.base)
        predicted = None if self.recipe.gain is None else self._predicted(data, self.recipe.gain)
        if predicted is not None:
            self.on_prediction(predicted)
        first = self._tuned("sft", data)
        if self.recipe.reject is not None:
            self._second(data, first, self.recipe.reject)
        if self.recipe.dpo is not None:
            self._preferred(self.recipe.dpo)
        if self.recipe.merge is not None:
            self._merged(self.recipe.merge)
        node, edges, names = self._lineage(predicted)
        write_sealed(
            self.out / RECORD,
            {
                "format": FORMAT,
                "node": node,
                "edges": [list(edge) for edge in edges],
                "names": names,
                "recipe": self._portable(),
                "base": {"name": self.base.resolve().name, "sha256": digest_model(self.base)},
                "gain": predicted and self._judged(predicted),
                "steps": [{**step.to_json(), "model": self._from_here(str(step.model))} for step in self.steps],
                "left_out": self.left_out,
                "search": self.search,
                "taken": self.taken.name,
            },
        )
        return self.steps

    def _lineage(self, predicted: dict[str, Any] | None) -> tuple[str, list[Edge], dict[str, str]]:
        """The node of the model taken, the edges of all files and models, and the names of the files."""
        graph = self.graph
        for step in self.steps:
            graph.model(step.name, step.model)
            for path in self.sets.values():
                graph.edges.append(Edge(graph.nodes[step.name], "examined on", graph.data(path)))
        if self.search is not None and "merged" in graph.nodes:
            found_on = graph.data(self.out / "validation.jsonl")
            graph.edges.append(Edge(graph.nodes["merged"], "weights found on", found_on))
        if predicted is not None:
            graph.predicted("sft")
        edges, names = graph.all()
        return graph.nodes[self.taken.name], edges, names

    @property
    def taken(self) -> Step:
        """The best model so far."""
        return next(step for step in reversed(self.steps) if step.taken)

    def _portable(self) -> dict[str, Any]:
        """The recipe, with paths from ``_from_here``."""
        plain: dict[str, Any] = self.recipe.model_dump(mode="json")
        plain["model"] = self._from_here(plain["model"])
        plain["decontaminate"] = [self._from_here(where) for where in plain["decontaminate"]]
        for holder, name in (("questions", "teacher"), ("evolve", "reference")):
            if plain[holder] and plain[holder][name]:
                plain[holder][name] = self._from_here(plain[holder][name])
        for files in (plain["examine"]["sets"], plain["examine"]["texts"]):
            files.update({name: self._from_here(where) for name, where in files.items()})
        return plain

    def _from_here(self, where: str) -> str:
        """A path relative to the folder, which stays valid if both move together; a URL unchanged."""
        return where if "://" in where else os.path.relpath(Path(where).resolve(), self.out.resolve())

    def _hold_out(self) -> None:
        asked = self.recipe.questions
        self.sets = {HELD_OUT: self._questions(HELD_OUT, asked.held_out, asked.seed, split="held-out")}
        if asked.harder:
            above = (max(asked.levels) + 1,)
            self.sets["harder"] = self._questions("harder", asked.harder, asked.seed, "held-out", above)
        self.sets.update({name: Path(where) for name, where in self.recipe.examine.sets.items()})

    def _data(self) -> Path:
        """The training data of the models."""
        asked = self.recipe.questions
        items = self._questions("questions", asked.items, asked.seed)
        if self.recipe.evolve is not None:
            items = self._evolved(items, self.recipe.evolve)
        return self._clean(self._verified(items), self.out / "questions-clean")

    def _questions(
        self, name: str, count: int, seed: int, split: str = "train", levels: tuple[int, ...] | None = None
    ) -> Path:
        asked = self.recipe.questions
        options = SynthesisOptions(
            count, asked.families, asked.languages, levels or asked.levels, seed=seed, split=split
        )
        # held-out questions keep the families' own wording, so they are the same for every teacher
        teacher = asked.teacher if split == "train" else None
        with contextlib.ExitStack() as opened:
            record = synthesize(
                self.out / name,
                options,
                None if teacher is None else opened.enter_context(closing(open_backend(teacher, BackendOptions()))),
                lambda done, total, note: self.handling.advance(name, done, total, note),
            )
        if teacher is not None:
            self.graph.answered(self.out / name / ITEMS, "reworded by", teacher)
        self.say(f"{name}: {record['counts']['kept']} items")
        return self.out / name / ITEMS

    def _evolved(self, items: Path, asked: Evolution) -> Path:
        """The questions, with harder and other ones derived from the first ``asked.items``."""
        first, out = write_lines(self.out / "evolved.jsonl", lines_of(items, 0, asked.items)), self.out / "evolved"
        self.graph.made(first, "the beginning of", items)
        sampling = SampleOptions(asked.samples, (0.8,), self.recipe.examine.max_new_tokens)
        total = first.lines * (asked.rounds + 1)
        options = EvolveOptions(
            asked.rounds,
            asked.breadth,
            sampling,
            progress=lambda done: self.handling.advance("evolve", done, total, ""),
        )
        with closing(self._reference(asked.reference)) as backend:
            counts = evolve(first.path, out, backend, backend, options)["counts"]
        self.graph.answered(out / ITEMS, "measured by", self.base if asked.reference is None else asked.reference)
        decided = [reasons for _, reasons in sorted(counts["rounds"].items())]
        made = sum(reasons.get("kept", 0) for reasons in decided)
        if not made:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(decided[0].items()))
            self._leave_out("evolve", f"no question was evolved ({reasons})")
            return items
        self.say(f"evolve: {made} evolved questions")
        lines = itertools.chain(lines_of(out / ITEMS), lines_of(items, asked.items))
        both = write_lines(self.out / "questions-evolved.jsonl", lines)
        return self.graph.made(both, "joined from", out / ITEMS, items)

    def _reference(self, model: str | None) -> Backend:
        """The model that measures the difficulty of questions: by default the base, prompted as in its examination."""
        if model is not None:
            return open_backend(model, BackendOptions())
        chat = open_renderer(self.base, self.recipe.template).chat
        return Templated(open_backend(str(self.base), BackendOptions()), chat)

    def _verified(self, items: Path) -> Path:
        """The questions whose reply passes its own check; programs run against their tests here."""
        record = verify_file(
            items, self.out / "verified", lambda done, total, note: self.handling.advance("verify", done, total, note)
        )
        share = record["counts"]["verified"]
        self.say(f"verified: {share['share']:.1%} of {share['of']} items ({share['low']:.1%} to {share['high']:.1%})")
        return self.out / "verified" / ITEMS

    def _clean(self, items: Path, out: Path) -> Path:
        """Training questions without items of any evaluation set in use: its own sets, and the recipe's sets and texts.

        Held-out questions of the same families are compared as a whole only, because the pass that masks numbers would
        match every question of a family.
        """
        asked = self.recipe.examine
        against = [Path(where) for where in (*self.recipe.decontaminate, *asked.sets.values(), *asked.texts.values())]
        options = DecontaminateOptions(
            whole=tuple(path for name, path in self.sets.items() if name not in asked.sets),
            progress=lambda done, total: self.handling.advance(out.name, done, total, ""),
            note=self.say,
        )
        record = decontaminate(items, against, out, options)
        dropped = record["counts"]["dropped"]
        self.say(f"{out.name}: {sum(dropped.values())} items of evaluation sets removed")
        return out / ITEMS

    def _predicted(self, data: Path, gain: Gain) -> dict[str, Any]:
        """Predict the held-out score of fine-tuning on all of ``data``; the prediction is recorded before it begins."""
        place = self.out / "gain" / "prediction.json"
        count = sum(1 for _ in lines_of(data))
        sizes = [max(1, round(part * count)) for part in gain.parts]
        with contextlib.suppress(FileNotFoundError):
            known = read_sealed(place, "prediction of a gain", FORMAT, "remove the folder to predict again")
            if known["parts"] != sizes or known["items"] != count:
                raise UsageError(
                    f"{place}: was made from parts of {known['parts']} of {known['items']} items, but the recipe has "
                    f"{sizes} of {count}; give another folder"
                )
            return known
        scores = []
        for part, size in zip(gain.parts, sizes, strict=True):
            few = write_lines(self.out / "gain" / f"{part:g}.jsonl", in_random_order(data, size))
            scores.append(self._part(f"gain/{part:g}", few, data))
        document: dict[str, Any] = {"format": FORMAT, "parts": sizes, "items": count, "interval": INTERVAL}
        document["scores"] = [sum(score) / len(score) for score in scores]
        document["chance"] = chance_level(data, self.sets[HELD_OUT])
        document["recorded_at"] = datetime.now(UTC).isoformat()
        document["before_the_run"] = not (self.out / "sft" / "run").exists()
        try:
            if document["chance"] == 1.0:
                raise AtChanceError(
                    "every question of a kind has the same answer; use questions with different answers"
                )
            law = GainLaw(chance=document["chance"]).fit([[float(size)] for size in sizes], scores)
            mean, low, high = law.predict([[float(count)]], INTERVAL)
            document |= {"predicted": float(mean[0]), "low": float(low[0]), "high": float(high[0])}
            self.say(f"gain: predicted {mean[0]:.3f} ({low[0]:.3f} to {high[0]:.3f})")
        except AtChanceError as error:
            document["cannot_be_predicted"] = str(error)
            self.say(f"gain: cannot be predicted: {error}")
        write_sealed(place, document)
        return document

    def _part(self, name: str, few: Written, data: Path) -> list[float]:
        """The score of each held-out question after a fine-tuning on ``few`` of ``data``; the model is removed then."""
        kept = self.out / f"{name}.json"
        asked = {"data": few.sha256, "held_out": digest(self.sets[HELD_OUT]), "recipe": self._portable()["sft"]}
        try:
            known = read_sealed(kept, "score of a part", FORMAT, "remove it to train the part again")
        except FileNotFoundError:
            found = self._asked(name, self._fine_tuned(name, few.path), {HELD_OUT: self.sets[HELD_OUT]})
            scores = [item.scores["right"] for item in found.items[HELD_OUT]]
            trained = read_sealed(self.out / name / RECORD, "record of a fine-tuning", FORMAT, "remove the folder")
            edges = [[few.node, "a part of", self.graph.data(data)], *trained["edges"]]
            known = {"format": FORMAT, **asked, "scores": scores, "run": trained["run"], "edges": edges}
            write_sealed(kept, known)
        if differing := [field for field, value in asked.items() if known[field] != value]:
            raise UsageError(f"{kept}: was made with another {' and '.join(differing)}; give another folder")
        shutil.rmtree(self.out / name, ignore_errors=True)
        return list(known["scores"])

    def _judged(self, predicted: dict[str, Any]) -> dict[str, Any]:
        """The prediction with the score of the whole run, and whether it lies inside the interval."""
        found = next(step for step in self.steps if step.name == "sft")
        measured = found.to_json()["scores"][HELD_OUT]["right"]
        inside = None if "low" not in predicted else predicted["low"] <= measured <= predicted["high"]
        if inside is not None:
            self.say(f"gain: measured {measured:.3f}, {'inside' if inside else 'outside'} the predicted interval")
        return {**predicted, "measured": measured, "inside": inside}

    def _second(self, data: Path, first: Path, asked: Rejection) -> None:
        """A second fine-tuning of the base, on the questions and verified samples of the first model."""
        options = RejectOptions(
            sampling=SampleOptions(asked.samples, asked.temperatures, self.recipe.examine.max_new_tokens),
            progress=lambda done: self.handling.advance("reject", done, asked.questions, ""),
        )
        questions = self._new_questions(asked)
        with closing(open_backend(str(first), BackendOptions())) as backend:
            record = reject(questions, self.out / "rejected", backend, options)
        self.graph.answered(self.out / "rejected" / ITEMS, "sampled from", first)
        self.say(f"reject: {record['counts']['kept']} verified samples kept")
        if not record["counts"]["kept"]:
            return self._leave_out("sft-2", "no sample was right, so there is nothing new to train on")
        kept = self.out / "rejected" / ITEMS
        both = write_lines(self.out / "sft-2.jsonl", itertools.chain(lines_of(data), lines_of(kept)))
        self._tuned("sft-2", self.graph.made(both, "joined from", data, kept))

    def _preferred(self, asked: PreferenceStage) -> None:
        """The model taken so far, trained with DPO on pairs of its own right and wrong samples."""
        assert self.recipe.reject is not None
        model, longest = self.taken.model, self.recipe.examine.max_new_tokens
        if self.taken.name == BASE:
            return self._leave_out("dpo", "no fine-tuned model was better than the base")
        options = PairOptions(self.recipe.reject.samples, self.recipe.reject.temperatures, longest, seed=1)
        files = Files(self._new_questions(self.recipe.reject), self.out / "pairs", self.handling.advance)
        with closing(open_backend(str(model), BackendOptions())) as backend:
            made = pairs_by_verifier(files, backend, options, lambda item, text: verify(item, text).outcome)
        self.graph.answered(self.out / "pairs" / ITEMS, "sampled from", model)
        self.say(f"pairs: {made.counts['kept']} of {made.counts['decided']} questions")
        if not made.counts["kept"]:
            return self._leave_out("dpo", "no question had both a right and a wrong sample")
        self._planned("dpo")
        preference = DpoOptions(beta=asked.beta, epochs=asked.epochs, lr=asked.lr, template=self.recipe.template)
        found = prefer(model, self.out / "pairs" / ITEMS, self.out / "dpo", preference, handling=self.handling)
        self._examined("dpo", found.model)

    def _merged(self, asked: Merging) -> None:
        """A merge of all models trained from the base."""
        made = [step for step in self.steps if step.name != BASE]
        if len(made) < 2:
            return self._leave_out("merged", "there is only one model")
        scores = {step.name: step.to_json()["scores"][HELD_OUT]["right"] for step in self.steps}
        if asked.method == "slerp":  # needs two models: take the best ones
            made = sorted(made, key=lambda step: scores[step.name])[-2:]
        models, out = [step.model for step in made], self.out / "merged"
        options = MergeOptions(asked.method, scale=asked.scale)
        if asked.method == "weighted":
            options = replace(options, weights=tuple(scores[step.name] for step in made), base_score=scores[BASE])
            if max(options.weights) <= scores[BASE]:
                return self._leave_out("merged", "do not merge: no model has a better score than the base")
        if asked.evaluations is not None:
            found = self._weights(models, options, asked)
            if found is None:
                return None
            options = replace(options, weights=tuple(found["weights"]), scale=found["scale"])
        self._planned("merged")
        merge(
            self.base,
            models,
            out,
            options,
            lambda done, total: self.handling.advance("merge", done, total, f"{done >> 20} of {total >> 20} MiB"),
        )
        self._examined("merged", out)

    def _weights(self, models: list[Path], options: MergeOptions, asked: Merging) -> dict[str, Any] | None:
        """The weights found on separate validation questions; None if no merge is better."""
        assert asked.evaluations is not None
        made = self._questions("validation", asked.validation, self.recipe.questions.seed + 2, split="held-out")
        examined = Keys()
        for item in read_items(self.sets[HELD_OUT]):
            examined.add(item.text)
        others = (to_line(item.to_json()) for item in read_items(made) if item.text not in examined)
        written = write_lines(self.out / "validation.jsonl", others)
        self.graph.made(written, "a part of", made)
        if written.lines < LEAST_ITEMS:
            self._leave_out(
                "merged",
                f"{written.lines} further held-out questions are too few; choosing weights needs {LEAST_ITEMS}",
            )
            return None
        score, name = held_out_loss(written.path, models[0])
        search = Search(
            score,
            name,
            asked.evaluations,
            progress=lambda done, total, note: self.handling.advance("weights", done, total, note),
        )
        found = find_weights(self.base, models, self.out / "merged", options, search)
        self.search = {**found, "best_single": self._from_here(found["best_single"])}
        gap = found["difference"]
        better = f"{gap['value']:+.4f} ({gap['low']:+.4f} to {gap['high']:+.4f}) nats per token better"
        if found["decision"] != MERGE:
            self._leave_out("merged", f"do not merge: the best of {found['evaluations']} is {better}")
            return None
        self.say(
            f"merge: weights {', '.join(f'{w:.3f}' for w in found['weights'])}, scale {found['scale']:g}: {better}"
        )
        return found

    def _leave_out(self, stage: str, reason: str) -> None:
        self.left_out[stage] = reason
        self.say(f"{stage}: left out, {reason}")

    def _new_questions(self, asked: Rejection) -> Path:
        name = "new-questions"
        questions = self._questions(name, asked.questions, self.recipe.questions.seed + 1)
        return self._clean(questions, self.out / f"{name}-clean")

    def _planned(self, name: str) -> None:
        """State what the comparison of the model ``name`` needs, before it is made; the statement is kept.

        Raises:
            UsageError: the kept one was made for other sets or another difference.
        """
        place, difference = self.out / "plans" / f"{name}.json", self.recipe.examine.difference
        sets = {task: sum(1 for _ in read_rows(path)) for task, path in self.sets.items()}
        document: dict[str, Any] = {
            "format": FORMAT,
            "model": name,
            "against": self.taken.name,
            "difference": difference,
        }
        document["sets"] = {task: needed(difference, items) for task, items in sets.items()}
        try:
            known = read_sealed(place, "plan of a comparison", FORMAT, "remove it")
            if {field: known[field] for field in document} != json.loads(json.dumps(document)):
                raise UsageError(f"{place}: was made for other sets, or another difference; give another folder")
        except FileNotFoundError:
            write_sealed(place, document)
        self.plans[name] = document["sets"]
        for task, row in document["sets"].items():
            self.say(f"{name}: {said_needed(task, row)}")

    def _tuned(self, name: str, data: Path) -> Path:
        self._planned(name)
        model = self._fine_tuned(name, data)
        self._examined(name, model)
        return model

    def _fine_tuned(self, name: str, data: Path) -> Path:
        asked = {**self.recipe.sft.model_dump(), "lora": self.recipe.sft.lora}
        options = SftOptions(**asked, template=self.recipe.template, too_long="drop")
        return fine_tune(self.base, data, self.out / name, options, handling=self.handling).model

    def _examined(self, name: str, model: Path) -> None:
        found = self._asked(name, model, self.sets, {task: Path(at) for task, at in self.recipe.examine.texts.items()})
        against = self.taken if self.steps else None
        differences = {} if against is None else _differences(against.examination, found)
        taken = against is None or differences[HELD_OUT]["low"] > 0
        planned = self.plans.get(name, {})
        step = Step(name, model, found, None if against is None else against.name, differences, taken, planned)
        self.steps.append(step)
        self.say(_said(step))

    def _asked(
        self, name: str, model: Path, sets: Mapping[str, Path], texts: Mapping[str, Path] = MappingProxyType({})
    ) -> Examination:
        """All models are prompted with one template, which the base may not have."""
        options = ExamineOptions(Sampling(max_new_tokens=self.recipe.examine.max_new_tokens), texts=texts)
        options = in_template(options, self.base, self.recipe.template)
        with closing(open_backend(str(model), BackendOptions())) as backend:
            return examine_items(
                backend,
                sets,
                self.out / "examined" / name,
                options,
                lambda done, total: self.handling.advance(f"examine {name}", done, total, ""),
            )


def _differences(first: Examination, second: Examination) -> dict[str, dict[str, float]]:
    """Differences in accuracy and bits per byte, second minus first, on the same items and texts."""
    differences = {}
    for found in compare(first, second):
        if found.metric == BITS and found.paired.items > 1:
            # few texts with small changes each: Student's interval, which needs no bounds
            scores = scores_of((first, second), found.task, BITS)
            gap = paired_difference(scores[:, 1], scores[:, 0], 0.95)
            value, low, high = gap.mean, gap.low, gap.high
        elif found.metric in ("right", BITS):
            value, low, high = astuple(found.paired.difference)
        else:
            continue
        differences[found.task] = {
            "value": float(value),
            "low": float(low),
            "high": float(high),
            "p": found.paired.p_value,
        }
    return differences


def _said(step: Step) -> str:
    scores = ", ".join(
        f"{result.task} {result.value:.3f} ({result.low:.3f} to {result.high:.3f})"
        for result in step.examination.results
        if result.subset == result.task and result.metric in ("right", BITS)
    )
    if step.against is None:
        return f"{step.name}: {scores}"
    change = step.differences[HELD_OUT]
    word = "chosen" if step.taken else f"not significantly better, {step.against} is kept"
    interval = f"{change['value']:+.3f} ({change['low']:+.3f} to {change['high']:+.3f})"
    return f"{step.name}: {scores}; against {step.against} {interval}: {word}"
