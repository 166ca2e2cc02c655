"""The ladder: small models of growing size and tokens with the recipe found, and the law through their losses.

Every rung trains one stable trunk and decays from it at each data size, so that a point costs little more than its
decay (Hägele et al. 2024, arXiv 2405.18392). Several families are climbed side by side.
"""

from __future__ import annotations

import numpy as np

from armillary.laws import ScalingLaw
from armillary.recipe import ArmillaryError, Document
from armillary.study.lab import Annealing, Lab, record, stage_key, stored

_SEED = 3000


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
        if found < 6:
            raise ArmillaryError(
                f"ladder: {found} points for family '{family}', a law needs 6; add depths or fractions under "
                "study.ladder, or see which runs failed"
            )
    return record(
        lab.store, "ladder", key, LadderOutcome(points=points, failures=[f"{f.run}: {f.error}" for f in failures])
    )


def fit_laws(
    outcome: LadderOutcome, family: str, domains: list[str], noise: dict[str, float]
) -> dict[str | None, ScalingLaw]:
    """The law of each validation domain and, under None, of the target; ``noise`` as in ``MixtureOutcome``."""
    sizes = outcome.sizes(family)
    laws: dict[str | None, ScalingLaw] = {}
    for domain in (*domains, None):
        known = noise.get(domain) if domain is not None else noise.get("")
        laws[domain] = ScalingLaw().fit(sizes, outcome.losses(family, domain), noise=known)
    return laws
