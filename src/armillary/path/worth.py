"""The value of a better mixture in compute, and the size of the target run from which the studies pay off."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray

from armillary import report
from armillary.laws import ExtrapolationError, ExtrapolationWarning, ScalingLaw
from armillary.path.evidence import Evidence
from armillary.recipe import RunSpec

# The value of a difference is extrapolated at most this far beyond the target's own parameters and tokens.
_BEYOND = 2.0


def multiplier(evidence: Evidence, law: ScalingLaw | None, row: report.DifferenceRow) -> report.Multiplier:
    """The value of a difference in compute, by ``law``, that of the target's family (None without a fit)."""
    nothing = report.Multiplier(row.reference, None, None, None)
    prediction, ladder = evidence.prediction, evidence.ladder
    arm = evidence.target.arm("found") if evidence.target is not None else None
    if law is None or prediction is None or ladder is None or arm is None or row.mean is None:
        return nothing
    assert row.low is not None and row.high is not None
    spec = RunSpec.model_validate(prediction["spec"])
    own = np.array([spec.model.parameters, spec.tokens], float)
    smallest = ladder.sizes(evidence.recipe.model.family).min(axis=0)
    least = float((smallest / own).max())
    scales = np.geomspace(min(least, 1.0), _BEYOND, 200)
    try:
        found = target_losses(law, own * np.append(scales, 1.0)[:, None])[:, 0]
    except ExtrapolationError:
        return nothing
    losses, here = found[:-1], found[-1]

    def worth(difference: float) -> float:
        """Compute multiplier at which the law reaches the reference's loss; infinite or 0 beyond the sizes."""
        wanted = here * (arm.mean - difference) / arm.mean
        if wanted > losses.max():
            return float("inf")
        if wanted < losses.min():
            return 0.0
        # the law decreases along the path, so its inverse is a function
        return float(np.interp(-wanted, -losses, scales**-2))

    value = worth(row.mean)
    if not 0 < value < float("inf") or not (np.diff(losses) < 0).all():
        return nothing
    return report.Multiplier(row.reference, value, worth(row.high), worth(row.low))


def break_even(
    evidence: Evidence,
    cost: list[report.CostRow],
    differences: list[report.DifferenceRow],
    multipliers: list[report.Multiplier],
) -> report.BreakEven | None:
    """The size of the target run from which the studies pay off, compared with the natural mixture."""
    natural = next((row for row in differences if row.reference == "natural" and row.high is not None), None)
    if natural is None or natural.high is None or evidence.prediction is None:
        return None
    studies = sum(row.flops for row in cost if row.stage in ("mixture", "anneal", "lr", "ladder"))
    run = RunSpec.model_validate(evidence.prediction["spec"]).flops
    worth = next(row for row in multipliers if row.reference == "natural")
    if worth.value is None or worth.low is None or worth.high is None:
        return report.BreakEven("natural", studies, run, None, None, None, None)
    if natural.high >= 0:
        return report.BreakEven("natural", studies, run, worth.value, None, None, None)
    return report.BreakEven(
        "natural",
        studies,
        run,
        worth.value,
        *(_pays_from(studies, m) for m in (worth.value, worth.high, worth.low)),
    )


def target_losses(law: ScalingLaw, sizes: ArrayLike) -> NDArray[np.float64]:
    """Mean, low and high of the target loss, the last column of the law, at parameters and tokens [m, 2]: [m, 3].

    Raises:
        ExtrapolationError: the law does not determine the target loss at one of them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)  # the recorded prediction has the warning
        found = np.stack([part[:, -1] for part in law.predict_known(sizes)], axis=1)
    if not np.isfinite(found).all():
        raise ExtrapolationError("the law leaves the target loss open by more than a factor of 2 at this size")
    return found


def _pays_from(studies: float, multiplier: float) -> float | None:
    """FLOPs of the target run at which a saving of ``multiplier - 1`` times its compute covers the studies."""
    return studies / (multiplier - 1) if multiplier > 1 else None
