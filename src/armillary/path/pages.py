"""Fills the report from the evidence, as plain data against which each sentence of the page can be checked.

Unreadable parts (a run's metrics, events or weights) are left out, and a note names them; the rest is written.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

import armillary
from armillary import report
from armillary.goodput import read_events
from armillary.laws import ExtrapolationError, Prediction, ScalingLaw, regret_of
from armillary.path.evidence import Evidence, public_source, spent_flops
from armillary.path.examination import score_rows
from armillary.path.samples import sample
from armillary.path.worth import break_even, multiplier, target_losses
from armillary.recipe import ArmillaryError, DamagedFileError, RunSpec
from armillary.store import iso_time
from armillary.study import AnnealOutcome, LrOutcome, MixtureOutcome, fit_law, fit_rates, hold_out_rungs, phases
from armillary.train import load_trained, read_metrics

# Points of a training curve, and the minimum steps per point; a single batch is too noisy.
_CURVE_POINTS, _CURVE_STEPS = 60, 4
# Points of a drawn law of the learning rate, and how far it is drawn: runs above are not part of its fit.
_BASIN_POINTS, _BASIN_HEIGHT = 40, 1.1
# The scaling law's warning about a far target, which the page says in its own language.
_REACH = re.compile(
    r"([^ ]+) times the largest compute of the runs; .* tested the law up to ([^ ]+) times the compute$"
)
_COMMANDS = (
    ("corpus", "corpus"),
    ("mixture", "study mixture"),
    ("anneal", "study anneal"),
    ("lr", "study lr"),
    ("ladder", "study ladder"),
    ("predict", "predict"),
    ("target", "train"),
    ("verdict", "verdict"),
    ("everything", "run"),
    ("all_runs", "runs"),
)
_STAGES = {
    "mixture": ("mixture", "mixture-confirm"),
    "anneal": ("anneal",),
    "lr": ("lr", "lr-confirm"),
    "ladder": ("ladder",),
    "target": ("target",),
}


def report_data(
    evidence: Evidence, wall_s: Mapping[str, float], folder: Path, own_database: bool = True
) -> report.ReportData:
    """The content of the report, from the outcomes and the runs' files.

    ``folder`` is the workspace named in the printed commands; without ``own_database`` the commands include its URL.
    """
    return _Pages(evidence, wall_s, folder, own_database).data()


class _Pages:
    """Builds the parts of a report; adds to ``notes`` meanwhile."""

    def __init__(self, evidence: Evidence, wall_s: Mapping[str, float], folder: Path, own_database: bool) -> None:
        self.evidence = evidence
        self.store = evidence.store
        self.wall_s = wall_s
        self.folder = folder
        self.own_database = own_database
        self.notes: list[report.Note] = []
        self.laws: dict[str, ScalingLaw] = {}

    def data(self) -> report.ReportData:
        """The whole report."""
        evidence, recipe = self.evidence, self.evidence.recipe
        self._fit_laws()
        arms, differences = self._arms(), self._differences()
        family = self.laws.get(recipe.model.family)
        multipliers = [multiplier(evidence, family, row) for row in differences if row.mean is not None]
        cost = self._cost()
        curves_seed = self._curves_seed()
        data = report.ReportData(
            name=recipe.name,
            question=self._question(),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            code_version=armillary.__version__,
            corpus=self._corpus(),
            recipe=self._recipe(),
            mixture=None if evidence.mixture is None else _mixture_part(evidence, evidence.mixture),
            anneal=None if evidence.anneal is None else self._anneal_part(evidence.anneal),
            lr=None if evidence.lr is None else _lr_part(evidence.lr),
            ladder=self._ladder_part(),
            record=self._record_rows(),
            regrets=self._regrets(),
            prediction=self._prediction_part(),
            arms=arms,
            differences=differences,
            multipliers=multipliers,
            curves=self._curves(curves_seed),
            training_curves=self._training_curves(curves_seed),
            curves_seed=curves_seed,
            scores=[] if evidence.examined is None else score_rows(evidence.examined, recipe.target_weights),
            samples=self._samples(),
            teaching=None if evidence.lesson is None else evidence.lesson.part,
            failures=self._failures(),
            cost=cost,
            break_even=break_even(evidence, cost, differences, multipliers),
            reproduce=self._commands(),
            workspace=self.folder.name,
            lineage=self._lineage_rows(),
        )
        self._remember()
        # Notes from building the parts come first: they name what is missing above.
        return replace(data, notes=self.notes)

    def _question(self) -> report.Question:
        recipe, plan = self.evidence.recipe, self.evidence.plan
        shape = recipe.family(recipe.model.family).shape(recipe.model.depth, self.evidence.corpus.vocab_size)
        return report.Question(
            target=recipe.target_weights,
            model=f"{recipe.model.family}, {shape.n_layers} × {shape.d_model}",
            parameters=shape.parameters,
            tokens=plan.tokens["target"],
            budget=plan.budget,
            max_epochs=recipe.limits.max_epochs,
            floors=recipe.limits.floors,
            ceilings=recipe.limits.ceilings,
        )

    def _corpus(self) -> list[report.DomainRow]:
        return [
            report.DomainRow(
                name=name,
                source=public_source(domain.source),
                licence=domain.licence or "",
                trained=domain.train,
                train_tokens=domain.train_tokens,
                validation_tokens=domain.validation_tokens,
                documents=domain.documents,
                duplicates=domain.duplicates,
                bytes_per_token=(domain.train_bytes + domain.validation_bytes)
                / max(1, domain.train_tokens + domain.validation_tokens),
            )
            for name, domain in self.evidence.corpus.manifest.domains.items()
        ]

    def _recipe(self) -> report.Recipe | None:
        """The phases of the predicted run, with the passes that it counted, or else the planned ones."""
        prediction = self.evidence.prediction
        if prediction is None:
            return None
        spec = RunSpec.model_validate(prediction["spec"])
        ends = [*(phase.start_step for phase in spec.mixture[1:]), spec.steps]
        result = self.store.result(spec.id)
        domains = self.evidence.corpus.manifest.domains
        planned = {
            name: sum(phase.share * phase.weights.get(name, 0.0) for phase in phases(spec))
            * spec.tokens
            / max(1, domain.train_tokens)
            for name, domain in domains.items()
            if domain.train
        }
        return report.Recipe(
            phases=[
                report.Phase(phase.start_step + 1, end, phase.weights)
                for phase, end in zip(spec.mixture, ends, strict=True)
            ],
            passes=planned if result is None else result.epochs,
            measured=result is not None,
        )

    def _anneal_part(self, found: AnnealOutcome) -> report.AnnealPart:
        names = [branch.annealing.name for branch in found.branches]
        complete = [len(branch.measured) == len(branch.runs) for branch in found.branches]
        others = [name for name, whole in zip(names, complete, strict=True) if whole and name != found.reference]
        curves = []
        for branch in found.branches:
            spec = self.store.run_spec(branch.runs[0])
            steps = list(range(spec.steps))
            curves.append(report.LrCurve(branch.annealing.shape, steps, [spec.lr(step) for step in steps]))
        return report.AnnealPart(
            branches=[
                report.AnnealRow(
                    b.annealing.share,
                    b.annealing.shape,
                    b.measured,
                    b.annealing.sharpen,
                    whole,
                    bool(b.annealing.weights),
                )
                for b, whole in zip(found.branches, complete, strict=True)
            ],
            chosen=names.index(found.taken.name),
            significant=found.significant,
            reference=names.index(found.reference),
            best=names.index(found.best) if others else None,
            difference=found.difference,
            low=found.low,
            high=found.high,
            curves=curves,
            further=sum(one.runs for one in found.rounds) // len(found.branches[0].runs),
            stopped=found.stopped,
            law=None
            if found.curve is None
            else report.CurveLaw(
                shape=found.curve.shape,
                share=found.curve.share,
                nearby=[(option.share, option.excess) for option in found.curve.nearby],
                endings=[(ending.steps, ending.lost) for ending in found.curve.endings],
            ),
        )

    def _fit_laws(self) -> None:
        ladder, mixture = self.evidence.ladder, self.evidence.mixture
        if ladder is None or mixture is None:
            return
        for name in dict.fromkeys(point.family for point in ladder.points):
            try:
                self.laws[name] = fit_law(ladder, name, mixture.domains)
            except ArmillaryError as error:
                self.notes.append(report.Note("family", name, str(error)))

    def _ladder_part(self) -> report.LadderPart | None:
        found = self.evidence.ladder
        if found is None:
            return None
        recipe = self.evidence.recipe
        for name, why in found.left_out.items():
            self.notes.append(report.Note("family", name, why))
        points = []
        for p in found.points:
            law = self.laws.get(p.family)
            law_losses = None if law is None else target_losses(law, [[p.parameters, p.tokens]])
            mean, low, high = (None, None, None) if law_losses is None else law_losses[0].tolist()
            points.append(
                report.LadderPoint(
                    p.family, p.depth, p.parameters, p.tokens, p.flops, p.loss, p.target, mean, low, high
                )
            )
        families = []
        for name in self.laws:
            shape = recipe.family(name).shape(recipe.model.depth, self.evidence.corpus.vocab_size)
            try:
                (at,) = target_losses(
                    self.laws[name], [[shape.parameters, self.evidence.plan.tokens["target"]]]
                ).tolist()
            except ExtrapolationError as error:
                self.notes.append(report.Note("family", name, str(error)))
                continue
            families.append(report.FamilyRow(name, shape.parameters, *at))
        return report.LadderPart(
            points=points,
            laws=[
                report.LadderLaw(
                    family=name,
                    parameters={symbol: float(np.atleast_1d(value)[-1]) for symbol, value in law.parameters_.items()},
                    form=law.form_,
                )
                for name, law in self.laws.items()
            ],
            holdout=self._holdout(),
            target=self._target_point(),
            families=families if len(families) > 1 else [],
        )

    def _holdout(self) -> list[report.HoldoutRow]:
        """The held-out runs that the law of the target's family predicted."""
        family, ladder = self.evidence.recipe.model.family, self.evidence.ladder
        if ladder is None or family not in self.laws:
            return []
        own = [p for p in ladder.points if p.family == family]
        rows = []
        for left in self.laws[family].holdout_error_:
            column, least = left.what.split(" >= ")
            for row, predicted, measured in zip(left.rows, left.predicted, left.measured, strict=True):
                p = own[int(row)]
                rows.append(
                    report.HoldoutRow(
                        column, float(least), p.depth, p.parameters, p.tokens, float(predicted[-1]), float(measured[-1])
                    )
                )
        return rows

    def _target_point(self) -> report.TargetPoint | None:
        prediction = self.evidence.prediction
        if prediction is None or prediction["target"] is None:
            return None
        spec, target = RunSpec.model_validate(prediction["spec"]), prediction["target"]
        return report.TargetPoint(
            spec.flops, target["predicted"], target["low"], target["high"], self._measured().get("target")
        )

    def _measured(self) -> dict[str, float | None]:
        """The losses of the predicted run by domain, and its target loss, from the verdict."""
        verdict = self.evidence.verdict
        if verdict is None:
            return {}
        measured = {row["domain"]: row["measured"] for row in verdict["rows"]}
        if "unpredicted" in verdict:
            measured["target"] = verdict["unpredicted"]["measured"]
        return measured

    def _record_rows(self) -> list[report.RecordRow]:
        """The errors of each law on held-out runs of these studies."""
        rows = []
        mixture, anneal, ladder = self.evidence.mixture, self.evidence.anneal, self.evidence.ladder
        if mixture is not None:
            rows_of_law = [(c.predicted, c.low, c.high, m) for c in mixture.candidates for m in c.measured]
            if rows_of_law:
                mean, low, high, measured = np.array(rows_of_law).T
                rows.append(_record_row("mixture_law", "confirm", 1.0, Prediction(mean, low, high), measured))
        if anneal is not None and anneal.curve is not None and anneal.curve.held_out:
            errors = list(anneal.curve.held_out.values())
            rows.append(report.RecordRow("anneal_law", "branches", len(errors), None, fmean(errors), None, 1.0))
        if ladder is not None and mixture is not None and self.evidence.recipe.model.family in self.laws:
            for rung in hold_out_rungs(ladder, self.evidence.recipe.model.family, mixture.domains):
                column, least = rung.what.split(" = ")
                what = "params" if column == "parameters" else column
                factor = float(rung.extrapolation.max())
                rows.append(_record_row("scaling_law", what, factor, rung.prediction, rung.measured, float(least)))
        return rows

    def _regrets(self) -> list[report.RegretRow]:
        """What each choice costs against the best measured option: at the studies' sizes, and at the target's."""
        mixture, anneal = self.evidence.mixture, self.evidence.anneal
        lr, target = self.evidence.lr, self.evidence.target
        rows: list[report.RegretRow] = []
        if mixture is not None:
            rows += _regret_row("mixture", mixture.taken, {c.name: c.measured for c in _complete(mixture.candidates)})
        if anneal is not None:
            branches = {b.annealing.name: b.measured for b in _complete(anneal.branches)}
            rows += _regret_row("anneal", anneal.taken.name, branches)
        if lr is not None:
            rows += _regret_row("lr", lr.taken, {arm.name: arm.measured for arm in _complete(lr.confirm)})
        if target is not None:
            common = set.intersection(*(set(arm.seeds) for arm in target.arms)) if target.arms else set()
            at_target = {
                arm.name: [loss for seed, loss in sorted(zip(arm.seeds, arm.target, strict=True)) if seed in common]
                for arm in target.arms
            }
            rows += _regret_row("target", "found", at_target)
        return rows

    def _prediction_part(self) -> report.PredictionPart | None:
        prediction, verdict = self.evidence.prediction, self.evidence.verdict
        if prediction is None:
            return None
        outcome = {row["domain"]: row for row in (verdict["rows"] if verdict else [])}

        def row(name: str, value: Mapping[str, float]) -> report.PredictionRow:
            judged = outcome.get(name, {})
            return report.PredictionRow(
                name, value["predicted"], value["low"], value["high"], judged.get("measured"), judged.get("inside")
            )

        started = self.store.started_at(prediction["run"])
        pending = None
        if verdict is not None and verdict["status"] == "pending":
            pending = self._local(next((r.cause for r in self._failed() if r.run == prediction["run"]), ""))
        if prediction["target"] is None:
            self.notes.append(report.Note("unpredicted", detail=prediction["unpredicted"]))
        return report.PredictionPart(
            recorded_at=prediction["recorded_at"],
            started_at=None if started is None else iso_time(started),
            rows=[row(domain, value) for domain, value in prediction["domains"].items()],
            target=None if prediction["target"] is None else row("target", prediction["target"]),
            extrapolation=prediction["extrapolation"],
            begun=started is not None or self.store.result(prediction["run"]) is not None,
            pending=pending,
            chain=self._chain(prediction["run"]),
        )

    def _chain(self, run: str) -> report.Chain:
        """The store's journal, and the positions of the prediction of ``run`` and of its verdict."""
        chain = self.store.chain()
        prediction, verdict = chain.of("prediction", run), chain.of("verdict", run)
        return report.Chain(
            records=len(chain.entries),
            head=chain.head,
            problem=self._local("; ".join(chain.problems[:3])) if chain.problems else None,
            prediction=None if prediction is None else prediction.seq,
            verdict=None if verdict is None else verdict.seq,
        )

    def _arms(self) -> list[report.ArmRow]:
        target = self.evidence.target
        return [
            report.ArmRow(
                name=arm.name,
                losses=arm.target,
                mean=arm.mean,
                low=arm.low,
                high=arm.high,
                domain_losses={d: fmean(loss[d] for loss in arm.loss) for d in self.evidence.corpus.domains},
                bits_per_byte={d: fmean(bits[d] for bits in arm.bits_per_byte) for d in self.evidence.corpus.domains},
            )
            for arm in (target.arms if target is not None else [])
        ]

    def _differences(self) -> list[report.DifferenceRow]:
        """Found minus each plain mixture; a pair without two common seeds is a row without numbers."""
        target = self.evidence.target
        if target is None:
            return []
        found = target.arm("found")
        rows = []
        for name in ("natural", "uniform"):
            other = target.arm(name)
            seeds = len(set(found.seeds) & set(other.seeds)) if found is not None and other is not None else 0
            d = next((d for d in target.differences if d.reference == name), None)
            numbers = (None, None, None) if d is None else (d.mean, d.low, d.high)
            rows.append(report.DifferenceRow("found", name, seeds, *numbers))
        return rows

    def _curves_seed(self) -> int:
        """The seed whose runs are plotted: that of the predicted run, else the first finished one."""
        recipe, target, prediction = self.evidence.recipe, self.evidence.target, self.evidence.prediction
        seeds = [seed for arm in (target.arms if target is not None else []) for seed in arm.seeds]
        first = int(prediction["spec"]["seed"]) if prediction is not None else recipe.training.seeds[0]
        return first if first in seeds or not seeds else seeds[0]

    def _curves(self, seed: int) -> list[report.LossCurve]:
        """The target loss at each validation of the runs of one seed."""
        weights = self.evidence.recipe.target_weights
        curves = []
        for name, table in self._metrics(seed):
            columns = [f"validation/{domain}/loss" for domain in weights]
            rows = [row for row in table if all(row.get(column) is not None for column in columns)]
            losses = [sum(w * row[c] for w, c in zip(weights.values(), columns, strict=True)) for row in rows]
            if rows:
                curves.append(report.LossCurve(name, [row["tokens"] for row in rows], losses))
        return curves

    def _training_curves(self, seed: int) -> list[report.LossCurve]:
        """The loss on training batches of the runs of one seed, averaged over equal spans of steps."""
        curves = []
        for name, table in self._metrics(seed, note=False):
            rows = [row for row in table if row.get("loss") is not None]
            spans = np.array_split(np.arange(len(rows)), max(1, min(_CURVE_POINTS, len(rows) // _CURVE_STEPS)))
            if len(spans) > 1:
                tokens = [rows[int(span[-1])]["tokens"] for span in spans]
                curves.append(
                    report.LossCurve(name, tokens, [fmean(rows[int(i)]["loss"] for i in span) for span in spans])
                )
        return curves

    def _metrics(self, seed: int, note: bool = True) -> list[tuple[str, list[dict[str, Any]]]]:
        """The metrics of each arm's run with that seed, if readable."""
        found = []
        for arm in self.evidence.target.arms if self.evidence.target is not None else []:
            run = arm.run(seed)
            if run is None:
                continue
            try:
                table = read_metrics(self.store.run_folder(run)).to_pylist()
                if table and "tokens" not in table[0]:
                    raise DamagedFileError("it has no column 'tokens'")
                found.append((arm.name, table))
            except ArmillaryError as error:
                if note:
                    self.notes.append(report.Note("unreadable", f"runs/{run}/metrics.parquet", self._local(str(error))))
        return found

    def _samples(self) -> list[report.Sample]:
        """The published run's continuation of a held-out text of each target domain."""
        run = self.evidence.target.published if self.evidence.target is not None else None
        if run is None or self.store.result(run) is None:
            return []
        spec = self.store.run_spec(run)
        try:
            model = load_trained(self.store.run_folder(run), spec)
        except (ArmillaryError, OSError) as error:
            self.notes.append(report.Note("unreadable", f"runs/{run}/model.safetensors", self._local(str(error))))
            return []
        return [
            report.Sample(*sample(model, self.evidence.corpus, spec, domain), spec.seed)
            for domain in self.evidence.recipe.target_weights
        ]

    def _failed(self) -> list[Any]:
        """The runs without a result in every stage reached."""
        return [row for outcome in self.evidence.outcomes.values() for row in outcome.failed]

    def _failures(self) -> list[report.FailureRow]:
        study = {run: name for name, runs in self.evidence.runs.items() for run in runs}
        return [
            report.FailureRow(study.get(row.run, ""), row.run, row.status, self._local(row.cause))
            for row in self._failed()
        ]

    def _cost(self) -> list[report.CostRow]:
        rows, runs = [], self.evidence.runs
        for stage, seconds in self.wall_s.items():
            ids = [run for study in _STAGES.get(stage, ()) for run in runs.get(study, ())]
            done = [result for run in ids if (result := self.store.result(run)) is not None]
            for result in done:  # a branch without events counts as if it had trained its trunk's steps too
                try:
                    list(read_events(self.store.run_folder(result.run) / "events.jsonl"))
                except (ArmillaryError, OSError) as error:
                    file = f"runs/{result.run}/events.jsonl"
                    self.notes.append(report.Note("unreadable", file, self._local(str(error))))
            flops, core_s = sum(spent_flops(self.store, r) for r in done), sum(result.wall_s for result in done)
            rows.append(report.CostRow(stage, len(done), flops, seconds, core_s))
            lesson = self.evidence.lesson
            if stage == "lesson" and lesson is not None:
                rows[-1] = report.CostRow(stage, lesson.trained, lesson.flops, seconds, lesson.seconds)
        return rows

    def _commands(self) -> list[report.Command]:
        place = shlex.quote(self.folder.name) + ("" if self.own_database else " --database URL")
        commands = [one for one in _COMMANDS if one[0] != "lr" or self.evidence.lr is not None]
        return [report.Command(what, f"armillary {verb} {place}") for what, verb in commands]

    def _lineage_rows(self) -> list[report.LineageRow]:
        rows = [report.LineageRow("corpus", self.evidence.corpus.hash)]
        if self.evidence.prediction is not None:
            rows.append(report.LineageRow("target", self.evidence.prediction["run"]))
            rows.append(report.LineageRow("predict", self.evidence.prediction["sha256"]))
        return rows

    def _remember(self) -> None:
        """Further notes for the reader."""
        mixture, anneal, prediction = self.evidence.mixture, self.evidence.anneal, self.evidence.prediction
        lr = self.evidence.lr
        for stage, outcome in (("mixture", mixture), ("anneal", anneal), ("lr", lr)):
            if outcome is None:
                continue
            if outcome.reason:
                self.notes.append(report.Note("reason", stage, self._local(outcome.reason)))
            # The section of the annealing says by itself that the best one is at a limit.
            for edge in outcome.edges if stage != "anneal" else [one for one in outcome.edges if one.by == "tried"]:
                what = f"edge_{edge.by}" if stage == "mixture" else f"edge_{edge.of}"
                value = f"{edge.value:.3g}" if edge.of in ("sharpen", "lr") else f"{100 * edge.value:.3g}%"
                self.notes.append(report.Note(what, edge.of if stage == "mixture" else "", value, end=edge.end))
        self.notes += [report.Note("lr_reach", detail=text) for text in (lr.warnings if lr is not None else ())]
        if self.evidence.lesson_failed is not None:
            self.notes.append(report.Note("lesson", detail=self._local(self.evidence.lesson_failed)))
        for name in mixture.adjusted if mixture is not None else ():
            self.notes.append(report.Note("adjusted", name))
        ladder, family = self.evidence.ladder, self.evidence.recipe.model.family
        if ladder is not None and (rise := ladder.rise(family)) is not None:
            share = f"{100 * (rise.after / rise.before - 1):.2g}%"
            self.notes.append(report.Note("rise", f"{rise.larger}", share))
        if prediction is not None:
            self.notes += map(_warning, prediction.get("warnings", []))
        for name, domain in self.evidence.corpus.manifest.domains.items():
            if domain.problem_count:
                first = self._local(domain.problems[0]) if domain.problems else ""
                self.notes.append(report.Note("domain", name, first, domain.problem_count))
        studies = {run: name for name, runs in self.evidence.runs.items() for run in runs}
        lost = [studies.get(row.run, "") for row in self._failed()]
        self.notes += [report.Note("failures", study, count=lost.count(study)) for study in dict.fromkeys(lost)]

    def _local(self, text: str) -> str:
        """``text`` without folders of this machine."""
        for known in (self.folder.absolute(), Path.cwd(), Path.home()):
            text = text.replace(f"{known}{os.sep}", "")
        return re.sub(r"(?<![\w:/.])/(?:[^\s/:'\"]+/)+(?=[^\s/])", "", text)


def _warning(text: str) -> report.Note:
    """The note for a recorded warning of the law."""
    reach = _REACH.search(text)
    return report.Note("forecast", detail=text) if reach is None else report.Note("reach", reach[1], reach[2])


def _mixture_part(evidence: Evidence, found: MixtureOutcome) -> report.MixturePart:
    weights = np.array([evidence.recipe.target_weights.get(d, 0.0) for d in found.domains])
    predicted, measured = np.array(found.held_out), np.array(found.losses)
    # The uniform mixture is measured for comparison, not as a choice.
    complete = {c.name: fmean(c.measured) for c in found.candidates if c.measured and len(c.measured) == len(c.runs)}
    others = {name: mean for name, mean in complete.items() if name not in (found.reference, "uniform")}
    tested = bool(others) and found.reference in complete
    return report.MixturePart(
        domains=found.training_domains,
        design=found.design,
        fits=[
            report.DomainFit(
                domain=domain,
                predicted=predicted[:, i].tolist(),
                measured=measured[:, i].tolist(),
                spearman=found.spearman[i],
                rmse=found.rmse[i],
                form=max(found.forms[i], key=lambda name: found.forms[i][name]),
                ratio=_ratio(found.signal[i], found.paired_noise[i]) if found.signal else None,
            )
            for i, domain in enumerate(found.domains)
        ],
        candidates=[
            report.CandidateRow(c.name, c.weights, c.predicted, c.low, c.high, c.measured) for c in found.candidates
        ],
        choice=report.MixtureChoice(
            taken=found.taken,
            reference=found.reference,
            difference=found.difference,
            low=found.low,
            high=found.high,
            significant=found.significant,
            best=min(others, key=lambda name: others[name]) if tested else None,
            others=len(others) if tested else 0,
        ),
        natural=found.natural,
        uniform=found.uniform,
        found=found.found,
        target_fit=report.DomainFit(
            domain="target",
            predicted=(predicted @ weights).tolist(),
            measured=(measured @ weights).tolist(),
            spearman=found.target_spearman,
            rmse=float(np.sqrt(np.mean((predicted @ weights - measured @ weights) ** 2))),
            ratio=_ratio(found.target_signal, found.target_paired_noise) if found.signal else None,
        ),
        reserve=report.Reserve(
            runs=sum(one.runs for one in found.rounds),
            beyond=sum(one.runs for one in found.rounds if one.edges),
            domains=list(dict.fromkeys(edge.of for one in found.rounds for edge in one.edges)),
            stopped=found.stopped,
        )
        if found.rounds
        else None,
        second=_two_phases(found),
    )


def _two_phases(found: MixtureOutcome) -> report.TwoPhases | None:
    """The law's best candidate of two phases; None for one phase."""
    best = found.candidates[0]
    if found.flat is None or best.annealing is None:
        return None
    late = dict(best.annealing.weights) or best.weights
    return report.TwoPhases(
        rows=[
            (name, (best.weights[name], *found.flat.stable[name]), (late[name], *found.flat.annealing[name]))
            for name in found.training_domains
        ],
        share=(best.annealing.share, *found.flat.share),
        error=found.flat.error,
    )


def _lr_part(found: LrOutcome) -> report.LrPart:
    law = fit_rates(found.points, found.batch_tokens) if found.sizes else None
    lines = []
    for depth, tokens in sorted({(point.depth, point.tokens) for point in found.points}):
        own = sorted((p for p in found.points if (p.depth, p.tokens) == (depth, tokens)), key=lambda p: p.multiple)
        multiples = [point.multiple for point in own]
        basin: list[tuple[float, float]] = []
        if law is not None:
            along = np.geomspace(multiples[0], multiples[-1], _BASIN_POINTS)
            at = own[0].lr / own[0].multiple * own[0].scale * along
            table = [[own[0].parameters, tokens, rate, found.batch_tokens] for rate in at]
            losses = law.predict(table).mean
            near = losses <= _BASIN_HEIGHT * losses.min()
            basin = list(zip(along[near].tolist(), losses[near].tolist(), strict=True))
        lines.append(report.LrLine(depth, tokens, multiples, [point.target for point in own], basin))
    complete = bool(found.confirm) and all(len(arm.measured) == len(arm.runs) for arm in found.confirm)
    return report.LrPart(
        lines=lines,
        rows=[report.LrRow(**row.model_dump(exclude={"extrapolation"})) for row in found.sizes],
        taken=found.taken,
        depth=max((row.depth for row in found.sizes if row.of == "tuned"), default=0),
        confirm={arm.name: arm.measured for arm in found.confirm},
        difference=(found.difference, found.low, found.high) if complete else None,
    )


def _complete(arms: Iterable[Any]) -> list[Any]:
    """The arms of a study in which every run has a result."""
    return [arm for arm in arms if len(arm.measured) == len(arm.runs)]


def _regret_row(what: str, chosen: str, groups: Mapping[str, Sequence[float]]) -> list[report.RegretRow]:
    """The row of a choice; none if there are not two options with the same two or more seeds."""
    seeds = {len(losses) for losses in groups.values()}
    if chosen not in groups or len(groups) < 2 or len(seeds) != 1 or min(seeds) < 2:
        return []
    regret = regret_of(groups, chosen)
    values = (float(part) for part in (regret.mean, regret.low, regret.high))
    return [report.RegretRow(what, chosen, len(groups), min(seeds), *values)]


def _ratio(signal: float, noise: float) -> float | None:
    return signal / noise if noise > 0 else None


def _record_row(
    law: str, what: str, factor: float, predicted: Prediction, measured: np.ndarray, least: float | None = None
) -> report.RecordRow:
    return report.RecordRow(
        law=law,
        what=what,
        forecasts=measured.size,
        inside=int(((predicted.low <= measured) & (measured <= predicted.high)).sum()),
        error=float(np.abs(predicted.mean / measured - 1).mean()),
        width=float(((predicted.high - predicted.low) / measured).mean()),
        extrapolation=factor,
        least=least,
    )
