"""The target run: its prediction, recorded before the run exists, the run itself, and the verdict (contract 4).

The target run is the recipe's model on its full tokens, with the mixture and annealing that the studies found. It is
trained with several seeds, and so is the same model on the natural and the uniform mixture. Their difference, not the
law's forecast, shows whether the recipe is better. The prediction is for the run of the first seed.

A prediction belongs to a run and to the weights of the target. The losses on single domains do not depend on the
weights; the target loss is predicted for the recipe's weights. If these change after the run has begun, there is no
prediction for the new weights, and the record gives the reason.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from armillary import __version__
from armillary.launch import Job
from armillary.laws import ExtrapolationError, ExtrapolationWarning, paired_difference, rows_named
from armillary.recipe import ArmillaryError, Document, RunSpec, canonical_hash, counted
from armillary.study.anneal import AnnealOutcome
from armillary.study.lab import Annealing, FailedRun, Lab, Phase, RunSize, StageOutcome, Trained, phases
from armillary.study.ladder import LadderOutcome, fit_law
from armillary.study.lr import LrOutcome, PeakRates
from armillary.study.mixture import MixtureOutcome
from armillary.study.sizing import TARGET_LOOKS

INTERVAL = 0.9
_UNSUPPORTED = "the ladder does not support a prediction of the target run"
_LONGER = "give study.ladder greater depths or more tokens"
_TOO_LATE = (
    "the target was requested after run {run} had begun; a prediction of it now would come after the run, so there is "
    "none"
)


class Found(Document):
    """The recipe that the studies found, and the two plain mixtures for comparison, all within the limits.

    ``rates`` are the tuned peak learning rates; None is the recipe's rule.
    """

    mixture: dict[str, float]
    natural: dict[str, float]
    uniform: dict[str, float]
    annealing: Annealing
    rates: PeakRates | None = None


class Arm(Document):
    """One mixture at the target's size, over the seeds with a result.

    ``seeds``, ``runs``, ``target``, ``loss`` and ``bits_per_byte`` have one entry per such seed; ``run`` and ``at``
    look one up. ``low`` and ``high`` are None if there are too few results for an interval. ``phases`` are the mixtures
    of the training, and ``epochs`` the passes over each domain as counted by the runs.
    """

    name: str
    weights: dict[str, float]
    seeds: list[int]
    runs: list[str]
    target: list[float]
    mean: float
    low: float | None
    high: float | None
    loss: list[dict[str, float]]
    bits_per_byte: list[dict[str, float]]
    epochs: dict[str, float]
    phases: list[Phase] = []  # noqa: RUF012 (pydantic copies it)

    def run(self, seed: int) -> str | None:
        """Id of the run with that seed, or None if it has no result."""
        return self.runs[self.seeds.index(seed)] if seed in self.seeds else None

    def at(self, run: str) -> int | None:
        """The index of a run in the lists, or None if it has no result or belongs to another arm."""
        return self.runs.index(run) if run in self.runs else None


class Difference(Document):
    """Target loss of ``found`` minus that of ``reference``, paired over seeds, with its 90 % interval."""

    reference: str
    mean: float
    low: float
    high: float


class TargetOutcome(StageOutcome):
    """The arms at the target's size, and the differences between the found mixture and the plain ones.

    An arm without any result is not in ``arms``; its runs are rows of ``failed``. A difference needs two common seeds.
    ``predicted`` is the id of the predicted run.
    """

    arms: list[Arm]
    differences: list[Difference]
    predicted: str = ""

    def arm(self, name: str) -> Arm | None:
        """The arm of that name (``found``, ``natural``, ``uniform``), or None if it has no result."""
        return next((arm for arm in self.arms if arm.name == name), None)

    @property
    def published(self) -> str | None:
        """The run whose weights are the recipe's model: the predicted run, or None while it can still be trained.

        If the predicted run cannot be trained, it is the first seed's run on the found mixture that can.
        """
        found = self.arm("found")
        runs = found.runs if found is not None else []
        if not self.predicted or self.predicted in runs:
            return self.predicted or next(iter(runs), None)
        if any(row.run == self.predicted and row.passing for row in self.failed):
            return None
        return next(iter(runs), None)

    @property
    def study_runs(self) -> dict[str, list[str]]:
        """Ids of the target runs, including those without a result."""
        return {"target": list(dict.fromkeys([*(run for arm in self.arms for run in arm.runs), *self.lost]))}


def found_recipe(mixture: MixtureOutcome, anneal: AnnealOutcome, lr: LrOutcome | None = None) -> Found:
    """The mixture, the annealing and the peak learning rates that the studies found."""
    return Found(
        mixture=mixture.found,
        natural=mixture.natural,
        uniform=mixture.uniform,
        annealing=anneal.taken,
        rates=None if lr is None else lr.rates,
    )


def target_spec(lab: Lab, found: Found, weights: dict[str, float], seed: int) -> RunSpec:
    """The target run with the given mixture and seed."""
    recipe = lab.recipe
    steps = lab.steps(lab.plan.tokens["target"])
    size = RunSize(
        lab.shape(recipe.model.family, recipe.model.depth),
        steps,
        warmup_steps=round(recipe.training.warmup_share * steps),
        validation_every=math.ceil(steps / TARGET_LOOKS),
        lr=None if found.rates is None else found.rates.target,
    )
    # The annealing mixture that the mixture study found belongs to the mixture found; others keep theirs.
    own = weights == found.mixture
    annealing = found.annealing if own else found.annealing.model_copy(update={"weights": ()})
    return lab.annealed(size, annealing, weights, seed)


def predicted_spec(lab: Lab, found: Found) -> RunSpec:
    """The run on the found mixture that is predicted: that of the first seed, unless it began without a prediction.

    A run that has begun can no longer be predicted. If seeds were reordered or removed, the first run that has a
    prediction takes its place, or else the first one that has not begun. The choice stays once it is recorded.
    """
    specs = [target_spec(lab, found, found.mixture, seed) for seed in lab.recipe.training.seeds]
    known = [spec for spec in specs if lab.store.prediction(spec.id) is not None]
    if specs[0] in known or not _begun(lab, specs[0].id):
        return specs[0]
    return next(iter([*known, *(spec for spec in specs if not _begun(lab, spec.id))]), specs[0])


def predict(lab: Lab, found: Found, mixture: MixtureOutcome, ladder: LadderOutcome) -> dict[str, Any]:
    """Record the losses that the ladder's laws predict for the target run, and return the record.

    The record holds ``run``, ``interval``, ``domains`` and ``target`` (each ``predicted``, ``low``, ``high`` in nats
    per token), the ``target_weights`` of ``target``, the ``extrapolation`` in compute, the law's warnings, forms and
    parameters, and the runs behind it.

    If the run has begun and its prediction is for other target weights, the record has ``target`` None and the reason
    under ``unpredicted``.

    Raises:
        ArmillaryError: the target run of every seed has already begun without a prediction.
    """
    spec = predicted_spec(lab, found)
    known = recorded(lab, spec.id)
    if known is not None:
        return known
    content = forecast(lab, spec, mixture, ladder)
    if lab.store.prediction(spec.id) is None:
        lab.store.record_prediction(spec.id, content)
    else:  # a prediction of the same run for other weights, before the run has begun
        lab.store.record_prediction(_question(spec.id, lab.recipe.target_weights), content)
    known = recorded(lab, spec.id)
    assert known is not None
    return known


def recorded(lab: Lab, run: str) -> dict[str, Any] | None:
    """The prediction of ``run`` for the recipe's target weights (see ``predict``); None if it can still be made."""
    weights = lab.recipe.target_weights
    first = lab.store.prediction(run)
    if first is None or _answers(lab, run, first):
        return first
    other = lab.store.prediction(_question(run, weights))
    if other is not None:
        return other
    if not _begun(lab, run):
        return None
    return {**first, "target": None, "target_weights": weights, "unpredicted": _TOO_LATE.format(run=run)}


def _question(run: str, weights: dict[str, float]) -> str:
    """The id of the record of a prediction of ``run`` for other target weights."""
    return canonical_hash([run, weights])


def _answers(lab: Lab, run: str, prediction: dict[str, Any]) -> bool:
    """Whether a prediction of ``run`` is for the recipe's target weights."""
    weights = lab.recipe.target_weights
    if "target_weights" in prediction:
        return bool(prediction["target_weights"] == weights)
    # Older records do not have their weights; a verdict has them.
    verdict = lab.store.verdict(run)
    measured = {row["domain"]: row["measured"] for row in verdict["rows"]} if verdict else {}
    if any(domain not in measured for domain in (*weights, "target")):
        return True
    now = sum(weight * measured[domain] for domain, weight in weights.items())
    return math.isclose(now, measured["target"], rel_tol=1e-9)


def _begun(lab: Lab, run: str) -> bool:
    return lab.store.started_at(run) is not None or (lab.store.run_folder(run) / "spec.json").exists()


def forecast(lab: Lab, spec: RunSpec, mixture: MixtureOutcome, ladder: LadderOutcome) -> dict[str, Any]:
    """The content of a prediction of ``spec``, before it is recorded.

    If a domain's law is uncertain by more than a factor of 2, the domain is not in ``domains`` but listed under
    ``open``; the other domains and the target are predicted.

    Raises:
        ArmillaryError: the law of the target, or of every domain, is that uncertain.
    """
    left_out: list[str] = []
    law = fit_law(ladder, lab.recipe.model.family, mixture.domains, left_out.append)
    for message in left_out:
        lab.say(f"ladder: {message}")
    at = np.array([[spec.model.parameters, spec.tokens]], float)
    columns = [*mixture.domains, "target"]
    with warnings.catch_warnings(record=True) as caught, rows_named(lambda _table, _row: "the target run", columns):
        warnings.simplefilter("always", ExtrapolationWarning)
        try:
            mean, low, high = (part[0].tolist() for part in law.predict_known(at, interval=INTERVAL))
        except ExtrapolationError as error:
            raise ArmillaryError(f"{_UNSUPPORTED}: {error}; {_LONGER}") from error
    values = {
        name: {"predicted": mean[i], "low": low[i], "high": high[i]}
        for i, name in enumerate(columns)
        if math.isfinite(high[i])
    }
    if "target" not in values:
        raise ArmillaryError(
            f"{_UNSUPPORTED}: the interval of the target loss spans more than a factor of 2; {_LONGER}"
        )
    unknown = [domain for domain in mixture.domains if domain not in values]
    if unknown:
        lab.say(f"predict: not predicted, since their intervals span more than a factor of 2: {', '.join(unknown)}")
    return {
        "run": spec.id,
        "spec": spec.model_dump(mode="json"),
        "interval": INTERVAL,
        "domains": {domain: values[domain] for domain in mixture.domains if domain in values},
        **({"open": unknown} if unknown else {}),
        "target": values["target"],
        "target_weights": lab.recipe.target_weights,
        "extrapolation": float(law.extrapolation(at)[0]),
        "warnings": [*left_out, *(str(warning.message) for warning in caught)],
        "forms": law.weights_,
        "law": {
            name: {parameter: float(np.atleast_1d(value)[i]) for parameter, value in law.parameters_.items()}
            for i, name in enumerate(columns)
        },
        "from_runs": [point.run for point in ladder.points],
        "version": __version__,
    }


def train_target(lab: Lab, found: Found) -> TargetOutcome:
    """Train the target run and the plain arms with every seed, or return their recorded outcome.

    Raises:
        ArmillaryError: no prediction is recorded, or no run has a result.
        InterruptedStudyError: Ctrl-C; call again to resume.
    """
    seeds = list(lab.recipe.training.seeds)
    mixtures = {"found": found.mixture, "natural": found.natural, "uniform": found.uniform}
    specs = {name: [target_spec(lab, found, weights, seed) for seed in seeds] for name, weights in mixtures.items()}
    predicted = predicted_spec(lab, found).id
    if lab.store.prediction(predicted) is None:
        raise ArmillaryError("the target run has no prediction yet; run `armillary predict` first")
    key = lab.key([spec for group in specs.values() for spec in group])
    known = lab.stored("target", key, TargetOutcome)
    if known is not None:
        return known
    # The predicted run comes first, then the others seed by seed, so that an early stop leaves complete pairs.
    order = sorted(range(len(seeds)), key=lambda i: specs["found"][i].id != predicted)
    jobs = [Job(specs[name][i]) for i in order for name in mixtures]
    # If two mixtures coincide, their runs belong to the first.
    owners = {spec.id: name for name, group in reversed(specs.items()) for spec in group}
    trained = lab.train("target", jobs, owners)
    if not trained.results:
        raise ArmillaryError(
            f"target: none of its {counted(len(owners), 'run')} has a result; first cause: {trained.failed[0]}; "
            f"the same command "
            "retries runs with a transient cause"
        )
    outcome = _outcome(lab, mixtures, specs, trained)
    return lab.conclude("target", key, outcome.model_copy(update={"predicted": predicted}))


def restore_target(lab: Lab, outcome: TargetOutcome) -> list[FailedRun]:
    """Restore missing files of target runs, from the database if it has them, else by training again.

    The recorded results stay. Returns the runs whose files could not be restored.
    """
    gone = [run for run in outcome.study_runs["target"] if lab.store.missing_files(run)]
    for run in gone:
        lab.say(f"target: {lab.store.run_folder(run)}: the files of a finished run are missing; they are restored")
        lab.store.reopen(run)
    again = [run for run in gone if lab.store.missing_files(run)]
    specs = {run: lab.store.run_spec(run) for run in again}
    arms = {run: arm.name for arm in outcome.arms for run in arm.runs if run in specs}
    return lab.train("target", [Job(spec) for spec in specs.values()], arms).failed if specs else []


def _outcome(
    lab: Lab, mixtures: dict[str, dict[str, float]], specs: dict[str, list[RunSpec]], trained: Trained
) -> TargetOutcome:
    done = {
        name: [(spec.seed, trained.results[spec.id]) for spec in group if spec.id in trained.results]
        for name, group in specs.items()
    }
    losses = {name: [lab.target_loss(result) for _, result in pairs] for name, pairs in done.items()}
    arms = []
    for name, pairs in done.items():
        if not pairs:
            continue
        mean, low, high = _mean(losses[name], list(losses.values()))
        arms.append(
            Arm(
                name=name,
                weights=mixtures[name],
                seeds=[seed for seed, _ in pairs],
                runs=[result.run for _, result in pairs],
                target=losses[name],
                mean=mean,
                low=low,
                high=high,
                loss=[result.loss for _, result in pairs],
                bits_per_byte=[result.bits_per_byte for _, result in pairs],
                epochs=pairs[0][1].epochs,
                phases=phases(specs[name][0]),
            )
        )
    outcome = TargetOutcome(arms=arms, differences=[], failed=trained.failed)
    found = outcome.arm("found")
    others = [arm for arm in arms if arm.name != "found"]
    differences = [_difference(found, arm) for arm in others] if found is not None else []
    return outcome.model_copy(update={"differences": [difference for difference in differences if difference]})


def _mean(own: Sequence[float], every: Sequence[Sequence[float]]) -> tuple[float, float | None, float | None]:
    """Mean of an arm with Student's t interval over its seeds.

    An arm with one run takes the spread between seeds from the other arms, whose runs have the same size.
    """
    groups = [own] if len(own) > 1 else [group for group in every if len(group) > 1]
    freedom = sum(len(group) - 1 for group in groups)
    mean = float(np.mean(own))
    if not freedom:
        return mean, None, None
    squares = sum(float(((np.array(group) - np.mean(group)) ** 2).sum()) for group in groups)
    half = float(stats.t.isf((1 - INTERVAL) / 2, freedom)) * math.sqrt(squares / freedom / len(own))
    return mean, mean - half, mean + half


def _difference(found: Arm, other: Arm) -> Difference | None:
    """The difference over the common seeds of both arms; None for fewer than two."""
    pairs = [
        (found.target[found.seeds.index(s)], other.target[i]) for i, s in enumerate(other.seeds) if s in found.seeds
    ]
    if len(pairs) < 2:
        return None
    value = paired_difference([a for a, _ in pairs], [b for _, b in pairs], INTERVAL)
    return Difference(reference=other.name, mean=float(value.mean), low=float(value.low), high=float(value.high))


def judge(lab: Lab, found: Found) -> dict[str, Any]:
    """The verdict on the target run's prediction; a final verdict is appended to the record.

    ``status`` is ``judged``, ``diverged`` or ``pending``. ``rows`` holds for every domain and for the
    target ``predicted``, ``low``, ``high``, ``measured`` and ``inside``. A diverged run is outside in every row,
    without a measurement. A pending verdict has no rows and the reason under ``reason``; it is not recorded. If the
    target loss was not predicted before the run, its row is missing; ``unpredicted`` holds the ``measured`` loss and
    the ``reason``.

    Raises:
        ArmillaryError: there is no prediction.
    """
    spec = predicted_spec(lab, found)
    prediction = recorded(lab, spec.id)
    if prediction is None:
        raise ArmillaryError(f"run {spec.id} has no prediction, so there is nothing to judge; run `armillary predict`")
    asked = _question(spec.id, prediction["target_weights"]) if _is_second(lab, spec.id, prediction) else spec.id
    known = None if prediction["target"] is None else lab.store.verdict(asked)
    if known is not None:
        return {"status": "judged", **known}
    verdict = _verdict(lab, spec.id, prediction)
    if verdict["status"] == "pending" or prediction["target"] is None:
        return verdict
    lab.store.record_verdict(asked, verdict)
    known = lab.store.verdict(asked)
    assert known is not None
    return known


def _is_second(lab: Lab, run: str, prediction: dict[str, Any]) -> bool:
    """Whether the prediction differs in its question from the first one recorded for ``run``."""
    first = lab.store.prediction(run)
    return first is not None and prediction["target"] is not None and first["sha256"] != prediction["sha256"]


def _verdict(lab: Lab, run: str, prediction: dict[str, Any]) -> dict[str, Any]:
    predicted = dict(prediction["domains"])
    if prediction["target"] is not None:
        predicted["target"] = prediction["target"]
    result = lab.store.result(run)
    if result is not None:
        measured = {**result.loss, "target": lab.target_loss(result)}
        rows = [
            {
                "domain": domain,
                **values,
                "measured": measured[domain],
                "inside": values["low"] <= measured[domain] <= values["high"],
            }
            for domain, values in predicted.items()
        ]
        verdict = {"run": run, "status": "judged", "rows": rows, "inside": sum(row["inside"] for row in rows)}
        if prediction["target"] is None:
            verdict["unpredicted"] = {"measured": measured["target"], "reason": prediction["unpredicted"]}
        return verdict
    state = lab.store.state(run)
    status, cause = (state.status, state.error) if state is not None else ("pending", None)
    if status == "diverged":
        rows = [{"domain": domain, **values, "measured": None, "inside": False} for domain, values in predicted.items()]
        return {"run": run, "status": status, "reason": cause, "rows": rows, "inside": 0}
    why = f"{status} ({cause})" if cause else "has no result yet"
    reason = f"pending: run {run} {why}; run `armillary train` again"
    return {"run": run, "status": "pending", "reason": reason, "rows": [], "inside": 0}
