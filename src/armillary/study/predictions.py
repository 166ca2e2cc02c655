"""The target run: what it will reach, said before it exists; the run; and the verdict (contract 4).

The target run is the recipe's model on its full tokens with the mixture and the annealing that the studies found. It is
trained with several seeds, and so are the same model on the natural and on the uniform mixture: that difference, and
not a law's promise, says whether the recipe was worth finding. The prediction speaks of the first seed's run.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from armillary import __version__
from armillary.laws import ExtrapolationError, ExtrapolationWarning, mean_interval, paired_difference
from armillary.recipe import ArmillaryError, Document, RunSpec
from armillary.study.anneal import AnnealOutcome
from armillary.study.executor import Job
from armillary.study.lab import Annealing, Lab, record, stage_key, stored
from armillary.study.ladder import LadderOutcome, fit_law
from armillary.study.mixture import MixtureOutcome
from armillary.study.sizing import TARGET_LOOKS

INTERVAL = 0.9


class Found(Document):
    """The recipe that the studies argue for, and the two plain mixtures it is held against."""

    mixture: dict[str, float]
    natural: dict[str, float]
    uniform: dict[str, float]
    annealing: Annealing


class Arm(Document):
    """One mixture at the target's size: per seed the target loss and the loss and bits per byte of each domain."""

    name: str
    weights: dict[str, float]
    seeds: list[int]
    runs: list[str]
    target: list[float]
    mean: float
    low: float
    high: float
    loss: list[dict[str, float]]
    bits_per_byte: list[dict[str, float]]
    epochs: dict[str, float]


class Difference(Document):
    """Target loss of ``found`` minus that of ``reference``, paired over seeds, with its 90 % interval."""

    reference: str
    mean: float
    low: float
    high: float


class TargetOutcome(Document):
    """The arms at the target's size and how the found mixture differs from the plain ones."""

    arms: list[Arm]
    differences: list[Difference]
    failures: list[str]


def found_recipe(mixture: MixtureOutcome, anneal: AnnealOutcome) -> Found:
    """What the mixture and the annealing study have found together."""
    return Found(mixture=mixture.found, natural=mixture.natural, uniform=mixture.uniform, annealing=anneal.taken)


def target_spec(lab: Lab, found: Found, weights: dict[str, float], seed: int) -> RunSpec:
    """The target run with the given mixture and seed."""
    recipe = lab.recipe
    steps = lab.steps(lab.plan.tokens["target"])
    return lab.annealed(
        lab.shape(recipe.model.family, recipe.model.depth),
        steps,
        found.annealing,
        weights,
        seed,
        warmup_steps=round(recipe.training.warmup_share * steps),
        validation_every=math.ceil(steps / TARGET_LOOKS),
    )


def predict(lab: Lab, found: Found, mixture: MixtureOutcome, ladder: LadderOutcome) -> dict[str, Any]:
    """Record what the target run will reach, from the ladder's laws, and return the record.

    The record holds ``run``, ``interval``, ``domains`` and ``target`` (each ``predicted``, ``low``, ``high`` in nats
    per token), the ``extrapolation`` in compute and what the law warns of, its forms and parameters, and the runs that
    it rests on.

    Raises:
        ArmillaryError: the target run has already begun.
    """
    spec = target_spec(lab, found, found.mixture, lab.recipe.training.seeds[0])
    known = lab.store.prediction(spec.id)
    if known is not None:
        return known
    lab.store.record_prediction(spec.id, forecast(lab, spec, mixture, ladder))
    recorded = lab.store.prediction(spec.id)
    assert recorded is not None
    return recorded


def forecast(lab: Lab, spec: RunSpec, mixture: MixtureOutcome, ladder: LadderOutcome) -> dict[str, Any]:
    """The content of a prediction of ``spec``, not yet recorded."""
    law = fit_law(ladder, lab.recipe.model.family, mixture.domains)
    at = np.array([[spec.model.parameters, spec.tokens]], float)
    columns = [*mixture.domains, "target"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ExtrapolationWarning)
        try:
            mean, low, high = (part[0].tolist() for part in law.predict(at, interval=INTERVAL))
        except ExtrapolationError as error:
            raise ArmillaryError(
                f"the ladder does not support a prediction of the target run: {error}; give study.ladder greater "
                "depths or more tokens"
            ) from error
    said = {name: {"predicted": mean[i], "low": low[i], "high": high[i]} for i, name in enumerate(columns)}
    return {
        "run": spec.id,
        "spec": spec.model_dump(mode="json"),
        "interval": INTERVAL,
        "domains": {domain: said[domain] for domain in mixture.domains},
        "target": said["target"],
        "extrapolation": float(law.extrapolation(at)[0]),
        "warnings": [str(warning.message) for warning in caught],
        "forms": law.weights_,
        "law": {
            name: {parameter: float(np.atleast_1d(value)[i]) for parameter, value in law.parameters_.items()}
            for i, name in enumerate(columns)
        },
        "from_runs": [point.run for point in ladder.points],
        "version": __version__,
    }


def train_target(lab: Lab, found: Found) -> TargetOutcome:
    """Carry out the target run and the plain arms with every seed, or return their outcome from the store.

    Raises:
        ArmillaryError: no prediction is recorded, or an arm has no result.
        InterruptedStudyError: Ctrl-C; call again to go on.
    """
    seeds = list(lab.recipe.training.seeds)
    mixtures = {"found": found.mixture, "natural": found.natural, "uniform": found.uniform}
    specs = {name: [target_spec(lab, found, weights, seed) for seed in seeds] for name, weights in mixtures.items()}
    if lab.store.prediction(specs["found"][0].id) is None:
        raise ArmillaryError("the target run has no prediction yet; run `armillary predict` first")
    key = stage_key(lab.corpus, lab.recipe.target_weights, [spec.id for group in specs.values() for spec in group])
    known = stored(lab.store, "target", key, TargetOutcome)
    if known is not None:
        return known
    # The run that was predicted comes first, then the others seed by seed, so that an early stop leaves whole pairs.
    results, failures = lab.carry_out("target", [Job(specs[name][i]) for i in range(len(seeds)) for name in mixtures])
    arms = []
    for name, group in specs.items():
        done = [(seed, results[spec.id]) for seed, spec in zip(seeds, group, strict=True) if spec.id in results]
        if not done:
            raise ArmillaryError(f"target: no run on the {name} mixture has a result: {failures[0].error}")
        losses = [lab.target_loss(result) for _, result in done]
        mean = mean_interval(losses, INTERVAL)
        arms.append(
            Arm(
                name=name,
                weights=mixtures[name],
                seeds=[seed for seed, _ in done],
                runs=[result.run for _, result in done],
                target=losses,
                mean=float(mean.mean),
                low=float(mean.low),
                high=float(mean.high),
                loss=[result.loss for _, result in done],
                bits_per_byte=[result.bits_per_byte for _, result in done],
                epochs=done[0][1].epochs,
            )
        )
    differences = [_difference(arms[0], arm) for arm in arms[1:]]
    outcome = TargetOutcome(arms=arms, differences=differences, failures=[f"{f.run}: {f.error}" for f in failures])
    return record(lab.store, "target", key, outcome)


def _difference(found: Arm, other: Arm) -> Difference:
    pairs = [
        (found.target[found.seeds.index(s)], other.target[i]) for i, s in enumerate(other.seeds) if s in found.seeds
    ]
    value = paired_difference([a for a, _ in pairs], [b for _, b in pairs], INTERVAL)
    return Difference(reference=other.name, mean=float(value.mean), low=float(value.low), high=float(value.high))


def judge(lab: Lab, found: Found) -> dict[str, Any]:
    """Append the verdict to the target run's prediction, and return it.

    ``rows`` holds for every domain and for the target: ``predicted``, ``low``, ``high``, ``measured``, ``inside``.

    Raises:
        ArmillaryError: there is no prediction, or the run has no result yet.
    """
    spec = target_spec(lab, found, found.mixture, lab.recipe.training.seeds[0])
    prediction = lab.store.prediction(spec.id)
    if prediction is None:
        raise ArmillaryError(f"run {spec.id} has no prediction, so there is nothing to judge; run `armillary predict`")
    known = lab.store.verdict(spec.id)
    if known is not None:
        return known
    result = lab.store.result(spec.id)
    if result is None:
        raise ArmillaryError(f"run {spec.id} has no result yet; run `armillary train`")
    measured = {**result.loss, "target": lab.target_loss(result)}
    rows = [
        {
            "domain": domain,
            **said,
            "measured": measured[domain],
            "inside": said["low"] <= measured[domain] <= said["high"],
        }
        for domain, said in [*prediction["domains"].items(), ("target", prediction["target"])]
    ]
    lab.store.record_verdict(spec.id, {"run": spec.id, "rows": rows, "inside": sum(row["inside"] for row in rows)})
    recorded = lab.store.verdict(spec.id)
    assert recorded is not None
    return recorded
