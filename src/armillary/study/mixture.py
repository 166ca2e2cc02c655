"""The mixture study: from a designed set of proxies to a mixture that is better with significance, or to none.

Proxies are trained on mixtures that fill the allowed simplex; a law from mixture to each validation loss is fitted and
optimised where the design supports it. Because an optimum of a fitted law flatters itself, its best few candidates are
trained once more with new seeds beside the natural and the uniform mixture, and the choice is made on those runs alone:
a candidate must beat the natural mixture with significance, or the natural mixture is taken.
"""

from __future__ import annotations

import numpy as np

from armillary.laws import MixtureLaw, best_of, epoch_ceilings, optimise_mixture, rank_correlation, simplex_design
from armillary.recipe import Document, UsageError
from armillary.study.executor import Job
from armillary.study.lab import Annealing, Lab, record, stage_key, stored

# Proxies end as the target will: with a decay. Which one is the annealing study's question; this is its usual answer.
PROXY_ANNEALING = Annealing(share=0.2, shape="linear")
_CONFIRM_SEED = 1000


class Candidate(Document):
    """A mixture that was trained again: the law's prediction of the target and what each seed measured."""

    name: str
    weights: dict[str, float]
    predicted: float
    low: float
    high: float
    measured: list[float]
    runs: list[str]


class MixtureOutcome(Document):
    """What the mixture study found.

    ``design`` [n][d] mixtures over ``training_domains``; ``losses`` and ``held_out`` [n][v] measured and predicted by
    the law when the run was held out, over ``domains``; ``forms`` the weight of each form of law per domain;
    ``noise`` [v] the relative standard deviation between seeds.
    """

    training_domains: list[str]
    domains: list[str]
    tokens: int
    design: list[list[float]]
    losses: list[list[float]]
    held_out: list[list[float]]
    spearman: list[float]
    rmse: list[float]
    target_spearman: float
    forms: list[dict[str, float]]
    natural: dict[str, float]
    uniform: dict[str, float]
    candidates: list[Candidate]
    taken: str
    reference: str
    difference: float
    low: float
    high: float
    significant: bool
    found: dict[str, float]
    noise: list[float]
    target_noise: float
    runs: list[str]
    failures: list[str]


def bounds(lab: Lab) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper limits of each training domain's weight.

    A weight may not be larger than what repeats the domain ``limits.max_epochs`` times at the target's tokens.

    Raises:
        UsageError: the limits leave no mixture.
    """
    recipe, corpus = lab.recipe, lab.corpus
    lower, upper = [], []
    domain_tokens = [corpus.train_tokens(domain).shape[0] for domain in corpus.training_domains]
    ceilings = epoch_ceilings(domain_tokens, lab.plan.tokens["target"], recipe.limits.max_epochs)
    for domain, tokens, by_epochs in zip(corpus.training_domains, domain_tokens, ceilings, strict=True):
        lower.append(recipe.limits.floors.get(domain, 0.0))
        upper.append(min(recipe.limits.ceilings.get(domain, 1.0), float(by_epochs)))
        if lower[-1] > upper[-1]:
            raise UsageError(
                f"limits.floors: '{domain}' must be at least {lower[-1]:.3g} of the mixture, but {tokens:,} tokens may "
                f"be repeated {recipe.limits.max_epochs:g} times in a run of {lab.plan.tokens['target']:,}, which is "
                f"{by_epochs:.3g}; lower the floor, raise limits.max_epochs, or add text"
            )
    if sum(upper) < 1.0:
        raise UsageError(
            f"limits: the domains together may fill only {sum(upper):.0%} of {lab.plan.tokens['target']:,} tokens "
            f"(max_epochs {recipe.limits.max_epochs:g}, ceilings {recipe.limits.ceilings}); add text, raise "
            "limits.max_epochs, or train on fewer tokens"
        )
    return np.array(lower), np.array(upper)


def mixture_study(lab: Lab) -> MixtureOutcome:
    """Carry out the study, or return its outcome where it is in the store.

    Raises:
        UsageError: limits that leave no mixture.
        ArmillaryError: too many runs failed.
        InterruptedStudyError: Ctrl-C; call again to go on.
    """
    recipe, corpus, study = lab.recipe, lab.corpus, lab.recipe.study.mixture
    key = stage_key(
        corpus,
        recipe.target_weights,
        recipe.limits,
        recipe.training,
        recipe.families,
        study,
        lab.plan.size("mixture", "target"),
    )
    known = stored(lab.store, "mixture", key, MixtureOutcome)
    if known is not None:
        return known
    lower, upper = bounds(lab)
    natural = lab.vector(corpus.natural_mixture())
    design = simplex_design(lab.plan.mixture_runs, lower, upper, centre=natural, seed=study.seed)

    shape = lab.shape(recipe.model.family, study.depth)
    steps = lab.steps(lab.plan.tokens["mixture"])
    warmup = round(recipe.training.warmup_share * steps)

    def proxy(vector: np.ndarray, seed: int) -> Job:
        weights = lab.named(vector)
        return Job(lab.annealed(shape, steps, PROXY_ANNEALING, weights, seed, warmup_steps=warmup))

    jobs = [proxy(row, study.seed) for row in design]
    results, failures = lab.carry_out("mixture", jobs)
    good = [i for i, job in enumerate(jobs) if job.spec.id in results]
    X = design[good]
    Y = np.array([[results[jobs[i].spec.id].loss[d] for d in corpus.domains] for i in good])
    lab.progress("mixture law", 0, 1, "fitting")
    law = MixtureLaw(seed=study.seed).fit(X, Y)
    weights = np.array([recipe.target_weights.get(domain, 0.0) for domain in corpus.domains])
    uniform = np.full(len(natural), 1 / len(natural))
    references = {"natural": natural, "uniform": uniform}
    optima = optimise_mixture(
        law,
        weights,
        upper=upper,
        lower=lower,
        support=X,
        references=references,
        candidates=study.candidates,
        seed=study.seed,
    )
    lab.progress("mixture law", 1, 1, "fitted")

    arms = {f"candidate {i + 1}": optimum.weights for i, optimum in enumerate(optima)} | references
    seeds = [_CONFIRM_SEED + i for i in range(study.confirm_seeds)]
    confirm = {name: [proxy(vector, seed) for seed in seeds] for name, vector in arms.items()}
    again, failed_again = lab.carry_out("mixture-confirm", [job for jobs in confirm.values() for job in jobs])
    candidates, measured_rows = [], []
    for name, vector in arms.items():
        runs = [job.spec.id for job in confirm[name]]
        predicted = law.target(vector[None, :], weights)
        measured_rows.append([[again[r].loss[d] for d in corpus.domains] for r in runs if r in again])
        candidates.append(
            Candidate(
                name=name,
                weights=lab.named(vector),
                predicted=float(predicted.mean[0]),
                low=float(predicted.low[0]),
                high=float(predicted.high[0]),
                measured=[lab.target_loss(again[r]) for r in runs if r in again],
                runs=runs,
            )
        )
    complete = {c.name: c.measured for c in candidates if len(c.measured) == len(seeds)}
    complete.pop("uniform", None)  # it is measured to be shown; the choice is between the law's mixtures and natural
    choice = best_of(complete, reference="natural")
    taken = choice.name if choice.significant else "natural"
    held = law.held_out_
    return record(
        lab.store,
        "mixture",
        key,
        MixtureOutcome(
            training_domains=list(corpus.training_domains),
            domains=list(corpus.domains),
            tokens=steps * recipe.training.batch_sequences * recipe.training.context_length,
            design=X.tolist(),
            losses=Y.tolist(),
            held_out=held.predicted.tolist(),
            spearman=[float(v) for v in held.spearman],
            rmse=[float(v) for v in held.rmse],
            target_spearman=rank_correlation(held.predicted @ weights, Y @ weights),
            forms=[{form: float(share[i]) for form, share in law.chosen_.items()} for i in range(len(corpus.domains))],
            natural=lab.named(natural),
            uniform=lab.named(uniform),
            candidates=candidates,
            taken=taken,
            reference="natural",
            difference=float(choice.difference.mean),
            low=float(choice.difference.low),
            high=float(choice.difference.high),
            significant=choice.significant,
            found=lab.named(arms[taken]),
            noise=_noise([np.array(rows) for rows in measured_rows if len(rows) > 1]).tolist(),
            target_noise=float(
                _noise([np.array(rows) @ weights[:, None] for rows in measured_rows if len(rows) > 1])[0]
            ),
            runs=[jobs[i].spec.id for i in good],
            failures=[f"{f.run}: {f.error}" for f in failures + failed_again],
        ),
    )


def _noise(groups: list[np.ndarray]) -> np.ndarray:
    """Relative standard deviation between seeds, pooled over groups of [seeds, values]."""
    squares = sum((((g / g.mean(axis=0)) - 1) ** 2).sum(axis=0) for g in groups)
    freedom = sum(len(g) - 1 for g in groups)
    return np.sqrt(np.asarray(squares) / max(1, freedom))
