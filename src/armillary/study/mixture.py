"""The mixture study: from a designed set of proxies to a significantly better mixture, or to the natural one.

Proxies are trained on mixtures that fill the allowed simplex. A law from mixture to each validation loss is fitted, and
optimised where the design supports it. A reserve of the proxies is trained after this first law: beyond the design if
the optimum lies at its edge, else around the optimum. The optimum of a fitted law is too optimistic, so its best few
candidates are trained again with new seeds, together with the natural and the uniform mixture. Only these runs decide:
a candidate must be significantly better than the natural mixture, or the natural mixture is taken.

The natural and the uniform mixture are also moved into the recipe's limits, since either can become the target's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from armillary.laws import (
    MixtureLaw,
    PhaseLaw,
    SeedNoise,
    best_of,
    optimise_mixture,
    optimise_phases,
    rank_correlation,
    split_points,
)
from armillary.recipe import ArmillaryError, Document, RunSpec, UsageError, counted
from armillary.study.lab import Annealing, Edge, Lab, Round, StageOutcome, Stopped, Trained, laws_speak_of, stopped_at
from armillary.study.points import TwoPhases
from armillary.study.proxies import MIN_MIXTURES, NATURAL, UNIFORM, Design, Proxies, different, train_confirmation
from armillary.study.sensitivity import MIN_RATIO, UnknownNoiseError, signal_of, study_power

# Minimum share of the designed runs for a law.
_ENOUGH = 0.75
# A weight that the limits changed by less is unchanged.
_MOVED = 1e-6
# The reserve is trained in this many rounds, each after a new fit.
_ROUNDS = 2


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
    annealing: Annealing | None = None


class Flat(Document):
    """The region within one standard error of the best point of two phases, as the ends of every value in it.

    ``error`` is that standard error of the law, in nats per token.
    """

    stable: dict[str, tuple[float, float]]
    annealing: dict[str, tuple[float, float]]
    share: tuple[float, float]
    error: float


class MixtureOutcome(StageOutcome):
    """The outcome of the mixture study.

    ``design`` [n, d] holds mixtures over ``training_domains``. ``losses`` [n, v] are measured over ``domains``, and
    ``held_out`` [n, v] are the law's predictions with the run held out. ``forms`` has the weight of each form of law
    per domain, ``noise`` [v] the relative standard deviation between seeds.

    ``natural`` and ``uniform`` are these mixtures within the limits, as trained; ``adjusted`` holds the original of
    each mixture that the limits changed. ``lower`` and ``upper`` [d] are the limits of a weight. If the chosen mixture
    was not compared, ``reason`` says why, and ``difference``, ``low`` and ``high`` are 0. ``edges`` are the weights of
    the best candidate at an end of the tried range.

    ``rounds`` describes the runs of the reserve. ``stopped`` says why no more proxies were trained: the optimum lies
    ``inside`` the tried range, at the recipe's ``limits``, or still at the edge when the ``reserve`` was spent. It is
    empty in an outcome of an earlier version.

    ``paired_noise`` [v] and ``target_paired_noise`` are the part of the noise that remains if mixtures are compared
    seed by seed. ``signal`` [v] and ``target_signal`` are the standard deviation over the design without that part; all
    are relative to the mean loss. ``detectable`` is the difference in target loss that the confirmation was expected to
    find with a chance of 80 %, stated before the design was trained.

    With two phases, ``design``, ``found`` and the weights of a candidate are the mixture of the stable phase.
    ``annealing_design`` [n, d] and ``shares`` [n] complete the design, and ``annealing`` the candidates and the mixture
    found; it is None for the natural mixture. ``flat`` is the law's region of good points.
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
    rounds: list[Round] = []  # noqa: RUF012
    stopped: Stopped = ""
    signal: list[float] = []  # noqa: RUF012
    target_signal: float = 0.0
    paired_noise: list[float] = []  # noqa: RUF012
    target_paired_noise: float = 0.0
    detectable: float | None = None
    annealing_design: list[list[float]] = []  # noqa: RUF012
    shares: list[float] = []  # noqa: RUF012
    annealing: Annealing | None = None
    flat: Flat | None = None

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


@dataclass(frozen=True)
class _Fit:
    """A law of the proxies so far, its best points [k], and with two phases the region around the best."""

    law: MixtureLaw | PhaseLaw
    optima: list[np.ndarray]
    flat: Flat | None = None


def mixture_study(lab: Lab) -> MixtureOutcome:
    """Run the study, or return its recorded outcome.

    Raises:
        UsageError: the limits leave no mixture, or too few different ones for a law; nothing was trained.
        ArmillaryError: too many runs have no result; the next call retries runs with a transient cause.
        InterruptedStudyError: Ctrl-C; call again to resume.
    """
    recipe, corpus, study = lab.recipe, lab.corpus, lab.recipe.study.mixture
    allowed, design = lab.allowed(), Design.of(lab)
    references, reserve = design.references, design.reserve
    specs = [design.proxy(lab, row) for row in design.mixtures]
    points = design.points
    limits = [allowed.lower.tolist(), allowed.upper.tolist(), points.mixture(references[NATURAL])]
    spent_later = [reserve] if reserve else []  # the keys of studies without a reserve stay those of earlier versions
    key = lab.key(specs, limits, recipe.training, study.candidates, study.confirm_seeds, study.seed, *spent_later)
    known = lab.stored("mixture", key, MixtureOutcome)
    if known is not None:
        return known

    weights = np.array([recipe.target_weights.get(domain, 0.0) for domain in corpus.domains])
    detectable = _noise_first(lab)
    proxies = Proxies(lab, list(design.mixtures), specs)
    if len(proxies.mixtures) < _ENOUGH * len(specs) or different(proxies.mixtures) < MIN_MIXTURES:
        raise ArmillaryError(
            f"mixture: {len(proxies.runs)} of {len(specs)} runs have a result, too few for a law; first cause: "
            f"{proxies.failed[0]}; the same command retries runs with a transient cause"
        )
    designed = proxies.losses  # the reserve surrounds one mixture, so it does not show the spread over mixtures
    fit = _fit(lab, design, proxies, weights)
    rounds: list[Round] = []
    while reserve:
        tried, best = proxies.mixtures, fit.optima[0]
        count = math.ceil(reserve / (_ROUNDS - len(rounds)))
        found = [edge for edge in points.edges(best, tried) if edge.by == "tried"]
        lab.say(
            f"mixture: {counted(count, 'further run')} "
            + (f"beyond the design in {', '.join(edge.of for edge in found)}" if found else "around the best mixture")
        )
        further = points.further(best, tried, count=count, seed=study.seed + len(rounds))
        proxies.train(list(further), [design.proxy(lab, row) for row in further])
        rounds.append(Round(runs=count, edges=found))
        reserve -= count
        fit = _fit(lab, design, proxies, weights)
    law, optima = fit.law, fit.optima
    X, Y = proxies.mixtures, proxies.losses

    mixtures = {f"candidate {i + 1}": points.within(optimum) for i, optimum in enumerate(optima)} | references
    confirm = design.confirmation(lab, mixtures)
    confirmed = train_confirmation(lab, confirm)
    candidates, rows = [], []
    for name, vector in mixtures.items():
        predicted = law.target(vector[None, :], weights)
        done = [confirmed.results[spec.id] for spec in confirm[name] if spec.id in confirmed.results]
        rows.append(np.array([[result.loss[d] for d in corpus.domains] for result in done]))
        candidates.append(
            Candidate(
                name=name,
                weights=points.mixture(vector),
                annealing=points.annealing(vector) if study.phases == 2 else None,
                predicted=float(predicted.mean[0]),
                low=float(predicted.low[0]),
                high=float(predicted.high[0]),
                measured=[lab.target_loss(result) for result in done],
                runs=[spec.id for spec in confirm[name]],
                losses={result.run: lab.target_loss(result) for result in done},
            )
        )
    held = law.held_out_
    repeated = [values for values in rows if len(values) > 1]
    noise = _noise(repeated, len(corpus.domains))
    target_noise = float(_noise([values @ weights[:, None] for values in repeated], 1)[0])
    paired = _paired_noise(repeated, noise)
    target_paired = float(
        _paired_noise([values @ weights[:, None] for values in repeated], np.array([target_noise]))[0]
    )
    target_signal = signal_of(designed @ weights / (designed @ weights).mean(), target_paired)
    choice = _choose(candidates, confirm, confirmed)
    if choice.taken != NATURAL and choice.significant and target_signal < MIN_RATIO * target_paired:
        reason = (
            f"the target loss differs by {target_signal:.2%} between the mixtures of the design, and by "
            f"{target_paired:.2%} between pairs of runs; a metric with a ratio below {MIN_RATIO:g} decides nothing, so "
            "the natural mixture is used"
        )
        choice = replace(choice, taken=NATURAL, significant=False, reason=reason)
    edges = points.edges(mixtures["candidate 1"], X)
    stable, annealing_design, shares = (X, X[:0], X[:0, 0]) if study.phases == 1 else split_points(X)
    taken = mixtures[choice.taken]
    return lab.conclude(
        "mixture",
        key,
        MixtureOutcome(
            training_domains=list(corpus.training_domains),
            domains=list(corpus.domains),
            tokens=lab.tokens(design.size.steps),
            design=stable.tolist(),
            annealing_design=annealing_design.tolist(),
            shares=shares.tolist(),
            annealing=points.annealing(taken) if study.phases == 2 and choice.taken != NATURAL else None,
            flat=fit.flat,
            losses=Y.tolist(),
            held_out=held.predicted.tolist(),
            spearman=[float(v) for v in held.spearman],
            rmse=[float(v) for v in held.rmse],
            target_spearman=rank_correlation(held.predicted @ weights, Y @ weights),
            forms=[{form: float(share[i]) for form, share in law.chosen_.items()} for i in range(len(corpus.domains))],
            natural=points.mixture(references[NATURAL]),
            uniform=points.mixture(references[UNIFORM]),
            candidates=candidates,
            taken=choice.taken,
            reference=NATURAL,
            difference=choice.difference,
            low=choice.low,
            high=choice.high,
            significant=choice.significant,
            found=points.mixture(taken),
            noise=noise.tolist(),
            target_noise=target_noise,
            signal=[signal_of(column / column.mean(), own) for column, own in zip(designed.T, paired, strict=True)],
            target_signal=target_signal,
            paired_noise=paired.tolist(),
            target_paired_noise=target_paired,
            detectable=detectable,
            runs=proxies.runs,
            reason=choice.reason,
            adjusted={
                name: points.mixture(vector)
                for name, vector in design.plain.items()
                if np.abs(vector - references[name]).max() > _MOVED
            },
            lower=allowed.lower.tolist(),
            upper=allowed.upper.tolist(),
            edges=edges,
            rounds=rounds,
            stopped=stopped_at(edges),
            failed=[*proxies.failed, *confirmed.failed],
        ),
    )


def _noise_first(lab: Lab) -> float | None:
    """State the power of the confirmation before the design is trained; None if the noise is unknown."""
    try:
        power = study_power(lab)
    except UnknownNoiseError as error:  # the study itself reports lost runs, and may still have a result
        lab.say(f"mixture: the noise between seeds is unknown: {error}")
        return None
    target = power.target
    lab.say(
        f"mixture: the target loss differs by {target.noise:.4f} nats ({target.noise_low:.4f} to "
        f"{target.noise_high:.4f}) between seeds; with {counted(power.seeds, 'seed')}, a gain of "
        f"{target.detectable:.4f} is found with a chance of {power.chance:.0%}"
    )
    return target.detectable


def _fit(lab: Lab, design: Design, proxies: Proxies, weights: np.ndarray) -> _Fit:
    """Fit the law to the proxies, and optimise the target of these weights [v] within the limits.

    Raises:
        ArmillaryError: the runs do not suit a law.
    """
    lab.progress("mixture law", 0, 1, "fitting")
    try:
        with laws_speak_of(
            [f"run {run}" for run in proxies.runs], lab.corpus.domains, lambda message: lab.say(f"mixture: {message}")
        ):
            if isinstance(design.points, TwoPhases):
                fit = _fit_phases(lab, design.points, design.references[NATURAL], proxies, weights)
            else:
                fit = _fit_mixtures(lab, design.references, proxies, weights)
    except UsageError as error:  # not the user's input: the runs do not suit a law
        raise ArmillaryError(
            f"mixture: no law can be fitted to its {counted(len(proxies.runs), 'run')}: {error}"
        ) from error
    lab.progress("mixture law", 1, 1, "fitted")
    return fit


def _fit_mixtures(lab: Lab, references: Mapping[str, np.ndarray], proxies: Proxies, weights: np.ndarray) -> _Fit:
    study, allowed = lab.recipe.study.mixture, lab.allowed()
    law = MixtureLaw(seed=study.seed).fit(proxies.mixtures, proxies.losses)
    optima = optimise_mixture(
        law,
        weights,
        upper=allowed.upper,
        lower=allowed.lower,
        support=proxies.mixtures,
        references=references,
        candidates=study.candidates,
        seed=study.seed,
    )
    return _Fit(law, [optimum.weights for optimum in optima])


def _fit_phases(lab: Lab, points: TwoPhases, natural: np.ndarray, proxies: Proxies, weights: np.ndarray) -> _Fit:
    study, domains = lab.recipe.study.mixture, lab.corpus.training_domains
    law = PhaseLaw().fit(proxies.mixtures, proxies.losses)
    found = optimise_phases(
        law,
        weights,
        points.bounds,
        support=proxies.mixtures,
        natural=natural,
        candidates=study.candidates,
        seed=study.seed,
    )
    ends = list(zip(found.flat_low.tolist(), found.flat_high.tolist(), strict=True))
    flat = Flat(
        stable=dict(zip(domains, ends[: len(domains)], strict=True)),
        annealing=dict(zip(domains, ends[len(domains) : -1], strict=True)),
        share=ends[-1],
        error=found.error,
    )
    return _Fit(law, list(found.points), flat)


def _choose(candidates: Sequence[Candidate], confirm: Mapping[str, Sequence[RunSpec]], trained: Trained) -> _Choice:
    """The mixture to take, among arms with a result for every seed.

    Without the natural mixture's runs, no candidate can be shown to be better. The natural mixture is still taken,
    unless it has diverged; then the best candidate is.

    Raises:
        ArmillaryError: every arm has diverged, or has no result for another permanent cause.
    """
    # The uniform mixture is only measured for comparison; the choice is between the law's mixtures and the natural one.
    complete = {c.name: c.measured for c in candidates if c.name != UNIFORM and trained.complete(confirm[c.name])}
    lost = ", ".join(f"{row.arm} seed {row.seed}" for row in trained.failed)
    if NATURAL in complete and len(complete) > 1:
        choice = best_of(complete, reference=NATURAL)
        mean, low, high = (float(part) for part in choice.difference)
        taken = choice.name if choice.significant else NATURAL
        return _Choice(taken, mean, low, high, choice.significant)
    if NATURAL in complete:
        return _Choice(NATURAL, reason=f"no candidate has all its runs ({lost}), so the natural mixture is used")
    if trained.may_pass(confirm[NATURAL]):
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
        f"{trained.failed[0]}; a lower training.lr may help if runs diverge"
    )


def _paired_noise(groups: Sequence[np.ndarray], between: np.ndarray) -> np.ndarray:
    """Relative noise [columns] without what all groups of one seed share; that ``between`` seeds if it is unknown."""
    if len(groups) < 2 or len({len(group) for group in groups}) != 1:
        return between
    relative = [group / group.mean(axis=0) for group in groups]
    return np.array([SeedNoise.paired([group[:, i] for group in relative]).std for i in range(len(between))])


def _noise(groups: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Relative standard deviation [columns] between seeds, pooled over groups of [seeds, columns]; 0 without groups."""
    squares = sum(((((g / g.mean(axis=0)) - 1) ** 2).sum(axis=0) for g in groups), np.zeros(columns))
    freedom = sum(len(g) - 1 for g in groups)
    return np.sqrt(squares / max(1, freedom))
