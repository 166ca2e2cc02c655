"""The annealing study: one stable trunk per seed, and branches that decay from its checkpoints.

All branches end at the same total of tokens, so they answer one question: given the budget, how much of it should be
annealing, in which shape, and on which mixture? The trunk is trained once; a branch is nevertheless the same run, bit
for bit, as one trained from the beginning.
"""

from __future__ import annotations

from armillary.laws import best_of
from armillary.recipe import ArmillaryError, Document
from armillary.study.lab import Annealing, Lab, record, sharpened, stage_key, stored

# The choice that is usual when nobody has looked; another one is taken only if it is better with significance.
_USUAL_SHARE = 0.2
_SEED = 2000


class Branch(Document):
    """One annealing and the target loss that each seed reached with it."""

    annealing: Annealing
    measured: list[float]
    runs: list[str]


class AnnealOutcome(Document):
    """What the annealing study found; ``difference`` is the best branch's target loss minus the reference's."""

    tokens: int
    branches: list[Branch]
    reference: str
    best: str
    difference: float
    low: float
    high: float
    significant: bool
    taken: Annealing
    trunk_tokens: int
    failures: list[str]


def anneal_study(lab: Lab, mixture: dict[str, float]) -> AnnealOutcome:
    """Carry out the study on ``mixture``, or return its outcome where it is in the store.

    Raises:
        ArmillaryError: too many runs failed.
        InterruptedStudyError: Ctrl-C; call again to go on.
    """
    recipe, study = lab.recipe, lab.recipe.study.anneal
    key = stage_key(
        lab.corpus, recipe.target_weights, recipe.training, recipe.families, study, lab.plan.size("anneal"), mixture
    )
    known = stored(lab.store, "anneal", key, AnnealOutcome)
    if known is not None:
        return known
    shape = lab.shape(recipe.model.family, study.depth)
    steps = lab.steps(lab.plan.tokens["anneal"])
    warmup = round(recipe.training.warmup_share * steps)
    options = [
        Annealing(share=share, shape=curve, sharpen=power)
        for power in study.sharpen
        for curve in study.shapes
        for share in study.shares
        if power == 1 or sharpened(mixture, power) != mixture
    ]
    seeds = [_SEED + i for i in range(study.seeds)]
    specs = {
        option: [lab.annealed(shape, steps, option, mixture, seed, warmup_steps=warmup) for seed in seeds]
        for option in options
    }
    jobs = lab.with_trunks([spec for group in specs.values() for spec in group])
    results, failures = lab.carry_out("anneal", jobs)
    branches = [
        Branch(
            annealing=option,
            measured=[lab.target_loss(results[spec.id]) for spec in group if spec.id in results],
            runs=[spec.id for spec in group],
        )
        for option, group in specs.items()
    ]
    complete = {b.annealing.name: b.measured for b in branches if len(b.measured) == len(seeds)}
    plain = [o for o in options if o.sharpen == 1 and o.name in complete] or [o for o in options if o.name in complete]
    if not plain:
        raise ArmillaryError("anneal: no annealing has all its runs; see `armillary runs` for what failed")
    reference = min(plain, key=lambda o: (abs(o.share - _USUAL_SHARE), options.index(o)))
    by_name = {option.name: option for option in options}
    if len(complete) > 1:
        choice = best_of(complete, reference=reference.name)
        best, significant = choice.name, choice.significant
        difference, low, high = (float(v) for v in choice.difference)
    else:
        best, significant, difference, low, high = reference.name, False, 0.0, 0.0, 0.0
    return record(
        lab.store,
        "anneal",
        key,
        AnnealOutcome(
            tokens=steps * recipe.training.batch_sequences * recipe.training.context_length,
            branches=branches,
            reference=reference.name,
            best=best,
            difference=difference,
            low=low,
            high=high,
            significant=significant,
            taken=by_name[best] if significant else reference,
            trunk_tokens=max((job.spec.tokens for job in jobs if job.keep), default=0),
            failures=[f"{f.run}: {f.error}" for f in failures],
        ),
    )
