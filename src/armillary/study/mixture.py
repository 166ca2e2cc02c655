"""The mixture study: from a designed set of proxies to a significantly better mixture, or to the natural one.

Proxies are trained on mixtures that fill the allowed simplex. A law from mixture to each validation loss is fitted, and
optimised where the design supports it. The optimum of a fitted law is too optimistic, so its best few candidates are
trained again with new seeds, together with the natural and the uniform mixture. Only these runs decide: a candidate
must be significantly better than the natural mixture, or the natural mixture is taken.

The natural and the uniform mixture are also moved into the recipe's limits, since either can become the target's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from armillary.launch import Job
from armillary.laws import MixtureLaw, best_of, optimise_mixture, rank_correlation, simplex_design
from armillary.recipe import ArmillaryError, Document, RunSpec, UsageError, counted
from armillary.study.lab import Annealing, Edge, Lab, RunSize, StageOutcome, Trained, laws_speak_of
from armillary.study.limits import Allowed

# Proxies end with a decay, like the target. The annealing study decides on the decay later; this is the usual result.
PROXY_ANNEALING = Annealing(share=0.2, shape="linear")
_CONFIRM_SEED = 1000
# A law needs this many different mixtures; two mixtures count as one if they differ by less than this share.
_MIN_MIXTURES = 8
_SAME = 1e-3
# Minimum share of the designed runs for a law.
_ENOUGH = 0.75
# A weight this near to an end of the tried range counts as at the end.
_EDGE = 1e-3
NATURAL, UNIFORM = "natural", "uniform"


class Candidate(Document):
    """A mixture trained for confirmation: the law's prediction of the target, and a run per seed.

    ``measured`` are the target losses of the runs with a result, ``losses`` the same by run id.
    """

    name: str
    weights: dict[str, float]
    predicted: float
    low: float
    high: float
    measured: list[float]
    runs: list[str]
    losses: dict[str, float] = {}  # noqa: RUF012 (pydantic copies it)


class MixtureOutcome(StageOutcome):
    """The outcome of the mixture study.

    ``design`` [n][d] holds mixtures over ``training_domains``. ``losses`` [n][v] are measured over ``domains``, and
    ``held_out`` [n][v] are the law's predictions with the run held out. ``forms`` has the weight of each form of law
    per domain, ``noise`` [v] the relative standard deviation between seeds.

    ``natural`` and ``uniform`` are these mixtures within the limits, as trained; ``adjusted`` holds the original of
    each mixture that the limits changed. ``lower`` and ``upper`` [d] are the limits of a weight. If the chosen mixture
    was not compared, ``reason`` says why, and ``difference``, ``low`` and ``high`` are 0. ``edges`` are the weights of
    the best candidate at an end of the tried range.
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
    reason: str = ""
    adjusted: dict[str, dict[str, float]] = {}  # noqa: RUF012 (pydantic copies it)
    lower: list[float] = []  # noqa: RUF012
    upper: list[float] = []  # noqa: RUF012
    edges: list[Edge] = []  # noqa: RUF012

    @property
    def study_runs(self) -> dict[str, list[str]]:
        """Ids of the runs behind the mixture, by study, including failed ones."""
        confirm = [run for candidate in self.candidates for run in candidate.runs]
        lost = [row.run for row in self.failed if row.run not in confirm]
        return {"mixture": [*self.runs, *lost], "mixture-confirm": list(dict.fromkeys(confirm))}


@dataclass(frozen=True)
class _Choice:
    """The result of the confirmation runs; the fields are as in ``MixtureOutcome``."""

    taken: str
    difference: float = 0.0
    low: float = 0.0
    high: float = 0.0
    significant: bool = False
    reason: str = ""


def mixture_study(lab: Lab) -> MixtureOutcome:
    """Run the study, or return its recorded outcome.

    Raises:
        UsageError: the limits leave no mixture, or too few different ones for a law; nothing was trained.
        ArmillaryError: too many runs have no result; the next call retries runs with a transient cause.
        InterruptedStudyError: Ctrl-C; call again to resume.
    """
    recipe, corpus, study = lab.recipe, lab.corpus, lab.recipe.study.mixture
    allowed = lab.allowed()
    plain = {
        NATURAL: lab.vector(corpus.natural_mixture()),
        UNIFORM: np.full(len(allowed.domains), 1 / len(allowed.domains)),
    }
    references = {name: allowed.within(vector) for name, vector in plain.items()}
    design = simplex_design(
        lab.plan.mixture_runs, allowed.lower, allowed.upper, centre=references[NATURAL], seed=study.seed
    )
    _refuse_few(design, lab)

    shape = lab.shape(recipe.model.family, study.depth)
    steps = lab.steps(lab.plan.tokens["mixture"])
    size = RunSize(shape, steps, round(recipe.training.warmup_share * steps), text_share=lab.matched(steps))

    def proxy(vector: np.ndarray, seed: int) -> RunSpec:
        return lab.annealed(size, PROXY_ANNEALING, lab.named(vector), seed)

    specs = [proxy(row, study.seed) for row in design]
    limits = [allowed.lower.tolist(), allowed.upper.tolist(), lab.named(references[NATURAL])]
    key = lab.key(specs, limits, recipe.training, study.candidates, study.confirm_seeds, study.seed)
    known = lab.stored("mixture", key, MixtureOutcome)
    if known is not None:
        return known

    arms = {spec.id: f"mixture {number}" for number, spec in enumerate(specs, 1)}
    trained = lab.train("mixture", [Job(spec) for spec in specs], arms)
    good = [i for i, spec in enumerate(specs) if spec.id in trained.results]
    X = design[good]
    if len(good) < _ENOUGH * len(specs) or _different(X) < _MIN_MIXTURES:
        raise ArmillaryError(
            f"mixture: {len(good)} of {len(specs)} runs have a result, too few for a law; first cause: "
            f"{trained.failed[0]}; the same command retries runs with a transient cause"
        )
    Y = np.array([[trained.results[specs[i].id].loss[d] for d in corpus.domains] for i in good])
    lab.progress("mixture law", 0, 1, "fitting")
    weights = np.array([recipe.target_weights.get(domain, 0.0) for domain in corpus.domains])
    try:
        with laws_speak_of(
            [f"run {specs[i].id}" for i in good], corpus.domains, lambda message: lab.say(f"mixture: {message}")
        ):
            law = MixtureLaw(seed=study.seed).fit(X, Y)
        optima = optimise_mixture(
            law,
            weights,
            upper=allowed.upper,
            lower=allowed.lower,
            support=X,
            references=references,
            candidates=study.candidates,
            seed=study.seed,
        )
    except UsageError as error:  # not the user's input: the runs do not suit a law
        raise ArmillaryError(f"mixture: no law can be fitted to its {counted(len(good), 'run')}: {error}") from error
    lab.progress("mixture law", 1, 1, "fitted")

    mixtures = {f"candidate {i + 1}": allowed.within(optimum.weights) for i, optimum in enumerate(optima)} | references
    seeds = [_CONFIRM_SEED + i for i in range(study.confirm_seeds)]
    confirm = {name: [proxy(vector, seed) for seed in seeds] for name, vector in mixtures.items()}
    # Two arms can have the same mixture, such as a uniform natural mixture; the runs then belong to the first arm.
    owners = {spec.id: name for name, group in reversed(confirm.items()) for spec in group}
    again = lab.train("mixture-confirm", [Job(spec) for group in confirm.values() for spec in group], owners)
    candidates, rows = [], []
    for name, vector in mixtures.items():
        predicted = law.target(vector[None, :], weights)
        done = [again.results[spec.id] for spec in confirm[name] if spec.id in again.results]
        rows.append(np.array([[result.loss[d] for d in corpus.domains] for result in done]))
        candidates.append(
            Candidate(
                name=name,
                weights=lab.named(vector),
                predicted=float(predicted.mean[0]),
                low=float(predicted.low[0]),
                high=float(predicted.high[0]),
                measured=[lab.target_loss(result) for result in done],
                runs=[spec.id for spec in confirm[name]],
                losses={result.run: lab.target_loss(result) for result in done},
            )
        )
    choice = _choose(candidates, confirm, again)
    held = law.held_out_
    repeated = [values for values in rows if len(values) > 1]
    return lab.conclude(
        "mixture",
        key,
        MixtureOutcome(
            training_domains=list(corpus.training_domains),
            domains=list(corpus.domains),
            tokens=lab.tokens(steps),
            design=X.tolist(),
            losses=Y.tolist(),
            held_out=held.predicted.tolist(),
            spearman=[float(v) for v in held.spearman],
            rmse=[float(v) for v in held.rmse],
            target_spearman=rank_correlation(held.predicted @ weights, Y @ weights),
            forms=[{form: float(share[i]) for form, share in law.chosen_.items()} for i in range(len(corpus.domains))],
            natural=lab.named(references[NATURAL]),
            uniform=lab.named(references[UNIFORM]),
            candidates=candidates,
            taken=choice.taken,
            reference=NATURAL,
            difference=choice.difference,
            low=choice.low,
            high=choice.high,
            significant=choice.significant,
            found=lab.named(mixtures[choice.taken]),
            noise=_noise(repeated, len(corpus.domains)).tolist(),
            target_noise=float(_noise([values @ weights[:, None] for values in repeated], 1)[0]),
            runs=[specs[i].id for i in good],
            reason=choice.reason,
            adjusted={
                name: lab.named(vector)
                for name, vector in plain.items()
                if np.abs(vector - references[name]).max() > _EDGE / 1000
            },
            lower=allowed.lower.tolist(),
            upper=allowed.upper.tolist(),
            edges=_edges(mixtures["candidate 1"], X, allowed),
            failed=[*trained.failed, *again.failed],
        ),
    )


def _refuse_few(design: np.ndarray, lab: Lab) -> None:
    """Refuse limits that leave too few different mixtures for a law, before anything is trained."""
    found = _different(design)
    if found >= _MIN_MIXTURES:
        return
    limits = lab.recipe.limits
    raise UsageError(
        f"limits: the {counted(len(design), 'mixture')} of the study include only {found} that differ by more than "
        f"{_SAME:.1%} of "
        f"the tokens, but a law needs {_MIN_MIXTURES} (floors {limits.floors}, ceilings {limits.ceilings}, max_epochs "
        f"{limits.max_epochs:g}); widen the limits, or train on fewer tokens"
    )


def _different(mixtures: np.ndarray) -> int:
    """The number of distinct mixtures in [n, d]."""
    distinct: list[np.ndarray] = []
    for mixture in mixtures:
        if all(np.abs(mixture - other).sum() / 2 > _SAME for other in distinct):
            distinct.append(mixture)
    return len(distinct)


def _choose(candidates: Sequence[Candidate], confirm: Mapping[str, Sequence[RunSpec]], again: Trained) -> _Choice:
    """The mixture to take, among arms with a result for every seed.

    Without the natural mixture's runs, no candidate can be shown to be better. The natural mixture is still taken,
    unless it has diverged; then the best candidate is.

    Raises:
        ArmillaryError: every arm has diverged, or has no result for another permanent cause.
    """
    # The uniform mixture is only measured for comparison; the choice is between the law's mixtures and the natural one.
    complete = {c.name: c.measured for c in candidates if c.name != UNIFORM and again.complete(confirm[c.name])}
    lost = ", ".join(f"{row.arm} seed {row.seed}" for row in again.failed)
    if NATURAL in complete and len(complete) > 1:
        choice = best_of(complete, reference=NATURAL)
        mean, low, high = (float(part) for part in choice.difference)
        taken = choice.name if choice.significant else NATURAL
        return _Choice(taken, mean, low, high, choice.significant)
    if NATURAL in complete:
        return _Choice(NATURAL, reason=f"no candidate has all its runs ({lost}), so the natural mixture is used")
    if again.may_pass(confirm[NATURAL]):
        return _Choice(
            NATURAL,
            reason=f"the natural mixture lacks some runs ({lost}), so nothing can be compared with it; it is used "
            "until they exist",
        )
    if complete:
        best = min(complete, key=lambda name: float(np.mean(complete[name])))
        return _Choice(
            best,
            reason=f"the natural mixture cannot be trained ({lost}), so the best candidate is used untested",
        )
    raise ArmillaryError(
        f"mixture: neither the natural mixture nor a candidate has all its runs; first cause: "
        f"{again.failed[0]}; a lower training.lr may help if runs diverge"
    )


def _edges(best: np.ndarray, design: np.ndarray, allowed: Allowed) -> list[Edge]:
    """The weights of the law's best mixture at an end of the tried range, or at a limit.

    A weight of 0 does not count, since no weight is smaller.
    """
    edges = []
    ends = {"low": (design.min(0), allowed.lower, 1), "high": (design.max(0), allowed.upper, -1)}
    for end, (tried, limit, inward) in ends.items():
        for i, domain in enumerate(allowed.domains):
            natural_end = limit[i] <= _EDGE if end == "low" else limit[i] >= 1 - _EDGE
            if inward * (best[i] - limit[i]) <= _EDGE:
                if not natural_end:
                    edges.append(Edge(of=domain, value=float(best[i]), end=end, by="limits"))
            elif inward * (best[i] - tried[i]) <= _EDGE:
                edges.append(Edge(of=domain, value=float(best[i]), end=end, by="tried"))
    return edges


def _noise(groups: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Relative standard deviation [columns] between seeds, pooled over groups of [seeds, columns]; 0 without groups."""
    squares = sum(((((g / g.mean(axis=0)) - 1) ** 2).sum(axis=0) for g in groups), np.zeros(columns))
    freedom = sum(len(g) - 1 for g in groups)
    return np.sqrt(squares / max(1, freedom))
