"""A whole workspace without training: runs whose losses are a formula, in a real store with real files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from armillary.corpus import Corpus
from armillary.goodput import EventWriter
from armillary.launch import Failure, Job
from armillary.laws import best_of
from armillary.model import Transformer, save_weights
from armillary.path import Evidence
from armillary.recipe import CorpusSpec, Recipe, RunResult, RunSpec, write_result
from armillary.store import Store
from armillary.study import (
    Annealing,
    AnnealOutcome,
    Found,
    Lab,
    LadderOutcome,
    MixtureOutcome,
    Plan,
    Point,
    judge,
    predict,
    train_target,
)
from armillary.study.anneal import Branch
from armillary.study.lab import RunSize
from armillary.study.mixture import Candidate

SETTINGS: dict[str, Any] = {
    "name": "tiny",
    "target": {"voyage": 0.7, "code": 0.3},
    "model": {"depth": 2},
    "families": [{"name": "base", "width_per_layer": 8, "head_dim": 8}],
    "training": {"tokens": 12_800, "context_length": 16, "batch_sequences": 8, "seeds": [1, 2, 3], "precision": "fp32"},
    "study": {
        "mixture": {"depth": 1, "runs": 10, "tokens": 8_000, "candidates": 2, "confirm_seeds": 2},
        "anneal": {"depth": 1, "tokens": 8_000, "shares": [0.2, 0.4], "shapes": ["linear"], "seeds": 2},
        "ladder": {"depths": [1, 2], "tokens": 10_000, "fractions": [0.3, 0.6, 1.0], "families": ["base"]},
    },
    "validation_windows": 8,
}
MIXTURES = {
    "candidate 1": {"sky": 0.5, "sea": 0.3, "code": 0.2},
    "candidate 2": {"sky": 0.3, "sea": 0.3, "code": 0.4},
    "natural": {"sky": 0.3, "sea": 0.4, "code": 0.3},
    "uniform": {"sky": 1 / 3, "sea": 1 / 3, "code": 1 / 3},
}


def loss_of(spec: RunSpec) -> float:
    """Falls with parameters, tokens and the weight of ``sky``; seeds differ a little."""
    size = 2.0 + 8 * spec.model.parameters**-0.2 + 30 * spec.tokens**-0.4
    return size - 0.3 * spec.mixture[0].weights["sky"] + 0.004 * (spec.seed % 7)


@dataclass
class FormulaExecutor:
    """Gives every run its result by ``loss_of``, and the files of a run; ``lose`` names the runs that fail, and how."""

    store: Store
    corpus: Corpus
    lose: Callable[[RunSpec], str | None] = lambda spec: None
    n_workers: int = 1
    device: str = "cpu"
    trained: list[str] = field(default_factory=list)

    def run(self, study: str, jobs: list[Job], progress: Any) -> dict[str, RunResult | Failure]:
        self.store.add(study, [job.spec for job in jobs])
        found: dict[str, RunResult | Failure] = {}
        for job in jobs:
            known = self.store.result(job.spec.id)
            found[job.spec.id] = known if known is not None else self._train(job.spec)
        return found

    def measure(self, probes: list[Any]) -> list[float]:
        return [1e9 / probe.shape.parameters for probe in probes]

    def __enter__(self) -> FormulaExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _train(self, spec: RunSpec) -> RunResult | Failure:
        self.store.mark_running(spec.id)
        status = self.lose(spec)
        if status is not None:
            cause = f"/srv/private/store/{spec.id}: No space left on device"
            self.store.mark_failed(spec.id, status, cause)
            return Failure(spec.id, status, cause)
        self.trained.append(spec.id)
        loss = loss_of(spec)
        by_domain = {domain: loss + 0.1 * i for i, domain in enumerate(self.corpus.domains)}
        result = RunResult(
            run=spec.id,
            loss=by_domain,
            bits_per_byte={domain: value / 3 for domain, value in by_domain.items()},
            train_loss=loss,
            tokens=spec.tokens,
            flops=spec.flops,
            epochs=dict.fromkeys(self.corpus.training_domains, 0.5),
            wall_s=1.5,
        )
        write_run(self.store.run_folder(spec.id), spec, by_domain)
        write_result(self.store.run_folder(spec.id), result)
        self.store.mark_done(result)
        return result


def write_run(folder: Path, spec: RunSpec, losses: dict[str, float]) -> None:
    """The files of a finished run, but for its result."""
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")
    steps = np.arange(1, spec.steps + 1)
    columns: dict[str, Any] = {
        "step": steps,
        "tokens": steps * spec.batch_tokens,
        "lr": [spec.lr(int(step) - 1) for step in steps],
        "loss": 6 - 3 * steps / spec.steps,
    }
    looks = steps % (spec.validation.every or spec.steps) == 0
    looks[-1] = True
    for domain, loss in losses.items():
        columns[f"validation/{domain}/loss"] = [
            loss + 1 - s / spec.steps if look else None for s, look in zip(steps, looks, strict=True)
        ]
    pq.write_table(pa.table(columns), folder / "metrics.parquet")
    with EventWriter(folder / "events.jsonl", spec.id) as events:
        events.write("start", 0)
        events.write("end", spec.steps)
    model = Transformer(spec.model)
    model.init_weights(0)
    save_weights(model, folder / "model.safetensors")


def make_recipe(corpus: CorpusSpec) -> Recipe:
    return Recipe.model_validate({**SETTINGS, "corpus": corpus.model_dump()})


def make_lab(recipe: Recipe, corpus: Corpus, folder: Path) -> Lab:
    store = Store(folder / "store")
    tokens = {"mixture": 8_000, "anneal": 8_000, "ladder": 10_000, "target": 12_800}
    plan = Plan(
        budget="9m", precision="fp32", workers=1, mixture_runs=10, tokens=tokens, seconds={}, flops={}, rates={}
    )
    return Lab(recipe, corpus, store, FormulaExecutor(store, corpus), plan, lambda *_: None)  # type: ignore[arg-type]


def evidence_of(lab: Lab, until: str = "verdict") -> Evidence:
    """The outcomes of every stage by formula; the studies' own are given, those of the target are the real ones."""
    evidence = Evidence(lab.recipe, lab.corpus, lab.store, lab.plan)
    evidence.mixture = mixture_outcome(lab)
    evidence.anneal = anneal_outcome(lab, evidence.mixture.found)
    evidence.found = Found(
        mixture=evidence.mixture.found,
        natural=MIXTURES["natural"],
        uniform=MIXTURES["uniform"],
        annealing=evidence.anneal.taken,
    )
    evidence.ladder = ladder_outcome(lab, evidence.found)
    evidence.prediction = predict(lab, evidence.found, evidence.mixture, evidence.ladder)
    if until == "verdict":
        evidence.target = train_target(lab, evidence.found)
        evidence.verdict = judge(lab, evidence.found)
    return evidence


def mixture_outcome(lab: Lab) -> MixtureOutcome:
    rng, domains = np.random.default_rng(0), list(lab.corpus.domains)
    training = list(lab.corpus.training_domains)
    design = rng.dirichlet(np.ones(3), 10)
    proxies = [_proxy(lab, dict(zip(training, row.tolist(), strict=True)), 0) for row in design]
    confirm = {name: [_proxy(lab, weights, seed) for seed in (1000, 1001)] for name, weights in MIXTURES.items()}
    results = _train(lab, "mixture", proxies) | _train(lab, "mixture-confirm", [s for g in confirm.values() for s in g])
    candidates = [
        Candidate(
            name=name,
            weights=MIXTURES[name],
            predicted=4.0,
            low=3.9,
            high=4.1,
            measured=[lab.target_loss(results[spec.id]) for spec in group if spec.id in results],
            runs=[spec.id for spec in group],
        )
        for name, group in confirm.items()
    ]
    choice = best_of({c.name: c.measured for c in candidates if c.name != "uniform"}, reference="natural")
    good = [spec for spec in proxies if spec.id in results]
    table = [[results[spec.id].loss[d] for d in domains] for spec in good]
    return MixtureOutcome(
        training_domains=training,
        domains=domains,
        tokens=8_000,
        design=[[spec.mixture[0].weights[d] for d in training] for spec in good],
        losses=table,
        held_out=(np.array(table) + 0.01).tolist(),
        spearman=[0.9] * len(domains),
        rmse=[0.01] * len(domains),
        target_spearman=0.9,
        forms=[{"linear": 0.4, "gaussian-process": 0.6}] * len(domains),
        natural=MIXTURES["natural"],
        uniform=MIXTURES["uniform"],
        candidates=candidates,
        taken=choice.name,
        reference="natural",
        difference=float(choice.difference.mean),
        low=float(choice.difference.low),
        high=float(choice.difference.high),
        significant=choice.significant,
        found=MIXTURES[choice.name],
        noise=[0.01] * len(domains),
        target_noise=0.01,
        runs=[spec.id for spec in good],
    )


def anneal_outcome(lab: Lab, mixture: dict[str, float]) -> AnnealOutcome:
    options = [Annealing(share=share, shape="linear", sharpen=power) for power in (1.0, 1.5) for share in (0.2, 0.4)]
    size = RunSize(lab.shape("base", 1), lab.steps(8_000), 3)
    specs = {option: [lab.annealed(size, option, mixture, seed) for seed in (2000, 2001)] for option in options}
    results = _train(lab, "anneal", [spec for group in specs.values() for spec in group])
    branches = [
        Branch(
            annealing=option,
            measured=[lab.target_loss(results[spec.id]) - 0.1 * (option.sharpen > 1) for spec in group],
            runs=[spec.id for spec in group],
        )
        for option, group in specs.items()
    ]
    groups = {branch.annealing.name: branch.measured for branch in branches}
    choice = best_of(groups, reference=options[0].name)
    best = next(option for option in options if option.name == choice.best)
    return AnnealOutcome(
        tokens=8_000,
        branches=branches,
        reference=options[0].name,
        best=choice.best,
        difference=float(choice.difference.mean),
        low=float(choice.difference.low),
        high=float(choice.difference.high),
        significant=choice.significant,
        taken=best if choice.significant else options[0],
        trunk_tokens=0,
    )


def ladder_outcome(lab: Lab, found: Found) -> LadderOutcome:
    points = []
    for depth in (1, 2):
        for fraction in (0.3, 0.6, 1.0):
            steps = lab.steps(fraction * 10_000)
            size = RunSize(lab.shape("base", depth), steps, 3)
            spec = lab.annealed(size, found.annealing, found.mixture, 3000 + depth)
            result = _train(lab, "ladder", [spec])[spec.id]
            points.append(
                Point(
                    run=spec.id,
                    family="base",
                    depth=depth,
                    seed=spec.seed,
                    parameters=spec.model.parameters,
                    tokens=spec.tokens,
                    flops=spec.flops,
                    loss=result.loss,
                    target=lab.target_loss(result),
                )
            )
    return LadderOutcome(points=points)


def _proxy(lab: Lab, weights: dict[str, float], seed: int) -> RunSpec:
    option = Annealing(share=0.2, shape="linear")
    return lab.annealed(RunSize(lab.shape("base", 1), lab.steps(8_000), 3), option, weights, seed)


def _train(lab: Lab, study: str, specs: list[RunSpec]) -> dict[str, RunResult]:
    outcomes = lab.executor.run(study, [Job(spec) for spec in specs], lambda *_: None)
    return {run: value for run, value in outcomes.items() if isinstance(value, RunResult)}
