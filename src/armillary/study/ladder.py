"""The ladder: small models of growing size and tokens with the recipe found, and the law through their losses.

Every rung trains one stable trunk and decays from it at each data size, so that a point costs little more than its
decay (Hägele et al. 2024, arXiv 2405.18392). Several families are climbed side by side.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from armillary.laws import ExtrapolationError, ExtrapolationWarning, Prediction, ScalingLaw
from armillary.recipe import ArmillaryError, Document
from armillary.study.lab import Annealing, Lab, record, stage_key, stored

_SEED = 3000
MIN_POINTS = 6


class Point(Document):
    """One run of the ladder: its size, and the loss on every validation domain and on the target."""

    run: str
    family: str
    depth: int
    seed: int
    parameters: int
    tokens: int
    flops: float
    loss: dict[str, float]
    target: float


class LadderOutcome(Document):
    """All points of the ladder, over every family."""

    points: list[Point]
    failures: list[str]

    def sizes(self, family: str) -> np.ndarray:
        """[n, 2] parameters and tokens of a family's points."""
        return np.array([[p.parameters, p.tokens] for p in self.points if p.family == family], float)

    def losses(self, family: str, domain: str | None) -> np.ndarray:
        """[n] losses of a family's points on ``domain``, or on the target for None."""
        return np.array([p.target if domain is None else p.loss[domain] for p in self.points if p.family == family])


def ladder_study(lab: Lab, mixture: dict[str, float], annealing: Annealing) -> LadderOutcome:
    """Carry out the ladder with ``mixture`` and ``annealing``, or return its outcome where it is in the store.

    Raises:
        ArmillaryError: too many runs failed, or too few points are left for a law.
        InterruptedStudyError: Ctrl-C; call again to go on.
    """
    recipe, study = lab.recipe, lab.recipe.study.ladder
    key = stage_key(
        lab.corpus,
        recipe.target_weights,
        recipe.training,
        recipe.families,
        study,
        lab.plan.size("ladder"),
        mixture,
        annealing,
    )
    known = stored(lab.store, "ladder", key, LadderOutcome)
    if known is not None:
        return known
    longest = lab.steps(lab.plan.tokens["ladder"])
    # One warm-up for all points of a trunk, as long as that of a whole run where the shortest leaves room for it.
    shortest = max(2, round(min(study.fractions) * longest))
    warmup = min(round(recipe.training.warmup_share * longest), shortest - max(1, round(annealing.share * shortest)))
    specs = {}
    for family in study.families:
        for depth in study.depths:
            shape = lab.shape(family, depth)
            for seed in range(_SEED, _SEED + study.seeds):
                for fraction in study.fractions:
                    steps = max(2, round(fraction * longest))
                    spec = lab.annealed(shape, steps, annealing, mixture, seed, warmup_steps=warmup)
                    specs[spec.id] = (family, depth, seed, spec)
    results, failures = lab.carry_out("ladder", lab.with_trunks([spec for *_, spec in specs.values()]))
    points = [
        Point(
            run=run,
            family=family,
            depth=depth,
            seed=seed,
            parameters=spec.model.parameters,
            tokens=spec.tokens,
            flops=spec.flops,
            loss=results[run].loss,
            target=lab.target_loss(results[run]),
        )
        for run, (family, depth, seed, spec) in specs.items()
        if run in results
    ]
    for family in study.families:
        found = sum(point.family == family for point in points)
        if found < MIN_POINTS:
            raise ArmillaryError(
                f"ladder: {found} points for family '{family}', a law needs {MIN_POINTS}; add depths or "
                "fractions under study.ladder, or see which runs failed"
            )
    return record(
        lab.store, "ladder", key, LadderOutcome(points=points, failures=[f"{f.run}: {f.error}" for f in failures])
    )


def fit_law(outcome: LadderOutcome, family: str, domains: Sequence[str]) -> ScalingLaw:
    """One law for the losses on all ``domains`` and, in the last column, the target loss."""
    return ScalingLaw().fit(outcome.sizes(family), _table(outcome, family, domains))


@dataclass(frozen=True)
class HeldOutRung:
    """The largest models, or the longest runs, asked of a law that had not seen them; k runs, t losses (``fit_law``).

    ``what`` names the feature and from where on runs were held out; ``extrapolation`` [k] is their compute over the
    largest that was kept.
    """

    what: str
    prediction: Prediction
    measured: np.ndarray
    extrapolation: np.ndarray


def hold_out_rungs(outcome: LadderOutcome, family: str, domains: Sequence[str]) -> list[HeldOutRung]:
    """Hold back the largest models, then the longest runs, where what is left suffices for a law.

    The longest runs share their trunks with shorter ones, so they are a milder test than the largest models.
    """
    sizes, losses = outcome.sizes(family), _table(outcome, family, domains)
    rungs = []
    for column, label in enumerate(("parameters", "tokens")):
        largest = sizes[:, column].max()
        kept = sizes[:, column] < 0.99 * largest
        if kept.sum() < MIN_POINTS or any(len(np.unique(sizes[kept, other])) < 2 for other in (0, 1)):
            continue
        law = ScalingLaw().fit(sizes[kept], losses[kept])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExtrapolationWarning)  # going beyond is what this is about
            try:
                prediction = law.predict(sizes[~kept])
            except ExtrapolationError:  # too few runs are left for any answer
                continue
        rungs.append(
            HeldOutRung(f"{label} = {largest:.3g}", prediction, losses[~kept], law.extrapolation(sizes[~kept]))
        )
    return rungs


def _table(outcome: LadderOutcome, family: str, domains: Sequence[str]) -> np.ndarray:
    return np.stack([outcome.losses(family, domain) for domain in (*domains, None)], axis=1)
