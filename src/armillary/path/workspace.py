"""Runs the whole path from a recipe to a published model, stage by stage.

A workspace is the folder of a recipe's results: ``corpus/``, ``store/`` (runs and database), ``plan.json`` (the sizes
of the studies), and at the end ``report.html``, ``summary.json``, ``recipe.found.yaml`` and ``model/``. With a lesson
it
also has ``taught/`` and ``chat/``.
A stage is skipped if its result exists, so any verb can be repeated at any time. The key of a result covers everything
that it depends on, so a changed recipe never uses a stale result.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import yaml
from pydantic import ValidationError

from armillary.corpus import Corpus, build_corpus
from armillary.files import aside, write_file, write_json
from armillary.launch import (
    LocalExecutor,
    Progress,
    WorkerExecutor,
    check_place,
    default_workers,
    fit_workers,
    launched,
    open_place,
    worker_bytes,
)
from armillary.path import derived, lines
from armillary.path.evidence import Evidence, lineage, summary
from armillary.path.examination import examine, score_rows, written_files
from armillary.path.lesson import CHAT, Pupil, check_lesson, give_lesson
from armillary.path.pages import report_data
from armillary.publish import check_publishable, is_published, publish
from armillary.recipe import (
    GOALS,
    ArmillaryError,
    DamagedFileError,
    Document,
    ForeignFileError,
    Goal,
    Language,
    LargeRun,
    Recipe,
    RunSpec,
    UsageError,
    canonical_hash,
    counted,
    exclusive,
    first_problem,
    keep_recipe,
    parse_budget,
    read_json,
    read_sealed,
    recorded,
    write_sealed,
)
from armillary.report import write_report
from armillary.store import Store
from armillary.study import (
    STAGES,
    Found,
    Lab,
    Plan,
    PowerOutcome,
    SmallBudgetError,
    Stage,
    anneal_study,
    found_recipe,
    judge,
    ladder_study,
    lr_study,
    make_plan,
    mixture_study,
    plan_inputs,
    predict,
    predicted_spec,
    remaining,
    restore_target,
    smallest_plan,
    stages_of,
    study_power,
    train_target,
)
from armillary.trackers import Follower, destinations
from armillary.train import InterruptedRunError, load_trained

STUDIES = STAGES[:-1]
PLAN_FORMAT, COST_FORMAT = 2, 2


class _SavedPlan(Document):
    """``plan.json``: the plan, and a hash (``key``) of its inputs.

    ``resized`` names the stages with a separate budget, which keep their size.
    """

    format: Literal[2] = 2
    key: str
    resized: dict[str, str] = {}  # noqa: RUF012 (pydantic copies it)
    plan: Plan


def quiet(stage: str, done: float, total: float, note: str) -> None:
    """Ignore progress."""


def unheard(text: str) -> None:
    """Ignore a note."""


@dataclass(frozen=True)
class Workspace:
    """A recipe and the folder of its results.

    ``budget`` replaces the recipe's budget. ``workers`` is the number of worker processes (default: one per core or
    accelerator). ``database`` is an SQLAlchemy URL instead of the SQLite file in the folder. ``on`` is a Ray cluster to
    train on (``ray``, ``ray://HOST:PORT``) instead of this machine. ``say`` gets sentences to show while the work runs.

    The folder keeps a copy of the recipe, ``recipe.yaml``.
    """

    recipe: Recipe
    folder: Path
    budget: str | None = None
    workers: int | None = None
    database: str | None = None
    progress: Progress = quiet
    on: str | None = None
    say: Callable[[str], None] = unheard

    def __post_init__(self) -> None:
        for budget in (self.budget, self.recipe.budget):
            if budget is not None:
                parse_budget(budget)  # raises on a typo before the corpus is built
        if self.on is not None:
            check_place(self.on)
        for place in (self.folder, *self.folder.parents):
            if place.is_dir():
                break
            if place.exists() or place.is_symlink():
                raise UsageError(
                    f"{place}: not a folder (a file or a broken link), so it cannot contain results; give a folder "
                    "with --out"
                )

    def corpus(self) -> Corpus:
        """Build the recipe's corpus, or open it if it exists.

        Raises:
            UsageError: an unreadable source, or a domain without text.
        """

        def tell(stage: str, done: int, total: int) -> None:
            self.progress(f"corpus: {stage}", done, total, "")

        with self._tidied(), self._timed("corpus"):
            note = keep_recipe(self.recipe, self.folder)
            if note is not None:
                self.say(note)
            workers = self.workers if self.on is None else None  # the corpus is always built on this machine
            return build_corpus(self.recipe.corpus, self.folder / "corpus", workers=workers, progress=tell)

    def store(self) -> Store:
        """The workspace's run store."""
        return Store(self.folder / "store", self.database)

    @contextmanager
    def lab(self, resize: Stage | None = None) -> Iterator[Lab]:
        """Open corpus, store, workers and plan. ``resize`` sizes only that stage, to the workspace's whole budget.

        Raises:
            BusyError: another process works in this workspace.
            UsageError: a run of the plan cannot be trained; nothing was trained.
        """
        begun = time.perf_counter()
        with self._alone():
            # Refuse a file of a newer version before anything is trained.
            self.wall_s()
            with contextlib.suppress(DamagedFileError):
                recorded(self.folder)
            if self.database is not None:
                self.store().close()  # refuse an unusable store before the corpus is built
            corpus, store = self.corpus(), self.store()
            with self._executor(store, corpus) as executor, self._tracked(store) as progress:
                lab = Lab(self.recipe, corpus, store, executor, smallest_plan(), progress, self.say)
                lab.check()  # most problems of a run can be found without a throughput
                lab = replace(lab, plan=self._plan(corpus, executor, resize, begun))
                lab.check()
                yield lab

    @contextmanager
    def _tracked(self, store: Store) -> Iterator[Progress]:
        """The progress of runs, which also go to the recipe's trackers from the first report on."""
        followers = [
            Follower(
                where,
                store.folder / "runs",
                all_runs=True,
                export=f"armillary runs export {self.folder} --to {where.tracker}",
            )
            for where in destinations(self.recipe.trackers, self.folder, self.recipe.name)
        ]

        def progress(stage: str, done: float, total: float, note: str) -> None:
            for follower in followers:
                follower.start()
                for line in follower.words():
                    self.say(line)
            self.progress(stage, done, total, note)

        try:
            yield progress
        finally:
            for follower in followers:
                for line in follower.close():
                    self.say(line)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._tidied(), exclusive(self.folder / ".lock", "works in this workspace"):
            yield

    @contextmanager
    def _tidied(self) -> Iterator[None]:
        """Remove a new folder if the input is refused before anything is built in it."""
        made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        try:
            yield
        except UsageError:
            # keep the sources that were read, so that the next call need not read them again
            if made and not any(self.folder.glob("corpus/*/*.json")):
                shutil.rmtree(self.folder, ignore_errors=True)
                with contextlib.suppress(OSError):  # not empty, since another program uses it
                    for path in made[1:]:
                        path.rmdir()
            raise

    def _executor(self, store: Store, corpus: Corpus) -> WorkerExecutor:
        if self.on is None:
            training, studies = self.recipe.training, self.recipe.study
            # a target with a layout does not run on workers: its ranks use the whole machine
            depth = self.recipe.model.depth if training.layout is None else studies.mixture.depth
            shape = self.recipe.family(self.recipe.model.family).shape(depth, corpus.vocab_size)
            need = worker_bytes(shape, training.context_length * training.batch_sequences)
            workers, note = fit_workers(self.workers or default_workers(), need)
            if note is not None:
                self.say(note)
            return LocalExecutor(store, corpus.path, workers)
        return open_place(self.on, store, corpus.path, self.workers)

    def _plan(self, corpus: Corpus, executor: WorkerExecutor, resize: Stage | None, begun: float) -> Plan:
        path = self.folder / "plan.json"
        key = canonical_hash([corpus.hash, plan_inputs(self.recipe)])
        saved = self._read_plan(path, key, corpus)
        whole = self.budget if resize is None else None
        if saved is None or (whole is not None and whole != saved.plan.budget):
            self.progress("plan", 0, 1, "measuring throughput")
            budget = whole or self.recipe.budget
            # The time spent so far in this call, mostly on the corpus, is not available for the runs.
            set_aside = 0.0 if self.recipe.lesson is None else self.recipe.lesson.budget_share
            left = None if budget is None else remaining(budget, time.perf_counter() - begun, set_aside)
            try:
                plan = make_plan(self.recipe, corpus, executor, budget=left)
            except SmallBudgetError as error:
                assert budget is not None
                raise error.of_whole(budget, time.perf_counter() - begun, set_aside) from error
            saved = _SavedPlan(key=key, plan=plan.model_copy(update={"budget": budget}))
        if resize is not None and saved.resized.get(resize) != self.budget:
            self.progress("plan", 0, 1, f"measuring throughput for {resize}")
            plan, sized = saved.plan, make_plan(self.recipe, corpus, executor, (resize,), self.budget)
            parts = {f: {**getattr(plan, f), resize: getattr(sized, f)[resize]} for f in ("tokens", "seconds", "flops")}
            runs = sized.mixture_runs if resize == "mixture" else plan.mixture_runs
            plan = plan.model_copy(update={**parts, "mixture_runs": runs})
            resized = {**saved.resized, resize: self.budget or ""}
            saved = saved.model_copy(update={"plan": plan, "resized": resized})
        plan = saved.plan
        write_sealed(path, saved.model_dump(mode="json"))
        for stage in stages_of(self.recipe):
            size = f"{counted(plan.tokens[stage], 'token')}"
            if stage == "mixture":
                size = f"{counted(plan.mixture_runs, 'run')} of {size}"
            self.progress(
                "plan", 1, 1, f"{stage}: {size}, about {plan.seconds[stage]:.0f} s, {plan.flops[stage]:.2e} FLOPs"
            )
        return plan

    def _read_plan(self, path: Path, key: str, corpus: Corpus) -> _SavedPlan | None:
        """The plan in ``path``; None if it is missing or was made for other sizes, another budget or another corpus.

        Raises:
            DamagedFileError: the plan cannot be read. It is not replaced, since other sizes would mean other runs.
            ForeignFileError: the plan has a newer version.
        """
        remedy = "restore the file, or remove it to size the studies again"
        try:
            document = read_sealed(path, "plan of the studies", PLAN_FORMAT, remedy, sealed_since=2)
        except FileNotFoundError:
            return None
        if document["format"] == 1:  # its key was a hash over the whole recipe
            asked = self.recipe.model_dump(
                mode="json",
                exclude={"corpus": True, "lesson": True, "trackers": True, "training": {"layout"}},
            )
            same = document.get("key") == canonical_hash([corpus.hash, asked])
            document = {**document, "format": 2, "key": key if same else ""}
        try:
            saved = _SavedPlan.model_validate(document)
        except ValidationError as error:
            raise DamagedFileError(f"{path}: plan of the studies: {first_problem(error)}; {remedy}") from error
        return saved if saved.key == key else None

    @contextmanager
    def _stage(self, name: str, store: Store) -> Iterator[None]:
        """Run a stage: count its wall time, and at its end merge the database's log into ``store.sqlite``."""
        with self._timed(name):
            try:
                yield
            finally:
                store.flush()

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Add the wall time of the block to ``cost.json``, even if it is interrupted."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            spent = self.wall_s()
            self._write_wall_s({**spent, stage: spent.get(stage, 0.0) + time.perf_counter() - begin})

    def _write_wall_s(self, spent: dict[str, float]) -> None:
        write_sealed(self.folder / "cost.json", {"format": COST_FORMAT, "wall_s": spent})

    def wall_s(self) -> dict[str, float]:
        """Wall time by stage, over all calls that recorded something.

        A damaged ``cost.json`` is moved aside and the count restarts; only the cost so far is lost.

        Raises:
            ForeignFileError: ``cost.json`` has a newer version.
        """
        path = self.folder / "cost.json"
        try:
            return _read_cost(path)
        except FileNotFoundError:
            return {}
        except DamagedFileError as error:
            kept = aside(path)
            path.rename(kept)
            self.say(f"{error}; it is kept as {kept.name}, and wall time is counted from 0")
            return {}

    def go(self, until: Goal) -> Evidence:
        """Run every stage up to ``until``; a stage with a result is skipped.

        Raises:
            UsageError: the recipe, a source or a limit is wrong, or ``model/`` holds files that were not published from
                here.
            ArmillaryError: a stage failed.
            InterruptedStudyError: Ctrl-C; the same call resumes.
        """
        if launched():
            raise UsageError(
                "a recipe's studies run in one process, but a launcher has started several; run `armillary predict` "
                f"in one process, and give the launcher {self.folder / 'target.yaml'}, which that command writes"
            )
        reach = GOALS.index(until)
        if reach >= GOALS.index("release"):
            check_publishable(self.folder / "model")  # checked before hours of studies
            if self.recipe.lesson is not None:
                check_lesson(self.recipe.lesson)
                check_publishable(self.folder / CHAT)
        if until == "lr" and self.recipe.study.lr is None:
            raise UsageError("the recipe has no section study.lr, so the rule is used; add 'lr: {}' under 'study'")
        # A budget given to a study applies to that study alone; given to a later verb, it applies to the whole path.
        resize = next((stage for stage in STUDIES if stage == until and self.budget is not None), None)
        spent = self.wall_s()
        with self.lab(resize) as lab:
            head = lab.store.chain().head
            evidence = Evidence(self.recipe, lab.corpus, lab.store, lab.plan)
            with self._stage("mixture", lab.store):
                evidence.mixture = mixture_study(lab)
            self.say(lines.mixture(evidence.mixture))
            if reach >= GOALS.index("anneal"):
                with self._stage("anneal", lab.store):
                    evidence.anneal = anneal_study(lab, evidence.mixture.found, evidence.mixture.annealing)
                evidence.found = found_recipe(evidence.mixture, evidence.anneal)
                self.say(lines.anneal(evidence.anneal))
            if reach >= GOALS.index("lr") and self.recipe.study.lr is not None:
                assert evidence.anneal is not None and evidence.found is not None
                with self._stage("lr", lab.store):
                    evidence.lr = lr_study(lab, evidence.found.mixture, evidence.found.annealing)
                evidence.found = found_recipe(evidence.mixture, evidence.anneal, evidence.lr)
                self.say(lines.lr(evidence.lr))
            if reach >= GOALS.index("ladder"):
                assert evidence.found is not None
                with self._stage("ladder", lab.store):
                    found = evidence.found
                    evidence.ladder = ladder_study(lab, found.mixture, found.annealing, found.rates)
                self.say(lines.ladder(evidence.ladder))
            if reach >= GOALS.index("predict"):
                assert evidence.found is not None and evidence.ladder is not None
                with self._stage("predict", lab.store):
                    evidence.prediction = predict(lab, evidence.found, evidence.mixture, evidence.ladder)
                self._write_found(lab, evidence.found)
                self.say(lines.prediction(evidence.prediction))
            if reach >= GOALS.index("target"):
                assert evidence.found is not None
                with self._stage("target", lab.store):
                    evidence.target = train_target(lab.for_target(), evidence.found)
                    lost = restore_target(lab.for_target(), evidence.target)
                    if lost:
                        raise ArmillaryError(f"target: the files of run {lost[0]} could not be restored")
                self.say(lines.target(evidence.target))
            if reach >= GOALS.index("verdict"):
                assert evidence.found is not None
                evidence.verdict = judge(lab, evidence.found)
                self.say(lines.verdict(evidence.verdict))
            if reach >= GOALS.index("release"):
                with self._stage("export", lab.store):
                    self._release(evidence)
                assert evidence.target is not None
                self.progress("examine", 0, 1, "cloze items of held-out text")
                with self._stage("examine", lab.store):
                    try:
                        evidence.examined = examine(evidence.target, lab.corpus, lab.store, self.folder)
                    except ForeignFileError:
                        raise
                    except ArmillaryError as error:  # verdict and report do not depend on it
                        self.say(f"examine: no examination: {error}")
                self.progress("examine", 1, 1, "")
                if evidence.examined is not None:
                    self.say(lines.examination(score_rows(evidence.examined, self.recipe.target_weights)))
                if self.recipe.lesson is not None and evidence.target.published is not None:
                    with self._stage("lesson", lab.store):
                        self._teach(lab, evidence)
            if spent and lab.store.chain().head == head:  # reading outcomes again, as for a report, costs nothing
                self._write_wall_s(spent)
        return evidence

    def power(self, difference: float | None = None) -> PowerOutcome:
        """What the mixture study can find; trains its natural and uniform mixture (``study.study_power``).

        Raises:
            UsageError: as ``go``, or a difference that is not above 0.
            ArmillaryError: neither mixture has two seeds with a result.
        """
        with self.lab("mixture" if self.budget is not None else None) as lab, self._stage("mixture", lab.store):
            return study_power(lab, difference)

    def _teach(self, lab: Lab, evidence: Evidence) -> None:
        """Run the lesson. Earlier stages do not depend on it, so a failure is a row in the outcome and does not end the
        path."""
        assert evidence.target is not None and evidence.target.published is not None
        pupil = Pupil(evidence.target.published, self.folder / "model", lineage(evidence))
        try:
            evidence.lesson = give_lesson(lab, pupil, self.folder)
        except (ForeignFileError, InterruptedRunError):
            raise
        except (ArmillaryError, OSError, RuntimeError) as error:  # torch raises RuntimeError if memory is short
            evidence.lesson_failed = str(error)
            self.say(f"lesson: not finished: {error}")
        else:
            self.say(lines.lesson(evidence.lesson))

    def report(self, until: Goal = "release", language: Language = "en") -> Evidence:
        """Run to ``until`` and write the report and, after a verdict, ``summary.json``.

        ``Evidence.unfinished`` of the result lists the runs that failed for a transient cause.
        """
        with self._alone():
            evidence = self.go(until)
            data = report_data(evidence, self.wall_s(), self.folder, own_database=self.database is None)
            for note in data.notes:
                if note.what == "unreadable":
                    self.say(f"report: {note.subject} is left out: {note.detail}")
            file = self.report_file(language, until)
            write_report(data, file, language)
            derived.record(self.folder, file.name, reached=(until, self._question))
            written = []
            if evidence.verdict is not None:
                write_json(self.folder / "summary.json", summary(evidence, self.wall_s()))
                written.append("summary.json")
            if evidence.examined is not None:
                written += written_files(evidence.examined)
            derived.record(self.folder, *written)
        return evidence

    def report_file(self, language: Language = "en", until: Goal = "release") -> Path:
        """The path of the report in that language: ``report.html`` or ``report.zh.html``.

        If that file already has more stages of this recipe than ``until``, the stage becomes part of the name:
        ``report.mixture.html``.
        """
        name = "report.html" if language == "en" else f"report.{language}.html"
        file = self.folder / name
        if until == "release" or not file.exists():
            return file
        try:
            goal, question = derived.reports_reached(self.folder).get(name, ("release", self._question))
        except ArmillaryError:  # unknown, so replace nothing
            goal, question = "release", self._question
        more = question == self._question and goal in GOALS and GOALS.index(goal) > GOALS.index(until)
        return file.with_name(name.replace("report.", f"report.{until}.", 1)) if more else file

    @property
    def _question(self) -> str:
        """The hash of the recipe without the layout of its target run and without its trackers."""
        asked = self.recipe.model_dump(mode="json", exclude={"training": {"layout"}, "trackers": True})
        return canonical_hash(asked)

    def _write_found(self, lab: Lab, found: Found) -> None:
        """Write the recipe found, and the full specification of the target run, as YAML.

        Any launcher can run ``target.yaml``; its folder is in the store, so the result counts here.
        """
        spec = predicted_spec(lab, found)
        document = {
            "name": self.recipe.name,
            "corpus": lab.corpus.hash,
            "mixture": found.mixture,
            "annealing": found.annealing.model_dump(mode="json"),
            "lr": spec.optimizer.lr,
            "target_run": {"id": spec.id, **spec.model_dump(mode="json")},
        }
        text = yaml.safe_dump(document, allow_unicode=True, sort_keys=False)
        write_file(self.folder / "recipe.found.yaml", text.encode())
        large = LargeRun(
            name=f"{self.recipe.name}-target",
            corpus=os.path.relpath(lab.corpus.path, self.folder),
            folder=os.path.relpath(lab.store.run_folder(spec.id), self.folder),
            run=spec,
            layout=self.recipe.training.layout,
            trackers=self.recipe.trackers,
        )
        text = yaml.safe_dump(large.model_dump(mode="json", exclude_none=True), allow_unicode=True, sort_keys=False)
        write_file(self.folder / "target.yaml", text.encode())
        derived.record(self.folder, "recipe.found.yaml", "target.yaml")

    def _release(self, evidence: Evidence) -> None:
        """Publish the target run's weights with their lineage, unless exactly this model is already published."""
        assert evidence.target is not None
        if evidence.target.published is None:
            self.say("release: no model is published, because the target run has no result yet")
            return
        record = lineage(evidence)
        folder = self.folder / "model"
        if is_published(folder, record):
            return
        spec = RunSpec.model_validate(record["spec"])
        model = load_trained(evidence.store.run_folder(record["run"]), spec)
        kept = publish(
            model,
            folder,
            tokenizer_file=evidence.corpus.tokenizer_file,
            end_token=evidence.corpus.manifest.end_of_text,
            context_length=spec.context_length,
            lineage=record,
        )
        if kept is not None:
            self.progress(
                "release", 1, 1, f"{folder} was changed after publication; the changed folder is kept as {kept}"
            )


def demo_recipe(offline: bool) -> Path:
    """The file of the built-in recipe; the offline one needs no packages beyond the program's own."""
    return Path(__file__).with_name("demo-offline.yaml" if offline else "demo.yaml")


def _read_cost(path: Path) -> dict[str, float]:
    remedy = "restore the file"
    document = read_json(path, "wall time", remedy)
    if "format" in document:
        document = read_sealed(path, "wall time", COST_FORMAT, remedy)["wall_s"]
    if not all(isinstance(value, int | float) and value >= 0 for value in document.values()):
        raise DamagedFileError(f"{path}: wall time: a time is not a number of seconds")
    return {name: float(value) for name, value in document.items()}
