"""Score-weighted average: a model's weight is its gain over the base's score; a model without a gain gets none.

``weights`` are the models' scores (higher is better) and ``base_score`` is the base's. With a base score of 0, the
weights are the scores themselves, which are seldom far enough apart to differ from equal weights.
"""

from __future__ import annotations

from armillary.post.merge.methods.linear import combine
from armillary.post.merge.registry import MergeOptions, Method, given_weights, register, shares
from armillary.recipe import UsageError


def score_weights(options: MergeOptions, count: int) -> tuple[float, ...]:
    """Each model's share of the gains over the base.

    Raises:
        UsageError: no scores, or no model better than the base.
    """
    if not options.weights:
        raise UsageError("the method 'weighted' needs the models' scores as weights, in the order of the models")
    gains = [max(0.0, score - options.base_score) for score in given_weights(options, count, None)]
    if not any(gains):
        raise UsageError(
            f"no model scores above the base's {options.base_score:g}: do not merge; keep the base, or give "
            "scores for which higher is better"
        )
    return shares(gains)


register("weighted", Method(combine, score_weights, uses=("base_score",)))
