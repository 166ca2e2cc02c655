"""What the stages found, put together for readers: the report, the summary and the lineage of the published model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import armillary
from armillary import report
from armillary.corpus import Corpus
from armillary.goodput import read_events
from armillary.laws import ExtrapolationError, ExtrapolationWarning, Prediction, ScalingLaw
from armillary.model import Transformer, generate, load_weights
from armillary.recipe import Recipe, RunSpec
from armillary.study import (
    AnnealOutcome,
    Found,
    LadderOutcome,
    MixtureOutcome,
    Plan,
    Store,
    TargetOutcome,
    fit_law,
    hold_out_rungs,
    iso_time,
)
from armillary.train import RunResult

_STUDIES = ("mixture", "mixture-confirm", "anneal", "ladder", "target")
_SAMPLE_TOKENS = 64
_BAND_POINTS = 40


@dataclass
class Evidence:
    """The outcome of every stage that was reached; the others are None."""

    recipe: Recipe
    corpus: Corpus
    store: Store
    plan: Plan
    mixture: MixtureOutcome | None = None
    anneal: AnnealOutcome | None = None
    found: Found | None = None
    ladder: LadderOutcome | None = None
    prediction: dict[str, Any] | None = None
    target: TargetOutcome | None = None
    verdict: dict[str, Any] | None = None

    @property
    def unfinished(self) -> list[str]:
        """What the next call tries again: a sentence for each run that failed for a passing cause."""
        stages = {"mixture": self.mixture, "anneal": self.anneal, "ladder": self.ladder, "target": self.target}
        said = [f"{name}: run {row}" for name, found in stages.items() if found is not None for row in found.passing]
        if self.verdict is not None and self.verdict["status"] == "pending":
            said.append(f"verdict: {self.verdict['reason']}")
        return said

    @property
    def runs(self) -> dict[str, list[str]]:
        """Ids of the runs of each study that the outcomes rest on, without those of other plans in the store.

        A run that two studies share counts for the first.
        """
        found: dict[str, list[str]] = {study: [] for study in _STUDIES}
        seen: set[str] = set()
        for outcome in (self.mixture, self.anneal, self.ladder, self.target):
            for study, runs in outcome.study_runs.items() if outcome is not None else ():
                found[study] = [run for run in runs if run not in seen]
                seen.update(runs)
        return found


def summary(evidence: Evidence, wall_s: Mapping[str, float]) -> dict[str, Any]:
    """The whole path in a few numbers, for machines (losses in nats per token)."""
    assert evidence.target is not None and evidence.prediction is not None and evidence.verdict is not None
    results = [evidence.store.result(run) for run in {run for runs in evidence.runs.values() for run in runs}]
    done = [result for result in results if result is not None]
    started = evidence.store.started_at(evidence.prediction["run"])
    return {
        "format": 1,
        "name": evidence.recipe.name,
        "wall_s": sum(wall_s.values()),
        "runs": len(done),
        "flops": sum(_spent_flops(evidence.store, result) for result in done),
        "target": {a.name: {"mean": a.mean, "low": a.low, "high": a.high} for a in evidence.target.arms},
        "differences": [d.model_dump(mode="json") for d in evidence.target.differences],
        "verdict": evidence.verdict["status"],
        "predictions": evidence.verdict["rows"],
        "recorded_at": evidence.prediction["recorded_at"],
        "started_at": None if started is None else iso_time(started),
        "mixture": evidence.found.mixture if evidence.found else None,
        "annealing": evidence.found.annealing.name if evidence.found else None,
        "target_run": evidence.prediction["run"],
        "corpus": evidence.corpus.hash,
        "version": armillary.__version__,
    }


def lineage(evidence: Evidence) -> dict[str, Any]:
    """From the target run's weights back to the recipe, the runs that argued for it, and the text (contract 5)."""
    assert evidence.target is not None and evidence.verdict is not None
    run, arm = evidence.target.published, evidence.target.arm("found")
    assert run is not None and arm is not None
    place = arm.at(run)
    assert place is not None
    # The verdict is on the predicted run. Where that one cannot be trained, another seed's is published.
    judged = evidence.prediction is not None and evidence.prediction["run"] == run
    domains = {
        name: {
            "source": _source(domain.source),
            "licence": domain.licence,
            "train": domain.train,
            "train_tokens": domain.train_tokens,
            "validation_tokens": domain.validation_tokens,
        }
        for name, domain in evidence.corpus.manifest.domains.items()
    }
    return {
        "run": run,
        "spec": evidence.store.run_spec(run).model_dump(mode="json"),
        "corpus": {"hash": evidence.corpus.hash, "domains": domains},
        "argued_by": {study: runs for study, runs in evidence.runs.items() if study != "target"},
        "prediction": evidence.prediction,
        "verdict": evidence.verdict["rows"] if judged else None,
        "losses": arm.loss[place],
        "passes": arm.epochs,
    }


def _source(source: str) -> str:
    """A source as it may leave this machine: without the folders above it."""
    return Path(source).name if Path(source).is_absolute() else source


def report_data(evidence: Evidence, wall_s: Mapping[str, float], recipe_file: str) -> report.ReportData:
    """All that the report shows, from the outcomes and the runs' own files."""
    recipe, corpus, plan = evidence.recipe, evidence.corpus, evidence.plan
    shape = recipe.family(recipe.model.family).shape(recipe.model.depth, corpus.vocab_size)
    cost = _cost(evidence, wall_s)
    return report.ReportData(
        name=recipe.name,
        question=report.Question(
            target=recipe.target_weights,
            model=f"{recipe.model.family}, {shape.n_layers} × {shape.d_model}",
            parameters=shape.parameters,
            tokens=plan.tokens["target"],
            budget=plan.budget,
            max_epochs=recipe.limits.max_epochs,
            floors=recipe.limits.floors,
            ceilings=recipe.limits.ceilings,
        ),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        code_version=armillary.__version__,
        corpus=[
            report.DomainRow(
                name=name,
                source=_source(domain.source),
                licence=domain.licence or "",
                trained=domain.train,
                train_tokens=domain.train_tokens,
                validation_tokens=domain.validation_tokens,
                documents=domain.documents,
                duplicates=domain.duplicates,
                bytes_per_token=(domain.train_bytes + domain.validation_bytes)
                / max(1, domain.train_tokens + domain.validation_tokens),
            )
            for name, domain in corpus.manifest.domains.items()
        ],
        mixture=_mixture_part(evidence),
        anneal=_anneal_part(evidence),
        ladder=_ladder_part(evidence),
        record=_record_rows(evidence),
        prediction=_prediction_part(evidence),
        arms=_arm_rows(evidence),
        differences=[
            report.DifferenceRow("found", d.reference, d.mean, d.low, d.high)
            for d in (evidence.target.differences if evidence.target else [])
        ],
        curves=_curves(evidence),
        samples=_samples(evidence),
        cost=cost,
        reproduce=[
            report.Command(what, f"armillary {verb} {recipe_file}")
            for what, verb in (
                ("corpus", "corpus"),
                ("mixture", "study mixture"),
                ("anneal", "study anneal"),
                ("ladder", "study ladder"),
                ("predict", "predict"),
                ("target", "train"),
                ("total", "run"),
            )
        ],
        lineage=_lineage_rows(evidence),
        warnings=_warnings(evidence),
    )


def _mixture_part(evidence: Evidence) -> report.MixturePart | None:
    found = evidence.mixture
    if found is None:
        return None
    weights = np.array([evidence.recipe.target_weights.get(d, 0.0) for d in found.domains])
    predicted, measured = np.array(found.held_out), np.array(found.losses)
    tokens = evidence.plan.tokens["target"]
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
        ),
        natural=found.natural,
        uniform=found.uniform,
        found=found.found,
        epochs={
            domain: weight * tokens / evidence.corpus.manifest.domains[domain].train_tokens
            for domain, weight in found.found.items()
        },
        target_fit=report.DomainFit(
            domain="target",
            predicted=(predicted @ weights).tolist(),
            measured=(measured @ weights).tolist(),
            spearman=found.target_spearman,
            rmse=float(np.sqrt(np.mean((predicted @ weights - measured @ weights) ** 2))),
        ),
    )


def _anneal_part(evidence: Evidence) -> report.AnnealPart | None:
    found = evidence.anneal
    if found is None:
        return None
    names = [branch.annealing.name for branch in found.branches]
    curves = []
    for branch in found.branches:
        spec = evidence.store.run_spec(branch.runs[0])
        steps = list(range(spec.steps))
        curves.append(report.LrCurve(branch.annealing.name, steps, [spec.lr(step) for step in steps]))
    return report.AnnealPart(
        branches=[
            report.AnnealRow(
                share=b.annealing.share,
                shape=b.annealing.shape,
                mixture="found" if b.annealing.sharpen == 1 else f"found^{b.annealing.sharpen:g}",
                losses=b.measured,
            )
            for b in found.branches
        ],
        chosen=names.index(found.taken.name),
        significant=found.significant,
        curves=curves,
        law=None
        if found.curve is None
        else report.CurveLaw(
            shape=found.curve.shape,
            share=found.curve.share,
            nearby=[(option.share, option.excess) for option in found.curve.nearby],
            endings=[(ending.steps, ending.lost) for ending in found.curve.endings],
        ),
    )


def _ladder_part(evidence: Evidence) -> report.LadderPart | None:
    found = evidence.ladder
    if found is None or evidence.mixture is None:
        return None
    recipe, mixture = evidence.recipe, evidence.mixture
    laws, families = [], []
    target_tokens = evidence.plan.tokens["target"]
    holdout: list[report.HoldoutRow] = []
    for name in dict.fromkeys(point.family for point in found.points):
        law = fit_law(found, name, mixture.domains)
        family = recipe.family(name)
        # The band follows the way from the ladder to the target: tokens and parameters grow together.
        depths = sorted({p.depth for p in found.points if p.family == name} | {recipe.model.depth})
        shapes = [family.shape(depth, evidence.corpus.vocab_size) for depth in depths]
        biggest = max(p.tokens for p in found.points)
        sizes = np.geomspace(shapes[0].parameters, shapes[-1].parameters, _BAND_POINTS)
        first = min(p.tokens for p in found.points)
        data = np.geomspace(first, max(target_tokens, biggest), _BAND_POINTS)
        shape = family.shape(recipe.model.depth, evidence.corpus.vocab_size)
        try:
            band = _of_target(law, np.stack([sizes, data], axis=1))
            at = _of_target(law, np.array([[shape.parameters, target_tokens]], float))
        except ExtrapolationError:  # a family of which the ladder tells too little; the prediction says so
            continue
        context = recipe.training.context_length
        per_token = np.interp(
            np.log(sizes),
            [np.log(s.parameters) for s in shapes],
            [np.log(s.train_flops_per_token(context)) for s in shapes],
        )
        laws.append(
            report.LadderLaw(
                family=name,
                parameters={symbol: float(np.atleast_1d(value)[-1]) for symbol, value in law.parameters_.items()},
                flops=(np.exp(per_token) * data).tolist(),
                mean=band.mean.tolist(),
                low=band.low.tolist(),
                high=band.high.tolist(),
                form=law.form_,
            )
        )
        families.append(
            report.FamilyRow(name, shape.parameters, float(at.mean[0]), float(at.low[0]), float(at.high[0]))
        )
        if name == recipe.model.family:
            holdout = [
                report.HoldoutRow(h.what, float(predicted), float(measured))
                for h in law.holdout_error_
                for predicted, measured in zip(h.predicted[:, -1], h.measured[:, -1], strict=True)
            ]
    target = None
    if evidence.prediction is not None and evidence.prediction["target"] is not None:
        spec = RunSpec.model_validate(evidence.prediction["spec"])
        arm = evidence.target.arm("found") if evidence.target else None
        place = arm.at(evidence.prediction["run"]) if arm else None
        measured = arm.target[place] if arm and place is not None else None
        said = evidence.prediction["target"]
        target = report.TargetPoint(spec.flops, said["predicted"], said["low"], said["high"], measured)
    return report.LadderPart(
        points=[
            report.LadderPoint(p.family, p.depth, p.parameters, p.tokens, p.flops, p.loss, p.target)
            for p in found.points
        ],
        laws=laws,
        holdout=holdout,
        target=target,
        families=families if len(families) > 1 else [],
    )


def _of_target(law: ScalingLaw, sizes: np.ndarray) -> Prediction:
    """The target loss, the last column of the law, at ``sizes`` [n, 2]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)  # the recorded prediction tells it
        return Prediction(*(part[:, -1] for part in law.predict(sizes)))


def _record_rows(evidence: Evidence) -> list[report.RecordRow]:
    """How each law fared on runs of these studies that it had not seen."""
    rows = []
    if evidence.mixture is not None:
        said = [(c.predicted, c.low, c.high, m) for c in evidence.mixture.candidates for m in c.measured]
        rows.append(_record_row("mixture_law", "confirm", 1.0, *np.array(said).T))
    if evidence.anneal is not None and evidence.anneal.curve is not None:
        errors = list(evidence.anneal.curve.held_out.values())
        rows.append(report.RecordRow("anneal_law", "branches", len(errors), None, fmean(errors), None, 1.0))
    if evidence.ladder is not None and evidence.mixture is not None:
        for rung in hold_out_rungs(evidence.ladder, evidence.recipe.model.family, evidence.mixture.domains):
            factor = float(rung.extrapolation.max())
            rows.append(_record_row("scaling_law", rung.what, factor, *rung.prediction, rung.measured))
    return rows


def _record_row(
    law: str, what: str, factor: float, mean: np.ndarray, low: np.ndarray, high: np.ndarray, measured: np.ndarray
) -> report.RecordRow:
    return report.RecordRow(
        law=law,
        what=what,
        forecasts=measured.size,
        inside=int(((low <= measured) & (measured <= high)).sum()),
        error=float(np.abs(mean / measured - 1).mean()),
        width=float(((high - low) / measured).mean()),
        extrapolation=factor,
    )


def _prediction_part(evidence: Evidence) -> report.PredictionPart | None:
    said = evidence.prediction
    if said is None:
        return None
    outcome = {row["domain"]: row for row in (evidence.verdict["rows"] if evidence.verdict else [])}

    def row(name: str, value: Mapping[str, float]) -> report.PredictionRow:
        measured = outcome.get(name, {})
        return report.PredictionRow(
            name, value["predicted"], value["low"], value["high"], measured.get("measured"), measured.get("inside")
        )

    started = evidence.store.started_at(said["run"])
    return report.PredictionPart(
        recorded_at=said["recorded_at"],
        started_at=None if started is None else iso_time(started),
        rows=[row(domain, value) for domain, value in said["domains"].items()],
        target=None if said["target"] is None else row("target", said["target"]),
        extrapolation=said["extrapolation"],
    )


def _arm_rows(evidence: Evidence) -> list[report.ArmRow]:
    if evidence.target is None:
        return []
    return [
        report.ArmRow(
            name=arm.name,
            losses=arm.target,
            mean=arm.mean,
            low=arm.low,
            high=arm.high,
            domain_losses={d: fmean(loss[d] for loss in arm.loss) for d in evidence.corpus.domains},
            bits_per_byte={d: fmean(bits[d] for bits in arm.bits_per_byte) for d in evidence.corpus.domains},
        )
        for arm in evidence.target.arms
        if arm.low is not None and arm.high is not None
    ]


def _curves(evidence: Evidence) -> list[report.LossCurve]:
    """Target loss over the training of the first seed's run of each arm."""
    if evidence.target is None:
        return []
    weights = evidence.recipe.target_weights
    curves = []
    for arm in evidence.target.arms:
        table = pq.read_table(evidence.store.run_folder(arm.runs[0]) / "metrics.parquet").to_pylist()
        rows = [row for row in table if row[f"validation/{next(iter(weights))}/loss"] is not None]
        losses = [sum(w * row[f"validation/{d}/loss"] for d, w in weights.items()) for row in rows]
        curves.append(report.LossCurve(arm.name, [row["tokens"] for row in rows], losses))
    return curves


def _samples(evidence: Evidence) -> list[report.Sample]:
    """What the target run writes after the beginning of a validation text of each target domain."""
    run = evidence.target.published if evidence.target is not None else None
    if run is None:
        return []
    spec = evidence.store.run_spec(run)
    model: Transformer = load_weights(evidence.store.run_folder(run) / "model.safetensors", spec.model)
    tokenizer = evidence.corpus.tokenizer()
    samples = []
    for domain in evidence.recipe.target_weights:
        window = evidence.corpus.validation(domain, spec.context_length, 1).tokens[0]
        prompt = window[: min(24, spec.context_length // 2)].tolist()
        text = generate(
            model,
            prompt,
            max_new_tokens=_SAMPLE_TOKENS,
            temperature=0.8,
            top_p=0.95,
            seed=0,
            end_token=evidence.corpus.manifest.end_of_text_id,
        )
        samples.append(report.Sample(tokenizer.decode(prompt), tokenizer.decode(text)))
    return samples


def _cost(evidence: Evidence, wall_s: Mapping[str, float]) -> list[report.CostRow]:
    rows = []
    runs = evidence.runs
    stages = {
        "mixture": ("mixture", "mixture-confirm"),
        "anneal": ("anneal",),
        "ladder": ("ladder",),
        "target": ("target",),
    }
    for stage, seconds in wall_s.items():
        ids = {run for study in stages.get(stage, ()) for run in runs.get(study, [])}
        done = [result for run in ids if (result := evidence.store.result(run)) is not None]
        core_s = sum(result.wall_s for result in done)
        rows.append(
            report.CostRow(stage, len(done), sum(_spent_flops(evidence.store, r) for r in done), seconds, core_s)
        )
    return rows


def _spent_flops(store: Store, result: RunResult) -> float:
    """FLOPs of a run without the steps that its trunk had taken for it."""
    first = next(iter(read_events(store.run_folder(result.run) / "events.jsonl")))
    steps = store.run_spec(result.run).steps
    return result.flops * (1 - first.step / steps)


def _lineage_rows(evidence: Evidence) -> list[report.LineageRow]:
    rows = [report.LineageRow("corpus", evidence.corpus.hash)]
    if evidence.prediction is not None:
        rows.append(report.LineageRow("target", evidence.prediction["run"]))
        rows.append(report.LineageRow("predict", evidence.prediction["sha256"]))
    return rows


def _warnings(evidence: Evidence) -> list[str]:
    said = list(evidence.prediction.get("warnings", [])) if evidence.prediction else []
    for name, domain in evidence.corpus.manifest.domains.items():
        if domain.problem_count:
            said.append(f"{name}: {domain.problem_count} documents were passed over; first: {domain.problems[0]}")
    for outcome in (evidence.mixture, evidence.anneal, evidence.ladder, evidence.target):
        if outcome is not None:
            said.extend(outcome.failures)
    for choice in (evidence.mixture, evidence.anneal):
        if choice is not None and choice.reason:
            said.append(choice.reason)
    if evidence.prediction is not None and "unpredicted" in evidence.prediction:
        said.append(evidence.prediction["unpredicted"])
    if evidence.verdict is not None and "reason" in evidence.verdict:
        said.append(f"verdict ({evidence.verdict['status']}): {evidence.verdict['reason']}")
    return said
